//! Rewinds: deletes the points of a run from a step on, once.

use super::{database::Transaction, schema::Dialect, statement::Statement, store::SqlStore};
use crate::{
    mlflow::{
        rewind::{AppliedRewinds, REWINDS_TAG, Rewind, SYSTEM_METRICS},
        run::RunId,
    },
    store::error::StoreError,
};

/// Returns the query for the rewinds that were applied to a run.
pub(super) fn rewinds_of(run_id: &str) -> Statement {
    Statement::new("SELECT value FROM tags WHERE key = $1 AND run_uuid = $2")
        .bind(REWINDS_TAG)
        .bind(run_id)
}

/// Returns a statement that ends with the condition for the points that a rewind deletes.
fn covered(begin: &'static str, run_id: &str, rewind: Rewind) -> Statement {
    let mut statement = Statement::new(begin);
    statement.push(" WHERE run_uuid = ").push_bind(run_id);
    statement.push(" AND step >= ").push_bind(rewind.step);
    // The length is that of `SYSTEM_METRICS`.
    statement.push(" AND substr(key, 1, 7) <> ");
    statement.push_bind(SYSTEM_METRICS);
    statement
}

impl SqlStore {
    /// Deletes the points of a run that a rewind covers, and finds the latest of each metric again. Does nothing where
    /// the rewind was applied before: points that were recorded after it would be deleted as well.
    pub(super) async fn rewind(
        &self,
        tx: &mut Transaction,
        run: RunId,
        rewind: Rewind,
    ) -> Result<(), StoreError> {
        let run_id = run.to_string();
        // The update locks the row of the run, so that two rewinds of a run follow one another.
        let lock = Statement::new("UPDATE runs SET status = status WHERE run_uuid = $1")
            .bind(run_id.as_str());
        self.execute(tx, lock).await?;
        let tag = self.fetch_one(tx, rewinds_of(&run_id), |row| row.string(0));
        let mut applied = AppliedRewinds::parse(&tag.await?.unwrap_or_default());
        if applied.has(&rewind) {
            return Ok(());
        }
        self.delete_points(tx, &run_id, rewind).await?;
        applied.add(rewind);
        let tag = Statement::new(
            "INSERT INTO tags (key, value, run_uuid) VALUES ($1, $2, $3) \
             ON CONFLICT (key, run_uuid) DO UPDATE SET value = excluded.value",
        )
        .bind(REWINDS_TAG)
        .bind(applied.to_string())
        .bind(run_id);
        self.execute(tx, tag).await?;
        Ok(())
    }

    async fn delete_points(
        &self,
        tx: &mut Transaction,
        run_id: &str,
        rewind: Rewind,
    ) -> Result<(), StoreError> {
        if tx.dialect() == Dialect::Postgres {
            // The stock store locks these rows in the order of their keys as well, so that the two cannot deadlock.
            let mut lock = covered("SELECT key FROM latest_metrics", run_id, rewind);
            lock.push(" ORDER BY key FOR UPDATE");
            self.fetch(tx, lock, |_| Ok(())).await?;
        }
        for delete in ["DELETE FROM metrics", "DELETE FROM latest_metrics"] {
            self.execute(tx, covered(delete, run_id, rewind)).await?;
        }
        let latest = Statement::new(
            "INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid) \
             SELECT key, value, timestamp, step, is_nan, run_uuid FROM (\
             SELECT key, value, timestamp, step, is_nan, run_uuid, ROW_NUMBER() OVER (\
             PARTITION BY key ORDER BY step DESC, timestamp DESC, value DESC) AS place \
             FROM metrics WHERE run_uuid = $1 AND NOT EXISTS (SELECT 1 FROM latest_metrics \
             WHERE latest_metrics.run_uuid = metrics.run_uuid AND latest_metrics.key = metrics.key)\
             ) AS ranked WHERE place = 1 ON CONFLICT (key, run_uuid) DO NOTHING",
        )
        .bind(run_id);
        self.execute(tx, latest).await?;
        Ok(())
    }
}
