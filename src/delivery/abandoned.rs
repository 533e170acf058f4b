//! Journals of dead processes that this one delivers.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::journal::abandoned::{self, Abandoned};

/// The journals of dead processes that are locked by this one, shared by the workers of one tracker.
#[derive(Debug)]
pub(crate) struct Adoption {
    heimdall_dir: PathBuf,
    /// URIs of the destinations that are delivered to here.
    destinations: Vec<String>,
    held: Mutex<Vec<Arc<Abandoned>>>,
}

impl Adoption {
    pub fn new(heimdall_dir: PathBuf, destinations: Vec<String>) -> Self {
        Self {
            heimdall_dir,
            destinations,
            held: Mutex::default(),
        }
    }

    /// All that there are now for destinations of ours. Waits on the disk.
    pub fn find(&self) -> Vec<Arc<Abandoned>> {
        let mut held = self.held();
        let ours = &self.destinations;
        let found = abandoned::abandoned(&self.heimdall_dir, |manifest| {
            manifest.destinations.iter().any(|uri| ours.contains(uri))
        });
        held.extend(found.into_iter().map(Arc::new));
        held.clone()
    }

    /// Lets go of a journal that all of our destinations have; removes it when those of others have it as well.
    pub fn settle(&self, journal: &Arc<Abandoned>) {
        let mut held = self.held();
        let uris = journal.manifest.destinations.iter().enumerate();
        let ours_done = uris
            .filter(|(_, uri)| self.destinations.contains(uri))
            .all(|(place, _)| journal.reader(place).is_done(journal.end));
        if !ours_done {
            return;
        }
        // Before the lock is gone, so that nobody finds half of it.
        if journal.is_done() {
            journal.remove();
        }
        held.retain(|it| it.dir != journal.dir);
    }

    /// Lets go of a journal that cannot be delivered yet, so that it is looked for again.
    pub fn let_go(&self, journal: &Arc<Abandoned>) {
        self.held().retain(|it| it.dir != journal.dir);
    }

    fn held(&self) -> MutexGuard<'_, Vec<Arc<Abandoned>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
