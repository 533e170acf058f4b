//! The search for garbage: the plan of a collection.

use std::collections::HashSet;

use futures_util::{StreamExt, stream};

use super::{
    collect::{Collection, TOGETHER},
    location::{Location, is_folder_of_run, is_led_elsewhere, is_run_id},
    report::{Findings, GarbageItem, Kind, SparedItem},
    rules::{What, is_older, shown, unkept},
    uploads,
};
use crate::{
    artifacts::store::{ArtifactStore, Usage},
    error::{Error, Result},
    mlflow::{
        artifact_path::ArtifactPath,
        run::{LifecycleStage, RunInfo, ViewType},
        search::runs::{Filter, RunQuery},
    },
    net::secret::without_password,
    store::{
        error::StoreError,
        rest::store::RUN_ID_TAG,
        tracking::{Experiment, RunRow},
    },
};

impl Collection {
    pub(crate) async fn find_deleted(
        &self,
        experiment: &Experiment,
        rows: &[RunRow],
        now: i64,
        found: &mut Findings,
    ) {
        let older_than = self.config.older_than;
        let mut items = Vec::new();
        for row in rows {
            if row.run.lifecycle_stage != LifecycleStage::Deleted.as_str() {
                continue;
            }
            let age = row.deleted_time.map(|at| shown(now.saturating_sub(at)));
            let reason = match &age {
                Some(age) => format!("its run was deleted {age} ago"),
                None => "its run is deleted".to_owned(),
            };
            let item = item_of(&row.run, experiment, Kind::DeletedRun, reason);
            let is_due = older_than.is_zero() || is_older(row.deleted_time, older_than, now);
            match (is_due, age) {
                (true, _) => items.push(GarbageItem {
                    purges: self.config.purge,
                    ..item
                }),
                (false, None) => found.spared.push(SparedItem::of(
                    &item,
                    "the store does not say when its run was deleted".to_owned(),
                )),
                // An item that is not due yet is not reported.
                (false, Some(_)) => {}
            }
        }
        self.measure(items, found).await;
    }

    pub(crate) async fn find_unkept(
        &self,
        experiment: &Experiment,
        now: i64,
        found: &mut Findings,
    ) -> Result<()> {
        let Some(rules) = &self.config.retention else {
            return Ok(());
        };
        let query = RunQuery {
            experiment_ids: vec![experiment.id.clone()],
            filter: Filter::default(),
            order_by: Vec::new(),
            view: ViewType::ActiveOnly,
            max_results: usize::MAX,
            numbers_only: false,
        };
        let runs = self.store.search_runs(&query).await?;
        if let Some(best) = &rules.best
            && !runs.is_empty()
            && !runs
                .iter()
                .any(|run| run.metrics.contains_key(&best.metric))
        {
            return Err(Error::invalid(
                "metric",
                &best.metric,
                format!(
                    "no run of experiment {:?} has it, so that none would be kept for it",
                    experiment.name
                ),
            ));
        }
        let items = unkept(&runs, rules, now).into_iter().map(|(run, reason)| {
            let item = item_of(run, experiment, Kind::Unkept, reason);
            GarbageItem {
                purges: rules.what == What::Runs,
                ..item
            }
        });
        self.measure(items.collect(), found).await;
        Ok(())
    }

    /// Divides runs by whether they may be deleted, and measures the ones that may.
    async fn measure(&self, items: Vec<GarbageItem>, found: &mut Findings) {
        let mut due = Vec::new();
        for item in items {
            match self.held(&item) {
                Some(why) => found.spared.push(SparedItem::of(&item, why)),
                None => due.push(item),
            }
        }
        let measured: Vec<_> = stream::iter(due)
            .map(|item| async move {
                // A run that is marked as deleted keeps its files until it is collected.
                let usage = if item.kind == Kind::Unkept && item.purges {
                    Ok(Usage::default())
                } else {
                    self.usage(&item.uri).await
                };
                (item, usage)
            })
            .buffered(TOGETHER)
            .collect()
            .await;
        for (mut item, usage) in measured {
            match usage {
                // Nothing is left to delete.
                Ok(Usage { files: 0, .. }) if !item.purges => {}
                Ok(Usage { files, bytes }) => {
                    (item.files, item.bytes) = (files, bytes);
                    found.items.push(item);
                }
                Err(error) => found.failures.push((item.uri, error.to_string())),
            }
        }
    }

