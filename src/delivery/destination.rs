//! The state of one destination, which its worker and the callers share.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::runtime::KeepWaiting;
use crate::{
    error::{Error, Result},
    mlflow::{artifact_path::ArtifactPath, run::RunId},
};

const PATIENCE: Duration = Duration::from_millis(50);

/// What one destination's worker and the callers both see.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) uri: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    /// Entries of this journal that are delivered or parked.
    pub(crate) delivered: u64,
    /// Entries of it that are delivered, parked or, artifacts alone, on their way.
    pub(crate) written: u64,
    pub(crate) parked: u64,
    /// Artifacts among them, by their numbers.
    pub(crate) refused: BTreeMap<u64, Refused>,
    /// Number of the last request to look for journals of dead processes that was fulfilled.
    pub(crate) adopted: u64,
    pub(crate) ended: bool,
    /// What keeps records from it, and what keeps artifacts from their store.
    outages: [Outage; 2],
    /// Length of each file that is on its way, and how much of it is sent.
    pub(crate) uploads: Vec<(u64, Arc<AtomicU64>)>,
    /// When the first record was recorded that waits, in milliseconds since 1970.
    pub(crate) oldest: Option<i64>,
}

/// An artifact that its store has refused for good.
#[derive(Clone, Debug)]
pub struct Refused {
    pub(crate) run: RunId,
    pub(crate) path: ArtifactPath,
    /// What the store says.
    pub reason: String,
    /// Whether a later file has come to its place.
    pub(crate) is_replaced: bool,
}

impl Refused {
    /// Where it belongs, below the run's artifact URI.
    pub fn path(&self) -> &str {
        self.path.as_str()
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Self::Refused {
            what: format!("artifact {}", refused.path()),
            reason: refused.reason,
        }
    }
}

/// A destination, or its artifact store, takes nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outage {
    pub(crate) error: Option<String>,
    /// In milliseconds since 1970.
    pub(crate) since: Option<i64>,
    /// The user has been told.
    told: bool,
}

impl State {
    pub(crate) fn outage(&self, cargo: Cargo) -> &Outage {
        &self.outages[cargo as usize]
    }

    pub(crate) fn outage_mut(&mut self, cargo: Cargo) -> &mut Outage {
        &mut self.outages[cargo as usize]
    }

    pub(crate) fn last_error(&self) -> Option<String> {
        self.outages.iter().find_map(|outage| outage.error.clone())
    }

    /// Bytes of the files that are on their way, and those of them that are sent.
    pub(crate) fn uploads(&self) -> (u64, u64) {
        let sent = |(size, sent): &(u64, Arc<AtomicU64>)| sent.load(Ordering::Relaxed).min(*size);
        let all = self.uploads.iter().map(|(size, _)| size).sum();
        (all, self.uploads.iter().map(sent).sum())
    }

    pub(crate) fn since(&self) -> Option<i64> {
        self.outages.iter().filter_map(|outage| outage.since).min()
    }
}

impl Shared {
    pub(crate) fn new(uri: String) -> Self {
        Self {
            uri,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    /// True the first time in an outage.
    pub(crate) fn tell_outage(&self, cargo: Cargo) -> bool {
        !std::mem::replace(&mut self.state().outage_mut(cargo).told, true)
    }

    /// True when the user has been told of an outage, which is over.
    pub(crate) fn outage_over(&self, cargo: Cargo) -> bool {
        std::mem::take(&mut self.state().outage_mut(cargo).told)
    }

    /// Waits until `done`; false when `until` has passed.
    pub(crate) fn wait_for(
        &self,
        until: Option<Instant>,
        keep_waiting: KeepWaiting<'_>,
        done: impl Fn(&State) -> bool,
    ) -> Result<bool> {
        let mut state = self.state();
        while !done(&state) {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
            let patience = left.map_or(PATIENCE, |left| left.min(PATIENCE));
            state = self
                .changed
                .wait_timeout(state, patience)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            if !done(&state) {
                // The caller's own code may run in there; it must not find the state locked.
                drop(state);
                if !keep_waiting() {
                    return Err(Error::Interrupted);
                }
                state = self.state();
            }
        }
        Ok(true)
    }

    pub(crate) fn status(
        &self,
        appended: u64,
        oldest: impl FnOnce() -> Option<i64>,
    ) -> DestinationStatus {
        let state = self.state().clone();
        let pending = appended.saturating_sub(state.delivered);
        let oldest = match pending {
            0 => None,
            _ => state.oldest.or_else(oldest),
        };
        let (uploading, uploaded) = state.uploads();
        DestinationStatus {
            uri: self.uri.clone(),
            pending,
            parked: state.parked,
            last_error: state.last_error(),
            since: state.since(),
            uploading,
            uploaded,
            oldest,
        }
    }
}

/// How a destination stands.
#[derive(Clone, Debug)]
pub struct DestinationStatus {
    /// Its URI, without credentials.
    pub uri: String,
    /// Records that wait in the journal.
    pub pending: u64,
    /// Records that were refused for good and parked as dead letters.
    pub parked: u64,
    /// What it answers, while it takes nothing.
    pub last_error: Option<String>,
    /// Since when it takes nothing, in milliseconds since 1970.
    pub since: Option<i64>,
    /// Bytes of the files that are on their way.
    pub uploading: u64,
    /// Bytes of them that are sent.
    pub uploaded: u64,
    /// When the first record was recorded that waits, in milliseconds since 1970.
    pub oldest: Option<i64>,
}

/// How delivery stands.
#[derive(Clone, Debug)]
pub struct Status {
    /// The destinations, the primary one first.
    pub destinations: Vec<DestinationStatus>,
    /// Folder of the journal.
    pub journal: PathBuf,
    /// What the journal's disk answers, while it takes nothing.
    pub journal_error: Option<String>,
    /// Records that are in memory only.
    pub in_memory: u64,
    /// Nothing is tried: records wait for `heimdall sync`.
    pub is_offline: bool,
}

/// What is brought to a destination: the two can be down apart from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cargo {
    Records,
    Artifacts,
}
