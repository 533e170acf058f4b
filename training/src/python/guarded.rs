//! A network that Python holds, and that one thread at a time may use.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use pyo3::{exceptions::PyRuntimeError, prelude::*};

use super::errors::to_python;
use crate::error::Result;

/// A network with its lock.
pub(super) struct Guarded<N> {
    net: Mutex<N>,
    training: AtomicBool,
}

/// Marks a network as being trained, until this value is dropped.
pub(super) struct Training<'a>(&'a AtomicBool);

impl Drop for Training<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl<N: Send> Guarded<N> {
    pub(super) fn new(net: N) -> Self {
        Self {
            net: Mutex::new(net),
            training: AtomicBool::new(false),
        }
    }

    /// Marks the network as being trained. Other uses are refused meanwhile: a callback that waited for the network
    /// would wait for itself.
    pub(super) fn begin_training(&self) -> PyResult<Training<'_>> {
        if self.training.swap(true, Ordering::AcqRel) {
            Err(busy())
        } else {
            Ok(Training(&self.training))
        }
    }

    /// Locks the network. Call this only while detached from the interpreter: the owner of the lock may be waiting for
    /// the interpreter.
    pub(super) fn lock(&self) -> MutexGuard<'_, N> {
        self.net.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `use_it` on the network without holding the interpreter.
    pub(super) fn with<T: Send>(
        &self,
        py: Python<'_>,
        use_it: impl Send + FnOnce(&N) -> Result<T>,
    ) -> PyResult<T> {
        if self.training.load(Ordering::Acquire) {
            return Err(busy());
        }
        py.detach(|| use_it(&self.lock()))
            .map_err(|error| to_python(py, error))
    }
}

fn busy() -> PyErr {
    PyRuntimeError::new_err("the model is being trained: use it after fit() has returned")
}
