//! Records into tables, each batch in one transaction.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::{SqlStore, StoreError};
use crate::{
    record::{Key, Record, RunStart},
    run::{RunId, now_ms},
    store::Experiment,
};

/// Rows of one INSERT: SQLite binds at most 32,766 values.
const ROWS: usize = 1_000;

/// A point as the tables keep it: MLflow stores NaN as 0 with a flag and infinities as the largest floats.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    step: i64,
    timestamp: i64,
    value: f64,
    is_nan: bool,
}

impl Point {
    fn new(step: i64, timestamp: i64, value: f64) -> Self {
        let is_nan = value.is_nan();
        let value = if is_nan {
            0.0
        } else {
            value.clamp(f64::MIN, f64::MAX)
        };
        Self {
            step,
            timestamp,
            value,
            is_nan,
        }
    }

    /// MLflow's rule for the latest point of a metric: greatest step, then time, then value.
    fn is_later_than(&self, other: &Self) -> bool {
        (self.step, self.timestamp, self.value) > (other.step, other.timestamp, other.value)
    }
}

type Points<'a> = Vec<(RunId, &'a Key, Point)>;

impl SqlStore {
    pub(super) async fn write_batch(&self, records: &[&Record]) -> Result<(), StoreError> {
        let mut tx = self
            .pool
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(|error| self.error(error))?;
        let mut writable = BTreeSet::new();
        let mut points: Points<'_> = Vec::new();
        for record in records {
            if let Record::RunStarted(start) = record {
                self.start_run(&mut tx, start).await?;
            }
            let run = record.run();
            if !writable.contains(&run) {
                self.check_writable(&mut tx, run).await?;
                writable.insert(run);
            }
            match record {
                Record::RunStarted(_) | Record::Artifact { .. } => {}
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
                Record::Params { run, values } => self.write_params(&mut tx, *run, values).await?,
                Record::Tags { run, values } => self.write_tags(&mut tx, *run, values).await?,
                Record::RunEnded {
                    run,
                    status,
                    end_time,
                } => {
                    sqlx::query("UPDATE runs SET status = $1, end_time = $2 WHERE run_uuid = $3")
                        .bind(status.as_str())
                        .bind(end_time)
                        .bind(run.to_string())
                        .execute(&mut *tx)
                        .await
                        .map_err(|error| self.error(error))?;
                }
            }
        }
        self.write_points(&mut tx, &points).await?;
        tx.commit().await.map_err(|error| self.error(error))
    }

    pub(super) async fn fail_open_run(
        &self,
        run_id: &str,
        end_time: i64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE runs SET status = 'FAILED', end_time = $1 WHERE run_uuid = $2 AND status = 'RUNNING'",
        )
        .bind(end_time)
        .bind(run_id)
        .execute(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        Ok(())
    }

    /// The experiment of that name, created if there is none.
    pub(super) async fn get_or_create_experiment(
        &self,
        connection: &mut SqliteConnection,
        name: &str,
        artifact_location: Option<&str>,
    ) -> Result<Experiment, StoreError> {
        if let Some(known) = self
            .experiments
            .lock()
            .ok()
            .and_then(|known| known.get(name).cloned())
        {
            return Ok(known);
        }
        let now = now_ms();
        let created: Option<i64> = sqlx::query_scalar(
            "INSERT INTO experiments (name, artifact_location, lifecycle_stage, creation_time, \
             last_update_time) VALUES ($1, $2, 'active', $3, $3) ON CONFLICT DO NOTHING \
             RETURNING experiment_id",
        )
        .bind(name)
        .bind(artifact_location.unwrap_or_default())
        .bind(now)
        .fetch_optional(&mut *connection)
        .await
        .map_err(|error| self.error(error))?;
        if let (Some(id), None) = (created, artifact_location) {
            let root = self.destination.default_artifact_root();
            sqlx::query("UPDATE experiments SET artifact_location = $1 WHERE experiment_id = $2")
                .bind(format!("{root}/{id}"))
                .bind(id)
                .execute(&mut *connection)
                .await
                .map_err(|error| self.error(error))?;
        }
        let (id, artifact_location, stage): (i64, Option<String>, Option<String>) = sqlx::query_as(
            "SELECT experiment_id, artifact_location, lifecycle_stage FROM experiments WHERE name = $1",
        )
        .bind(name)
        .fetch_one(&mut *connection)
        .await
        .map_err(|error| self.error(error))?;
        if stage.as_deref() == Some("deleted") {
            return Err(StoreError::ExperimentDeleted {
                name: name.to_owned(),
            });
        }
        Ok(Experiment {
            id,
            artifact_location: artifact_location.unwrap_or_default(),
        })
    }

    /// Notes an experiment that is committed, so that later runs need not look it up.
    pub(super) fn remember(&self, name: &str, experiment: &Experiment) {
        if let Ok(mut known) = self.experiments.lock() {
            known.insert(name.to_owned(), experiment.clone());
        }
    }

