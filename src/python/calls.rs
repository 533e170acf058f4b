//! Calls from Python: the only file that handles the GIL, Ctrl-C and messages for the user.

use std::sync::Arc;

use pyo3::{
    exceptions::{PyException, PyKeyboardInterrupt},
    prelude::*,
    types::{PyDict, PyTuple},
};

use super::tracker::MLflowTracker;
use crate::{
    delivery::runtime::KeepWaiting,
    error::{Error, Result},
    events::{self, Value},
    journal::error::{JournalError, Room},
    tracker::{open::Tracker, stores::Stores},
};

/// Ways to call the tracker of this process.
pub(crate) trait Calls {
    /// Makes a call that records something. If the journal has no room, waits for room without the GIL and makes the
    /// call again.
    fn record<T>(&self, call: impl FnMut(&Tracker) -> Result<T>) -> PyResult<T>;

    /// Makes a call that records something and waits on the disk, without the GIL.
    fn record_on_disk<T: Send>(&self, call: impl Fn(&Tracker) -> Result<T> + Sync) -> PyResult<T>;

    /// Runs a query and waits for the answer, without the GIL.
    fn ask<T, F>(&self, question: impl FnOnce(Arc<Stores>) -> F + Send) -> PyResult<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static;

    /// Runs a query as [`Calls::ask`] does, after the delivery of artifacts: a bar shows the progress where that takes
    /// long.
    fn ask_with_bar<T, F>(&self, question: impl FnOnce(Arc<Stores>) -> F + Send) -> PyResult<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static;

    /// Makes a call that waits, without the GIL.
    fn wait<T: Send>(
        &self,
        call: impl FnOnce(&Tracker, KeepWaiting<'_>) -> Result<T> + Send,
    ) -> PyResult<T>;
}

impl Calls for Bound<'_, MLflowTracker> {
    fn record<T>(&self, mut call: impl FnMut(&Tracker) -> Result<T>) -> PyResult<T> {
        let tracker = self.get().of_this_process()?;
        loop {
            match call(tracker) {
                Err(Error::Journal(JournalError::NoRoom { room, .. })) => {
                    wait_for_room(self, room)?;
                }
                outcome => return answer(self.py(), tracker, outcome),
            }
        }
    }

    fn record_on_disk<T: Send>(&self, call: impl Fn(&Tracker) -> Result<T> + Sync) -> PyResult<T> {
        let py = self.py();
        self.record(|tracker| py.detach(|| call(tracker)))
    }

    fn ask<T, F>(&self, question: impl FnOnce(Arc<Stores>) -> F + Send) -> PyResult<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        self.wait(|tracker, keep_waiting| tracker.ask(question, keep_waiting))
    }

    fn ask_with_bar<T, F>(&self, question: impl FnOnce(Arc<Stores>) -> F + Send) -> PyResult<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        // A failing progress bar is no reason to fail; Ctrl-C and the end of the process are.
        let allows = |called: PyResult<_>| match called {
            Err(error) if !error.is_instance_of::<PyException>(self.py()) => Err(error),
            called => Ok(called.ok()),
        };
        let progress = self.py().import("heimdall_tracking._progress");
        let end = allows(progress.and_then(|it| it.call_method0("begin")))?;
        let answer = self.ask(question);
        if let Some(end) = end {
            allows(end.call0())?;
        }
        answer
    }

    fn wait<T: Send>(
        &self,
        call: impl FnOnce(&Tracker, KeepWaiting<'_>) -> Result<T> + Send,
    ) -> PyResult<T> {
        let (py, tracker) = (self.py(), self.get().of_this_process()?);
        let look = |py: Python<'_>| {
            py.check_signals()?;
            tell_of(py, tracker)
        };
        let outcome = wait_without_gil(py, look, |keep_waiting| call(tracker, keep_waiting));
        tell_of(py, tracker)?;
        outcome
    }
}

fn wait_for_room(tracker: &Bound<'_, MLflowTracker>, room: Room) -> PyResult<()> {
    tracker.wait(|tracker, keep_waiting| tracker.wait_for_room(room, keep_waiting))
}

/// Returns the outcome of a call, after showing the delivery's messages to the user.
pub(crate) fn answer<T>(py: Python<'_>, tracker: &Tracker, outcome: Result<T>) -> PyResult<T> {
    tell_of(py, tracker)?;
    Ok(outcome?)
}

