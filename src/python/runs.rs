//! The beginning and the end of runs, and the run that a call is for.

use pyo3::{prelude::*, types::PyDict};

use super::{
    arguments::{FromStep, RunIdOrName},
    calls::{self, Calls},
    results::run::Run,
    script::RANKS,
    tracker::MLflowTracker,
    unrecorded::new_run,
};
use crate::{
    delivery::destination::Traffic,
    error::{Error, Result},
    mlflow::run::{NewRun, RunId, RunStatus},
    os::sigint,
    tracker::{
        call::{Call, Caller},
        open::Tracker,
        runs::ClientRun,
    },
};

/// Module with the runs of threads and tasks.
const CONTEXT: &str = "heimdall_tracking._context";

#[pymethods]
impl MLflowTracker {
    #[getter]
    fn active_run_id(slf: &Bound<'_, Self>) -> PyResult<Option<String>> {
        Ok(active_run(slf)?.map(|run| run.to_string()))
    }

    #[getter]
    fn active_run_ids(slf: &Bound<'_, Self>) -> PyResult<Vec<String>> {
        let caller = caller(slf.py())?;
        let active = slf.get().of_this_process()?.active_runs(&caller);
        Ok(active.into_iter().map(|run| run.to_string()).collect())
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let active = active_run(slf)?;
        let this = slf.get().of_this_process()?;
        Ok(format!(
            "MLflowTracker(tracking_uri={:?}, experiment_name={:?}, active_run_id={})",
            this.destination().uri(),
            this.experiment_name(),
            active.map_or_else(|| "None".to_owned(), |run| format!("\"{run}\""))
        ))
    }

    fn _start_run(slf: &Bound<'_, Self>, run: &Bound<'_, PyDict>) -> PyResult<String> {
        let (run, refused) = new_run(slf, run)?;
        note_begin(slf.py())?;
        let id = call(slf, |it, call| it.begin_run(&run, &RANKS, call))?;
        let this = slf.get().of_this_process()?;
        this.note_unrecorded(Some(id), refused);
        calls::answer(slf.py(), this, Ok(()))?;
        has_started(slf, id)
    }

    #[pyo3(signature = (run, nested=false, from_step=None))]
    fn resume(
        slf: &Bound<'_, Self>,
        run: RunIdOrName,
        nested: bool,
        from_step: Option<FromStep>,
    ) -> PyResult<String> {
        note_begin(slf.py())?;
        let new = NewRun {
            nested,
            from_step: from_step.map(|step| step.0),
            ..NewRun::default()
        };
        let id = call(slf, |it, call| it.resume_run(&run.0, &new, call))?;
        has_started(slf, id)
    }

    #[pyo3(signature = (status="FINISHED"))]
    fn end_run(slf: &Bound<'_, Self>, status: &str) -> PyResult<()> {
        let status = RunStatus::parse_final(status)?;
        match active_run(slf)? {
            Some(run) => end(slf, run, status),
            None => Ok(()),
        }
    }

    #[pyo3(signature = (status="FINISHED"))]
    fn set_terminated(slf: &Bound<'_, Self>, status: &str) -> PyResult<()> {
        Self::end_run(slf, status)
    }

    /// Ends a run and the runs that are nested in it; does nothing where the run is not active.
    fn _end(slf: &Bound<'_, Self>, run_id: &str, status: &str) -> PyResult<()> {
        end(slf, run_id.parse()?, RunStatus::parse_final(status)?)
    }

    /// Creates a run as an MLflow client describes it, and leaves the active run as it is.
    fn _create_run(slf: &Bound<'_, Self>, run: ClientRun) -> PyResult<String> {
        note_begin(slf.py())?;
        let id = call(slf, |it, call| it.create_run(run, call))?;
        Ok(id.to_string())
    }

    /// Makes a run the active run of the calling thread or task.
    fn _enter(slf: &Bound<'_, Self>, run_id: &str) -> PyResult<()> {
        let (run, caller) = (run_id.parse()?, caller(slf.py())?);
        slf.record(|tracker| tracker.enter_run(run, &caller))?;
        has_started(slf, run)?;
        Ok(())
    }

    /// Takes a run from the active runs; the run itself is not changed.
    fn _leave(slf: &Bound<'_, Self>, run_id: &str) -> PyResult<()> {
        let run = run_id.parse()?;
        slf.record_on_disk(|tracker| {
            tracker.leave_run(run);
            Ok(())
        })
    }

