//! The recorder of a tracker: its active runs and its delivery. It outlives the tracker object while a run is active.

use std::{
    collections::{HashMap, HashSet},
    io::Write,
    ops::Range,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    active::{ActiveRun, ActiveRuns, AreSeveral, Params},
    call::Caller,
    lock::lock,
    notes::Notes,
};
use crate::{
    delivery::{exit, handle::Delivery, runtime::KeepWaiting},
    error::Result,
    journal::{
        append::{Admission, EncodedRecords},
        record::Record,
    },
    mlflow::{
        invalid::shorten,
        key::Key,
        limits::{self, MAX_PARAM_VALUE_LENGTH, cut},
        run::{RunId, RunStatus},
    },
    os::{clock::now_ms, exit_code, sigint},
};

/// Recorders of this process, so that its exit can end their runs.
static RECORDERS: Mutex<Vec<Weak<Recorder>>> = Mutex::new(Vec::new());
/// Recorders whose trackers were dropped while a run was active: the run ends with the process.
static LEFT_OPEN: Mutex<Vec<Arc<Recorder>>> = Mutex::new(Vec::new());
/// Runs of this process whose status depends on its exit code.
static UNTIL_EXIT_CODE: Mutex<Option<Uncertain>> = Mutex::new(None);

/// Runs that were ended before the exit code was known.
struct Uncertain {
    ended: Vec<(Arc<Recorder>, RunId)>,
    /// End of the time for the delivery; `None` is no end.
    until: Option<Instant>,
}

/// Appends records to the journal, and keeps the list of active runs. Lives for as long as a run is active.
#[derive(Debug)]
pub(crate) struct Recorder {
    /// The delivery; `None` on a rank that records nothing.
    pub delivery: Option<Delivery>,
    /// The active runs. The lock is never held while waiting for a store.
    pub active: Mutex<ActiveRuns>,
    /// Lock that is held while a run starts, which may wait for the store, so that two threads do not both start a run.
    pub starting: Mutex<()>,
    /// Runs that were started here, which therefore exist without a query to the store.
    pub started: Mutex<HashSet<RunId>>,
    /// Params of other runs that were logged to, which are not active here.
    pub others: Mutex<HashMap<RunId, Params>>,
    /// True where the process is about to die from SIGTERM, and its runs have ended.
    pub is_terminated: AtomicBool,
    /// Values that could not be recorded.
    pub notes: Notes,
}

/// Returns the params that a run does not have yet. `refuse` is called with key, new value and reason of a param that
/// has another value already.
///
/// # Errors
/// [`Error::Invalid`] for a key that MLflow refuses, and the errors of `refuse`.
pub(crate) fn new_params(
    logged: &Params,
    params: Vec<(String, String)>,
    mut refuse: impl FnMut(&Key, String, String) -> Result<()>,
) -> Result<Vec<(Key, String)>> {
    let mut new: Vec<(Key, String)> = Vec::with_capacity(params.len());
    let mut seen: HashMap<Key, usize> = HashMap::new();
    for (key, value) in params {
        let value = limits::text("param", &key, value)?;
        let key = Key::parse("param key", &key)?;
        let value = cut(value, MAX_PARAM_VALUE_LENGTH);
        let old = match logged.get(&key) {
            None => seen.get(&key).map(|place| &new[*place].1),
            old => old,
        };
        match old {
            Some(old) if *old == value => {}
            Some(old) => {
                let (old, new) = (shorten(old), shorten(&value));
                let reason = format!(
                    "it is {old:?} and cannot become {new:?}: params of a run do not change"
                );
                refuse(&key, value, reason)?;
            }
            None => {
                seen.insert(key.clone(), new.len());
                new.push((key, value));
            }
        }
    }
    Ok(new)
}

impl Recorder {
    /// Returns the id of the innermost active run of a caller. `caller` is asked only where several runs are active, and
    /// without a lock.
    pub(crate) fn active_run(&self, caller: impl FnOnce() -> Caller) -> Option<RunId> {
        let only = lock(&self.active).only();
        only.unwrap_or_else(|AreSeveral| {
            let caller = caller();
            lock(&self.active).of(&caller)
        })
    }

    /// Returns the ids of the active runs that this process ends.
    fn owned_runs(&self) -> Vec<RunId> {
        lock(&self.active).owned()
    }

    /// Adds an active run.
    pub(crate) fn push(&self, run: ActiveRun) {
        if run.is_owned {
            lock(&self.started).insert(run.id);
        }
        lock(&self.others).remove(&run.id);
        lock(&self.active).push(run);
    }

    /// Returns true for a run that is known to exist, as it was started or found here.
    pub(crate) fn knows(&self, run: RunId) -> bool {
        lock(&self.started).contains(&run)
            || lock(&self.active).has(run)
            || lock(&self.others).contains_key(&run)
    }

    /// Remembers a run that the store has.
    pub(crate) fn remember(&self, run: RunId) {
        lock(&self.others).entry(run).or_default();
    }

    /// Prepares the recorder for records of a run that the store may not have yet: they wait for the run.
    ///
    /// # Errors
    /// Errors of the journal.
    pub(crate) fn attach(&self, run: RunId) -> Result<()> {
        if !self.knows(run) {
            self.record(vec![Record::RunAttached { run }], Admission::Always)?;
            self.remember(run);
        }
        Ok(())
    }

    /// Ends an active run and the runs that are nested in it. Returns true where the run was active. Waits for
    /// observers that are still working, for at most `timeout`.
    pub(crate) fn end_run(&self, run: RunId, status: RunStatus, timeout: Duration) -> Result<bool> {
        let mut active = lock(&self.active);
        // A run that is taken before SIGTERM is not among the runs that SIGTERM has ended.
        let is_terminated = self.is_terminated.load(Ordering::Acquire);
        let taken = active.take_with_nested(run);
        drop(active);
        let was_active = !taken.is_empty();
        for run in taken {
            self.end_taken(run, status, timeout, is_terminated)?;
        }
        Ok(was_active)
    }

