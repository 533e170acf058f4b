//! The end of the process, and the beginning of a fork.

use std::time::{Duration, Instant};

use pyo3::prelude::*;

use super::calls;
#[cfg(not(target_os = "linux"))]
use crate::os::fork;
use crate::{delivery::exit as delivery, mlflow::run::RunStatus, os::sigint, tracker::recorder};

/// Time after which an exit tells the user why it takes so long.
const QUIET_EXIT: Duration = Duration::from_secs(2);

/// Ends active runs with `status` and waits up to `timeout` seconds for delivery; called at exit. With `is_certain`
/// false, the exit code has the last word. While that takes, calls `show` with the result of [`progress`].
#[pyfunction]
#[pyo3(signature = (status, is_certain, timeout, show=None))]
pub(crate) fn finish(
    py: Python<'_>,
    status: &str,
    is_certain: bool,
    timeout: f64,
    show: Option<Py<PyAny>>,
) -> PyResult<()> {
    let begun = Instant::now();
    let status = RunStatus::parse_final(status)?;
    let timeout = match Duration::try_from_secs_f64(timeout) {
        Ok(timeout) => timeout,
        Err(_) if timeout > 0.0 => Duration::MAX,
        Err(_) => Duration::ZERO,
    };
    let notices = calls::waiting_with_progress(py, show.as_ref(), |tick| {
        Ok(recorder::finish(status, is_certain, timeout, &mut || {
            if begun.elapsed() < QUIET_EXIT {
                return tick(None);
            }
            let (pending, uploading, uploaded) = delivery_progress();
            tick(Some(&[pending, uploading, uploaded]))
        }))
    })?;
    calls::tell(py, notices)?;
    calls::log_events(py)
}

/// Returns the number of records of this process that wait, the bytes of its files in transit, and how many of these
/// bytes are sent.
#[pyfunction]
pub(crate) fn progress(py: Python<'_>) -> (u64, u64, u64) {
    py.detach(delivery_progress)
}

fn delivery_progress() -> (u64, u64, u64) {
    let (uploading, uploaded) = delivery::uploads();
    (delivery::pending(), uploading, uploaded)
}

/// Returns true where Ctrl-C was sent since the last run began.
#[pyfunction]
pub(crate) fn was_interrupted() -> bool {
    sigint::was_sent()
}

/// Forgets, in a child process after a fork, the trackers of the parent.
#[pyfunction]
pub(crate) fn forget_parent() {
    // On Linux, the library has noticed the fork itself, whatever code made it.
    #[cfg(not(target_os = "linux"))]
    fork::forked();
    recorder::forget_parent();
}
