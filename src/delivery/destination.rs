//! The state of one destination, which its worker and the callers share.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

use crate::{
    error::Error,
    mlflow::{artifact_path::ArtifactPath, run::RunId},
    os::clock::now_ms,
};

/// Kind of delivery: records and artifacts go to different places, which fail independently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    Records,
    Artifacts,
}

impl Traffic {
    /// Returns the word for it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Records => "records",
            Self::Artifacts => "artifacts",
        }
    }
}

/// State of one destination. The worker changes it, callers read it and wait for it.
#[derive(Debug)]
pub(crate) struct DestinationState {
    /// URI without credentials.
    pub uri: String,
    state: Mutex<State>,
    changed: Notify,
}

/// The parts of a destination's state that change.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    /// Entries of this journal that are delivered or parked.
    pub delivered: u64,
    /// Entries of this journal that are delivered, parked or, for artifacts alone, in transit.
    pub written: u64,
    /// Entries that were parked as dead letters.
    pub parked: u64,
    /// Artifacts among the parked entries, by their numbers.
    pub refused: BTreeMap<u64, Refused>,
    /// Number of the last search for journals of dead processes that was fulfilled.
    pub adopted: u64,
    /// True once the worker has ended.
    pub ended: bool,
    outages: [Outage; 2],
    /// Length of each file that is being sent, and its bytes that are sent.
    pub uploads: Vec<(u64, Arc<AtomicU64>)>,
    /// Time at which the oldest waiting record was logged, milliseconds since 1970.
    pub oldest: Option<i64>,
}

/// An artifact that its store has finally refused.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    pub run: RunId,
    pub path: ArtifactPath,
    /// Answer of the store.
    pub reason: String,
    /// True where a later file has arrived at the same path.
    pub is_replaced: bool,
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Self::Refused {
            what: format!("artifact {}", refused.path.as_str()),
            reason: refused.reason,
        }
    }
}

/// A time in which a destination, or its artifact store, accepts nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outage {
    /// The last error.
    pub error: Option<String>,
    /// Time of the first error, milliseconds since 1970.
    pub since: Option<i64>,
    /// True once the user has been told.
    told: bool,
}

impl State {
    pub(crate) fn outage(&self, traffic: Traffic) -> &Outage {
        &self.outages[traffic as usize]
    }

    fn outage_mut(&mut self, traffic: Traffic) -> &mut Outage {
        &mut self.outages[traffic as usize]
    }

    /// Returns the last error of an ongoing outage.
    pub(crate) fn last_error(&self) -> Option<String> {
        self.outages.iter().find_map(|outage| outage.error.clone())
    }

    /// Returns the bytes of the files that are being sent, and how many of these bytes are sent.
    pub(crate) fn upload_bytes(&self) -> (u64, u64) {
        let sent = |(size, sent): &(u64, Arc<AtomicU64>)| sent.load(Ordering::Relaxed).min(*size);
        let all = self.uploads.iter().map(|(size, _)| size).sum();
        (all, self.uploads.iter().map(sent).sum())
    }

    /// Returns the beginning of the oldest ongoing outage, in milliseconds since 1970.
    pub(crate) fn since(&self) -> Option<i64> {
        self.outages.iter().filter_map(|outage| outage.since).min()
    }
}

impl DestinationState {
    pub(crate) fn new(uri: String) -> Self {
        Self {
            uri,
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes every caller that waits for a change.
    pub(crate) fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_waiters();
    }

    /// Waits until `done` returns true for the state.
    pub(crate) async fn wait_until(&self, done: impl Fn(&State) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if done(&self.state()) {
                return;
            }
            changed.await;
        }
    }

    /// Notes that the user has been told of the outage. Returns true the first time in an outage.
    pub(crate) fn tell_outage(&self, traffic: Traffic) -> bool {
        !std::mem::replace(&mut self.state().outage_mut(traffic).told, true)
    }

    /// Notes an error; the first error begins the outage.
    pub(crate) fn note_outage(&self, traffic: Traffic, error: String) {
        let begun = self.state().outage(traffic).since.is_none();
        if begun {
            tracing::info!(
                name: "outage_begun",
                target: "heimdall_tracking.delivery",
                destination = self.uri,
                traffic = traffic.as_str(),
                error,
            );
        }
        self.update(|state| {
            let outage = state.outage_mut(traffic);
            outage.error = Some(error);
            outage.since.get_or_insert_with(now_ms);
        });
    }

    /// Ends an outage. Returns true where the user had been told of it.
    pub(crate) fn end_outage(&self, traffic: Traffic) -> bool {
        let before = std::mem::take(self.state().outage_mut(traffic));
        if before.since.is_some() {
            tracing::info!(
                name: "outage_ended",
                target: "heimdall_tracking.delivery",
                destination = self.uri,
                traffic = traffic.as_str(),
            );
            self.changed.notify_waiters();
        }
        before.told
    }

    /// Returns the status; `oldest` finds the time of the oldest waiting record where the worker has none at hand.
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
        let (uploading, uploaded) = state.upload_bytes();
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

/// Marks a destination as ended when this is dropped, for whatever reason its worker ends: waiting callers must not
/// wait any longer.
#[derive(Debug)]
pub(crate) struct EndGuard(pub Arc<DestinationState>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.update(|state| state.ended = true);
    }
}

/// Status of one destination.
#[derive(Clone, Debug)]
pub struct DestinationStatus {
    /// URI without credentials.
    pub uri: String,
    /// Records that wait in the journal.
    pub pending: u64,
    /// Records that were finally refused and parked as dead letters.
    pub parked: u64,
    /// Last error, while the destination accepts nothing.
    pub last_error: Option<String>,
    /// Beginning of the outage, milliseconds since 1970.
    pub since: Option<i64>,
    /// Bytes of the files that are being sent.
    pub uploading: u64,
    /// Bytes of these files that are sent.
    pub uploaded: u64,
    /// Time at which the oldest waiting record was logged, milliseconds since 1970.
    pub oldest: Option<i64>,
}
