//! Delivery: what is journaled arrives at its destination, in order, whatever has to be waited out.
//!
//! One worker per tracker reads the journal and writes to the store. It tries again for as long as it takes
//! where the destination is at fault, parks a record as a [`dead_letter`] where the record is, and moves its
//! position only behind what has been committed.

pub mod background;
pub mod dead_letter;
pub mod notices;
pub mod retry;
mod worker;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, watch};

use crate::{
    error::{Error, Result},
    journal::{Appended, Journal},
    record::Record,
    store::TrackingStore,
};
use background::{Background, KeepWaiting};
use notices::Notices;
use worker::Worker;

const PATIENCE: Duration = Duration::from_millis(50);

/// Deliveries of this process that have not ended, so that its exit can wait for them.
static LIVE: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());

/// What the worker and its callers both see.
#[derive(Debug)]
struct Shared {
    wake: Notify,
    urgent: AtomicBool,
    closing: AtomicBool,
    deadline: watch::Sender<bool>,
    state: Mutex<State>,
    changed: Condvar,
    notices: Arc<Notices>,
    journal_dir: PathBuf,
}

#[derive(Clone, Debug)]
struct State {
    /// Entries of this journal that are delivered or parked.
    delivered: u64,
    parked: u64,
    recovering: bool,
    ended: bool,
    last_error: Option<String>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// True when somebody waits, so that gathering a burst would only cost them time.
    fn is_urgent(&self) -> bool {
        self.urgent.swap(false, Ordering::AcqRel) || self.is_closing()
    }

    /// Waits for `pause`; true as soon as there is no time left to deliver in.
    async fn wait_to_close(&self, pause: Duration) -> bool {
        let mut deadline = self.deadline.subscribe();
        tokio::time::timeout(pause, deadline.wait_for(|over| *over))
            .await
            .is_ok()
    }

    fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Waits until `done`; false when `until` has passed.
    fn wait_for(
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
}

/// How delivery stands.
#[derive(Clone, Debug)]
pub struct Status {
    /// Records that wait in the journal.
    pub pending: u64,
    /// Records that were refused for good and parked as dead letters.
    pub parked: u64,
    /// What the destination answers, while it takes nothing.
    pub last_error: Option<String>,
    /// Folder of the journal.
    pub journal: PathBuf,
}

/// A journal and the worker that empties it.
#[derive(Debug)]
pub struct Delivery {
    journal: Arc<Journal>,
    shared: Arc<Shared>,
    pid: u32,
}

impl Delivery {
    /// Begins a journal for `destination` and starts its worker on `background`, which the worker keeps
    /// alive until it ends.
    ///
    /// # Errors
    /// Those of [`Journal::create`].
    pub fn start(
        heimdall_dir: &Path,
        destination: String,
        store: Arc<dyn TrackingStore>,
        background: &Arc<Background>,
        notices: Arc<Notices>,
    ) -> Result<Self> {
        let journal = Arc::new(Journal::create(heimdall_dir, &destination)?);
        let shared = Arc::new(Shared {
            wake: Notify::new(),
            urgent: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            deadline: watch::Sender::new(false),
            state: Mutex::new(State {
                delivered: 0,
                parked: 0,
                recovering: true,
                ended: false,
                last_error: None,
            }),
            changed: Condvar::new(),
            notices,
            journal_dir: journal.dir().to_owned(),
        });
        let worker = Worker {
            heimdall_dir: heimdall_dir.to_owned(),
            destination,
            store,
            journal: Arc::clone(&journal),
            shared: Arc::clone(&shared),
            artifacts: HashMap::new(),
        };
        let mut live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(|delivery| delivery.strong_count() > 0);
        live.push(Arc::downgrade(&shared));
        drop(live);
        let kept = Arc::clone(background);
        background.spawn(async move {
            worker.run().await;
            drop(kept);
        });
        Ok(Self {
            journal,
            shared,
            pid: std::process::id(),
        })
    }

