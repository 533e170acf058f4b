//! The answers of a store that are not success.

use std::time::Duration;

/// What a driver or a server says.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Whether one side of a connection has refused the other's certificate: waiting does not help.
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
        // An error of I/O has what it wraps as itself, not as its source.
        next = match error.downcast_ref::<std::io::Error>() {
            Some(io) => io
                .get_ref()
                .map(|inner| inner as &(dyn std::error::Error + 'static)),
            None => error.source(),
        };
    }
    false
}

/// What a store can answer but success.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store cannot be reached or cannot take anything now. It may pass.
    #[error("{destination} cannot answer at present: {source}")]
    Unavailable {
        /// URI without credentials.
        destination: String,
        /// What is the matter.
        source: Cause,
        /// When to come back, if the store says so.
        retry_after: Option<Duration>,
    },
    /// The store cannot be used at all as it is configured: no such database, a wrong password, no MLflow.
    #[error("{destination} cannot be opened: {reason}")]
    Open {
        /// URI without credentials.
        destination: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The store does not know us (any more): a password or a token that has run out. It may pass.
    #[error("{destination} does not accept the credentials: {reason}")]
    Unauthenticated {
        /// URI without credentials.
        destination: String,
        /// What it says.
        reason: String,
    },
    /// The store knows us and does not let us.
    #[error("{destination} does not permit this: {reason}")]
    Forbidden {
        /// URI without credentials.
        destination: String,
        /// What it says.
        reason: String,
    },
    /// The store refuses the record or the question itself.
    #[error("{destination} refuses this: {source}")]
    Refused {
        /// URI without credentials.
        destination: String,
        /// What it says.
        source: Cause,
    },
    /// No such run, experiment, registered model or model version.
    #[error("{what} does not exist in {destination}")]
    NotFound {
        /// What was asked for.
        what: String,
        /// URI without credentials.
        destination: String,
    },
    /// The run is deleted, and MLflow takes nothing for a deleted run.
    #[error("run {run_id} is deleted: restore it to write to it")]
    RunDeleted {
        /// Its id.
        run_id: String,
    },
    /// A param of the run has another value already.
    #[error(
        "param {key:?} of run {run_id} is {old:?} and cannot become {new:?}: params do not change, start another run"
    )]
    ParamChanged {
        /// The run.
        run_id: String,
        /// The param's key.
        key: String,
        /// Its value.
        old: String,
        /// The refused value.
        new: String,
    },
    /// There is a registered model of that name.
    #[error("{what} exists in {destination} already: choose another name")]
    AlreadyExists {
        /// What was to be created.
        what: String,
        /// URI without credentials.
        destination: String,
    },
    /// A version has been registered and cannot be used (yet).
    #[error("version {version} of model {name:?} is registered and not ready: {reason}")]
    NotReady {
        /// The model.
        name: String,
        /// The version's number.
        version: i64,
        /// Its status, how long it was waited for, what the registry says.
        reason: String,
    },
    /// The experiment is deleted.
    #[error("experiment {name:?} is deleted: restore it or use another name")]
    ExperimentDeleted {
        /// Its name.
        name: String,
    },
}

impl StoreError {
    /// How long the store wants to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// True where trying again later can help and the record itself is not at fault.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unavailable { .. } | Self::Open { .. } | Self::Unauthenticated { .. }
        )
    }

    /// No run of that id.
    pub(crate) fn run_not_found(run_id: &str, destination: String) -> Self {
        Self::NotFound {
            what: format!("run {run_id:?}"),
            destination,
        }
    }
}
