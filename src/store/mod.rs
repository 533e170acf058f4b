//! Stores of runs: the interface between the tracker and an MLflow database or server.
//!
//! A store takes records in batches, a whole batch or nothing. A batch that is written a second time changes nothing,
//! so delivery is exactly-once although the worker may send a batch again that had arrived.

#[cfg(feature = "python")]
pub(crate) mod check;
pub(crate) mod deferred;
pub(crate) mod error;
pub(crate) mod open;
pub(crate) mod registry;
pub(crate) mod rest;
pub(crate) mod sql;
pub(crate) mod tracking;
