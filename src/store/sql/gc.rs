//! What is removed for good: the rows of deleted runs, and what must be known before.

use super::{
    rows::{RUN_COLUMNS, run},
    statement::Statement,
    store::SqlStore,
};
use crate::store::{
    error::StoreError,
    registry::VersionFiles,
    tracking::{LoggedModelFiles, RunRow},
};

/// Tables that have rows of a run and the column that names it, in the order in which they are emptied: those that
/// refer to others first. A revision need not have all of them. The first four are those that `mlflow gc` empties.
const OF_RUN: [(&str, &str); 5] = [
    ("metrics", "run_uuid"),
    ("latest_metrics", "run_uuid"),
    ("params", "run_uuid"),
    ("tags", "run_uuid"),
    ("logged_model_metrics", "run_id"),
];

/// Inputs of a run, which are datasets and models, and models that it has put out: a condition on `inputs`.
const INPUTS: &str = "(destination_type = 'RUN' AND destination_id = $1) \
                      OR (source_type IN ('RUN_INPUT', 'RUN_OUTPUT') AND source_id = $1)";

impl SqlStore {
    pub(crate) async fn rows_of_runs(
        &self,
        experiment_id: &str,
    ) -> Result<Vec<RunRow>, StoreError> {
        let query = Statement::new(format!(
            "SELECT {RUN_COLUMNS}, r.deleted_time FROM runs r WHERE r.experiment_id = $1 \
             ORDER BY r.start_time, r.run_uuid"
        ))
        .bind(experiment_id.parse::<i64>().ok());
        self.ask(query, |row| {
            Ok(RunRow {
                run: run(row)?,
                deleted_time: row.int(9)?,
            })
        })
        .await
    }

    /// Of all workspaces and stages: MLflow keeps the files of a deleted model until it is collected.
    pub(crate) async fn files_of_logged_models(&self) -> Result<Vec<LoggedModelFiles>, StoreError> {
        if !self.layout.has("logged_models", "artifact_location") {
            return Ok(Vec::new());
        }
        let query = Statement::new("SELECT model_id, artifact_location FROM logged_models");
        self.ask(query, |row| {
            Ok(LoggedModelFiles {
                model_id: row.string(0)?,
                artifact_location: row.string(1)?,
            })
        })
        .await
    }

    /// Of all workspaces. A version that MLflow has deleted has its row still, and no files.
    pub(crate) async fn files_of_versions(&self) -> Result<Vec<VersionFiles>, StoreError> {
        let location = match self.layout.has("model_versions", "storage_location") {
            true => "storage_location",
            false => "NULL",
        };
        let query = Statement::new(format!(
            "SELECT name, version, source, run_id, {location} FROM model_versions \
             WHERE coalesce(current_stage, '') <> 'Deleted_Internal'"
        ));
        self.ask(query, |row| {
            Ok(VersionFiles {
                name: row.string(0)?,
                version: row.int(1)?.unwrap_or_default(),
                source: row.string(2)?,
                run_id: row.text(3)?.filter(|id| !id.is_empty()),
                location: row.text(4)?.filter(|uri| !uri.is_empty()),
            })
        })
        .await
    }

    pub(crate) async fn purge(&self, run_id: &str) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        // Holds the row: who restores the run at this moment waits, and then finds none.
        let hold = Statement::new(
            "UPDATE runs SET lifecycle_stage = lifecycle_stage \
             WHERE run_uuid = $1 AND lifecycle_stage = 'deleted'",
        )
        .bind(run_id);
        if self.execute(&mut tx, hold).await? == 0 {
            tx.rollback().await;
            return Ok(false);
        }
        let tags = Statement::new(format!(
            "DELETE FROM input_tags WHERE input_uuid IN (SELECT input_uuid FROM inputs WHERE {INPUTS})"
        ));
        let inputs = Statement::new(format!("DELETE FROM inputs WHERE {INPUTS}"));
        for statement in [tags, inputs] {
            self.execute(&mut tx, statement.bind(run_id)).await?;
        }
        for (table, column) in OF_RUN {
            if self.layout.has(table, column) {
                let delete = Statement::new(format!("DELETE FROM {table} WHERE {column} = $1"));
                self.execute(&mut tx, delete.bind(run_id)).await?;
            }
        }
        // What people have noted of a run is theirs, and goes on without it.
        if self.layout.has("issues", "source_run_id") {
            let part =
                Statement::new("UPDATE issues SET source_run_id = NULL WHERE source_run_id = $1");
            self.execute(&mut tx, part.bind(run_id)).await?;
        }
        let delete = Statement::new("DELETE FROM runs WHERE run_uuid = $1").bind(run_id);
        self.execute(&mut tx, delete).await?;
        self.commit(tx).await?;
        Ok(true)
    }
}
