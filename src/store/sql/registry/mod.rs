//! Registered models and their versions in the same database.
//!
//! Whatever changes a model first holds its row, by an update that changes nothing, so that of those who work on it
//! at once one comes after the other: numbers of versions are given once, and tags are not written twice. Stock
//! MLflow updates that row as well when it creates a version.

pub mod changes;
pub mod logged;
pub mod queries;
pub mod rows;
pub mod search;
pub mod verbs;
