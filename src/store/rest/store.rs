//! A tracking server as a store, and the ids that the server has given to our runs.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use serde_json::json;

use super::{
    artifacts,
    batch::{LogBatch, number},
    client::{Client, RequestError},
    pages::{ListPage, all_pages},
    wire::{self, view_word},
};
use crate::{
    artifacts::store::ArtifactStore,
    config::{server::ServerAccess, uri::ServerUri},
    journal::record::{Record, RunStart},
    mlflow::{
        key::Key,
        rewind::AppliedRewinds,
        run::{LifecycleStage, MetricPoint, RunId, RunInfo, RunStatus, ViewType},
        search::runs::RunQuery,
    },
    store::{
        error::StoreError,
        tracking::{Experiment, LoggedModelFiles, RunRow, TrackingStore},
    },
};

/// Tag that holds our id of a run; a run that is journaled under our id is found by this tag.
pub(crate) const RUN_ID_TAG: &str = "heimdall.run_id";

/// Longest time that `start_run` waits for the server's id before it continues with an id of ours.
pub(crate) const CREATE_TIMEOUT: Duration = Duration::from_secs(5);

/// Number of requests that are sent at a time.
pub(crate) const TOGETHER: usize = 2;

/// Number of entries of a page of an answer.
pub(crate) const PAGE: usize = 1_000;

/// Number of points of a page of a metric's history.
const HISTORY_PAGE: usize = 25_000;

/// An MLflow tracking server.
#[derive(Debug)]
pub(crate) struct RestStore {
    pub(crate) client: std::sync::Arc<Client>,
    /// The server's id of each run, by our id.
    runs: Mutex<HashMap<RunId, String>>,
    experiments: Mutex<HashMap<String, Experiment>>,
}

impl RestStore {
    /// Connects, and sends a query that every tracking server answers.
    ///
    /// # Errors
    /// [`StoreError::Open`] for an address without an MLflow server and for certificates that cannot be read; the
    /// errors of a request.
    pub(crate) async fn open(uri: &ServerUri, access: &ServerAccess) -> Result<Self, StoreError> {
        let store = Self {
            client: std::sync::Arc::new(Client::new(uri, access)?),
            runs: Mutex::default(),
            experiments: Mutex::default(),
        };
        let question = json!({"max_results": 1});
        let answer = store
            .client
            .ask::<ListPage<wire::Experiment>>("experiments/search", &question);
        answer
            .await
            .map_err(|failure| store.client.error(failure))?;
        Ok(store)
    }

    pub(crate) fn error(&self, failure: RequestError) -> StoreError {
        self.client.error(failure)
    }

    fn known(&self, run: RunId) -> Option<String> {
        let known = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&run).cloned()
    }

    pub(crate) fn remember(&self, run: RunId, id: &str) {
        let mut known = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(run, id.to_owned());
    }

    pub(crate) async fn get_run(&self, run_id: &str) -> Result<wire::Run, RequestError> {
        let answer: wire::OneRun = self.client.get("runs/get", &[("run_id", run_id)]).await?;
        Ok(answer.run)
    }

    /// Returns the server's id of a run; `run` is our id or the server's id.
    pub(crate) async fn server_id(&self, run: RunId) -> Result<String, StoreError> {
        if let Some(known) = self.known(run) {
            return Ok(known);
        }
        let found = self.find(&run.to_string()).await?;
        self.remember(run, &found.run_id);
        Ok(found.run_id)
    }

    /// Returns a run by the server's id or our id.
    async fn find(&self, run_id: &str) -> Result<RunInfo, StoreError> {
        self.found(run_id).await.map(RunInfo::from)
    }

    async fn found(&self, run_id: &str) -> Result<wire::Run, StoreError> {
        let known = run_id.parse().ok().and_then(|run| self.known(run));
        let id = known.as_deref().unwrap_or(run_id);
        match self.get_run(id).await {
            Err(failure) if failure.is("RESOURCE_DOES_NOT_EXIST") => {}
            found => return found.map_err(|failure| self.error(failure)),
        }
        let not_found = || StoreError::run_not_found(run_id, self.client.base().to_owned());
        if run_id.parse::<RunId>().is_err() {
            return Err(not_found());
        }
        let experiments = self.experiments(ViewType::ActiveOnly).await?;
        let ids: Vec<&str> = experiments.iter().map(|it| it.id.as_str()).collect();
        // A server may have more experiments than one search may name.
        for ids in ids.chunks(100) {
            let question = json!({
                "experiment_ids": ids,
                "filter": format!("tags.`{RUN_ID_TAG}` = '{run_id}'"),
                "run_view_type": "ALL",
                "max_results": 1,
            });
            let answer: ListPage<wire::Run> = self
                .client
                .ask("runs/search", &question)
                .await
                .map_err(|failure| self.error(failure))?;
            if let Some(found) = answer.items.into_iter().next() {
                return Ok(found);
            }
        }
        Err(not_found())
    }

    async fn experiment_at(
        &self,
        path: &str,
        query: (&str, &str),
    ) -> Result<Experiment, RequestError> {
        let answer: wire::OneExperiment = self.client.get(path, &[query]).await?;
        Ok(answer.experiment.into())
    }
}

