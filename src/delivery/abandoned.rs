//! Journals of dead processes that this process delivers.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::journal::abandoned::{self, Abandoned};

/// The journals of dead processes that this process has locked, shared by the workers of one tracker.
#[derive(Debug)]
pub(crate) struct AbandonedJournals {
    heimdall_dir: PathBuf,
    /// URIs of the destinations that this tracker delivers to.
    destinations: Vec<String>,
    held: Mutex<Vec<Arc<Abandoned>>>,
    /// Number of the last request to search for journals.
    requests: AtomicU64,
}

impl AbandonedJournals {
    pub(crate) fn new(heimdall_dir: PathBuf, destinations: Vec<String>) -> Self {
        Self {
            heimdall_dir,
            destinations,
            held: Mutex::default(),
            // The start of the tracker counts as a request.
            requests: AtomicU64::new(1),
        }
    }

    /// Requests a search. Returns the number of the request.
    pub(crate) fn request(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Returns the number of the last request.
    pub(crate) fn requested(&self) -> u64 {
        self.requests.load(Ordering::Acquire)
    }

    /// Finds all journals that exist now for the destinations of this tracker. Waits on the disk.
    pub(crate) fn find(&self) -> Vec<Arc<Abandoned>> {
        let mut held = self.held();
        let ours = &self.destinations;
        let found = abandoned::abandoned(&self.heimdall_dir, |manifest| {
            manifest.destinations.iter().any(|uri| ours.contains(uri))
        });
        held.extend(found.into_iter().map(Arc::new));
        held.clone()
    }

    /// Releases a journal that is delivered to all destinations of this tracker; removes it when it is delivered to all
    /// other destinations as well.
    pub(crate) fn release_delivered(&self, journal: &Arc<Abandoned>) {
        let mut held = self.held();
        let uris = journal.manifest.destinations.iter().enumerate();
        let ours_done = uris
            .filter(|(_, uri)| self.destinations.contains(uri))
            .all(|(place, _)| journal.reader(place).is_done(journal.end));
        if !ours_done {
            return;
        }
        // The journal is removed before the lock is released, so that nobody finds half of it.
        if journal.is_done() {
            journal.remove();
        }
        held.retain(|it| it.dir != journal.dir);
    }

    /// Releases a journal that cannot be delivered yet, so that a later search finds it again.
    pub(crate) fn release(&self, journal: &Arc<Abandoned>) {
        self.held().retain(|it| it.dir != journal.dir);
    }

    fn held(&self) -> MutexGuard<'_, Vec<Arc<Abandoned>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
