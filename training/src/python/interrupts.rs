//! Signals during a training, as Python asks for them.

use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;

use crate::interrupts::{self, Interrupts};

/// Notes Ctrl-C and SIGTERM from its making until `stop`.
#[pyclass(frozen, module = "heimdall_training._native")]
pub(crate) struct SignalWatch(Mutex<Option<Interrupts>>);

#[pymethods]
impl SignalWatch {
    #[new]
    fn new() -> Self {
        Self(Mutex::new(Interrupts::watch()))
    }

    /// Returns the number of the noted signal, or 0.
    fn received(&self) -> i32 {
        let watch = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let received = watch.as_ref().and_then(|_| interrupts::received());
        received.unwrap_or(0)
    }

    fn stop(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}
