//! The active runs of a tracker, which outlive the tracker object.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::observers::Observers;
use crate::{
    delivery::{exit, handle::Delivery, runtime::KeepWaiting},
    error::{Error, Result},
    journal::{
        append::{Admission, Batch},
        record::Record,
    },
    mlflow::{
        key::Key,
        limits::{self, MAX_PARAM_VALUE_LENGTH, cut},
        run::{RunId, RunInfo, RunStatus},
    },
    os::clock::now_ms,
};

/// Sessions of this process, so that its exit can end their runs.
static SESSIONS: Mutex<Vec<Weak<Session>>> = Mutex::new(Vec::new());
/// Sessions whose trackers were dropped while a run was active: the run ends with the process.
static LEFT_OPEN: Mutex<Vec<Arc<Session>>> = Mutex::new(Vec::new());

/// The part of a tracker that lives for as long as a run is active.
#[derive(Debug)]
pub(crate) struct Session {
    /// The delivery; `None` on a rank that records nothing.
    pub delivery: Option<Delivery>,
    /// The active runs, the innermost last. The lock is never held while waiting for a store.
    pub active: Mutex<Vec<ActiveRun>>,
    /// Lock that is held while a run starts, which may wait for the store, so that two threads do not both start a run.
    pub starting: Mutex<()>,
    /// Runs that were started here, which therefore exist without a query to the store.
    pub started: Mutex<HashSet<RunId>>,
    /// True where the process is about to die from SIGTERM, and its runs have ended.
    pub is_terminated: AtomicBool,
}

/// An active run.
#[derive(Debug)]
pub(crate) struct ActiveRun {
    pub id: RunId,
    /// Params logged so far, to refuse a change before it is written.
    pub params: HashMap<Key, String>,
    /// The run as it was when it was resumed; `None` where it was not resumed.
    pub before: Option<Arc<RunInfo>>,
    /// True where this process ends the run. A fork, or another rank, leaves that to the process that has started the
    /// run.
    pub is_owned: bool,
    pub observers: Observers,
}

impl ActiveRun {
    /// Returns a run that this process has started or resumed.
    pub(crate) fn owned(id: RunId, observers: Observers) -> Self {
        Self {
            is_owned: true,
            observers,
            ..Self::attached_to(id)
        }
    }

    /// Returns a run that another process has started and will end.
    pub(crate) fn attached_to(id: RunId) -> Self {
        Self {
            id,
            params: HashMap::new(),
            before: None,
            is_owned: false,
            observers: Observers::default(),
        }
    }

    /// Returns this run in a process that has not started it.
    pub(crate) fn attached(&self) -> Self {
        Self {
            params: self.params.clone(),
            before: self.before.clone(),
            ..Self::attached_to(self.id)
        }
    }

    /// Returns the params that the run does not have yet.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a key that MLflow refuses, and for a param of this run that has another value.
    pub(crate) fn new_params(&self, params: Vec<(String, String)>) -> Result<Vec<(Key, String)>> {
        let mut new: Vec<(Key, String)> = Vec::with_capacity(params.len());
        let mut seen: HashMap<Key, usize> = HashMap::new();
        for (key, value) in params {
            let value = limits::text("param", &key, value)?;
            let key = Key::parse("param key", &key)?;
            let value = cut(value, MAX_PARAM_VALUE_LENGTH);
            let old = match self.params.get(&key) {
                None => seen.get(&key).map(|place| &new[*place].1),
                old => old,
            };
            match old {
                Some(old) if *old == value => {}
                Some(old) => {
                    return Err(Error::invalid(
                        "param",
                        key.as_str(),
                        format!(
                            "it is {old:?} and cannot become {value:?}: params of a run do not change"
                        ),
                    ));
                }
                None => {
                    seen.insert(key.clone(), new.len());
                    new.push((key, value));
                }
            }
        }
        Ok(new)
    }
}

impl Session {
    /// Returns the id of the innermost active run.
    pub(crate) fn active_run(&self) -> Option<RunId> {
        lock(&self.active).last().map(|run| run.id)
    }

    /// Returns the ids of all active runs, the innermost last.
    pub(crate) fn active_runs(&self) -> Vec<RunId> {
        lock(&self.active).iter().map(|run| run.id).collect()
    }

    /// Adds an innermost active run.
    pub(crate) fn push(&self, run: ActiveRun) {
        if run.is_owned {
            lock(&self.started).insert(run.id);
        }
        lock(&self.active).push(run);
    }

