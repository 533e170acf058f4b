//! Models that MLflow 3 has logged, in revisions that have them.

use crate::store::{
    error::StoreError,
    registry::{self, LoggedModel, VERSIONS_TAG},
    sql::{row::Row, statement::Statement, store::SqlStore},
};

const COLUMNS: &str = "SELECT model_id, artifact_location, source_run_id FROM logged_models";

impl SqlStore {
    pub(crate) async fn logged(&self, model_id: &str) -> Result<LoggedModel, StoreError> {
        if !self.layout.has("logged_models", "model_id") {
            return Err(self.no_logged(model_id));
        }
        let query = Statement::new(format!(
            "{COLUMNS} WHERE model_id = $1 AND lifecycle_stage <> 'deleted'"
        ))
        .bind(model_id);
        let found = self.ask(query, logged).await?.pop();
        found.ok_or_else(|| self.no_logged(model_id))
    }

    pub(crate) async fn logged_by(
        &self,
        run_id: &str,
        name: &str,
    ) -> Result<Option<LoggedModel>, StoreError> {
        if !self.layout.has("logged_models", "model_id") {
            return Ok(None);
        }
        let query = Statement::new(format!(
            "{COLUMNS} WHERE source_run_id = $1 AND name = $2 AND lifecycle_stage <> 'deleted' \
             ORDER BY creation_timestamp_ms DESC LIMIT 1"
        ))
        .bind(run_id)
        .bind(name);
        Ok(self.ask(query, logged).await?.pop())
    }

    pub(crate) async fn link(
        &self,
        model_id: &str,
        name: &str,
        version: i64,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        // The update locks the row, as several versions may be registered from one model at the same time.
        let hold = Statement::new("UPDATE logged_models SET name = name WHERE model_id = $1")
            .bind(model_id);
        if self.execute(&mut tx, hold).await? == 0 {
            return Err(self.no_logged(model_id));
        }
        let listed = Statement::new(
            "SELECT tag_value FROM logged_model_tags WHERE model_id = $1 AND tag_key = $2",
        )
        .bind(model_id)
        .bind(VERSIONS_TAG);
        let listed = self.fetch_one(&mut tx, listed, |row| row.string(0)).await?;
        let Some(value) = registry::with_version(listed.as_deref(), name, version) else {
            tx.rollback().await;
            return Ok(());
        };
        let write = match listed {
            Some(_) => Statement::new(
                "UPDATE logged_model_tags SET tag_value = $1 WHERE model_id = $2 AND tag_key = $3",
            ),
            None => Statement::new(
                "INSERT INTO logged_model_tags (tag_value, model_id, tag_key, experiment_id) \
                 SELECT $1, model_id, $3, experiment_id FROM logged_models WHERE model_id = $2",
            ),
        };
        let write = write.bind(value).bind(model_id).bind(VERSIONS_TAG);
        self.execute(&mut tx, write).await?;
        self.commit(tx).await
    }

    fn no_logged(&self, model_id: &str) -> StoreError {
        self.not_found(format!("logged model {model_id:?}"))
    }
}

/// Returns the logged model of a row of [`COLUMNS`].
fn logged(row: &Row) -> Result<LoggedModel, sqlx::Error> {
    Ok(LoggedModel {
        model_id: row.string(0)?,
        artifact_uri: row.string(1)?,
        run_id: row.text(2)?.filter(|id| !id.is_empty()),
    })
}
