//! Where runs are recorded: the seam between the tracker and an MLflow database or server.
//!
//! A store takes records in batches, all of a batch or nothing of it, and takes the same batch twice without
//! a trace: that is what makes delivery exactly-once although the worker may send again what had arrived.

pub mod deferred;
pub mod error;
pub mod open;
pub mod registry;
pub mod rest;
pub mod sql;
pub mod tracking;
