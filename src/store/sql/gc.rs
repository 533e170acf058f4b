//! Garbage collection: deletes the rows of deleted runs, and reads the rows that are needed before that.

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

/// Tables that have rows of a run, each with the column that has the run's id. They are in the order in which rows are
/// deleted: tables that refer to others come first. A revision need not have all tables. `mlflow gc` deletes from the
/// first four.
const OF_RUN: [(&str, &str); 5] = [
    ("metrics", "run_uuid"),
    ("latest_metrics", "run_uuid"),
    ("params", "run_uuid"),
    ("tags", "run_uuid"),
    ("logged_model_metrics", "run_id"),
];

/// Condition on `inputs` for the rows of a run: its input datasets and models, and its output models.
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

    /// Returns the files of the logged models of all workspaces and stages: MLflow keeps the files of a deleted model
    /// until it is collected.
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

    /// Returns the files of the versions of all workspaces. A version that MLflow has deleted still has a row, but no
    /// files.
    pub(crate) async fn files_of_versions(&self) -> Result<Vec<VersionFiles>, StoreError> {
        let location = if self.layout.has("model_versions", "storage_location") {
            "storage_location"
        } else {
            "NULL"
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
        // The update locks the row: a client that restores the run now waits, and then finds no run.
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
        // Issues that people have written about a run stay, without the reference to the run.
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
