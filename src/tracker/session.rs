//! The active runs of a tracker, which outlive the tracker object.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::observers::Observation;
use crate::{
    delivery::{exit, handle::Delivery, runtime::KeepWaiting},
    error::{Error, Result},
    journal::record::Record,
    mlflow::{
        key::Key,
        limits::{self, MAX_PARAM_VALUE_LENGTH, cut},
        run::{RunId, RunInfo, RunStatus},
    },
    os::clock::now_ms,
};

/// Trackers of this process, so that its exit can end their runs.
pub(crate) static SESSIONS: Mutex<Vec<Weak<Session>>> = Mutex::new(Vec::new());

/// Trackers that were dropped while a run was active: the run ends with the process.
pub(crate) static LEFT_OPEN: Mutex<Vec<Arc<Session>>> = Mutex::new(Vec::new());

/// What outlives the tracker object while a run is active.
#[derive(Debug)]
pub(crate) struct Session {
    /// None on a rank that records nothing.
    pub(crate) delivery: Option<Delivery>,
    /// The active runs, the innermost last. Never held while a store is waited for.
    pub(crate) active: Mutex<Vec<ActiveRun>>,
    /// Held while a run starts, which may wait for the store, so that two threads do not start one each.
    pub(crate) starting: Mutex<()>,
    /// Runs that were started here: whether they exist need not be asked.
    pub(crate) started: Mutex<HashSet<RunId>>,
    /// The process is about to die of SIGTERM, and its runs have ended.
    pub(crate) is_terminated: AtomicBool,
}

#[derive(Debug)]
pub(crate) struct ActiveRun {
    pub(crate) id: RunId,
    /// Params logged so far, to refuse a change before it is written.
    pub(crate) params: HashMap<Key, String>,
    /// The run as it was when it was resumed.
    pub(crate) before: Option<Arc<RunInfo>>,
    /// Whether this process ends it. A fork, or another rank, leaves that to the one that has started it.
    pub(crate) is_owned: bool,
    pub(crate) observation: Observation,
}

impl ActiveRun {
    /// This run in a process that has not started it.
    pub(crate) fn attached(&self) -> Self {
        Self {
            id: self.id,
            params: self.params.clone(),
            before: self.before.clone(),
            is_owned: false,
            observation: Observation::default(),
        }
    }

    /// Those of some params that the run does not have yet.
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
    /// Ends the innermost active run; its id, if there was one. `patience` is for what is still being found of it.
    pub(crate) fn end_run(&self, status: RunStatus, patience: Duration) -> Result<Option<RunId>> {
        let mut active = lock(&self.active);
        // What is popped before that is not among those that a SIGTERM has ended.
        let is_terminated = self.is_terminated.load(Ordering::Acquire);
        let Some(run) = active.pop() else {
            return Ok(None);
        };
        drop(active);
        let end_time = now_ms();
        // Nothing of the run comes behind its end.
        run.observation.end(patience);
        if run.is_owned && !is_terminated {
            self.end(run.id, status, end_time)?;
        }
        Ok(Some(run.id))
    }

    fn end(&self, run: RunId, status: RunStatus, end_time: i64) -> Result<()> {
        match &self.delivery {
            Some(delivery) => delivery.accept_beyond_limits(Record::RunEnded {
                run,
                status,
                end_time,
            }),
            None => Ok(()),
        }
    }

    pub(crate) fn accept(&self, record: Record) -> Result<()> {
        match &self.delivery {
            Some(delivery) => delivery.accept(record),
            None => Ok(()),
        }
    }

    pub(crate) fn accept_all(&self, records: Vec<Record>) -> Result<()> {
        match &self.delivery {
            Some(delivery) => delivery.accept_all(records),
            None => Ok(()),
        }
    }
}

/// Ends, at the exit of the process, the runs that are still active, and waits for what is to be delivered;
/// what is not in time stays in its journal for the next start. Returns what to tell the user.
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

/// Ends, when the process is told to terminate, its runs as KILLED, and waits for what is to be delivered. The
/// training goes on meanwhile: what it records is accepted, and that it ends a run does not make it FINISHED. Returns
/// what to tell the user.
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
            if let Err(error) = session.end(run, RunStatus::Killed, now_ms()) {
                told.push(error.to_string());
            }
        }
    }
    told.extend(exit::finish_while_recording(grace));
    told
}

/// Forgets, in a fork, the trackers of its parent: their threads, journals and runs are the parent's.
pub fn forget_parent() {
    // Not waited for: a thread that held a lock at the fork does not exist here to release it.
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
