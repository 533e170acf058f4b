//! Registered models and their versions in the same database.
//!
//! Every change of a model first locks the row of the model, by an update that changes nothing, so that changes of one
//! model run one after the other: a version number is given once, and a tag is not written twice. Stock MLflow updates
//! that row as well when it creates a version.

pub(crate) mod changes;
pub(crate) mod logged;
pub(crate) mod queries;
pub(crate) mod rows;
pub(crate) mod search;
pub(crate) mod verbs;
