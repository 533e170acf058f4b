//! Callbacks that need the interpreter, and attach to it only as long as necessary.

use std::time::{Duration, Instant};

use pyo3::{prelude::*, types::PyDict};

use super::errors::from_python;
use crate::{
    callbacks::{BatchEnd, Callback, Logger, Printer, Snapshot},
    error::Result,
};

/// Lets Ctrl-C end the training: asks the interpreter for pending signals, but so rarely that steps do not wait for it.
pub(crate) struct Signals {
    asked: Instant,
}

const SIGNALS_EVERY: Duration = Duration::from_millis(20);

impl Signals {
    pub(crate) fn new() -> Self {
        Self {
            asked: Instant::now(),
        }
    }
}

impl Callback for Signals {
    fn on_train_batch_end(&mut self, _batch: &BatchEnd, _snapshot: &Snapshot<'_>) -> Result<()> {
        if self.asked.elapsed() < SIGNALS_EVERY {
            return Ok(());
        }
        self.asked = Instant::now();
        Python::attach(|py| py.check_signals()).map_err(from_python)
    }
}

/// A Python callable that receives the metrics and the step.
pub(crate) struct PythonLogger(pub Py<PyAny>);

impl Logger for PythonLogger {
    fn log_metrics(&mut self, metrics: &[(String, f64)], step: usize) -> Result<()> {
        Python::attach(|py| {
            let values = PyDict::new(py);
            for (name, value) in metrics {
                values.set_item(name, value)?;
            }
            self.0.call1(py, (values, step)).map(drop)
        })
        .map_err(from_python)
    }
}

/// Python's `print`, so that lines appear in notebooks and where `sys.stdout` is redirected.
pub(crate) struct PythonPrinter(pub Py<PyAny>);

impl Printer for PythonPrinter {
    fn print(&mut self, line: &str) -> Result<()> {
        Python::attach(|py| self.0.call1(py, (line,)).map(drop)).map_err(from_python)
    }
}
