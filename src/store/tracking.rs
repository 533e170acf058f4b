//! The interface of a store of experiments and runs.

use std::fmt;

use async_trait::async_trait;

use super::error::StoreError;
use crate::{
    artifacts::store::ArtifactStore,
    journal::record::{Record, RunStart},
    mlflow::{
        key::Key,
        rewind::AppliedRewinds,
        run::{LifecycleStage, MetricPoint, RunId, RunInfo, ViewType},
        search::runs::RunQuery,
    },
};

/// An experiment as the store has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Experiment {
    /// Id of the experiment.
    pub id: String,
    /// Name of the experiment.
    pub name: String,
    /// URI below which the artifacts of the runs are stored.
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

/// A run without its params, metrics and inputs, and with the time of its deletion.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunRow {
    /// The run; its tags are incomplete where the store does not have them at hand.
    pub run: RunInfo,
    /// Time of the deletion, milliseconds since 1970; none where the run is not deleted or the store does not tell.
    pub deleted_time: Option<i64>,
}

/// A model that MLflow 3 keeps beside the runs of an experiment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoggedModelFiles {
    /// Id of the model, `m-` and 32 hexadecimal digits.
    pub model_id: String,
    /// URI of the files.
    pub artifact_location: String,
}

/// A store of experiments and runs.
#[async_trait]
pub trait TrackingStore: fmt::Debug + Send + Sync {
    /// Returns the active experiment of this name; creates it, with this artifact location, where there is none. Where
    /// several processes ask at the same time, one of them creates the experiment and all get it.
    async fn get_or_create_experiment(
        &self,
        name: &str,
        artifact_location: Option<&str>,
    ) -> Result<Experiment, StoreError>;

    /// Returns the experiment of this id, deleted or not.
    async fn experiment(&self, id: &str) -> Result<Experiment, StoreError>;

    /// Returns the experiment of this name, deleted or not.
    async fn experiment_by_name(&self, name: &str) -> Result<Experiment, StoreError>;

    /// Returns all experiments, the last updated ones first.
    async fn experiments(&self, view: ViewType) -> Result<Vec<Experiment>, StoreError>;

    /// Deletes or restores an experiment with its runs.
    async fn set_experiment_stage(&self, id: &str, stage: LifecycleStage)
    -> Result<(), StoreError>;

    /// Creates a run now where the store itself chooses the ids of runs, and returns the id. Returns `None`, without a
    /// request to the store, where the store keeps the id that `start` has.
    async fn create_run(
        &self,
        start: &RunStart,
        tags: &[(Key, String)],
    ) -> Result<Option<RunId>, StoreError>;

    /// Writes a whole batch, or returns an error; after an error the caller writes the whole batch again. A batch that
    /// is written a second time changes nothing. Files and deletions of files are not for the store and must not
    /// be in the batch.
    async fn write(&self, records: &[&Record]) -> Result<(), StoreError>;

    /// Returns true where the store applies [`Record::RunRewound`]. A store that cannot delete points ignores it.
    fn can_rewind(&self) -> bool;

    /// Returns the rewinds that the store has applied to a run; none for an unknown run.
    async fn applied_rewinds(&self, run_id: &str) -> Result<AppliedRewinds, StoreError>;

    /// Ends a run that its process had not ended when it died, with status FAILED and `end_time`, whatever status others
    /// have given the run.
    async fn fail_run(&self, run_id: &str, end_time: i64) -> Result<(), StoreError>;

    /// Returns a run with its params, latest metrics, tags and inputs.
    async fn run(&self, run_id: &str) -> Result<RunInfo, StoreError>;

    /// Returns the artifact URI of a run.
    async fn artifact_uri(&self, run_id: &str) -> Result<String, StoreError>;

    /// Deletes or restores a run.
    async fn set_run_stage(&self, run_id: &str, stage: LifecycleStage) -> Result<(), StoreError>;

    /// Returns the runs that a query finds, in the order of the query.
    async fn search_runs(&self, query: &RunQuery) -> Result<Vec<RunInfo>, StoreError>;

    /// Returns all points of a metric of a run, by time and step as MLflow returns them; none for an unknown key.
    async fn metric_history(&self, run_id: &str, key: &str)
    -> Result<Vec<MetricPoint>, StoreError>;

    /// Returns the largest step among the latest points of the metrics whose keys begin with `prefix`, if the run has
    /// any.
    async fn latest_step(&self, run_id: &str, prefix: &str) -> Result<Option<i64>, StoreError>;

    /// Returns all runs of an experiment, the deleted ones as well, without the data that other tables have about them.
    async fn run_rows(&self, experiment_id: &str) -> Result<Vec<RunRow>, StoreError>;

    /// Returns the models that MLflow 3 has logged to experiments and that have not been removed for good.
    async fn logged_model_files(
        &self,
        experiment_ids: &[String],
    ) -> Result<Vec<LoggedModelFiles>, StoreError>;

    /// Returns true where the store can do [`TrackingStore::purge_run`].
    fn can_purge(&self) -> bool;

    /// Removes all records of a deleted run for good, as `mlflow gc` does. Returns false, and removes nothing, where
    /// the run does not exist or is not deleted. Only a database can do this.
    async fn purge_run(&self, run_id: &str) -> Result<bool, StoreError>;

    /// Returns the store of artifacts that is reached through this store, if the URI names one.
    fn artifacts(&self, _uri: &str) -> Option<Box<dyn ArtifactStore>> {
        None
    }
}
