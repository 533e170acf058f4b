//! Artifacts in an object store: S3 and what speaks its language, Google Cloud Storage, Azure Blob Storage.

pub mod connector;
pub mod credentials;
pub mod failure;
pub mod multipart;
pub mod s3;
pub mod store;
pub mod unfinished;
