//! Errors of the journal.

use std::{io, path::PathBuf};

/// A failure of the journal on local disk.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A file to upload cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Stage {
        /// The file to upload.
        path: PathBuf,
        /// Error of the file system.
        source: io::Error,
    },
    /// A part of the journal cannot be read or replaced.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Error of the file system.
        source: io::Error,
    },
    /// The tracker of the journal is closed.
    #[error("this tracker is closed: create a new one")]
    Sealed,
    /// The process is about to die from a signal: the call must not return.
    #[error("this process is about to end")]
    Frozen,
    /// The record itself cannot be kept.
    #[error("the record cannot be journaled: {0}")]
    Encode(String),
    /// The journal has reached its limit: wait for room and try again.
    #[error("the journal in {} has reached its limit", dir.display())]
    NoRoom {
        /// Folder of the journal.
        dir: PathBuf,
        /// The room that is needed.
        room: Room,
    },
}

/// Room that a frame or a file needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Room for a frame of this many bytes.
    Frame(usize),
    /// Room for the copy of a file of this many bytes.
    File(u64),
}
