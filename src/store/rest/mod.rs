//! A tracking server, spoken to by MLflow's REST API.
//!
//! The ids of runs are the server's. A run that could be created at once has the server's id from the start;
//! one that could not has an id of ours, under which it is journaled and, by a tag, found again: so that a
//! creation whose answer was lost is not repeated.

pub mod artifacts;
pub mod batch;
pub mod client;
pub mod gc;
pub mod multipart;
pub mod registry;
pub mod signed_address;
pub mod store;
pub mod tracking;
pub mod wire;
