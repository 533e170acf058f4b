//! The operations that a user knows. They check their arguments and write to the journal; queries wait for an answer.

pub(crate) mod active;
pub(crate) mod artifacts;
pub(crate) mod call;
pub(crate) mod downloads;
pub(crate) mod lock;
pub(crate) mod logging;
pub(crate) mod model_source;
pub(crate) mod notes;
pub(crate) mod observation;
pub(crate) mod observers;
pub(crate) mod open;
pub(crate) mod queries;
pub(crate) mod recorder;
pub(crate) mod registry;
pub(crate) mod rewind;
pub(crate) mod runs;
pub(crate) mod stores;
pub(crate) mod unrecorded;
