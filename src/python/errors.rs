//! Exceptions: the only place where an [`Error`] becomes an exception of `heimdall_tracking.errors`.

use pyo3::prelude::*;

use crate::{
    artifacts::error::ArtifactError, error::Error, mlflow::invalid::Invalid,
    store::error::StoreError,
};

/// The exceptions as Python classes.
mod classes {
    use pyo3::import_exception;

    import_exception!(heimdall_tracking.errors, AlreadyExistsError);
    import_exception!(heimdall_tracking.errors, ArtifactError);
    import_exception!(heimdall_tracking.errors, ArtifactNotFoundError);
    import_exception!(heimdall_tracking.errors, ConfigurationError);
    import_exception!(heimdall_tracking.errors, HeimdallError);
    import_exception!(heimdall_tracking.errors, InvalidInputError);
    import_exception!(heimdall_tracking.errors, JournalError);
    import_exception!(heimdall_tracking.errors, NotFoundError);
    import_exception!(heimdall_tracking.errors, PermissionDeniedError);
    import_exception!(heimdall_tracking.errors, RegistrationError);
    import_exception!(heimdall_tracking.errors, RunStateError);
    import_exception!(heimdall_tracking.errors, StoreUnavailableError);
    import_exception!(heimdall_tracking.errors, UndeliveredError);
    import_exception!(heimdall_tracking.errors, WrongTypeError);
}

/// Imports the module of the exceptions, so that no import happens while the interpreter ends.
///
/// # Errors
/// The error of the import, where an installation has no Python files.
pub(crate) fn import(py: Python<'_>) -> PyResult<()> {
    py.import("heimdall_tracking.errors").map(drop)
}

impl From<Invalid> for PyErr {
    fn from(error: Invalid) -> Self {
        let message = error.to_string();
        match error {
            Invalid::Value { .. } => classes::InvalidInputError::new_err(message),
            Invalid::Type { .. } => classes::WrongTypeError::new_err(message),
            Invalid::Setting { .. } => classes::ConfigurationError::new_err(message),
        }
    }
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Invalid(error) => error.into(),
            Error::NoActiveRun { .. } | Error::RunActive { .. } | Error::Forked { .. } => {
                classes::RunStateError::new_err(message)
            }
            Error::NoSuchFile { .. } => classes::ArtifactNotFoundError::new_err(message),
            Error::NoModelFiles { .. } => classes::NotFoundError::new_err(message),
            Error::Undelivered { .. } => classes::UndeliveredError::new_err(message),
            Error::Ranks(raised) => raised_by_python(&*raised),
            Error::Interrupted => pending(message),
            Error::WorkerStopped => classes::HeimdallError::new_err(message),
            Error::Store(error) => of_store(&error, message),
            Error::Artifact(ArtifactError::NotFound { .. }) => {
                classes::ArtifactNotFoundError::new_err(message)
            }
            Error::Artifact(ArtifactError::Unsupported(error)) => error.into(),
            Error::Artifact(_) | Error::Refused { .. } => classes::ArtifactError::new_err(message),
            Error::Journal(_) => classes::JournalError::new_err(message),
        }
    }
}

/// Returns true for an exception of `heimdall_tracking.errors`.
pub(crate) fn is_ours(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<classes::HeimdallError>(py)
}

/// Returns an exception that the code of a value has raised as one of ours, with the original as its cause.
pub(crate) fn typed(py: Python<'_>, kind: &'static str, key: &str, raised: PyErr) -> PyErr {
    if is_ours(py, &raised) {
        return raised;
    }
    let error = PyErr::from(Invalid::value(
        kind,
        key,
        format!("its value cannot be read: {raised}"),
    ));
    error.set_cause(py, Some(raised));
    error
}

fn of_store(error: &StoreError, message: String) -> PyErr {
    match error {
        StoreError::Unavailable { .. } => classes::StoreUnavailableError::new_err(message),
        StoreError::Open { .. } | StoreError::ExperimentDeleted { .. } => {
            classes::ConfigurationError::new_err(message)
        }
        StoreError::Unauthenticated { .. } | StoreError::Forbidden { .. } => {
            classes::PermissionDeniedError::new_err(message)
        }
        StoreError::NotFound { .. } => classes::NotFoundError::new_err(message),
        StoreError::AlreadyExists { .. } => classes::AlreadyExistsError::new_err(message),
        StoreError::NotReady { .. } => classes::RegistrationError::new_err(message),
        StoreError::Refused { .. }
        | StoreError::RunDeleted { .. }
        | StoreError::ParamChanged { .. } => classes::InvalidInputError::new_err(message),
    }
}

/// Returns the exception that ended a wait: the one that is pending in the interpreter.
fn pending(message: String) -> PyErr {
    let checked = Python::attach(|py| py.check_signals());
    checked
        .err()
        .unwrap_or_else(|| classes::HeimdallError::new_err(message))
}

/// Returns the exception that Python code has raised inside a call from here.
fn raised_by_python(error: &(dyn std::error::Error + 'static)) -> PyErr {
    match error.downcast_ref::<PyErr>() {
        Some(raised) => Python::attach(|py| raised.clone_ref(py)),
        None => classes::HeimdallError::new_err(error.to_string()),
    }
}
