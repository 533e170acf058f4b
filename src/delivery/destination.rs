//! The state of one destination, which its worker and the callers share.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
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
    /// Returns the name of the kind.
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
    /// True once the user was told that the destination keeps points that a rewind should delete.
    told_kept_points: AtomicBool,
}

/// The parts of a destination's state that change.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    /// Number of the first entry of this journal that is not delivered: all earlier records are written or parked, and
    /// all earlier artifacts are uploaded or parked.
    pub delivered: u64,
    /// Records of this journal that are written or parked.
    pub written: Written,
    /// Entries that were parked as dead letters.
    pub parked: u64,
    /// Artifacts among the parked entries, by their numbers.
    pub refused: BTreeMap<u64, Refused>,
    /// Number of the last adoption request that was fulfilled.
    pub fulfilled_request: u64,
    /// True once the worker has ended.
    pub ended: bool,
    outages: [Outage; 2],
    /// Length of each file that is being sent, and its bytes that are sent.
    pub uploads: Vec<(u64, Arc<AtomicU64>)>,
    /// Time at which the oldest waiting record was logged, milliseconds since 1970.
    pub oldest: Option<i64>,
}

/// Records of this journal that are written or parked. Artifacts among them may still be uploading.
#[derive(Clone, Debug, Default)]
pub(crate) struct Written {
    /// Number of the first entry behind these records.
    pub before: u64,
    /// Ends of runs before that number that wait for uploads of these runs, in order.
    pub except: Vec<(u64, RunId)>,
}

impl Written {
    /// Returns the number of the first entry that is not written.
    pub(crate) fn all_before(&self) -> u64 {
        let first = self.except.first().map(|(number, _)| *number);
        first.unwrap_or(self.before).min(self.before)
    }

    /// Returns the number of the first entry that is not written, where the ends of other runs do not count.
    pub(crate) fn of_run_before(&self, run: RunId) -> u64 {
        let mut ends = self.except.iter();
        let first = ends.find(|(_, of)| *of == run).map(|(number, _)| *number);
        first.unwrap_or(self.before).min(self.before)
    }
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

impl Outage {
    /// Returns true in an outage that the user has been told of.
    fn is_told(&self) -> bool {
        self.told && self.error.is_some()
    }
}

impl State {
    pub(crate) fn outage(&self, traffic: Traffic) -> &Outage {
        &self.outages[traffic as usize]
    }

    fn outage_mut(&mut self, traffic: Traffic) -> &mut Outage {
        &mut self.outages[traffic as usize]
    }

    /// Returns true where the destination is away and the user was told so: for records or, with
    /// [`Traffic::Artifacts`], for either.
    pub(crate) fn is_away(&self, traffic: Traffic) -> bool {
        self.outage(Traffic::Records).is_told() || self.outage(traffic).is_told()
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
            told_kept_points: AtomicBool::new(false),
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
        let told_before = std::mem::replace(&mut self.state().outage_mut(traffic).told, true);
        self.changed.notify_waiters();
        !told_before
    }

    /// Notes that the user is told that the destination keeps points. Returns true the first time.
    pub(crate) fn tell_kept_points(&self) -> bool {
        !self.told_kept_points.swap(true, Ordering::AcqRel)
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

/// Marks the worker of a destination as ended when this is dropped, also after a panic: waiting callers must not wait
/// any longer.
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
