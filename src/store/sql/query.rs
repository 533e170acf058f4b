//! Questions to the database.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::{SqlStore, StoreError};
use crate::{
    record::Record,
    run::{Best, BestRun, RunInfo},
    store::{Experiment, TrackingStore},
};

type RunRow = (Option<i64>, Option<String>, Option<i64>, Option<i64>);

#[async_trait]
impl TrackingStore for SqlStore {
    async fn experiment(
        &self,
        name: &str,
        artifact_location: Option<&str>,
    ) -> Result<Experiment, StoreError> {
        let mut tx = self
            .pool
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(|error| self.error(error))?;
        let experiment = self
            .get_or_create_experiment(&mut tx, name, artifact_location)
            .await?;
        tx.commit().await.map_err(|error| self.error(error))?;
        self.remember(name, &experiment);
        Ok(experiment)
    }

    async fn write(&self, records: &[&Record]) -> Result<(), StoreError> {
        self.write_batch(records).await
    }

    async fn fail_run(&self, run_id: &str, end_time: i64) -> Result<(), StoreError> {
        self.fail_open_run(run_id, end_time).await
    }

    async fn run(&self, run_id: &str) -> Result<RunInfo, StoreError> {
        let row: Option<RunRow> = sqlx::query_as(
            "SELECT experiment_id, status, start_time, end_time FROM runs WHERE run_uuid = $1",
        )
        .bind(run_id)
        .fetch_optional(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        let (experiment_id, status, start_time, end_time) =
            row.ok_or_else(|| self.run_not_found(run_id))?;
        let metrics: Vec<(String, f64, bool)> =
            sqlx::query_as("SELECT key, value, is_nan FROM latest_metrics WHERE run_uuid = $1")
                .bind(run_id)
                .fetch_all(&self.pool)
                .await
                .map_err(|error| self.error(error))?;
        Ok(RunInfo {
            run_id: run_id.to_owned(),
            experiment_id: experiment_id.unwrap_or_default().to_string(),
            status: status.unwrap_or_default(),
            start_time,
            end_time,
            params: self
                .texts("SELECT key, value FROM params WHERE run_uuid = $1", run_id)
                .await?,
            metrics: metrics
                .into_iter()
                .map(|(key, value, is_nan)| (key, if is_nan { f64::NAN } else { value }))
                .collect(),
            tags: self
                .texts("SELECT key, value FROM tags WHERE run_uuid = $1", run_id)
                .await?,
        })
    }

    async fn artifact_uri(&self, run_id: &str) -> Result<String, StoreError> {
        let uri: Option<Option<String>> =
            sqlx::query_scalar("SELECT artifact_uri FROM runs WHERE run_uuid = $1")
                .bind(run_id)
                .fetch_optional(&self.pool)
                .await
                .map_err(|error| self.error(error))?;
        Ok(uri
            .ok_or_else(|| self.run_not_found(run_id))?
            .unwrap_or_default())
    }

    async fn best_run(
        &self,
        experiment_id: i64,
        metric: &str,
        best: Best,
    ) -> Result<Option<BestRun>, StoreError> {
        let query = match best {
            Best::Min => {
                "SELECT r.run_uuid, m.value FROM latest_metrics m JOIN runs r ON r.run_uuid = m.run_uuid \
                 WHERE r.experiment_id = $1 AND r.lifecycle_stage = 'active' AND m.key = $2 \
                 AND NOT m.is_nan ORDER BY m.value ASC, r.start_time DESC, r.run_uuid LIMIT 1"
            }
            Best::Max => {
                "SELECT r.run_uuid, m.value FROM latest_metrics m JOIN runs r ON r.run_uuid = m.run_uuid \
                 WHERE r.experiment_id = $1 AND r.lifecycle_stage = 'active' AND m.key = $2 \
                 AND NOT m.is_nan ORDER BY m.value DESC, r.start_time DESC, r.run_uuid LIMIT 1"
            }
        };
        let row: Option<(String, f64)> = sqlx::query_as(query)
            .bind(experiment_id)
            .bind(metric)
            .fetch_optional(&self.pool)
            .await
            .map_err(|error| self.error(error))?;
        let Some((run_id, metric_value)) = row else {
            return Ok(None);
        };
        let params = self
            .texts("SELECT key, value FROM params WHERE run_uuid = $1", &run_id)
            .await?;
        Ok(Some(BestRun {
            run_id,
            metric_value,
            params,
        }))
    }
}

impl SqlStore {
    async fn texts(
        &self,
        query: &'static str,
        run_id: &str,
    ) -> Result<BTreeMap<String, String>, StoreError> {
        let rows: Vec<(String, Option<String>)> = sqlx::query_as(query)
            .bind(run_id)
            .fetch_all(&self.pool)
            .await
            .map_err(|error| self.error(error))?;
        Ok(rows
            .into_iter()
            .map(|(key, value)| (key, value.unwrap_or_default()))
            .collect())
    }
}
