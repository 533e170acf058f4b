//! Where runs are recorded: the seam between the tracker and an MLflow database or server.
//!
//! A store takes records in batches, all of a batch or nothing of it, and takes the same batch twice without
//! a trace: that is what makes delivery exactly-once although the worker may send again what had arrived.

pub mod sql;

use std::fmt;

use async_trait::async_trait;

use crate::{
    record::Record,
    run::{Best, BestRun, RunInfo},
};

/// An experiment as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Experiment {
    /// Its id.
    pub id: i64,
    /// Where the artifacts of its runs go.
    pub artifact_location: String,
}

/// A store of experiments and runs.
#[async_trait]
pub trait TrackingStore: fmt::Debug + Send + Sync {
    /// The experiment of that name; created, with that artifact location, when there is none.
    async fn experiment(
        &self,
        name: &str,
        artifact_location: Option<&str>,
    ) -> Result<Experiment, StoreError>;

    /// Writes a batch: all of it, or nothing and an error. Writing it again changes nothing.
    /// [`Record::Artifact`] is not for the store and must not be in the batch.
    async fn write(&self, records: &[&Record]) -> Result<(), StoreError>;

    /// Ends a run whose process died as FAILED at `end_time`, unless it has ended.
    async fn fail_run(&self, run_id: &str, end_time: i64) -> Result<(), StoreError>;

    /// A run with its params, latest metrics and tags.
    async fn run(&self, run_id: &str) -> Result<RunInfo, StoreError>;

    /// Where the artifacts of a run go.
    async fn artifact_uri(&self, run_id: &str) -> Result<String, StoreError>;

    /// The active run of an experiment with the best latest value of `metric`. NaN is never the best;
    /// of equal runs the one that started last is, as in MLflow's search.
    async fn best_run(
        &self,
        experiment_id: i64,
        metric: &str,
        best: Best,
    ) -> Result<Option<BestRun>, StoreError>;
}

/// What a store can answer but success.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store cannot be reached or cannot take anything now. It may pass.
    #[error("{destination} cannot be written to at present: {source}")]
    Unavailable {
        /// URI without credentials.
        destination: String,
        /// What its driver says.
        source: sqlx::Error,
    },
    /// The store cannot be opened at all.
    #[error("{destination} cannot be opened: {reason}")]
    Open {
        /// URI without credentials.
        destination: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A constraint of the database refuses the record.
    #[error("{destination} refuses the record: {source}")]
    Refused {
        /// URI without credentials.
        destination: String,
        /// What its driver says.
        source: sqlx::Error,
    },
    /// No such run.
    #[error("run {run_id:?} does not exist in {destination}")]
    RunNotFound {
        /// The id asked for.
        run_id: String,
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
    /// The experiment is deleted.
    #[error("experiment {name:?} is deleted: restore it or use another name")]
    ExperimentDeleted {
        /// Its name.
        name: String,
    },
    /// No such registered model or version.
    #[error("{what} does not exist in {destination}")]
    ModelNotFound {
        /// The model or version asked for.
        what: String,
        /// URI without credentials.
        destination: String,
    },
}

impl StoreError {
    /// True where trying again later can help and the record itself is not at fault.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Open { .. })
    }
}