    /// Returns the reason why nothing of a run may be deleted; `None` where it may be deleted.
    pub(crate) fn held(&self, item: &GarbageItem) -> Option<String> {
        let held = self
            .guard
            .holds(item.run_ids(), &Location::all_of(&item.uri));
        let is_elsewhere = || {
            let run_id = item.run_id.as_deref().unwrap_or_default();
            match () {
                () if !is_folder_of_run(&item.uri, &item.location, run_id) => Some(format!(
                    "it is not the run's own folder below the experiment's artifact location {}",
                    without_password(&item.location)
                )),
                () if is_led_elsewhere(&item.uri, &item.location) => {
                    Some("a link leads out of the experiment's artifact location".to_owned())
                }
                () => None,
            }
        };
        held.or_else(is_elsewhere)
    }

    /// Finds garbage at the artifact locations themselves: unfinished uploads, and folders of no run.
    pub(crate) async fn find_beside(
        &self,
        experiments: &[&Experiment],
        runs: &HashSet<String>,
        now: i64,
        found: &mut Findings,
    ) {
        let mut seen = HashSet::new();
        let mut locations = HashSet::new();
        for experiment in experiments {
            let location = experiment.artifact_location.as_str();
            if !locations.insert(Location::all_of(location)) {
                continue;
            }
            let store = match self.artifacts(location) {
                Ok(store) => store,
                Err(error) => {
                    found
                        .failures
                        .push((location.to_owned(), error.to_string()));
                    continue;
                }
            };
            match store.unfinished_uploads().await {
                Ok(unfinished) => uploads::sort(
                    unfinished,
                    (&experiment.name, location),
                    &self.guard,
                    (self.config.uploads_older_than, now),
                    &mut seen,
                    found,
                ),
                Err(error) => found
                    .failures
                    .push((location.to_owned(), error.to_string())),
            }
            if let Err(error) = self.find_orphans(experiment, &*store, runs, found).await {
                found
                    .failures
                    .push((location.to_owned(), error.to_string()));
            }
        }
    }

    async fn find_orphans(
        &self,
        experiment: &Experiment,
        store: &dyn ArtifactStore,
        runs: &HashSet<String>,
        found: &mut Findings,
    ) -> Result<()> {
        let mut items = Vec::new();
        for folder in store.list(&ArtifactPath::root()).await? {
            let run_id = folder.path.as_str();
            if folder.size.is_some() || !is_run_id(run_id) || runs.contains(run_id) {
                continue;
            }
            // A folder with more than artifacts is a run of MLflow's file store.
            let children = store.list(&folder.path).await?;
            if !matches!(children.as_slice(), [child]
                if child.size.is_none() && child.path.as_str() == format!("{run_id}/artifacts"))
            {
                continue;
            }
            // The run may have been created meanwhile, or belong to another workspace.
            if !self.is_unknown(run_id).await? {
                continue;
            }
            let location = experiment.artifact_location.trim_end_matches('/');
            let run = RunInfo {
                run_id: run_id.to_owned(),
                artifact_uri: format!("{location}/{run_id}/artifacts"),
                ..RunInfo::default()
            };
            let reason = "the store has no such run".to_owned();
            items.push(item_of(&run, experiment, Kind::Orphan, reason));
        }
        let before = found.items.len();
        self.measure(items, found).await;
        if !self.config.orphans {
            // Another store may have the same location, which the user must decide about.
            let kept = found.items.split_off(before);
            found.spared.extend(kept.iter().map(|item| {
                let reason = format!(
                    "{}; it may be another store's with the same location ({} files, {} bytes): orphans go only when \
                     they are asked for",
                    item.reason, item.files, item.bytes
                );
                SparedItem::of(item, reason)
            }));
        }
        Ok(())
    }

    pub(crate) async fn is_unknown(&self, run_id: &str) -> Result<bool, StoreError> {
        match self.store.run(run_id).await {
            Ok(_) => Ok(false),
            Err(StoreError::NotFound { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }
}

fn item_of(run: &RunInfo, experiment: &Experiment, kind: Kind, reason: String) -> GarbageItem {
    GarbageItem {
        kind,
        experiment: experiment.name.clone(),
        run_id: Some(run.run_id.clone()),
        uri: run.artifact_uri.clone(),
        files: 0,
        bytes: 0,
        reason,
        purges: false,
        deleted: false,
        error: None,
        location: experiment.artifact_location.clone(),
        upload: None,
        aliases: run.tags.get(RUN_ID_TAG).cloned().into_iter().collect(),
    }
}