#[async_trait]
impl TrackingStore for RestStore {
    async fn get_or_create_experiment(
        &self,
        name: &str,
        artifact_location: Option<&str>,
    ) -> Result<Experiment, StoreError> {
        let known = self
            .experiments
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let found = match self.experiment_by_name(name).await {
            Err(StoreError::NotFound { .. }) => {
                let mut body = json!({"name": name});
                if let Some(location) = artifact_location {
                    body["artifact_location"] = location.into();
                }
                let created = self
                    .client
                    .post::<wire::CreatedExperiment>("experiments/create", &body)
                    .await;
                match created {
                    Ok(created) => self.experiment(&created.experiment_id).await?,
                    // Another process has created the experiment first.
                    Err(failure) if failure.is("RESOURCE_ALREADY_EXISTS") => {
                        self.experiment_by_name(name).await?
                    }
                    Err(failure) => return Err(self.error(failure)),
                }
            }
            found => found?,
        };
        if found.lifecycle_stage == LifecycleStage::Deleted.as_str() {
            return Err(StoreError::ExperimentDeleted {
                name: name.to_owned(),
            });
        }
        let mut known = self
            .experiments
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        known.insert(name.to_owned(), found.clone());
        Ok(found)
    }

    async fn experiment(&self, id: &str) -> Result<Experiment, StoreError> {
        let found = self
            .experiment_at("experiments/get", ("experiment_id", id))
            .await;
        found.map_err(|failure| self.error(failure))
    }

    async fn experiment_by_name(&self, name: &str) -> Result<Experiment, StoreError> {
        let query = ("experiment_name", name);
        let found = self.experiment_at("experiments/get-by-name", query).await;
        found.map_err(|failure| self.error(failure))
    }

    async fn experiments(&self, view: ViewType) -> Result<Vec<Experiment>, StoreError> {
        let page = |token: String, _| async move {
            let question = json!({
                "view_type": view_word(view),
                "max_results": PAGE,
                "order_by": ["last_update_time DESC", "experiment_id DESC"],
                "page_token": token,
            });
            self.client.ask("experiments/search", &question).await
        };
        let found: Vec<wire::Experiment> = all_pages(usize::MAX, page)
            .await
            .map_err(|failure| self.error(failure))?;
        Ok(found.into_iter().map(Experiment::from).collect())
    }

    async fn set_experiment_stage(
        &self,
        id: &str,
        stage: LifecycleStage,
    ) -> Result<(), StoreError> {
        let path = match stage {
            LifecycleStage::Active => "experiments/restore",
            LifecycleStage::Deleted => "experiments/delete",
        };
        self.experiments
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        self.change(path, &json!({"experiment_id": id})).await
    }

    async fn create_run(
        &self,
        start: &RunStart,
        tags: &[(Key, String)],
    ) -> Result<Option<RunId>, StoreError> {
        let created = tokio::time::timeout(CREATE_TIMEOUT, self.create(start, tags)).await;
        let Ok(created) = created else {
            return Err(StoreError::Unavailable {
                destination: self.client.base().to_owned(),
                source: format!("no answer within {} s", CREATE_TIMEOUT.as_secs()).into(),
                retry_after: None,
            });
        };
        let Ok(run) = created?.parse::<RunId>() else {
            // The server's id is not one of ours: keep our id and find the run by its tag.
            return Ok(None);
        };
        self.remember(run, &run.to_string());
        Ok(Some(run))
    }

    async fn write(&self, records: &[&Record]) -> Result<(), StoreError> {
        let mut batch = LogBatch::default();
        for record in records {
            if batch.run.is_some_and(|run| run != record.run()) {
                self.send(std::mem::take(&mut batch)).await?;
            }
            match record {
                Record::Metrics {
                    run,
                    step,
                    timestamp,
                    values,
                } => {
                    batch.run = Some(*run);
                    batch.metrics.extend(values.iter().map(|(key, value)| {
                        json!({"key": key.as_str(), "value": number(*value), "timestamp": timestamp, "step": step})
                    }));
                }
                Record::Params { run, values } => {
                    batch.run = Some(*run);
                    batch.params.extend(
                        values
                            .iter()
                            .map(|(key, value)| wire::pair(key.as_str(), value)),
                    );
                }
                Record::Tags { run, values } => {
                    batch.run = Some(*run);
                    let tags = values
                        .iter()
                        .map(|(key, value)| (key.as_str().to_owned(), value.clone()));
                    batch.tags.extend(tags);
                }
                other => {
                    self.send(std::mem::take(&mut batch)).await?;
                    self.write_alone(other).await?;
                }
            }
        }
        self.send(batch).await
    }

