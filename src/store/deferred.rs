//! A store that is opened when it is first needed, and again as long as that fails.
//!
//! A server that is down when training starts is no reason not to train: what is asked of this store opens the
//! real one first, and its errors are those of opening it.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::{
    error::StoreError,
    registry::{
        LoggedModel, ModelRegistry, ModelVersion, NewModel, NewVersion, RegisteredModel,
        VersionFiles,
    },
    tracking::{Experiment, LoggedModelFiles, RunRow, TrackingStore},
};
use crate::{
    artifacts::store::ArtifactStore,
    config::{tracker::FreshSchema, uri::Destination},
    journal::record::{Record, RunStart},
    mlflow::{
        key::Key,
        model::{Alias, ModelName, Stage, TagValue},
        run::{LifecycleStage, MetricPoint, RunId, RunInfo, ViewType},
        search::{
            models::{ModelQuery, VersionQuery},
            runs::RunQuery,
        },
    },
};

/// The store and the registry of a destination, once they are open.
#[derive(Debug)]
struct Opened {
    store: Arc<dyn TrackingStore>,
    registry: Arc<dyn ModelRegistry>,
}

/// The store and the model registry of a destination.
#[derive(Debug)]
pub struct DeferredStore {
    destination: Destination,
    fresh_schema: FreshSchema,
    opened: OnceLock<Opened>,
    opening: Mutex<()>,
    /// Is never opened: the user wants to be left alone by the network.
    is_offline: bool,
}

impl DeferredStore {
    /// A store that is not open yet; `is_offline` says that it never will be.
    pub fn new(destination: Destination, fresh_schema: FreshSchema, is_offline: bool) -> Self {
        Self {
            destination,
            fresh_schema,
            opened: OnceLock::new(),
            opening: Mutex::default(),
            is_offline,
        }
    }

    /// Whether it has been reached.
    pub fn is_open(&self) -> bool {
        self.opened.get().is_some()
    }

    /// Opens it, if it is not open.
    ///
    /// # Errors
    /// Those of [`super::open::open`].
    pub async fn reach(&self) -> Result<(), StoreError> {
        self.opened().await.map(|_| ())
    }

    async fn opened(&self) -> Result<&Opened, StoreError> {
        if let Some(opened) = self.opened.get() {
            return Ok(opened);
        }
        if self.is_offline {
            return Err(StoreError::Unavailable {
                destination: self.destination.uri(),
                source: "this tracker is offline: `heimdall sync` delivers what it records".into(),
                retry_after: None,
            });
        }
        // Two that ask at once open it once.
        let _opening = self.opening.lock().await;
        if let Some(opened) = self.opened.get() {
            return Ok(opened);
        }
        let (store, registry) = super::open::open(&self.destination, &self.fresh_schema).await?;
        Ok(self.opened.get_or_init(|| Opened { store, registry }))
    }

    async fn store(&self) -> Result<&dyn TrackingStore, StoreError> {
        Ok(self.opened().await?.store.as_ref())
    }

    async fn registry(&self) -> Result<&dyn ModelRegistry, StoreError> {
        Ok(self.opened().await?.registry.as_ref())
    }
}

#[async_trait]
impl TrackingStore for DeferredStore {
    async fn get_or_create_experiment(
        &self,
        name: &str,
        artifact_location: Option<&str>,
    ) -> Result<Experiment, StoreError> {
        let store = self.store().await?;
        store
            .get_or_create_experiment(name, artifact_location)
            .await
    }

    async fn experiment(&self, id: &str) -> Result<Experiment, StoreError> {
        self.store().await?.experiment(id).await
    }

    async fn experiment_by_name(&self, name: &str) -> Result<Experiment, StoreError> {
        self.store().await?.experiment_by_name(name).await
    }

    async fn experiments(&self, view: ViewType) -> Result<Vec<Experiment>, StoreError> {
        self.store().await?.experiments(view).await
    }

    async fn set_experiment_stage(
        &self,
        id: &str,
        stage: LifecycleStage,
    ) -> Result<(), StoreError> {
        self.store().await?.set_experiment_stage(id, stage).await
    }

    async fn create_run(
        &self,
        start: &RunStart,
        tags: &[(Key, String)],
    ) -> Result<Option<RunId>, StoreError> {
        self.store().await?.create_run(start, tags).await
    }

    async fn write(&self, records: &[&Record]) -> Result<(), StoreError> {
        self.store().await?.write(records).await
    }

    async fn fail_run(&self, run_id: &str, end_time: i64) -> Result<(), StoreError> {
        self.store().await?.fail_run(run_id, end_time).await
    }

    async fn run(&self, run_id: &str) -> Result<RunInfo, StoreError> {
        self.store().await?.run(run_id).await
    }

    async fn artifact_uri(&self, run_id: &str) -> Result<String, StoreError> {
        self.store().await?.artifact_uri(run_id).await
    }

    async fn set_run_stage(&self, run_id: &str, stage: LifecycleStage) -> Result<(), StoreError> {
        self.store().await?.set_run_stage(run_id, stage).await
    }

    async fn search_runs(&self, query: &RunQuery) -> Result<Vec<RunInfo>, StoreError> {
        self.store().await?.search_runs(query).await
    }

    async fn metric_history(
        &self,
        run_id: &str,
        key: &str,
    ) -> Result<Vec<MetricPoint>, StoreError> {
        self.store().await?.metric_history(run_id, key).await
    }

    async fn latest_step(&self, run_id: &str, prefix: &str) -> Result<Option<i64>, StoreError> {
        self.store().await?.latest_step(run_id, prefix).await
    }

