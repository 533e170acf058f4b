//! One journal on its way to one destination.

use std::{fs, time::Duration};

use super::{
    dead_letter::DeadLetters,
    destination::{DestinationState, Written},
    scheduler::Scheduler,
    transfer::{FinishedUpload, Transfers},
};
use crate::journal::{error::JournalError, reader::Reader, record::Record};

/// A journal that is being delivered to one destination, with the state of that delivery.
#[derive(Debug)]
pub(crate) struct Outbox {
    pub journal: OutboxJournal,
    pub scheduler: Scheduler,
    pub transfers: Transfers,
    /// Longest time that a failing upload is repeated; `None` sets no limit.
    pub retry_limit: Option<Duration>,
    /// Error of the last position that could not be saved.
    pub error: Option<JournalError>,
}

/// The journal of an outbox, and the file for the records that the destination refuses.
#[derive(Debug)]
pub(crate) struct OutboxJournal {
    pub reader: Reader,
    pub letters: DeadLetters,
    /// False for the journal of a dead process: callers do not wait for its entries.
    pub is_live: bool,
}

impl Outbox {
    /// Returns the outbox of this process' own journal.
    pub(crate) fn live(reader: Reader, letters: DeadLetters) -> Self {
        Self::new(reader, letters, true, None)
    }

    /// Returns the outbox of a dead process' journal.
    pub(crate) fn abandoned(
        reader: Reader,
        letters: DeadLetters,
        retry_limit: Option<Duration>,
    ) -> Self {
        Self::new(reader, letters, false, retry_limit)
    }

    fn new(
        reader: Reader,
        letters: DeadLetters,
        is_live: bool,
        retry_limit: Option<Duration>,
    ) -> Self {
        Self {
            journal: OutboxJournal {
                reader,
                letters,
                is_live,
            },
            scheduler: Scheduler::new(artifact_size),
            transfers: Transfers::default(),
            retry_limit,
            error: None,
        }
    }

    /// Returns true while uploads are outstanding.
    pub(crate) fn has_uploads(&self) -> bool {
        self.scheduler.has_outstanding_uploads()
    }

    /// Returns the progress of the records before `end`.
    pub(crate) fn written(&self, end: u64) -> Written {
        Written {
            before: self.scheduler.first_unhandled().unwrap_or(end).min(end),
            except: self.scheduler.waiting_ends(),
        }
    }

    /// Returns the error of the last position that could not be saved.
    pub(crate) fn take_error(&mut self) -> Option<JournalError> {
        self.error.take()
    }

    /// Waits until the next upload has finished. The wait can be cancelled at any time.
    pub(crate) async fn next_finished(
        &mut self,
        destination: &DestinationState,
    ) -> Option<FinishedUpload> {
        self.transfers.next(destination).await
    }
}

/// Returns the length of an artifact in bytes.
pub(crate) fn artifact_size(record: &Record) -> u64 {
    match record {
        Record::Artifact { size, .. } => *size,
        Record::ArtifactInline { content, .. } => content.len() as u64,
        Record::ArtifactInPlace { source, .. } => {
            fs::metadata(source).map_or(0, |metadata| metadata.len())
        }
        _ => 0,
    }
}