    /// Records the status of a run as an MLflow client sets it.
    fn _set_run_status(
        slf: &Bound<'_, Self>,
        run_id: &str,
        status: &str,
        end_time: Option<i64>,
    ) -> PyResult<()> {
        let (run, status) = (run_id.parse()?, RunStatus::parse(status)?);
        call(slf, |it, call| {
            it.set_run_status(run, status, end_time, call)
        })
    }

    /// Returns true where this tracker has started or resumed a run, or has it as an active run.
    fn _has_run(&self, run_id: &str) -> PyResult<bool> {
        let run = run_id.parse().ok();
        let this = self.of_this_process()?;
        Ok(run.is_some_and(|run| this.has_run(run)))
    }

    /// Forgets a run that a client has deleted.
    fn _forget_run(&self, run_id: &str) -> PyResult<()> {
        self.of_this_process()?.forget_run(run_id.parse()?);
        Ok(())
    }

    /// Waits until everything that this process has recorded for the store is there, files excepted.
    fn _deliver(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.ask(|stores| async move { stores.deliver_records().await })
    }

    /// Waits until everything that this process has recorded for the store is there, with files.
    fn _deliver_files(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.ask_with_bar(|stores| async move { stores.deliver_first(Traffic::Artifacts).await })
    }

    /// Returns an active run as it was when it was resumed; `None` where it was not resumed.
    fn _resumed_from(&self, run_id: &str) -> PyResult<Option<Run>> {
        let before = self.of_this_process()?.resumed_from(run_id.parse()?);
        Ok(before.map(|before| Run::from((*before).clone())))
    }
}

/// Makes a call that waits, without the GIL, for the calling thread or task.
fn call<T: Send>(
    tracker: &Bound<'_, MLflowTracker>,
    call: impl FnOnce(&Tracker, &mut Call<'_>) -> Result<T> + Send,
) -> PyResult<T> {
    let caller = caller(tracker.py())?;
    tracker.wait(|it, keep_waiting| {
        let mut from = Call {
            caller,
            keep_waiting,
        };
        call(it, &mut from)
    })
}

/// Returns the runs that the calling thread or task has started or was given.
pub(crate) fn caller(py: Python<'_>) -> PyResult<Caller> {
    let runs: Vec<String> = py.import(CONTEXT)?.call_method0("current")?.extract()?;
    let runs = runs.iter().filter_map(|run| run.parse().ok());
    Ok(Caller {
        runs: runs.collect(),
    })
}

/// Returns the innermost active run of the calling thread or task.
pub(crate) fn active_run(tracker: &Bound<'_, MLflowTracker>) -> PyResult<Option<RunId>> {
    let this = tracker.get().of_this_process()?;
    let mut failed = None;
    let active = this.active_run(|| {
        caller(tracker.py()).unwrap_or_else(|error| {
            failed = Some(error);
            Caller::default()
        })
    });
    failed.map_or(Ok(active), Err)
}

/// Returns the run that a call is for: the given run or, without one, the active run. `action` is the name of the
/// caller's method.
///
/// # Errors
/// `RunStateError` where no run is given and none is active; `InvalidInputError` for an id that no run can have;
/// `NotFoundError` for a run that does not exist.
pub(crate) fn run_of(
    tracker: &Bound<'_, MLflowTracker>,
    given: Option<&str>,
    action: &'static str,
) -> PyResult<RunId> {
    match given {
        Some(run) => {
            let run = run.parse()?;
            tracker.wait(|it, waiting| it.find_run_to_log_to(run, waiting))?;
            Ok(run)
        }
        None => Ok(active_run(tracker)?.ok_or(Error::NoActiveRun { action })?),
    }
}

fn has_started(tracker: &Bound<'_, MLflowTracker>, run: RunId) -> PyResult<String> {
    let py = tracker.py();
    let this = tracker.get().of_this_process()?;
    let mut path = this.active_runs(&caller(py)?);
    path.retain(|other| *other != run);
    let path: Vec<String> = path.iter().chain([&run]).map(RunId::to_string).collect();
    py.import(CONTEXT)?.call_method1("started", (path,))?;
    Ok(run.to_string())
}

fn end(tracker: &Bound<'_, MLflowTracker>, run: RunId, status: RunStatus) -> PyResult<()> {
    if !tracker.record_on_disk(|tracker| tracker.end_run(run, status))? {
        return Ok(());
    }
    call(tracker, |it, call| it.await_end(run, call))
}

/// Tells Python that a run begins: errors and Ctrl-C before it do not decide its status.
fn note_begin(py: Python<'_>) -> PyResult<()> {
    sigint::watch();
    py.import("heimdall_tracking._outcome")?
        .call_method0("begin")?;
    Ok(())
}