/// Makes a call that waits and belongs to no tracker, without the GIL, so that Ctrl-C ends the wait.
pub(crate) fn waiting<T: Send>(
    py: Python<'_>,
    call: impl FnOnce(KeepWaiting<'_>) -> Result<T> + Send,
) -> PyResult<T> {
    wait_without_gil(py, |py| py.check_signals(), call)
}

/// Makes a call that waits, and shows its progress: `show` is called with the numbers that the call reports while it
/// waits.
pub(crate) fn waiting_with_progress<T: Send>(
    py: Python<'_>,
    show: Option<&Py<PyAny>>,
    call: impl FnOnce(&mut dyn FnMut(Option<&[u64]>) -> bool) -> Result<T> + Send,
) -> PyResult<T> {
    let mut raised = None;
    let outcome = py.detach(|| {
        call(&mut |numbers| {
            raised = Python::attach(|py| {
                let shown = show.zip(numbers);
                let shown = shown.and_then(|(show, numbers)| shows(py, show, numbers));
                py.check_signals().err().or(shown)
            });
            raised.is_none()
        })
    });
    ended(outcome, raised)
}

/// Calls the function that shows progress, and returns an exception from Ctrl-C in it. A failing progress bar is no
/// reason to stop.
fn shows(py: Python<'_>, show: &Py<PyAny>, numbers: &[u64]) -> Option<PyErr> {
    let numbers = PyTuple::new(py, numbers).ok()?;
    let failed = show.call1(py, numbers).err()?;
    failed
        .is_instance_of::<PyKeyboardInterrupt>(py)
        .then_some(failed)
}

/// Makes a call without the GIL. Calls `look`, with the GIL, while the call waits; an exception from `look` ends the
/// wait.
fn wait_without_gil<T: Send>(
    py: Python<'_>,
    look: impl Fn(Python<'_>) -> PyResult<()> + Sync,
    call: impl FnOnce(KeepWaiting<'_>) -> Result<T> + Send,
) -> PyResult<T> {
    let mut raised = None;
    let outcome = py.detach(|| {
        call(&mut || {
            raised = Python::attach(&look).err();
            raised.is_none()
        })
    });
    ended(outcome, raised)
}

fn ended<T>(outcome: Result<T>, raised: Option<PyErr>) -> PyResult<T> {
    match (outcome, raised) {
        (Err(Error::Interrupted), Some(raised)) => Err(raised),
        (outcome, _) => Ok(outcome?),
    }
}

/// Shows the messages of a tracker's delivery to the user.
fn tell_of(py: Python<'_>, tracker: &Tracker) -> PyResult<()> {
    if tracker.has_notices() {
        tell(py, tracker.notices())?;
    }
    log_events(py)
}

/// Has events collected from the level on that the environment or Python's loggers ask for.
pub(crate) fn collect_events(py: Python<'_>) -> PyResult<()> {
    let module = py.import("heimdall_tracking._events")?;
    let level: Option<String> = module.call_method0("level")?.extract()?;
    if let Some(level) = level {
        events::enable(&level)?;
    }
    Ok(())
}

/// Hands the events that wait to Python's loggers.
pub(crate) fn log_events(py: Python<'_>) -> PyResult<()> {
    if !events::are_waiting() {
        return Ok(());
    }
    let (waiting, dropped) = events::take();
    let mut handed = Vec::with_capacity(waiting.len());
    for event in waiting {
        let fields = PyDict::new(py);
        for (name, value) in event.fields {
            match value {
                Value::Integer(number) => fields.set_item(name, number)?,
                Value::Text(text) => fields.set_item(name, text)?,
            }
        }
        handed.push((event.level, event.logger, event.name, fields));
    }
    let module = py.import("heimdall_tracking._events")?;
    module.call_method1("emit", (handed, dropped))?;
    Ok(())
}

/// Shows messages to the user: on the logger `heimdall_tracking`, which prints where no logging is configured.
pub(crate) fn tell(py: Python<'_>, messages: Vec<String>) -> PyResult<()> {
    if messages.is_empty() {
        return Ok(());
    }
    let logger = py
        .import("logging")?
        .call_method1("getLogger", ("heimdall_tracking",))?;
    for message in messages {
        logger.call_method1("warning", ("%s", message))?;
    }
    Ok(())
}
