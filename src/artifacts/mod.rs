//! Where the files of a run go: the seam between the tracker and local disk, object stores and tracking servers.

pub mod buffers;
pub mod checksum;
pub mod download;
pub mod error;
pub mod local;
pub mod object;
pub mod open;
pub mod store;