    /// Its journal.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Accepts a record: it is in the journal when this returns, and will be delivered.
    ///
    /// # Errors
    /// Those of [`Journal::append`].
    pub fn accept(&self, record: Record) -> Result<()> {
        self.accepted(self.journal.append(record)?);
        Ok(())
    }

    /// Accepts records that belong together: all of them or, on an error, none.
    ///
    /// # Errors
    /// Those of [`Journal::append_all`].
    pub fn accept_all(&self, records: Vec<Record>) -> Result<()> {
        self.accepted(self.journal.append_all(records)?);
        Ok(())
    }

    fn accepted(&self, appended: Appended) {
        if let Appended::InMemory(error) = appended {
            self.shared.notices.tell(format!(
                "tracking is degraded, training is not: the journal in {} cannot be written ({error}). \
                 Records are kept in memory until it can; they are lost if this process dies before",
                self.journal.dir().display()
            ));
        }
        self.shared.wake.notify_one();
    }

    /// Waits until everything accepted so far, and everything dead processes had left, is delivered.
    ///
    /// # Errors
    /// [`Error::Undelivered`] after `timeout`, [`Error::Interrupted`] when `keep_waiting` says so.
    pub fn flush(&self, timeout: Option<Duration>, keep_waiting: KeepWaiting<'_>) -> Result<()> {
        let target = self.journal.end().appended;
        let begun = Instant::now();
        self.shared.urgent.store(true, Ordering::Release);
        self.shared.wake.notify_one();
        // A time beyond what the clock can count is no limit.
        let until = timeout.and_then(|timeout| begun.checked_add(timeout));
        let delivered =
            |state: &State| state.ended || (state.delivered >= target && !state.recovering);
        self.shared.wait_for(until, keep_waiting, delivered)?;
        let state = self.shared.state().clone();
        if state.delivered >= target && !state.recovering {
            return Ok(());
        }
        Err(Error::Undelivered {
            pending: target.saturating_sub(state.delivered),
            waited_s: begun.elapsed().as_secs_f64(),
            reason: state
                .last_error
                .unwrap_or_else(|| "the store has not answered".into()),
            journal: self.journal.dir().to_owned(),
        })
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        let state = self.shared.state().clone();
        Status {
            pending: self.journal.end().appended.saturating_sub(state.delivered),
            parked: state.parked,
            last_error: state.last_error,
            journal: self.journal.dir().to_owned(),
        }
    }
}

impl Drop for Delivery {
    /// Lets the worker finish alone. A fork has no worker, only a copy of its state.
    fn drop(&mut self) {
        if self.pid == std::process::id() {
            self.shared.close();
        }
    }
}

/// Forgets, in a fork, the deliveries of its parent: they are the parent's.
pub(crate) fn forget_parent() {
    if let Ok(mut live) = LIVE.try_lock() {
        std::mem::forget(std::mem::take(&mut *live));
    }
}

/// Waits, at the end of the process, for all deliveries of it; what is not delivered in time stays in its
/// journal for the next start. Returns what to tell the user.
pub fn finish(timeout: Duration, keep_waiting: KeepWaiting<'_>) -> Vec<String> {
    let live = std::mem::take(&mut *LIVE.lock().unwrap_or_else(PoisonError::into_inner));
    let live: Vec<Arc<Shared>> = live.iter().filter_map(Weak::upgrade).collect();
    let until = Instant::now().checked_add(timeout);
    for delivery in &live {
        delivery.close();
    }
    let mut told = Vec::new();
    for delivery in &live {
        if !matches!(
            delivery.wait_for(until, keep_waiting, |state| state.ended),
            Ok(true)
        ) {
            told.push(format!(
                "not everything is delivered; the rest stays in {} and goes out with the next start",
                delivery.journal_dir.display()
            ));
        }
        delivery.deadline.send_replace(true);
        told.extend(delivery.notices.take());
    }
    told
}