    async fn start_run(
        &self,
        connection: &mut SqliteConnection,
        start: &RunStart,
    ) -> Result<(), StoreError> {
        let location = start.artifact_location.as_deref();
        let experiment = self
            .get_or_create_experiment(&mut *connection, &start.experiment, location)
            .await?;
        let run_id = start.run.to_string();
        sqlx::query(
            "INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, \
             status, start_time, source_version, lifecycle_stage, artifact_uri, experiment_id) \
             VALUES ($1, $2, 'UNKNOWN', '', '', $3, 'RUNNING', $4, '', 'active', $5, $6) \
             ON CONFLICT (run_uuid) DO NOTHING",
        )
        .bind(&run_id)
        .bind(&start.name)
        .bind(&start.user)
        .bind(start.start_time)
        .bind(format!("{}/{run_id}/artifacts", experiment.artifact_location.trim_end_matches('/')))
        .bind(experiment.id)
        .execute(&mut *connection)
        .await
        .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn check_writable(
        &self,
        connection: &mut SqliteConnection,
        run: RunId,
    ) -> Result<(), StoreError> {
        let run_id = run.to_string();
        let stage: Option<Option<String>> =
            sqlx::query_scalar("SELECT lifecycle_stage FROM runs WHERE run_uuid = $1")
                .bind(&run_id)
                .fetch_optional(&mut *connection)
                .await
                .map_err(|error| self.error(error))?;
        match stage {
            None => Err(self.run_not_found(&run_id)),
            Some(stage) if stage.as_deref() == Some("deleted") => {
                Err(StoreError::RunDeleted { run_id })
            }
            Some(_) => Ok(()),
        }
    }

    async fn write_params(
        &self,
        connection: &mut SqliteConnection,
        run: RunId,
        params: &[(Key, String)],
    ) -> Result<(), StoreError> {
        let run_id = run.to_string();
        for (key, value) in params {
            // The value that is there after the attempt tells whether the param was new or the same.
            sqlx::query(
                "INSERT INTO params (key, value, run_uuid) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
            )
            .bind(key.as_str())
            .bind(value)
            .bind(&run_id)
            .execute(&mut *connection)
            .await
            .map_err(|error| self.error(error))?;
            let old: String =
                sqlx::query_scalar("SELECT value FROM params WHERE key = $1 AND run_uuid = $2")
                    .bind(key.as_str())
                    .bind(&run_id)
                    .fetch_one(&mut *connection)
                    .await
                    .map_err(|error| self.error(error))?;
            if old != *value {
                let (key, new) = (key.as_str().to_owned(), value.clone());
                return Err(StoreError::ParamChanged {
                    run_id,
                    key,
                    old,
                    new,
                });
            }
        }
        Ok(())
    }

    async fn write_tags(
        &self,
        connection: &mut SqliteConnection,
        run: RunId,
        tags: &[(Key, String)],
    ) -> Result<(), StoreError> {
        let run_id = run.to_string();
        for (key, value) in tags {
            sqlx::query(
                "INSERT INTO tags (key, value, run_uuid) VALUES ($1, $2, $3) \
                 ON CONFLICT (key, run_uuid) DO UPDATE SET value = excluded.value",
            )
            .bind(key.as_str())
            .bind(value)
            .bind(&run_id)
            .execute(&mut *connection)
            .await
            .map_err(|error| self.error(error))?;
        }
        Ok(())
    }

    async fn write_points(
        &self,
        connection: &mut SqliteConnection,
        points: &[(RunId, &Key, Point)],
    ) -> Result<(), StoreError> {
        // In key order, as the stock store locks these rows, so that the two cannot deadlock.
        let mut latest: BTreeMap<(RunId, &Key), Point> = BTreeMap::new();
        for (run, key, point) in points {
            latest
                .entry((*run, *key))
                .and_modify(|last| {
                    if point.is_later_than(last) {
                        *last = *point;
                    }
                })
                .or_insert(*point);
        }
        for rows in points.chunks(ROWS) {
            let rows = rows.iter().map(|(run, key, point)| (*run, *key, *point));
            self.insert_points(&mut *connection, "metrics", rows, "DO NOTHING")
                .await?;
        }
        let latest: Vec<_> = latest
            .into_iter()
            .map(|((run, key), point)| (run, key, point))
            .collect();
        for rows in latest.chunks(ROWS) {
            self.insert_points(
                &mut *connection,
                "latest_metrics",
                rows.iter().copied(),
                "(key, run_uuid) DO UPDATE SET value = excluded.value, timestamp = excluded.timestamp, \
                 step = excluded.step, is_nan = excluded.is_nan \
                 WHERE (excluded.step, excluded.timestamp, excluded.value) > \
                 (latest_metrics.step, latest_metrics.timestamp, latest_metrics.value)",
            )
            .await?;
        }
        Ok(())
    }

    async fn insert_points<'a>(
        &self,
        connection: &mut SqliteConnection,
        table: &'static str,
        points: impl Iterator<Item = (RunId, &'a Key, Point)>,
        on_conflict: &'static str,
    ) -> Result<(), StoreError> {
        let mut insert = QueryBuilder::<Sqlite>::new("INSERT INTO ");
        insert
            .push(table)
            .push(" (key, value, timestamp, run_uuid, step, is_nan) ");
        insert.push_values(points, |mut row, (run, key, point)| {
            row.push_bind(key.as_str().to_owned())
                .push_bind(point.value)
                .push_bind(point.timestamp)
                .push_bind(run.to_string())
                .push_bind(point.step)
                .push_bind(point.is_nan);
        });
        insert.push(" ON CONFLICT ").push(on_conflict);
        insert
            .build()
            .execute(connection)
            .await
            .map_err(|error| self.error(error))?;
        Ok(())
    }
}
