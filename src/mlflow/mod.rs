//! MLflow's vocabulary: runs, keys, paths, models, the filter language, and the rules that each of them obeys.
//!
//! The rules are those of MLflow's `utils/validation.py` and of the columns of its tables. A value that has passed
//! through here is one that every MLflow store takes; a value that breaks a rule is an [`invalid::Invalid`].

pub mod artifact_path;
pub mod invalid;
pub mod key;
pub mod limits;
pub mod model;
pub mod model_uri;
pub mod run;
pub mod search;
