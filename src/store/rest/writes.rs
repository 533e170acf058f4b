//! Requests that write: the creation of a run, batches of records, and records that need a request of their own.

use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use super::{
    batch::{LogBatch, dataset},
    client::RequestError,
    store::{RUN_ID_TAG, RestStore, TOGETHER},
    wire,
};
use crate::{
    journal::record::{Record, RunStart},
    mlflow::{
        key::Key,
        run::{LifecycleStage, RunId, RunInfo},
    },
    store::{error::StoreError, tracking::TrackingStore},
};

impl RestStore {
    pub(super) async fn create(
        &self,
        start: &RunStart,
        tags: &[(Key, String)],
    ) -> Result<String, StoreError> {
        let location = start.artifact_location.as_deref();
        let experiment = self
            .get_or_create_experiment(&start.experiment, location)
            .await?;
        let mut all: Vec<Value> = tags
            .iter()
            .map(|(key, value)| wire::pair(key.as_str(), value))
            .collect();
        all.push(wire::pair(RUN_ID_TAG, &start.run.to_string()));
        let body = json!({
            "experiment_id": experiment.id,
            "user_id": start.user,
            "run_name": start.name,
            "start_time": start.start_time,
            "tags": all,
        });
        let created: wire::OneRun = self
            .client
            .post("runs/create", &body)
            .await
            .map_err(|failure| self.error(failure))?;
        let created = RunInfo::from(created.run);
        self.remember(start.run, &created.run_id);
        Ok(created.run_id)
    }

    pub(super) async fn update(&self, run: RunId, body: Value) -> Result<(), StoreError> {
        let mut body = body;
        body["run_id"] = self.server_id(run).await?.into();
        self.change("runs/update", &body).await
    }

    pub(super) async fn change(&self, path: &str, body: &Value) -> Result<(), StoreError> {
        let answer = self.client.post::<serde::de::IgnoredAny>(path, body).await;
        answer.map(|_| ()).map_err(|failure| self.error(failure))
    }

    pub(super) async fn send(&self, batch: LogBatch) -> Result<(), StoreError> {
        let Some(run) = batch.run else {
            return Ok(());
        };
        let run_id = self.server_id(run).await?;
        let (params, mut requests) = batch.requests(&run_id);
        // Requests with metrics only can be sent at the same time: the order of points does not matter.
        let together = requests.split_off(params);
        for request in &requests {
            self.log_batch(&run_id, request).await?;
        }
        let run_id = &run_id;
        stream::iter(together)
            .map(|request| async move { self.log_batch(run_id, &request).await })
            .buffer_unordered(TOGETHER)
            .try_collect::<()>()
            .await
    }

    pub(super) async fn log_batch(&self, run_id: &str, request: &Value) -> Result<(), StoreError> {
        let answer = self
            .client
            .post::<serde::de::IgnoredAny>("runs/log-batch", request)
            .await;
        match answer {
            Ok(_) => Ok(()),
            Err(failure) if failure.is("INVALID_PARAMETER_VALUE") => {
                Err(self.explain(run_id, request, failure).await)
            }
            Err(failure) => Err(self.error(failure)),
        }
    }

    /// Returns the reason why a batch was refused: looks at the stage and the params of the run.
    pub(super) async fn explain(
        &self,
        run_id: &str,
        request: &Value,
        refusal: RequestError,
    ) -> StoreError {
        let Ok(run) = self.get_run(run_id).await.map(RunInfo::from) else {
            return self.error(refusal);
        };
        if run.lifecycle_stage == LifecycleStage::Deleted.as_str() {
            let run_id = run_id.to_owned();
            return StoreError::RunDeleted { run_id };
        }
        for param in request["params"].as_array().into_iter().flatten() {
            let (key, new) = (param["key"].as_str(), param["value"].as_str());
            let (key, new) = (key.unwrap_or_default(), new.unwrap_or_default());
            if let Some(old) = run.params.get(key).filter(|old| *old != new) {
                return StoreError::ParamChanged {
                    run_id: run_id.to_owned(),
                    key: key.to_owned(),
                    old: old.clone(),
                    new: new.to_owned(),
                };
            }
        }
        self.error(refusal)
    }

    /// Writes a record that needs a request of its own.
    pub(super) async fn write_alone(&self, record: &Record) -> Result<(), StoreError> {
        match record {
            Record::RunStarted(start) => match self.server_id(start.run).await {
                Err(StoreError::NotFound { .. }) => self.create(start, &[]).await.map(|_| ()),
                known => known.map(|_| ()),
            },
            Record::TagDeleted { run, key } => {
                let run_id = self.server_id(*run).await?;
                let body = json!({"run_id": run_id, "key": key.as_str()});
                let answer = self
                    .client
                    .post::<serde::de::IgnoredAny>("runs/delete-tag", &body)
                    .await;
                match answer {
                    // The tag is deleted already, or has never existed.
                    Err(failure) if failure.is("RESOURCE_DOES_NOT_EXIST") => Ok(()),
                    answer => answer.map(|_| ()).map_err(|failure| self.error(failure)),
                }
            }
            Record::Input { run, dataset: it } => {
                let run_id = self.server_id(*run).await?;
                let body = json!({"run_id": run_id, "datasets": [dataset(it)]});
                self.change("runs/log-inputs", &body).await
            }
            Record::RunEnded {
                run,
                status,
                end_time,
            } => {
                let body = json!({"status": status.as_str(), "end_time": end_time});
                self.update(*run, body).await
            }
            Record::RunResumed { run } => self.update(*run, json!({"status": "RUNNING"})).await,
            Record::Metrics { .. }
            | Record::Params { .. }
            | Record::Tags { .. }
            | Record::RunAttached { .. }
            | Record::RunCreating { .. }
            | Record::RunNamed { .. }
            // An MLflow server has no request that deletes points.
            | Record::RunRewound { .. }
            | Record::Artifact { .. }
            | Record::ArtifactInPlace { .. }
            | Record::ArtifactInline { .. }
            | Record::ArtifactsDeleted { .. } => Ok(()),
        }
    }
}
