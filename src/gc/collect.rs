//! A collection: the plan, and its execution item by item.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future;

use super::{
    journals::journaled,
    location::Location,
    report::{CollectConfig, Findings, GarbageItem, GarbageReport, Kind},
    rules::{Guard, has_ended},
};
use crate::{
    artifacts::{
        error::ArtifactError,
        open::Access,
        store::{ArtifactStore, Usage},
    },
    config::{tracker::FreshSchema, uri::Destination},
    delivery::runtime::{KeepWaiting, Runtime},
    error::{Error, Result},
    mlflow::run::{LifecycleStage, ViewType},
    os::clock::now_ms,
    store::{
        error::StoreError,
        open,
        registry::ModelRegistry,
        tracking::{Experiment, TrackingStore},
    },
};

/// Folders that are measured, and items that are deleted, at a time.
pub(crate) const TOGETHER: usize = 8;
/// Age at which the pointers of registered versions are queried again.
const FRESH: Duration = Duration::from_secs(2);

/// Looks for garbage, and deletes it where the configuration says so.
///
/// # Errors
/// [`Error::Configuration`] for a configuration that contradicts itself or that such a store cannot carry out;
/// [`Error::Invalid`] for a metric that no run has; [`Error::Store`] where the store cannot be queried;
/// [`Error::Interrupted`], after which everything that is not deleted stays.
pub fn collect(config: &CollectConfig, keep_waiting: KeepWaiting<'_>) -> Result<GarbageReport> {
    if config.purge && matches!(config.tracking, Destination::Server(_)) {
        return Err(Error::configuration(
            "purge",
            &config.tracking.uri(),
            "a tracking server removes no run for good: leave it out, and collect with it on the server's database, with this address as the artifact server",
        ));
    }
    if config.retention.is_some() && config.experiments.is_empty() {
        return Err(Error::configuration(
            "retention rules",
            "",
            "name the experiments that they are for",
        ));
    }
    // The runtime, with all work on it, ends with this call.
    let background = Runtime::start()?;
    let config = config.clone();
    background.wait(
        async move { Collection::open(config).await?.run().await },
        keep_waiting,
    )?
}

/// A collection in progress.
pub(crate) struct Collection {
    pub(crate) config: CollectConfig,
    pub(crate) store: Arc<dyn TrackingStore>,
    artifact_server: Option<Arc<dyn TrackingStore>>,
    registries: Vec<Arc<dyn ModelRegistry>>,
    access: Access,
    /// Ids of the experiments, for stores that are queried about each.
    experiment_ids: Vec<String>,
    pub(crate) guard: Guard,
    guarded_at: Instant,
}

impl Collection {
    async fn open(config: CollectConfig) -> Result<Self> {
        let fresh_schema = FreshSchema::default();
        refuse_new(&config.tracking)?;
        let (store, registry) = open::open(&config.tracking, &fresh_schema).await?;
        let mut registries = vec![registry];
        if let Some(elsewhere) = &config.registry
            && elsewhere.uri() != config.tracking.uri()
        {
            refuse_new(elsewhere)?;
            registries.push(open::open(elsewhere, &fresh_schema).await?.1);
        }
        let artifact_server = match &config.artifact_server {
            Some(server @ Destination::Server(_)) => {
                let (server, registry) = open::open(server, &fresh_schema).await?;
                registries.push(registry);
                Some(server)
            }
            Some(other) => {
                return Err(Error::configuration(
                    "artifact server",
                    &other.uri(),
                    "it must be the http:// or https:// address of a tracking server",
                ));
            }
            None => None,
        };
        let access = Access {
            s3: config.s3.clone(),
            ..Access::default()
        };
        Ok(Self {
            config,
            store,
            artifact_server,
            registries,
            access,
            experiment_ids: Vec::new(),
            guard: Guard::default(),
            guarded_at: Instant::now(),
        })
    }

