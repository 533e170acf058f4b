//! Storage of a run's files: the interface between the tracker and local disk, object stores and tracking servers.

pub(crate) mod buffers;
pub(crate) mod checksum;
pub(crate) mod download;
pub(crate) mod error;
pub(crate) mod local;
pub(crate) mod object;
pub(crate) mod open;
pub(crate) mod parts;
#[cfg(feature = "python")]
pub(crate) mod probe;
pub(crate) mod store;
