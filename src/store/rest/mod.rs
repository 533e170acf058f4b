//! A tracking server, reached by MLflow's REST API.
//!
//! The server chooses the ids of runs. A run that could be created at once has the server's id from the start. A run
//! that could not has an id of ours: the journal names the run by this id, and a tag with this id finds the run at the
//! server. So a run is not created twice where the answer to its creation was lost.

pub(crate) mod artifacts;
pub(crate) mod batch;
pub(crate) mod client;
pub(crate) mod gc;
pub(crate) mod multipart;
pub(crate) mod pages;
pub(crate) mod presigned_url;
pub(crate) mod registry;
pub(crate) mod store;
pub(crate) mod wire;
mod writes;
