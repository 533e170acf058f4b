//! One journal on its way to one destination.

use std::{fs, time::Duration};

use super::{
    dead_letter::DeadLetters,
    destination::DestinationState,
    transfer::{Finished, Transfers},
    uploads::Uploads,
};
use crate::journal::{error::JournalError, reader::Reader, record::Record};

/// One journal that is being delivered to the destination.
#[derive(Debug)]
pub(crate) struct Outbox {
    pub reader: Reader,
    pub letters: DeadLetters,
    pub uploads: Uploads,
    pub transfers: Transfers,
    /// False for the journal of a dead process: callers do not wait for its entries.
    pub is_live: bool,
    /// Longest time that a file is tried at a store that does not accept it.
    pub limit: Option<Duration>,
    /// Error of the last position that could not be saved.
    pub error: Option<JournalError>,
}

impl Outbox {
    /// Returns the outbox of this process' own journal.
    pub(crate) fn live(reader: Reader, letters: DeadLetters) -> Self {
        Self {
            reader,
            letters,
            uploads: Uploads::new(size),
            transfers: Transfers::default(),
            is_live: true,
            limit: None,
            error: None,
        }
    }

    /// Sets the dead letters, because the journal may have a new folder.
    pub(crate) fn set_letters(&mut self, letters: DeadLetters) {
        self.letters = letters;
    }

    /// Returns true while uploads are outstanding.
    pub(crate) fn has_uploads(&self) -> bool {
        self.uploads.are_outstanding()
    }

    /// Returns the number of entries before `end` that are written: all of them, or the entries before the first run
    /// end that waits for its uploads.
    pub(crate) fn written(&self, end: u64) -> u64 {
        self.uploads.first_unwritten().unwrap_or(end).min(end)
    }

    /// Returns the error of the last position that could not be saved.
    pub(crate) fn take_error(&mut self) -> Option<JournalError> {
        self.error.take()
    }

    /// Waits until the next upload has finished. The wait can be cancelled at any time.
    pub(crate) async fn next_finished(
        &mut self,
        destination: &DestinationState,
    ) -> Option<Finished> {
        self.transfers.next(destination).await
    }
}

/// Returns the length of an artifact in bytes.
pub(crate) fn size(record: &Record) -> u64 {
    match record {
        Record::Artifact { size, .. } => *size,
        Record::ArtifactInline { content, .. } => content.len() as u64,
        Record::ArtifactInPlace { source, .. } => {
            fs::metadata(source).map_or(0, |metadata| metadata.len())
        }
        _ => 0,
    }
}
