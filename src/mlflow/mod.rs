//! MLflow's vocabulary: runs, keys, paths, models and the filter language, with their rules.
//!
//! The rules are those of MLflow's `utils/validation.py` and of the columns of its tables. Every MLflow store takes a
//! value that this module has checked; a value that breaks a rule is an [`invalid::Invalid`].

pub(crate) mod artifact_path;
pub(crate) mod invalid;
pub(crate) mod key;
pub(crate) mod limits;
pub(crate) mod model;
pub(crate) mod model_uri;
pub(crate) mod rewind;
pub(crate) mod run;
pub(crate) mod search;
