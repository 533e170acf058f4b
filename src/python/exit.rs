//! The end of the process, a fork's beginning, and what the user is told.

use std::time::{Duration, Instant};

use pyo3::prelude::*;

use super::tracker::waiting;
use crate::{delivery, process, run::RunStatus, tracker};

/// An exit that takes longer than this says why.
const QUIET_EXIT: Duration = Duration::from_secs(2);

/// Called at exit: ends active runs with `status` and waits up to `timeout` seconds for delivery. While that takes,
/// `progress` is told how many records wait.
#[pyfunction]
#[pyo3(signature = (status, timeout, progress=None))]
pub fn finish(
    py: Python<'_>,
    status: &str,
    timeout: f64,
    progress: Option<Py<PyAny>>,
) -> PyResult<()> {
    let begun = Instant::now();
    let last_words = waiting(py, |keep_waiting| {
        let status = RunStatus::parse_final(status)?;
        let timeout = Duration::try_from_secs_f64(timeout).unwrap_or_default();
        Ok(tracker::finish(status, timeout, &mut || {
            if begun.elapsed() >= QUIET_EXIT
                && let Some(progress) = &progress
            {
                // Nobody is left to hear of a bar that fails.
                let pending = delivery::pending();
                let _ = Python::attach(|py| progress.call1(py, (pending,)).map(|_| ()));
            }
            keep_waiting()
        }))
    })?;
    tell(py, last_words)
}

/// Called in a child after a fork: the parent's trackers are not its own.
#[pyfunction]
pub fn forget_parent() {
    // On Linux the library has seen the fork itself, whoever made it.
    #[cfg(not(target_os = "linux"))]
    process::forked();
    let _ = process::generation();
    tracker::forget_parent();
}

/// Says sentences to the user: on the logger `heimdall_tracking`, which prints where nothing is configured.
pub fn tell(py: Python<'_>, told: Vec<String>) -> PyResult<()> {
    if told.is_empty() {
        return Ok(());
    }
    let logger = py
        .import("logging")?
        .call_method1("getLogger", ("heimdall_tracking",))?;
    for text in told {
        logger.call_method1("warning", ("%s", text))?;
    }
    Ok(())
}
