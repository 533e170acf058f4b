//! Errors of the journal.

use std::{
    io::{self},
    path::PathBuf,
};

/// What can go wrong with the journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A file to upload cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Stage {
        /// The file to upload.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A part of the journal cannot be read or replaced.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its tracker is closed.
    #[error("this tracker is closed: create a new one")]
    Sealed,
    /// The process is about to die of a signal: the call must not return.
    #[error("this process is about to end")]
    Frozen,
    /// The record itself cannot be kept.
    #[error("the record cannot be journaled: {0}")]
    Encode(String),
    /// It is as large as it may get: wait for room and try again.
    #[error("the journal in {} is as large as it may get", dir.display())]
    NoRoom {
        /// The folder.
        dir: PathBuf,
        /// What there is no room for.
        room: Room,
    },
}

/// Room that something needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// For a frame of so many bytes.
    Frame(usize),
    /// For the copy of a file of so many bytes.
    File(u64),
}
