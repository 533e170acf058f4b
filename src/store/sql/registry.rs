//! Registered models in the same database.

use async_trait::async_trait;

use super::{SqlStore, StoreError};
use crate::{
    registry::{ModelName, ModelRegistry, NewVersion, Stage},
    run::now_ms,
};

#[async_trait]
impl ModelRegistry for SqlStore {
    async fn create_version(&self, new: &NewVersion) -> Result<i64, StoreError> {
        let now = now_ms();
        let name = new.name.as_str();
        // Immediate: nobody else can take the number between the look and the insert.
        let mut tx = self
            .pool
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(|error| self.error(error))?;
        sqlx::query(
            "INSERT INTO registered_models (name, creation_time, last_updated_time) \
             VALUES ($1, $2, $2) ON CONFLICT DO NOTHING",
        )
        .bind(name)
        .bind(now)
        .execute(&mut *tx)
        .await
        .map_err(|error| self.error(error))?;
        self.touch_model(&mut tx, name, now).await?;
        let version: i64 = sqlx::query_scalar(
            "SELECT coalesce(max(version), 0) + 1 FROM model_versions WHERE name = $1",
        )
        .bind(name)
        .fetch_one(&mut *tx)
        .await
        .map_err(|error| self.error(error))?;
        sqlx::query(
            "INSERT INTO model_versions (name, version, creation_time, last_updated_time, \
             description, current_stage, source, run_id, status, storage_location) \
             VALUES ($1, $2, $3, $3, $4, 'None', $5, $6, 'READY', $5)",
        )
        .bind(name)
        .bind(version)
        .bind(now)
        .bind(Some(&new.description).filter(|text| !text.is_empty()))
        .bind(&new.source)
        .bind(&new.run_id)
        .execute(&mut *tx)
        .await
        .map_err(|error| self.error(error))?;
        for (key, value) in &new.tags {
            sqlx::query(
                "INSERT INTO model_version_tags (key, value, name, version) VALUES ($1, $2, $3, $4)",
            )
            .bind(key.as_str())
            .bind(value)
            .bind(name)
            .bind(version)
            .execute(&mut *tx)
            .await
            .map_err(|error| self.error(error))?;
        }
        tx.commit().await.map_err(|error| self.error(error))?;
        Ok(version)
    }

    async fn set_stage(
        &self,
        name: &ModelName,
        version: i64,
        stage: Stage,
    ) -> Result<(), StoreError> {
        let now = now_ms();
        let mut tx = self
            .pool
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(|error| self.error(error))?;
        // MLflow hides a deleted version behind a stage of its own; it is not brought back from here.
        let changed = sqlx::query(
            "UPDATE model_versions SET current_stage = $1, last_updated_time = $2 \
             WHERE name = $3 AND version = $4 AND coalesce(current_stage, '') <> 'Deleted_Internal'",
        )
        .bind(stage.as_str())
        .bind(now)
        .bind(name.as_str())
        .bind(version)
        .execute(&mut *tx)
        .await
        .map_err(|error| self.error(error))?;
        if changed.rows_affected() == 0 {
            return Err(StoreError::ModelNotFound {
                what: format!("version {version} of model {:?}", name.as_str()),
                destination: self.destination.uri(),
            });
        }
        self.touch_model(&mut tx, name.as_str(), now).await?;
        tx.commit().await.map_err(|error| self.error(error))
    }
}

impl SqlStore {
    async fn touch_model(
        &self,
        connection: &mut sqlx::SqliteConnection,
        name: &str,
        now: i64,
    ) -> Result<(), StoreError> {
        sqlx::query("UPDATE registered_models SET last_updated_time = $1 WHERE name = $2")
            .bind(now)
            .bind(name)
            .execute(connection)
            .await
            .map_err(|error| self.error(error))?;
        Ok(())
    }
}
