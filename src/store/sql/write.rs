//! Writing of records into the tables, each batch in one transaction.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use uuid::Uuid;

use super::{
    database::Transaction,
    points::{Point, PointRows, ROWS},
    statement::Statement,
    store::SqlStore,
};
use crate::{
    journal::record::{Record, RunStart},
    mlflow::{
        key::Key,
        limits::cut,
        run::{DatasetInput, RunId},
    },
    store::error::StoreError,
};

impl SqlStore {
    pub(crate) async fn write_batch(&self, records: &[&Record]) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        match self.write_in(&mut tx, records).await {
            Ok(()) => self.commit(tx).await,
            Err(error) => {
                // A database that does not answer is not asked to roll back: it would not answer that either.
                if !error.is_transient() {
                    tx.rollback().await;
                }
                Err(error)
            }
        }
    }

    async fn write_in(&self, tx: &mut Transaction, records: &[&Record]) -> Result<(), StoreError> {
        for record in records {
            if let Record::RunStarted(start) = record {
                self.start_run(tx, start).await?;
            }
        }
        let runs: BTreeSet<RunId> = records
            .iter()
            .filter(|record| !record.is_about_creation())
            .map(|record| record.run())
            .collect();
        self.check_writable(tx, &runs).await?;
        let mut points: PointRows<'_> = Vec::new();
        for record in records {
            match record {
                Record::RunRewound { run, rewind } => {
                    points.retain(|(of, key, point)| {
                        of != run || !rewind.covers(key.as_str(), point.step)
                    });
                    self.rewind(tx, *run, *rewind).await?;
                }
                Record::RunStarted(_)
                | Record::RunAttached { .. }
                | Record::RunCreating { .. }
                | Record::RunNamed { .. }
                | Record::Artifact { .. }
                | Record::ArtifactInPlace { .. }
                | Record::ArtifactInline { .. }
                | Record::ArtifactsDeleted { .. } => {}
                Record::Metrics {
                    run,
                    step,
                    timestamp,
                    values,
                } => points.extend(
                    values
                        .iter()
                        .map(|(key, value)| (*run, key, Point::new(*step, *timestamp, *value))),
                ),
                Record::Params { run, values } => self.write_params(tx, *run, values).await?,
                Record::Tags { run, values } => self.write_tags(tx, *run, values).await?,
                Record::TagDeleted { run, key } => {
                    let delete =
                        Statement::new("DELETE FROM tags WHERE key = $1 AND run_uuid = $2")
                            .bind(key.as_str())
                            .bind(run.to_string());
                    self.execute(tx, delete).await?;
                }
                Record::Input { run, dataset } => self.write_input(tx, *run, dataset).await?,
                Record::RunEnded {
                    run,
                    status,
                    end_time,
                } => {
                    let end = Statement::new(
                        "UPDATE runs SET status = $1, end_time = $2 WHERE run_uuid = $3",
                    )
                    .bind(status.as_str())
                    .bind(*end_time)
                    .bind(run.to_string());
                    self.execute(tx, end).await?;
                }
                Record::RunResumed { run } => {
                    let resume =
                        Statement::new("UPDATE runs SET status = 'RUNNING' WHERE run_uuid = $1")
                            .bind(run.to_string());
                    self.execute(tx, resume).await?;
                }
            }
        }
        self.write_points(tx, points).await
    }

    pub(crate) async fn fail_open_run(
        &self,
        run_id: &str,
        end_time: i64,
    ) -> Result<(), StoreError> {
        let fail =
            Statement::new("UPDATE runs SET status = 'FAILED', end_time = $1 WHERE run_uuid = $2")
                .bind(end_time)
                .bind(run_id);
        self.database
            .execute(fail)
            .await
            .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn start_run(&self, tx: &mut Transaction, start: &RunStart) -> Result<(), StoreError> {
        let location = start.artifact_location.as_deref();
        let experiment = self
            .get_or_create_experiment_in(tx, &start.experiment, location)
            .await?;
        let run_id = start.run.to_string();
        let insert = Statement::new(
            "INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, \
             status, start_time, source_version, lifecycle_stage, artifact_uri, experiment_id) \
             VALUES ($1, $2, 'UNKNOWN', '', '', $3, 'RUNNING', $4, '', 'active', $5, $6) \
             ON CONFLICT (run_uuid) DO NOTHING",
        )
        .bind(run_id.as_str())
        .bind(start.name.as_str())
        .bind(start.user.as_str())
        .bind(start.start_time)
        .bind(artifact_uri(&experiment.artifact_location, &run_id))
        .bind(experiment.id.parse::<i64>().ok());
        self.execute(tx, insert).await?;
        Ok(())
    }

    /// Checks that all these runs exist and are not deleted.
    async fn check_writable(
        &self,
        tx: &mut Transaction,
        runs: &BTreeSet<RunId>,
    ) -> Result<(), StoreError> {
        let runs: Vec<String> = runs.iter().map(RunId::to_string).collect();
        let mut active = HashSet::new();
        for runs in runs.chunks(ROWS) {
            let mut query =
                Statement::new("SELECT run_uuid, lifecycle_stage FROM runs WHERE run_uuid IN ");
            query.push_list(runs.iter().map(String::as_str));
            let found = self
                .fetch(tx, query, |row| Ok((row.string(0)?, row.string(1)?)))
                .await?;
            for (run_id, stage) in found {
                if stage == "deleted" {
                    return Err(StoreError::RunDeleted { run_id });
                }
                active.insert(run_id);
            }
        }
        match runs.iter().find(|run| !active.contains(*run)) {
            Some(missing) => Err(self.run_not_found(missing)),
            None => Ok(()),
        }
    }

    async fn write_params(
        &self,
        tx: &mut Transaction,
        run: RunId,
        params: &[(Key, String)],
    ) -> Result<(), StoreError> {
        let run_id = run.to_string();
        let width = self.layout.width("params", "value");
        // The first of two values for one key in a batch stays, as between batches.
        let mut new: BTreeMap<&Key, String> = BTreeMap::new();
        for (key, value) in params {
            let value = cut(value.clone(), width);
            let first = new.entry(key).or_insert_with(|| value.clone());
            if *first != value {
                return Err(param_changed(run_id, key, first.clone(), value));
            }
        }
        let new: Vec<(&Key, String)> = new.into_iter().collect();
        for params in new.chunks(ROWS) {
            let mut insert = Statement::new("INSERT INTO params (key, value, run_uuid) VALUES ");
            for (position, (key, value)) in params.iter().enumerate() {
                insert.push(if position > 0 { ", " } else { "" });
                insert.push_list([key.as_str(), value, &run_id]);
            }
            insert.push(" ON CONFLICT DO NOTHING");
            self.execute(tx, insert).await?;
            // The stored value after the attempt tells whether the param was new or the same.
            let mut query =
                Statement::new("SELECT key, value FROM params WHERE run_uuid = $1 AND key IN ")
                    .bind(run_id.as_str());
            query.push_list(params.iter().map(|(key, _)| key.as_str()));
            let there: BTreeMap<String, String> = self
                .fetch(tx, query, |row| Ok((row.string(0)?, row.string(1)?)))
                .await?
                .into_iter()
                .collect();
            for (key, value) in params {
                match there.get(key.as_str()) {
                    Some(old) if old != value => {
                        return Err(param_changed(run_id, key, old.clone(), value.clone()));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    async fn write_tags(
        &self,
        tx: &mut Transaction,
        run: RunId,
        tags: &[(Key, String)],
    ) -> Result<(), StoreError> {
        let run_id = run.to_string();
        let width = self.layout.width("tags", "value");
        // Tags are written in the order of their keys, so that two writers of the same tags cannot wait for each other.
        // The last value of a tag wins.
        let tags: BTreeMap<&str, &String> = tags
            .iter()
            .map(|(key, value)| (key.as_str(), value))
            .collect();
        // The name of a run is an attribute and a tag, and the two agree.
        if let Some(name) = tags.get(crate::environment::run_tags::RUN_NAME_TAG) {
            let rename = Statement::new("UPDATE runs SET name = $1 WHERE run_uuid = $2")
                .bind(cut((*name).clone(), self.layout.width("runs", "name")))
                .bind(run_id.as_str());
            self.execute(tx, rename).await?;
        }
        let tags: Vec<(&str, String)> = tags
            .into_iter()
            .map(|(key, value)| (key, cut(value.clone(), width)))
            .collect();
        for tags in tags.chunks(ROWS) {
            let mut insert = Statement::new("INSERT INTO tags (key, value, run_uuid) VALUES ");
            for (position, (key, value)) in tags.iter().enumerate() {
                insert.push(if position > 0 { ", " } else { "" });
                insert.push_list([*key, value, &run_id]);
            }
            insert.push(" ON CONFLICT (key, run_uuid) DO UPDATE SET value = excluded.value");
            self.execute(tx, insert).await?;
        }
        Ok(())
    }

    /// Writes a dataset and its link to the run, as MLflow's `log_inputs` does.
    async fn write_input(
        &self,
        tx: &mut Transaction,
        run: RunId,
        dataset: &DatasetInput,
    ) -> Result<(), StoreError> {
        let run_id = run.to_string();
        let experiment_id = self
            .fetch_one(
                tx,
                Statement::new("SELECT experiment_id FROM runs WHERE run_uuid = $1")
                    .bind(run_id.as_str()),
                |row| row.int(0),
            )
            .await?
            .flatten();
        let insert = Statement::new(
            "INSERT INTO datasets (dataset_uuid, experiment_id, name, digest, dataset_source_type, \
             dataset_source, dataset_schema, dataset_profile) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
             ON CONFLICT DO NOTHING",
        )
        .bind(Uuid::new_v4().simple().to_string())
        .bind(experiment_id)
        .bind(dataset.name.as_str())
        .bind(dataset.digest.as_str())
        .bind(dataset.source_type.as_str())
        .bind(dataset.source.as_str())
        .bind(dataset.schema.clone())
        .bind(dataset.profile.clone());
        self.execute(tx, insert).await?;
        let dataset_id = self
            .fetch_one(
                tx,
                Statement::new(
                    "SELECT dataset_uuid FROM datasets WHERE experiment_id = $1 AND name = $2 AND digest = $3",
                )
                .bind(experiment_id)
                .bind(dataset.name.as_str())
                .bind(dataset.digest.as_str()),
                |row| row.string(0),
            )
            .await?
            .unwrap_or_default();
        let input_id = Uuid::new_v4().simple().to_string();
        let new = self
            .execute(
                tx,
                Statement::new(
                    "INSERT INTO inputs (input_uuid, source_type, source_id, destination_type, \
                     destination_id) VALUES ($1, 'DATASET', $2, 'RUN', $3) ON CONFLICT DO NOTHING",
                )
                .bind(input_id.as_str())
                .bind(dataset_id)
                .bind(run_id.as_str()),
            )
            .await?;
        // As in MLflow, the tags stay those of the first time that the dataset was logged to the run.
        if new > 0 {
            for (name, value) in &dataset.tags {
                let insert = Statement::new(
                    "INSERT INTO input_tags (input_uuid, name, value) VALUES ($1, $2, $3) \
                     ON CONFLICT DO NOTHING",
                )
                .bind(input_id.as_str())
                .bind(name.as_str())
                .bind(value.as_str());
                self.execute(tx, insert).await?;
            }
        }
        Ok(())
    }
}

pub(crate) fn artifact_uri(location: &str, run_id: &str) -> String {
    format!("{}/{run_id}/artifacts", location.trim_end_matches('/'))
}

pub(crate) fn column<T, Row>(rows: &[Row], of_row: impl Fn(&Row) -> T) -> Vec<T> {
    rows.iter().map(of_row).collect()
}

fn param_changed(run_id: String, key: &Key, old: String, new: String) -> StoreError {
    StoreError::ParamChanged {
        run_id,
        key: key.as_str().to_owned(),
        old,
        new,
    }
}
