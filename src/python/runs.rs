//! The beginning and the end of runs.

use std::sync::PoisonError;

use pyo3::prelude::*;

use super::{
    arguments::RunIdOrName, calls::Calls, results::run::Run, script::RANKS, tracker::MLflowTracker,
};
use crate::mlflow::run::{NewRun, RunStatus};

#[pymethods]
impl MLflowTracker {
    fn _start_run(slf: &Bound<'_, Self>, run: NewRun) -> PyResult<String> {
        let id = slf.wait(|tracker, keep_waiting| tracker.begin_run(&run, &RANKS, keep_waiting))?;
        notify_reader(slf)?;
        Ok(id.to_string())
    }

    #[pyo3(signature = (run, nested=false))]
    fn resume(slf: &Bound<'_, Self>, run: RunIdOrName, nested: bool) -> PyResult<String> {
        let new = NewRun {
            nested,
            ..NewRun::default()
        };
        let id = slf.wait(|tracker, waiting| tracker.resume_run(&run.0, &new, waiting))?;
        notify_reader(slf)?;
        Ok(id.to_string())
    }

    #[pyo3(signature = (status="FINISHED"))]
    fn end_run(slf: &Bound<'_, Self>, status: &str) -> PyResult<()> {
        let status = RunStatus::parse_final(status)?;
        match slf.record_on_disk(|tracker| tracker.end_run(status))? {
            Some(_) => notify_reader(slf),
            None => Ok(()),
        }
    }

    #[pyo3(signature = (status="FINISHED"))]
    fn set_terminated(slf: &Bound<'_, Self>, status: &str) -> PyResult<()> {
        Self::end_run(slf, status)
    }

    /// Returns the active run as it was when it was resumed; `None` where it was not resumed.
    fn _resumed_from(&self) -> PyResult<Option<Run>> {
        let before = self.of_this_process()?.resumed_from();
        Ok(before.map(|before| Run::from((*before).clone())))
    }

    /// Sets `reader`, which is called with the ids of the active runs whenever they change.
    fn _on_active_runs(&self, reader: Py<PyAny>) {
        let slot = self.on_active_runs.lock();
        let before = slot.unwrap_or_else(PoisonError::into_inner).replace(reader);
        // Dropping the previous reader may run Python code, which may call this method again.
        drop(before);
    }
}

/// Calls the reader of the active runs with their present ids.
fn notify_reader(tracker: &Bound<'_, MLflowTracker>) -> PyResult<()> {
    let slot = tracker.get().on_active_runs.lock();
    let reader = slot
        .unwrap_or_else(PoisonError::into_inner)
        .as_ref()
        .map(|reader| reader.clone_ref(tracker.py()));
    if let Some(reader) = reader {
        reader.call1(tracker.py(), (tracker.get().active_run_ids()?,))?;
    }
    Ok(())
}
