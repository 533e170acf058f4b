//! What a tracker is told at construction: where to write, with which credentials, under which experiment.

pub mod options;
pub mod s3;
pub mod server;
pub mod tracker;
pub mod uri;
pub mod variables;
