//! The seam: what a store of experiments and runs can do.

use std::fmt;

use async_trait::async_trait;

use super::error::StoreError;
use crate::{
    artifacts::store::ArtifactStore,
    journal::record::{Record, RunStart},
    mlflow::{
        key::Key,
        run::{LifecycleStage, MetricPoint, RunId, RunInfo, ViewType},
        search::runs::RunQuery,
    },
};

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