    async fn run_rows(&self, experiment_id: &str) -> Result<Vec<RunRow>, StoreError> {
        self.store().await?.run_rows(experiment_id).await
    }

    async fn logged_model_files(
        &self,
        experiment_ids: &[String],
    ) -> Result<Vec<LoggedModelFiles>, StoreError> {
        self.store().await?.logged_model_files(experiment_ids).await
    }

    fn can_purge(&self) -> bool {
        !matches!(self.destination, Destination::Server(_))
    }

    async fn purge_run(&self, run_id: &str) -> Result<bool, StoreError> {
        self.store().await?.purge_run(run_id).await
    }

    fn artifacts(&self, uri: &str) -> Option<Box<dyn ArtifactStore>> {
        // Whoever has a URI has asked this store for it.
        self.opened.get()?.store.artifacts(uri)
    }
}

#[async_trait]
impl ModelRegistry for DeferredStore {
    async fn create_model(&self, new: &NewModel) -> Result<RegisteredModel, StoreError> {
        self.registry().await?.create_model(new).await
    }

    async fn model(&self, name: &ModelName) -> Result<RegisteredModel, StoreError> {
        self.registry().await?.model(name).await
    }

    async fn rename_model(
        &self,
        name: &ModelName,
        new_name: &ModelName,
    ) -> Result<RegisteredModel, StoreError> {
        self.registry().await?.rename_model(name, new_name).await
    }

    async fn describe_model(
        &self,
        name: &ModelName,
        description: &str,
    ) -> Result<RegisteredModel, StoreError> {
        self.registry()
            .await?
            .describe_model(name, description)
            .await
    }

    async fn delete_model(&self, name: &ModelName) -> Result<(), StoreError> {
        self.registry().await?.delete_model(name).await
    }

    async fn set_model_tag(
        &self,
        name: &ModelName,
        key: &Key,
        value: &TagValue,
    ) -> Result<(), StoreError> {
        self.registry().await?.set_model_tag(name, key, value).await
    }

    async fn delete_model_tag(&self, name: &ModelName, key: &Key) -> Result<(), StoreError> {
        self.registry().await?.delete_model_tag(name, key).await
    }

    async fn search_models(&self, query: &ModelQuery) -> Result<Vec<RegisteredModel>, StoreError> {
        self.registry().await?.search_models(query).await
    }

    async fn create_version(&self, new: &NewVersion) -> Result<ModelVersion, StoreError> {
        self.registry().await?.create_version(new).await
    }

    async fn version(&self, name: &ModelName, version: i64) -> Result<ModelVersion, StoreError> {
        self.registry().await?.version(name, version).await
    }

    async fn version_by_alias(
        &self,
        name: &ModelName,
        alias: &Alias,
    ) -> Result<ModelVersion, StoreError> {
        self.registry().await?.version_by_alias(name, alias).await
    }

    async fn search_versions(&self, query: &VersionQuery) -> Result<Vec<ModelVersion>, StoreError> {
        self.registry().await?.search_versions(query).await
    }

    async fn download_uri(&self, name: &ModelName, version: i64) -> Result<String, StoreError> {
        self.registry().await?.download_uri(name, version).await
    }

    async fn describe_version(
        &self,
        name: &ModelName,
        version: i64,
        description: &str,
    ) -> Result<ModelVersion, StoreError> {
        self.registry()
            .await?
            .describe_version(name, version, description)
            .await
    }

    async fn set_stage(
        &self,
        name: &ModelName,
        version: i64,
        stage: Stage,
        archive: bool,
    ) -> Result<(), StoreError> {
        self.registry()
            .await?
            .set_stage(name, version, stage, archive)
            .await
    }

    async fn set_version_tag(
        &self,
        name: &ModelName,
        version: i64,
        key: &Key,
        value: &TagValue,
    ) -> Result<(), StoreError> {
        self.registry()
            .await?
            .set_version_tag(name, version, key, value)
            .await
    }

    async fn delete_version_tag(
        &self,
        name: &ModelName,
        version: i64,
        key: &Key,
    ) -> Result<(), StoreError> {
        self.registry()
            .await?
            .delete_version_tag(name, version, key)
            .await
    }

    async fn delete_version(&self, name: &ModelName, version: i64) -> Result<(), StoreError> {
        self.registry().await?.delete_version(name, version).await
    }

    async fn set_alias(
        &self,
        name: &ModelName,
        alias: &Alias,
        version: i64,
    ) -> Result<(), StoreError> {
        self.registry().await?.set_alias(name, alias, version).await
    }

    async fn delete_alias(&self, name: &ModelName, alias: &Alias) -> Result<(), StoreError> {
        self.registry().await?.delete_alias(name, alias).await
    }

    async fn logged_model(&self, model_id: &str) -> Result<LoggedModel, StoreError> {
        self.registry().await?.logged_model(model_id).await
    }

    async fn logged_model_of(
        &self,
        run: &RunInfo,
        name: &str,
    ) -> Result<Option<LoggedModel>, StoreError> {
        self.registry().await?.logged_model_of(run, name).await
    }

    async fn link_logged_model(
        &self,
        model_id: &str,
        name: &str,
        version: i64,
    ) -> Result<(), StoreError> {
        let registry = self.registry().await?;
        registry.link_logged_model(model_id, name, version).await
    }

    async fn version_files(&self) -> Result<Vec<VersionFiles>, StoreError> {
        self.registry().await?.version_files().await
    }
}
