//! Artifacts as Python sees them.

use std::time::Duration;

use pyo3::prelude::*;

use super::{tracker::MLflowTracker, values};
use crate::tracker::artifacts::{Keep, Logged};

/// Files that were logged by one call.
#[pyclass(frozen, module = "heimdall_tracking")]
pub struct Upload {
    tracker: Py<MLflowTracker>,
    logged: Logged,
}

impl Upload {
    pub fn new(tracker: &Bound<'_, MLflowTracker>, logged: Logged) -> Self {
        Self {
            tracker: tracker.clone().unbind(),
            logged,
        }
    }
}

#[pymethods]
impl Upload {
    #[getter]
    fn paths(&self) -> Vec<String> {
        self.logged.paths.clone()
    }

    #[getter]
    fn done(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.tracker.get().tracker(py)?.has_arrived(&self.logged))
    }

    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        let tracker = self.tracker.get();
        let timeout: Option<Duration> = tracker.answer(py, values::timeout(timeout))?;
        tracker.ask(py, |tracker, keep_waiting| {
            tracker.wait_for(&self.logged, timeout, keep_waiting)
        })
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let state = if self.done(py)? { "done" } else { "on its way" };
        Ok(match self.logged.paths.as_slice() {
            [path] => format!("Upload({path:?}, {state})"),
            paths => format!("Upload({} files, {state})", paths.len()),
        })
    }
}

/// How a file is kept of which the caller says whether anybody changes it.
pub fn keep(immutable: bool) -> Keep {
    match immutable {
        true => Keep::Original,
        false => Keep::Copy,
    }
}
