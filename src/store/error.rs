//! The answers of a store that are not success.

use std::time::Duration;

/// The error of a driver or a server.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Returns true where one side of a connection has refused the certificate of the other: waiting does not help.
pub(crate) fn is_certificate_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let of_tls = |error: &rustls::Error| {
        matches!(
            error,
            rustls::Error::InvalidCertificate(_)
                | rustls::Error::NoCertificatesPresented
                | rustls::Error::AlertReceived(_)
        )
    };
    let mut next = Some(error);
    while let Some(error) = next {
        let found = error.downcast_ref::<rustls::Error>().or_else(|| {
            let inner = error.downcast_ref::<std::io::Error>()?.get_ref()?;
            inner.downcast_ref::<rustls::Error>()
        });
        if found.is_some_and(of_tls) {
            return true;
        }
        // `io::Error` returns the error that it wraps by `get_ref`, not as its source.
        next = match error.downcast_ref::<std::io::Error>() {
            Some(io) => io
                .get_ref()
                .map(|inner| inner as &(dyn std::error::Error + 'static)),
            None => error.source(),
        };
    }
    false
}

/// The answers of a store that are not success.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store cannot be reached or cannot take anything now. This may pass.
    #[error("{destination} cannot answer at present: {source}")]
    Unavailable {
        /// URI without credentials.
        destination: String,
        /// Error of the driver or the server.
        source: Cause,
        /// Time to wait before the next attempt, if the store gives one.
        retry_after: Option<Duration>,
    },
    /// The store cannot be used at all as it is configured: no such database, a wrong password, no MLflow.
    #[error("{destination} cannot be opened: {reason}")]
    Open {
        /// URI without credentials.
        destination: String,
        /// The cause, and what to do.
        reason: String,
    },
    /// The store does not accept the credentials, for example a password or a token that has expired. This may pass.
    #[error("{destination} does not accept the credentials: {reason}")]
    Unauthenticated {
        /// URI without credentials.
        destination: String,
        /// Answer of the store.
        reason: String,
    },
    /// The store accepts the credentials and does not permit the operation.
    #[error("{destination} does not permit this: {reason}")]
    Forbidden {
        /// URI without credentials.
        destination: String,
        /// Answer of the store.
        reason: String,
    },
    /// The store refuses the record or the question itself.
    #[error("{destination} refuses this: {source}")]
    Refused {
        /// URI without credentials.
        destination: String,
        /// Answer of the store.
        source: Cause,
    },
    /// The run, experiment, registered model or model version does not exist.
    #[error("{what} does not exist in {destination}")]
    NotFound {
        /// The thing that was asked for.
        what: String,
        /// URI without credentials.
        destination: String,
    },
    /// The run is deleted, and MLflow takes nothing for a deleted run.
    #[error("run {run_id} is deleted: restore it to write to it")]
    RunDeleted {
        /// Id of the run.
        run_id: String,
    },
    /// The param of the run has another value already.
    #[error(
        "param {key:?} of run {run_id} is {old:?} and cannot become {new:?}: params do not change, start another run"
    )]
    ParamChanged {
        /// Id of the run.
        run_id: String,
        /// Key of the param.
        key: String,
        /// Value that the store has.
        old: String,
        /// Value that was refused.
        new: String,
    },
    /// A registered model of this name exists already.
    #[error("{what} exists in {destination} already: choose another name")]
    AlreadyExists {
        /// The thing that was to be created.
        what: String,
        /// URI without credentials.
        destination: String,
    },
    /// A version has been registered and cannot be used (yet).
    #[error("version {version} of model {name:?} is registered and not ready: {reason}")]
    NotReady {
        /// Name of the model.
        name: String,
        /// Number of the version.
        version: i64,
        /// Status of the version, the time that was waited for it, and the message of the registry.
        reason: String,
    },
    /// The experiment is deleted.
    #[error("experiment {name:?} is deleted: restore it or use another name")]
    ExperimentDeleted {
        /// Name of the experiment.
        name: String,
    },
}

impl StoreError {
    /// Returns the time that the store asks us to wait, if it gives one.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Returns true where another attempt later can help, as the record itself is not at fault.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unavailable { .. } | Self::Open { .. } | Self::Unauthenticated { .. }
        )
    }

    /// Returns the error for a run id that the store does not have.
    pub(crate) fn run_not_found(run_id: &str, destination: String) -> Self {
        Self::NotFound {
            what: format!("run {run_id:?}"),
            destination,
        }
    }
}
