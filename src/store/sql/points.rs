//! PointRows of metrics: all of them, and the latest of each metric.

use std::collections::BTreeMap;

use super::{
    copy::CopyRows, database::Transaction, schema::Dialect, statement::Statement, store::SqlStore,
    write::column,
};
use crate::{
    mlflow::{key::Key, run::RunId},
    store::error::StoreError,
};

/// Number of rows of one INSERT into SQLite. A fixed number of rows keeps the statement prepared.
pub(crate) const ROWS: usize = 64;

/// Least number of points for which a COPY into PostgreSQL is worth its two more round trips.
const COPIED: usize = 200;

/// A point as the tables store it: MLflow stores NaN as 0 with a flag and infinities as the largest floats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Point {
    pub step: i64,
    timestamp: i64,
    value: f64,
    is_nan: bool,
}

impl Point {
    pub(crate) fn new(step: i64, timestamp: i64, value: f64) -> Self {
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

    /// Applies MLflow's rule for the latest point of a metric: greatest step, then time, then value.
    fn is_later_than(&self, other: &Self) -> bool {
        (self.step, self.timestamp, self.value) > (other.step, other.timestamp, other.value)
    }
}

/// Rows of the tables of points: the run, the key of the metric and the point.
pub(crate) type PointRows<'a> = Vec<(RunId, &'a Key, Point)>;

impl SqlStore {
    pub(crate) async fn write_points(
        &self,
        tx: &mut Transaction,
        mut points: PointRows<'_>,
    ) -> Result<(), StoreError> {
        if points.is_empty() {
            return Ok(());
        }
        // The order is that of the keys, in which the stock store locks these rows too, so that the two cannot
        // deadlock.
        let mut latest: BTreeMap<(RunId, &Key), Point> = BTreeMap::new();
        for (run, key, point) in &points {
            latest
                .entry((*run, *key))
                .and_modify(|last| {
                    if point.is_later_than(last) {
                        *last = *point;
                    }
                })
                .or_insert(*point);
        }
        // PointRows are sorted by the key of the table, so that they are next to each other in its index.
        points.sort_by(|(run_a, a, x), (run_b, b, y)| {
            (*a, x.timestamp, x.step, *run_a)
                .cmp(&(*b, y.timestamp, y.step, *run_b))
                .then(x.value.total_cmp(&y.value))
        });
        // A point that is logged twice is stored once.
        points.dedup();
        if !self.copy_points(tx, &points).await? {
            self.insert_points(tx, "metrics", &points, "DO NOTHING")
                .await?;
        }
        let latest: PointRows<'_> = latest
            .into_iter()
            .map(|((run, key), point)| (run, key, point))
            .collect();
        self.insert_points(
            tx,
            "latest_metrics",
            &latest,
            "(key, run_uuid) DO UPDATE SET value = excluded.value, timestamp = excluded.timestamp, \
             step = excluded.step, is_nan = excluded.is_nan \
             WHERE (excluded.step, excluded.timestamp, excluded.value) > \
             (latest_metrics.step, latest_metrics.timestamp, latest_metrics.value)",
        )
        .await
    }

    /// Copies points that are new. Returns false, and copies nothing, where a COPY is not possible or not worth it, or
    /// where one of the points exists already.
    async fn copy_points(
        &self,
        tx: &mut Transaction,
        points: &[(RunId, &Key, Point)],
    ) -> Result<bool, StoreError> {
        if tx.dialect() != Dialect::Postgres || points.len() < COPIED {
            return Ok(false);
        }
        let mut rows = CopyRows::new(6);
        for (run, key, point) in points {
            rows.row()
                .text(key.as_str())
                .float(point.value)
                .int(point.timestamp)
                .text(&run.to_string())
                .int(point.step)
                .bool(point.is_nan);
        }
        let copied = tx
            .copy(
                "COPY metrics (key, value, timestamp, run_uuid, step, is_nan) FROM STDIN WITH (FORMAT binary)",
                rows,
            )
            .await;
        copied.map_err(|error| self.error(error))
    }

    async fn insert_points(
        &self,
        tx: &mut Transaction,
        table: &'static str,
        points: &[(RunId, &Key, Point)],
        on_conflict: &'static str,
    ) -> Result<(), StoreError> {
        let into = format!("INSERT INTO {table} (key, value, timestamp, run_uuid, step, is_nan)");
        match tx.dialect() {
            Dialect::Sqlite => {
                for rows in points.chunks(ROWS) {
                    let mut insert = Statement::new(format!("{into} VALUES "));
                    for (position, (run, key, point)) in rows.iter().enumerate() {
                        insert.push(if position > 0 { ", (" } else { "(" });
                        insert.push_bind(key.as_str()).push(", ");
                        insert.push_bind(point.value).push(", ");
                        insert.push_bind(point.timestamp).push(", ");
                        insert.push_bind(run.to_string()).push(", ");
                        insert.push_bind(point.step).push(", ");
                        insert.push_bind(point.is_nan).push(")");
                    }
                    insert.push(" ON CONFLICT ").push(on_conflict);
                    self.execute(tx, insert).await?;
                }
            }
            Dialect::Postgres => {
                let insert = Statement::new(format!(
                    "{into} SELECT * FROM unnest($1::text[], $2::float8[], $3::int8[], $4::text[], \
                     $5::int8[], $6::bool[]) ON CONFLICT {on_conflict}"
                ))
                .bind(column(points, |(_, key, _)| key.as_str().to_owned()))
                .bind(column(points, |(_, _, point)| point.value))
                .bind(column(points, |(_, _, point)| point.timestamp))
                .bind(column(points, |(run, _, _)| run.to_string()))
                .bind(column(points, |(_, _, point)| point.step))
                .bind(column(points, |(_, _, point)| point.is_nan));
                self.execute(tx, insert).await?;
            }
        }
        Ok(())
    }
}
