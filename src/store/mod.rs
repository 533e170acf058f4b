//! Where runs are recorded: the seam between the tracker and an MLflow database or server.
//!
//! A store takes records in batches, all of a batch or nothing of it, and takes the same batch twice without
//! a trace: that is what makes delivery exactly-once although the worker may send again what had arrived.

pub mod deferred;
pub mod rest;
pub mod search;
pub mod sql;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{
    artifacts::ArtifactStore,
    config::{Destination, FreshSchema, ServerAccess},
    record::{Key, Record, RunStart},
    registry::ModelRegistry,
    run::{LifecycleStage, MetricPoint, RunId, RunInfo, ViewType},
};
use search::RunQuery;

/// An experiment as the store has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Experiment {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where the artifacts of its runs go.
    pub artifact_location: String,
    /// `active` or `deleted`.
    pub lifecycle_stage: String,
    /// Milliseconds since 1970.
    pub creation_time: Option<i64>,
    /// Milliseconds since 1970.
    pub last_update_time: Option<i64>,
    /// Tags by key.
    pub tags: std::collections::BTreeMap<String, String>,
}

/// A run without its params, metrics and inputs, and when it was deleted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunRow {
    /// The run; of its tags only those that the store has at hand.
    pub run: RunInfo,
    /// When it was deleted, milliseconds since 1970; none where it is not or where the store does not tell.
    pub deleted_time: Option<i64>,
}

/// A model that MLflow 3 keeps beside the runs of an experiment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoggedModelFiles {
    /// Its id, `m-` and 32 hexadecimal digits.
    pub model_id: String,
    /// Where its files are.
    pub artifact_location: String,
}

/// A store of experiments and runs.
#[async_trait]
pub trait TrackingStore: fmt::Debug + Send + Sync {
    /// The active experiment of that name; created, with that artifact location, when there is none. Of
    /// processes that ask at once one creates it, and all get it.
    async fn get_or_create_experiment(
        &self,
        name: &str,
        artifact_location: Option<&str>,
    ) -> Result<Experiment, StoreError>;

    /// The experiment of that id, deleted or not.
    async fn experiment(&self, id: &str) -> Result<Experiment, StoreError>;

    /// The experiment of that name, deleted or not.
    async fn experiment_by_name(&self, name: &str) -> Result<Experiment, StoreError>;

    /// All experiments, those that were updated last first.
    async fn experiments(&self, view: ViewType) -> Result<Vec<Experiment>, StoreError>;

    /// Deletes or restores an experiment with its runs.
    async fn set_experiment_stage(&self, id: &str, stage: LifecycleStage)
    -> Result<(), StoreError>;

    /// Creates a run now where the store itself chooses the ids of runs, and returns its id; `None`, without
    /// a look at the store, where the id that `start` has is kept.
    async fn create_run(
        &self,
        start: &RunStart,
        tags: &[(Key, String)],
    ) -> Result<Option<RunId>, StoreError>;

    /// Writes a batch: all of it, or an error, after which it is written again whole. Writing it again
    /// changes nothing. [`Record::Artifact`] is not for the store and must not be in the batch.
    async fn write(&self, records: &[&Record]) -> Result<(), StoreError>;

    /// Ends a run whose process died as FAILED at `end_time`, unless it has ended.
    async fn fail_run(&self, run_id: &str, end_time: i64) -> Result<(), StoreError>;

    /// A run with its params, latest metrics, tags and inputs.
    async fn run(&self, run_id: &str) -> Result<RunInfo, StoreError>;

    /// Where the artifacts of a run go.
    async fn artifact_uri(&self, run_id: &str) -> Result<String, StoreError>;

    /// Deletes or restores a run.
    async fn set_run_stage(&self, run_id: &str, stage: LifecycleStage) -> Result<(), StoreError>;

    /// The runs that a query finds, in its order.
    async fn search_runs(&self, query: &RunQuery) -> Result<Vec<RunInfo>, StoreError>;

    /// All points of a metric of a run, by time and step as MLflow gives them; none for an unknown key.
    async fn metric_history(&self, run_id: &str, key: &str)
    -> Result<Vec<MetricPoint>, StoreError>;

    /// Largest step of the latest points of a run's metrics whose keys begin with `prefix`, if it has any.
    async fn latest_step(&self, run_id: &str, prefix: &str) -> Result<Option<i64>, StoreError>;

    /// All runs of an experiment, the deleted ones as well, without what other tables have of them.
    async fn run_rows(&self, experiment_id: &str) -> Result<Vec<RunRow>, StoreError>;

    /// The models that MLflow 3 has logged to experiments and that have not been removed for good.
    async fn logged_model_files(
        &self,
        experiment_ids: &[String],
    ) -> Result<Vec<LoggedModelFiles>, StoreError>;

    /// Whether [`TrackingStore::purge_run`] can be asked of it.
    fn can_purge(&self) -> bool;

    /// Removes all that is recorded of a deleted run for good, as `mlflow gc` does; false, and nothing removed, where
    /// there is no such run or it is not deleted. Only a database does so.
    async fn purge_run(&self, run_id: &str) -> Result<bool, StoreError>;

    /// The store of artifacts that is reached through this one, if the URI names one.
    fn artifacts(&self, _uri: &str) -> Option<Box<dyn ArtifactStore>> {
        None
    }
}

/// Opens the store of a destination, and the model registry that it has beside.
///
/// # Errors
/// [`StoreError::Open`] where something must be put right first, [`StoreError::Unavailable`] where waiting may
/// help.
pub async fn open(
    destination: &Destination,
    fresh_schema: &FreshSchema,
) -> Result<(Arc<dyn TrackingStore>, Arc<dyn ModelRegistry>), StoreError> {
    match destination {
        Destination::Sqlite(_) | Destination::Postgres(_) => {
            let store = Arc::new(sql::SqlStore::open(destination, fresh_schema).await?);
            Ok((Arc::clone(&store) as Arc<dyn TrackingStore>, store))
        }
        Destination::Server(uri) => {
            let access = ServerAccess::from_env().map_err(|error| StoreError::Open {
                destination: destination.uri(),
                reason: error.to_string(),
            })?;
            let store = Arc::new(rest::RestStore::open(uri, &access).await?);
            Ok((Arc::clone(&store) as Arc<dyn TrackingStore>, store))
        }
    }
}

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