    /// Ends the innermost active run. Returns its id, if there was one. Waits for observers that are still working, for
    /// at most `patience`.
    pub(crate) fn end_run(&self, status: RunStatus, patience: Duration) -> Result<Option<RunId>> {
        let mut active = lock(&self.active);
        // A run that is popped before SIGTERM is not among the runs that SIGTERM has ended.
        let is_terminated = self.is_terminated.load(Ordering::Acquire);
        let Some(run) = active.pop() else {
            return Ok(None);
        };
        drop(active);
        let end_time = now_ms();
        // No record of the run may come behind its end.
        run.observers.end(patience);
        if run.is_owned && !is_terminated {
            self.record_end(run.id, status, end_time)?;
        }
        Ok(Some(run.id))
    }

    fn record_end(&self, run: RunId, status: RunStatus, end_time: i64) -> Result<()> {
        let end = Record::RunEnded {
            run,
            status,
            end_time,
        };
        self.record(vec![end], Admission::Always)?;
        tracing::info!(
            name: "mlflow_run_ended",
            target: "heimdall_tracking.tracker",
            run_id = %run,
            status = status.as_str(),
        );
        Ok(())
    }

    /// Records something in the journal, all of it or nothing. Returns the numbers of the records; on a rank that
    /// records nothing, the range is empty.
    ///
    /// # Errors
    /// Errors of the journal.
    pub(crate) fn record(&self, records: Vec<Record>, admission: Admission) -> Result<Range<u64>> {
        match &self.delivery {
            Some(delivery) => delivery.accept(Batch::of(records)?, admission),
            None => Ok(0..0),
        }
    }
}

/// Adds a session, so that the exit of the process ends its runs.
pub(crate) fn register(session: &Arc<Session>) {
    let mut sessions = lock(&SESSIONS);
    sessions.retain(|session| session.strong_count() > 0);
    sessions.push(Arc::downgrade(session));
}

/// Keeps a session whose tracker is dropped while a run is active.
pub(crate) fn leave_open(session: &Arc<Session>) {
    lock(&LEFT_OPEN).push(Arc::clone(session));
}

/// Ends, at the exit of the process, the runs that are still active, and waits for the delivery; undelivered records
/// stay in their journal for the next start. Returns messages for the user.
pub fn finish(status: RunStatus, timeout: Duration, keep_waiting: KeepWaiting<'_>) -> Vec<String> {
    let sessions: Vec<_> = lock(&SESSIONS)
        .drain(..)
        .filter_map(|session| session.upgrade())
        .collect();
    let mut told = Vec::new();
    for session in &sessions {
        loop {
            match session.end_run(status, timeout) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => told.push(error.to_string()),
            }
        }
    }
    lock(&LEFT_OPEN).clear();
    told.extend(exit::finish(timeout, keep_waiting));
    told
}

/// Ends, when the process is told to terminate, its runs as KILLED, and waits for the delivery. The training continues
/// meanwhile: its records are accepted, and a run that it ends does not become FINISHED. Returns messages for the user.
pub fn terminate(grace: Duration) -> Vec<String> {
    let sessions: Vec<_> = lock(&SESSIONS).iter().filter_map(Weak::upgrade).collect();
    let mut told = Vec::new();
    for session in &sessions {
        let active = lock(&session.active);
        if session.is_terminated.swap(true, Ordering::AcqRel) {
            continue;
        }
        let owned = active.iter().filter(|run| run.is_owned);
        let owned: Vec<RunId> = owned.map(|run| run.id).collect();
        drop(active);
        for run in owned {
            if let Err(error) = session.record_end(run, RunStatus::Killed, now_ms()) {
                told.push(error.to_string());
            }
        }
    }
    told.extend(exit::finish_while_recording(grace));
    told
}

/// Forgets, in a fork, the trackers of the parent process: their threads, journals and runs belong to the parent.
pub fn forget_parent() {
    // The lock is not waited for: a thread that held it at the fork does not exist here to release it.
    std::mem::forget(
        SESSIONS
            .try_lock()
            .ok()
            .map(|mut sessions| std::mem::take(&mut *sessions)),
    );
    std::mem::forget(
        LEFT_OPEN
            .try_lock()
            .ok()
            .map(|mut sessions| std::mem::take(&mut *sessions)),
    );
    exit::forget_parent();
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
