//! The operations that a user knows. They check their arguments and write to the journal; queries wait for an answer.

pub(crate) mod artifacts;
pub(crate) mod downloads;
pub(crate) mod logging;
pub(crate) mod model_source;
pub(crate) mod observers;
pub(crate) mod open;
pub(crate) mod queries;
pub(crate) mod registry;
pub(crate) mod runs;
pub(crate) mod session;
pub(crate) mod stores;