    async fn run(mut self) -> Result<GarbageReport> {
        let all = self.store.experiments(ViewType::All).await?;
        self.experiment_ids = all.iter().map(|it| it.id.clone()).collect();
        let unknown = |name: &&String| !all.iter().any(|it| it.name == **name);
        if let Some(name) = self.config.experiments.iter().find(unknown) {
            return Err(Error::Store(StoreError::NotFound {
                what: format!("experiment {name:?}"),
                destination: self.config.tracking.uri(),
            }));
        }
        let wanted: Vec<&Experiment> = all
            .iter()
            .filter(|it| {
                self.config.experiments.is_empty() || self.config.experiments.contains(&it.name)
            })
            .collect();
        self.guard = self.guard_now().await?;
        let now = now_ms();
        let mut found = Findings::default();
        let mut runs: HashSet<String> = HashSet::new();
        for experiment in &all {
            let is_wanted = wanted.iter().any(|it| it.id == experiment.id);
            // Other experiments are queried as well, because experiments may share a location: a folder is an orphan
            // only where no experiment has its run.
            let rows = self.store.run_rows(&experiment.id).await?;
            runs.extend(rows.iter().map(|row| row.run.run_id.clone()));
            if is_wanted {
                self.find_deleted(experiment, &rows, now, &mut found).await;
            }
        }
        for experiment in &wanted {
            self.find_unkept(experiment, now, &mut found).await?;
        }
        self.find_beside(&wanted, &runs, now, &mut found).await;
        let mut report = GarbageReport {
            items: found.items,
            spared: found.spared,
            failures: found.failures,
        };
        if self.config.delete {
            for items in report.items.chunks_mut(TOGETHER) {
                let outcomes = self.carry_out_all(items).await;
                for (item, outcome) in items.iter_mut().zip(outcomes) {
                    item.deleted = outcome.is_ok();
                    item.error = outcome.err();
                }
            }
        }
        Ok(report)
    }

    /// Returns the guard of everything that must not be touched, as of now.
    async fn guard_now(&self) -> Result<Guard> {
        let mut guard = Guard::new(journaled(&self.config.heimdall_dir)?);
        for registry in &self.registries {
            for version in registry.version_files().await? {
                guard.add_version(&version);
            }
        }
        for model in self.store.logged_model_files(&self.experiment_ids).await? {
            guard.add_logged_model(&model);
        }
        Ok(guard)
    }

    pub(crate) fn artifacts(&self, uri: &str) -> Result<Box<dyn ArtifactStore>, ArtifactError> {
        let at_server = || self.artifact_server.as_ref()?.artifacts(uri);
        match self.store.artifacts(uri).or_else(at_server) {
            Some(store) => Ok(store),
            None => self.access.open(uri),
        }
    }

    pub(crate) async fn usage(&self, uri: &str) -> Result<Usage, ArtifactError> {
        self.artifacts(uri)?.usage().await
    }

    /// Deletes some items concurrently, if they may still be deleted. Returns a reason for each item that was not
    /// deleted.
    async fn carry_out_all(&mut self, items: &[GarbageItem]) -> Vec<Result<(), String>> {
        if self.guarded_at.elapsed() > FRESH {
            match self.guard_now().await {
                Ok(guard) => self.guard = guard,
                Err(error) => return items.iter().map(|_| Err(error.to_string())).collect(),
            }
            self.guarded_at = Instant::now();
        }
        let works: Vec<_> = items.iter().map(|item| self.carry_out(item)).collect();
        future::join_all(works).await
    }

    async fn carry_out(&self, item: &GarbageItem) -> Result<(), String> {
        let said = |error: StoreError| error.to_string();
        if let Some(upload) = &item.upload {
            if let Some(why) = self
                .guard
                .holds(item.run_ids(), &Location::all_of(&item.uri))
            {
                return Err(why);
            }
            let store = self.artifacts(&item.location);
            let aborted = store.map_err(|e| e.to_string())?.abort_upload(upload).await;
            return aborted.map_err(|error| error.to_string());
        }
        if let Some(why) = self.held(item) {
            return Err(why);
        }
        let run_id = item.run_id.as_deref().unwrap_or_default();
        let stays_as_it_was = match item.kind {
            Kind::DeletedRun => {
                let run = self.store.run(run_id).await.map_err(said)?;
                run.lifecycle_stage == LifecycleStage::Deleted.as_str()
            }
            Kind::Unkept => {
                let run = self.store.run(run_id).await.map_err(said)?;
                run.lifecycle_stage == LifecycleStage::Active.as_str() && has_ended(&run)
            }
            Kind::Orphan => self.is_unknown(run_id).await.map_err(said)?,
            Kind::Upload => true,
        };
        if !stays_as_it_was {
            return Err("it has changed since it was found".to_owned());
        }
        if item.kind == Kind::Unkept && item.purges {
            let deleted = self.store.set_run_stage(run_id, LifecycleStage::Deleted);
            return deleted.await.map_err(said);
        }
        let store = self
            .artifacts(&item.uri)
            .map_err(|error| error.to_string())?;
        store.clear().await.map_err(|error| error.to_string())?;
        // The database rows are deleted last: as long as they exist, a later collection finds the rest of the files.
        if item.purges && !self.store.purge_run(run_id).await.map_err(said)? {
            return Err("it has changed since it was found".to_owned());
        }
        Ok(())
    }
}

/// Refuses a database that does not exist, because a collection creates none.
fn refuse_new(destination: &Destination) -> Result<()> {
    match destination {
        Destination::Sqlite(path) if !path.exists() => Err(Error::configuration(
            "tracking URI",
            &destination.uri(),
            "there is no such database",
        )),
        _ => Ok(()),
    }
}
