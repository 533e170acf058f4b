//! Artifacts in an object store: S3 and compatible stores, Google Cloud Storage, Azure Blob Storage.

pub(crate) mod adapting;
pub(crate) mod azure;
pub(crate) mod clients;
pub(crate) mod connector;
pub(crate) mod credentials;
pub(crate) mod failure;
pub(crate) mod gcs;
pub(crate) mod multipart;
pub(crate) mod s3;
pub(crate) mod store;
pub(crate) mod unfinished;
pub(crate) mod upload_list;
pub(crate) mod upload_note;
