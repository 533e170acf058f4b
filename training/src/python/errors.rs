//! The only place where an [`Error`] becomes a Python exception of `heimdall_training.errors`.

use pyo3::{PyTypeInfo, exceptions::PyRuntimeError, prelude::*, types::PyType};

use crate::error::Error;

/// Returns the exception for an error; an exception that a Python callback raised is returned unchanged.
pub(crate) fn to_python(py: Python<'_>, error: Error) -> PyErr {
    let error = match error {
        Error::Foreign(error) => match error.downcast::<PyErr>() {
            Ok(raised) => return *raised,
            Err(other) => Error::Foreign(other),
        },
        error => error,
    };
    let message = error.to_string();
    match py
        .import("heimdall_training.errors")
        .and_then(|module| module.getattr(class(&error)))
    {
        Ok(class) => match class.cast_into::<PyType>() {
            Ok(class) => PyErr::from_type(class, message),
            Err(error) => error.into(),
        },
        // The class is missing only in an installation without its Python files.
        Err(_) => PyErr::from_type(PyRuntimeError::type_object(py), message),
    }
}

/// Wraps a Python exception, so that it can pass through the loop.
pub(crate) fn from_python(error: PyErr) -> Error {
    Error::Foreign(Box::new(error))
}

fn class(error: &Error) -> &'static str {
    match error {
        Error::Missing { .. } => "DatasetNotFoundError",
        Error::File { .. }
        | Error::Malformed { .. }
        | Error::UnknownSplit { .. }
        | Error::Split { .. } => "DatasetError",
        Error::Configuration { .. } => "ConfigurationError",
        Error::Shape { .. } => "InvalidInputError",
        Error::Checkpoint { .. } => "CheckpointNotFoundError",
        Error::NonFinite { .. } | Error::Io { .. } | Error::Foreign(_) | Error::Torch(_) => {
            "TrainingError"
        }
    }
}
