//! The end of the process, a fork's beginning, and what the user is told.

use std::time::{Duration, Instant};

use pyo3::{exceptions::PyKeyboardInterrupt, prelude::*};

use super::tracker::waiting;
#[cfg(not(target_os = "linux"))]
use crate::os::fork;
use crate::{delivery::exit as delivery, mlflow::run::RunStatus, tracker::session};

/// An exit that takes longer than this says why.
const QUIET_EXIT: Duration = Duration::from_secs(2);

/// Called at exit: ends active runs with `status` and waits up to `timeout` seconds for delivery. While that takes,
/// `show` is told what [`progress`] says.
#[pyfunction]
#[pyo3(signature = (status, timeout, show=None))]
pub fn finish(py: Python<'_>, status: &str, timeout: f64, show: Option<Py<PyAny>>) -> PyResult<()> {
    let begun = Instant::now();
    let last_words = waiting(py, |keep_waiting| {
        let status = RunStatus::parse_final(status)?;
        let timeout = match Duration::try_from_secs_f64(timeout) {
            Ok(timeout) => timeout,
            Err(_) if timeout > 0.0 => Duration::MAX,
            Err(_) => Duration::ZERO,
        };
        Ok(session::finish(status, timeout, &mut || {
            if !keep_waiting() {
                return false;
            }
            match &show {
                Some(shown) if begun.elapsed() >= QUIET_EXIT => {
                    Python::attach(|py| shows(py, shown, progress(py)).is_none())
                }
                _ => true,
            }
        }))
    })?;
    tell(py, last_words)
}

/// How many records of this process wait, how many bytes of its files are on their way and how many of them are sent.
#[pyfunction]
pub fn progress(py: Python<'_>) -> (u64, u64, u64) {
    py.detach(|| {
        let (uploading, uploaded) = delivery::uploads();
        (delivery::pending(), uploading, uploaded)
    })
}

/// Called in a child after a fork: the parent's trackers are not its own.
#[pyfunction]
pub fn forget_parent() {
    // On Linux the library has seen the fork itself, whoever made it.
    #[cfg(not(target_os = "linux"))]
    fork::forked();
    session::forget_parent();
}

/// Shows progress; what Ctrl-C has raised in there, if it has. A bar that fails is no reason to stop.
pub fn shows<'py>(
    py: Python<'py>,
    progress: &Py<PyAny>,
    numbers: impl pyo3::call::PyCallArgs<'py>,
) -> Option<PyErr> {
    let failed = progress.call1(py, numbers).err()?;
    failed
        .is_instance_of::<PyKeyboardInterrupt>(py)
        .then_some(failed)
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
