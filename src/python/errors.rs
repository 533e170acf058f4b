//! The one place where an [`Error`] becomes a Python exception of `heimdall_tracking.errors`.

use pyo3::{PyTypeInfo, exceptions::PyRuntimeError, prelude::*, types::PyType};

use crate::{
    artifacts::error::ArtifactError, error::Error, mlflow::invalid::Invalid,
    store::error::StoreError,
};

/// The exception for an error; an interrupt becomes what the interpreter has pending.
pub fn to_python(py: Python<'_>, error: &Error) -> PyErr {
    if matches!(error, Error::Interrupted)
        && let Err(pending) = py.check_signals()
    {
        return pending;
    }
    let message = error.to_string();
    match py
        .import("heimdall_tracking.errors")
        .and_then(|module| module.getattr(class(error)))
    {
        Ok(class) => match class.cast_into::<PyType>() {
            Ok(class) => PyErr::from_type(class, message),
            Err(error) => error.into(),
        },
        // Only an installation without its Python files lacks the class.
        Err(_) => PyErr::from_type(PyRuntimeError::type_object(py), message),
    }
}

fn class(error: &Error) -> &'static str {
    match error {
        Error::Invalid(error) => class_of_invalid(error),
        Error::NoActiveRun { .. } | Error::RunActive { .. } | Error::Forked { .. } => {
            "RunStateError"
        }
        Error::NoSuchFile { .. } => "ArtifactNotFoundError",
        Error::Undelivered { .. } => "UndeliveredError",
        Error::Interrupted | Error::WorkerStopped => "HeimdallError",
        Error::Store(error) => match error {
            StoreError::Unavailable { .. } => "StoreUnavailableError",
            StoreError::Open { .. } => "ConfigurationError",
            StoreError::Unauthenticated { .. } | StoreError::Forbidden { .. } => {
                "PermissionDeniedError"
            }
            StoreError::NotFound { .. } => "NotFoundError",
            StoreError::AlreadyExists { .. } => "AlreadyExistsError",
            StoreError::NotReady { .. } => "RegistrationError",
            StoreError::ExperimentDeleted { .. } => "ConfigurationError",
            StoreError::Refused { .. }
            | StoreError::RunDeleted { .. }
            | StoreError::ParamChanged { .. } => "InvalidInputError",
        },
        Error::Artifact(ArtifactError::NotFound { .. }) => "ArtifactNotFoundError",
        Error::Artifact(ArtifactError::Unsupported(error)) => class_of_invalid(error),
        Error::Artifact(_) | Error::Refused { .. } => "ArtifactError",
        Error::Journal(_) => "JournalError",
    }
}

fn class_of_invalid(error: &Invalid) -> &'static str {
    match error {
        Invalid::Value { .. } => "InvalidInputError",
        Invalid::Type { .. } => "WrongTypeError",
        Invalid::Setting { .. } => "ConfigurationError",
    }
}
