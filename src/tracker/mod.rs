//! The operations a user knows. They check, and hand over to the journal; questions wait for an answer.

pub mod artifacts;
pub mod downloads;
pub mod logging;
pub mod model_source;
pub mod observers;
pub mod open;
pub mod queries;
pub mod registry;
pub mod runs;
pub mod session;
pub mod stores;