    /// Ends the active run that was started last. Returns true where there was one.
    fn end_last(&self, status: RunStatus, timeout: Duration) -> Result<bool> {
        let mut active = lock(&self.active);
        let is_terminated = self.is_terminated.load(Ordering::Acquire);
        let Some(run) = active.pop() else {
            return Ok(false);
        };
        drop(active);
        self.end_taken(run, status, timeout, is_terminated)?;
        Ok(true)
    }

    fn end_taken(
        &self,
        run: ActiveRun,
        status: RunStatus,
        timeout: Duration,
        is_terminated: bool,
    ) -> Result<()> {
        let end_time = now_ms();
        // No record of the run may come behind its end.
        run.observers.end(timeout);
        if !run.params.is_empty() {
            lock(&self.others).insert(run.id, run.params);
        }
        if run.is_owned && !is_terminated {
            self.record_end(run.id, status, end_time)?;
        }
        Ok(())
    }

    pub(crate) fn record_end(&self, run: RunId, status: RunStatus, end_time: i64) -> Result<()> {
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
            Some(delivery) => delivery.accept(EncodedRecords::of(records)?, admission),
            None => Ok(0..0),
        }
    }
}

/// Adds a recorder, so that the exit of the process ends its runs.
pub(crate) fn register(recorder: &Arc<Recorder>) {
    let mut recorders = lock(&RECORDERS);
    recorders.retain(|recorder| recorder.strong_count() > 0);
    recorders.push(Arc::downgrade(recorder));
}

/// Keeps a recorder whose tracker is dropped while a run is active.
pub(crate) fn leave_open(recorder: &Arc<Recorder>) {
    lock(&LEFT_OPEN).push(Arc::clone(recorder));
}

/// Ends, at the exit of the process, the runs that are still active, and waits for the delivery; undelivered records
/// stay in their journal for the next start. With `is_certain` false, the exit code of the process decides afterwards
/// whether the runs have failed, where the system tells it. Returns messages for the user.
pub fn finish(
    status: RunStatus,
    is_certain: bool,
    timeout: Duration,
    keep_waiting: KeepWaiting<'_>,
) -> Vec<String> {
    let until = Instant::now().checked_add(timeout);
    let recorders: Vec<_> = lock(&RECORDERS)
        .drain(..)
        .filter_map(|recorder| recorder.upgrade())
        .collect();
    let (mut told, mut ended) = (Vec::new(), Vec::new());
    for recorder in &recorders {
        let owned = recorder.owned_runs();
        loop {
            match recorder.end_last(status, timeout) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => told.push(error.to_string()),
            }
        }
        if !recorder.is_terminated.load(Ordering::Acquire) {
            ended.extend(owned.into_iter().map(|run| (Arc::clone(recorder), run)));
        }
    }
    if !is_certain && !ended.is_empty() && exit_code::call(on_exit_code) {
        *lock(&UNTIL_EXIT_CODE) = Some(Uncertain { ended, until });
        told.extend(exit::deliver(timeout, keep_waiting));
    } else {
        told.extend(exit::finish(timeout, keep_waiting));
    }
    lock(&LEFT_OPEN).clear();
    told
}

/// Ends runs by the exit code, and the deliveries. Python has ended when this is called.
fn on_exit_code(code: i32) {
    let Some(Uncertain { ended, until }) = lock(&UNTIL_EXIT_CODE).take() else {
        return;
    };
    // The thread that exits has no thread-local values any more.
    let work = move || {
        let mut told = Vec::new();
        if let Some(status) = RunStatus::of_exit_code(code, sigint::was_sent()) {
            for (recorder, run) in &ended {
                if let Err(error) = recorder.record_end(*run, status, now_ms()) {
                    told.push(error.to_string());
                }
            }
        }
        let left = until.map_or(Duration::MAX, |until| {
            until.saturating_duration_since(Instant::now())
        });
        told.extend(exit::finish(left, &mut || true));
        for text in told {
            let _ = writeln!(std::io::stderr(), "heimdall_tracking: {text}");
        }
    };
    if let Ok(working) = thread::Builder::new()
        .name("heimdall-exit".into())
        .spawn(work)
    {
        let _ = working.join();
    }
}

/// Ends, when the process is told to terminate, its runs as KILLED, and waits for the delivery. The training continues
/// meanwhile: its records are accepted, and a run that it ends does not become FINISHED. Returns messages for the user.
pub fn terminate(grace: Duration) -> Vec<String> {
    let recorders: Vec<_> = lock(&RECORDERS).iter().filter_map(Weak::upgrade).collect();
    let mut told = Vec::new();
    for recorder in &recorders {
        let active = lock(&recorder.active);
        if recorder.is_terminated.swap(true, Ordering::AcqRel) {
            continue;
        }
        let owned = active.owned();
        drop(active);
        for run in owned {
            if let Err(error) = recorder.record_end(run, RunStatus::Killed, now_ms()) {
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
        RECORDERS
            .try_lock()
            .ok()
            .map(|mut recorders| std::mem::take(&mut *recorders)),
    );
    std::mem::forget(
        LEFT_OPEN
            .try_lock()
            .ok()
            .map(|mut recorders| std::mem::take(&mut *recorders)),
    );
    std::mem::forget(
        UNTIL_EXIT_CODE
            .try_lock()
            .ok()
            .and_then(|mut runs| runs.take()),
    );
    exit::forget_parent();
}