    async fn fail_run(&self, run_id: &str, end_time: i64) -> Result<(), StoreError> {
        let run = self.find(run_id).await?;
        let body = json!({
            "run_id": run.run_id,
            "status": RunStatus::Failed.as_str(),
            "end_time": end_time,
        });
        self.change("runs/update", &body).await
    }

    async fn run(&self, run_id: &str) -> Result<RunInfo, StoreError> {
        self.find(run_id).await
    }

    async fn artifact_uri(&self, run_id: &str) -> Result<String, StoreError> {
        Ok(self.find(run_id).await?.artifact_uri)
    }

    async fn set_run_stage(&self, run_id: &str, stage: LifecycleStage) -> Result<(), StoreError> {
        let run_id = self.find(run_id).await?.run_id;
        let path = match stage {
            LifecycleStage::Active => "runs/restore",
            LifecycleStage::Deleted => "runs/delete",
        };
        self.change(path, &json!({"run_id": run_id})).await
    }

    async fn search_runs(&self, query: &RunQuery) -> Result<Vec<RunInfo>, StoreError> {
        let order_by: Vec<&str> = query.order_by.iter().map(|it| it.text.as_str()).collect();
        let order_by = &order_by;
        let page = |token: String, wanted: usize| async move {
            let question = json!({
                "experiment_ids": query.experiment_ids,
                "filter": query.filter.text,
                "run_view_type": view_word(query.view),
                "max_results": PAGE.min(wanted),
                "order_by": order_by,
                "page_token": token,
            });
            self.client.ask("runs/search", &question).await
        };
        let found: Vec<wire::Run> = all_pages(query.max_results, page)
            .await
            .map_err(|failure| self.error(failure))?;
        Ok(found.into_iter().map(RunInfo::from).collect())
    }

    async fn metric_history(
        &self,
        run_id: &str,
        key: &str,
    ) -> Result<Vec<MetricPoint>, StoreError> {
        let run_id = &self.find(run_id).await?.run_id;
        let page_size = &HISTORY_PAGE.to_string();
        let page = |token: String, _| async move {
            let mut query = vec![
                ("run_id", run_id.as_str()),
                ("metric_key", key),
                ("max_results", page_size.as_str()),
            ];
            if !token.is_empty() {
                query.push(("page_token", &token));
            }
            self.client.get("metrics/get-history", &query).await
        };
        let found: Vec<wire::Metric> = all_pages(usize::MAX, page)
            .await
            .map_err(|failure| self.error(failure))?;
        Ok(found.iter().map(wire::Metric::point).collect())
    }

    async fn latest_step(&self, run_id: &str, prefix: &str) -> Result<Option<i64>, StoreError> {
        Ok(self.found(run_id).await?.latest_step(prefix))
    }

    async fn run_rows(&self, experiment_id: &str) -> Result<Vec<RunRow>, StoreError> {
        self.rows_of_runs(experiment_id).await
    }

    async fn logged_model_files(
        &self,
        experiment_ids: &[String],
    ) -> Result<Vec<LoggedModelFiles>, StoreError> {
        self.files_of_logged_models(experiment_ids).await
    }

    fn can_rewind(&self) -> bool {
        false
    }

    async fn applied_rewinds(&self, _run_id: &str) -> Result<AppliedRewinds, StoreError> {
        Ok(AppliedRewinds::default())
    }

    fn can_purge(&self) -> bool {
        false
    }

    async fn purge_run(&self, _run_id: &str) -> Result<bool, StoreError> {
        Err(StoreError::Refused {
            destination: self.client.base().to_owned(),
            source: "a tracking server removes no run for good: collect on its database".into(),
        })
    }

    fn artifacts(&self, uri: &str) -> Option<Box<dyn ArtifactStore>> {
        let rest = uri.strip_prefix("mlflow-artifacts:")?;
        let path = match rest.strip_prefix("//") {
            // A URI of another server is refused: the credentials are for this server only.
            Some(rest) => {
                let (host, path) = rest.split_once('/')?;
                let base = self.client.base().split_once("://")?.1;
                (base.split('/').next() == Some(host)).then_some(path)?
            }
            None => rest.trim_start_matches('/'),
        };
        Some(Box::new(artifacts::ProxyArtifacts::new(
            std::sync::Arc::clone(&self.client),
            path,
        )))
    }
}
