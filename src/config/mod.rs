//! Configuration of a tracker: destinations, credentials, experiment and options.

pub(crate) mod credential_files;
pub(crate) mod options;
pub(crate) mod postgres_uri;
pub(crate) mod s3;
pub(crate) mod server;
pub(crate) mod tracker;
pub(crate) mod uri;
pub(crate) mod variables;
