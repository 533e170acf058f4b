//! Journals of dead processes: the locks that this process holds on them, and their delivery.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    attempts::DeadlineReached, attempts::DeliveryError, dead_letter::DeadLetters, outbox::Outbox,
    rewound::Rewound, sender::Sender,
};
use crate::{
    journal::{
        abandoned::{self, AbandonedJournal},
        error::JournalError,
    },
    store::error::StoreError,
};

/// A reason for which the journal of a dead process is not delivered completely.
#[derive(Debug)]
pub(crate) enum NotDelivered {
    DeadlineReached,
    /// The journal belongs to a run that is not in the store yet.
    TooEarly,
    /// The files of the journal cannot be sent at present.
    Stalled,
    Journal(JournalError),
}

impl From<DeadlineReached> for NotDelivered {
    fn from(_: DeadlineReached) -> Self {
        Self::DeadlineReached
    }
}

/// The journals of dead processes that this process has locked, shared by the workers of one tracker.
#[derive(Debug)]
pub(crate) struct AdoptedJournals {
    heimdall_dir: PathBuf,
    /// URIs of the destinations that this tracker delivers to.
    destinations: Vec<String>,
    locked: Mutex<Vec<Arc<AbandonedJournal>>>,
    /// Number of the last adoption request.
    requests: AtomicU64,
}

impl AdoptedJournals {
    pub(crate) fn new(heimdall_dir: PathBuf, destinations: Vec<String>) -> Self {
        Self {
            heimdall_dir,
            destinations,
            locked: Mutex::default(),
            // The start of the tracker counts as a request.
            requests: AtomicU64::new(1),
        }
    }

    /// Counts an adoption request, and returns its number.
    pub(crate) fn request(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Returns the number of the last adoption request.
    pub(crate) fn last_request(&self) -> u64 {
        self.requests.load(Ordering::Acquire)
    }

    /// Locks the journals of dead processes that have a destination of this tracker. Returns all that this process has
    /// locked. Waits on the disk.
    pub(crate) fn lock_all(&self) -> Vec<Arc<AbandonedJournal>> {
        let mut locked = self.locked();
        let ours = &self.destinations;
        let found = abandoned::lock_all(&self.heimdall_dir, |manifest| {
            manifest.destinations.iter().any(|uri| ours.contains(uri))
        });
        locked.extend(found.into_iter().map(Arc::new));
        locked.clone()
    }

    /// Releases a journal that is delivered to all destinations of this tracker; removes it when it is delivered to all
    /// other destinations as well.
    pub(crate) fn release_delivered(&self, journal: &Arc<AbandonedJournal>) {
        let mut locked = self.locked();
        let uris = journal.manifest.destinations.iter().enumerate();
        let ours_done = uris
            .filter(|(_, uri)| self.destinations.contains(uri))
            .all(|(index, _)| journal.reader(index).is_done(journal.end));
        if !ours_done {
            return;
        }
        // The journal is removed before the lock is released, so that nobody finds half of it.
        if journal.is_done() {
            journal.remove();
        }
        locked.retain(|it| it.dir != journal.dir);
    }

    /// Releases a journal that cannot be delivered yet, so that a later search finds it again.
    pub(crate) fn release(&self, journal: &Arc<AbandonedJournal>) {
        self.locked().retain(|it| it.dir != journal.dir);
    }

    fn locked(&self) -> MutexGuard<'_, Vec<Arc<AbandonedJournal>>> {
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sender {
    /// Delivers the journal of a dead process and ends the runs that the process left open.
    pub(crate) async fn deliver_abandoned(
        &mut self,
        abandoned: &AbandonedJournal,
        destination: usize,
    ) -> Result<(), NotDelivered> {
        match self.deliver_and_end_runs(abandoned, destination).await {
            // There is time left, so the attempts at a file have reached their limit.
            Err(NotDelivered::DeadlineReached) if !self.attempts.is_over() => {
                Err(NotDelivered::Stalled)
            }
            delivered => delivered,
        }
    }

    /// Delivers the journal, and marks its open runs as FAILED at the time of their last record.
    async fn deliver_and_end_runs(
        &mut self,
        abandoned: &AbandonedJournal,
        destination: usize,
    ) -> Result<(), NotDelivered> {
        let reader = abandoned.reader(destination);
        if reader.is_done(abandoned.end) {
            return Ok(());
        }
        tracing::info!(
            name: "journal_adopted",
            target: "heimdall_tracking.delivery",
            destination = self.destination.uri,
            journal = %abandoned.dir.display(),
            pid = abandoned.manifest.pid,
        );
        let letters = DeadLetters::of(&self.heimdall_dir, &abandoned.dir, destination);
        let mut outbox = Outbox::abandoned(reader, letters, self.abandoned_retry_limit);
        let mut rewound = Rewound::new(abandoned.dir.clone(), destination);
        loop {
            let batch = outbox.journal.reader.read(abandoned.end);
            let mut batch = batch.map_err(NotDelivered::Journal)?;
            self.tell_damage(&batch.damage);
            if batch.entries.is_empty() {
                break;
            }
            // A run that another process has to start first may be in a later journal.
            if self.missing_run(&batch.entries).await?.is_some() {
                return Err(NotDelivered::TooEarly);
            }
            self.take_rewound_points(&mut rewound, &mut batch.entries)
                .await?;
            self.send(&mut outbox, batch.entries).await?;
        }
        self.wait_for_uploads(&mut outbox).await?;
        // Damage behind the last entry is skipped.
        let advanced = outbox.journal.reader.advance(&[]);
        if let Some(error) = outbox.take_error().or(advanced.err()) {
            return Err(NotDelivered::Journal(error));
        }
        for (run_id, last) in outbox.journal.reader.progress().open_runs.clone() {
            self.fail_run(&run_id, last).await?;
            self.notices.tell(format!(
                "run {run_id} was left open by process {}, which has died: what it had recorded is \
                 delivered, and the run is marked FAILED",
                abandoned.manifest.pid
            ));
        }
        outbox
            .journal
            .reader
            .runs_closed()
            .map_err(NotDelivered::Journal)
    }

    async fn fail_run(&self, run_id: &str, end_time: i64) -> Result<(), DeadlineReached> {
        let fail = || async {
            let store = self.store.tracking().await?;
            Ok(store.fail_run(run_id, end_time).await?)
        };
        match self.attempts.make(None, fail).await? {
            // A run that was deleted meanwhile needs no end.
            Ok(())
            | Err(DeliveryError::Store(
                StoreError::NotFound { .. } | StoreError::RunDeleted { .. },
            )) => {}
            Err(error) => {
                self.notices
                    .tell(format!("run {run_id} cannot be marked FAILED: {error}"));
            }
        }
        Ok(())
    }
}
