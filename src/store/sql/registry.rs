//! Registered models in the same database.

use async_trait::async_trait;

use super::{
    SqlStore, StoreError,
    database::{Statement, Transaction},
};
use crate::{
    registry::{ModelName, ModelRegistry, NewVersion, Stage, VersionFiles},
    run::now_ms,
};

#[async_trait]
impl ModelRegistry for SqlStore {
    async fn create_version(&self, new: &NewVersion) -> Result<i64, StoreError> {
        let now = now_ms();
        let name = new.name.as_str();
        let mut tx = self.begin().await?;
        let create = Statement::new(
            "INSERT INTO registered_models (name, creation_time, last_updated_time) \
             VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        )
        .bind(name)
        .bind(now)
        .bind(now);
        self.execute(&mut tx, create).await?;
        // This also holds the model's row, so that nobody else can take the number before the commit.
        self.touch_model(&mut tx, name, now).await?;
        let mut newest = Statement::new(
            "SELECT CAST(coalesce(max(version), 0) AS BIGINT) FROM model_versions WHERE name = $1",
        )
        .bind(name);
        newest.push(self.layout.in_default_workspace("model_versions"));
        let newest = self.fetch_one(&mut tx, newest, |row| row.int(0)).await?;
        let version = newest.flatten().unwrap_or_default() + 1;
        let description = Some(new.description.clone()).filter(|text| !text.is_empty());
        let mut insert = Statement::new(
            "INSERT INTO model_versions (name, version, creation_time, last_updated_time, \
             description, current_stage, source, run_id, status",
        );
        // Where a copy of the model would be; only newer revisions have copies.
        let has_location = self.layout.has("model_versions", "storage_location");
        insert.push(if has_location {
            ", storage_location) VALUES ("
        } else {
            ") VALUES ("
        });
        insert.push_bind(name).push(", ");
        insert.push_bind(version).push(", ");
        insert.push_bind(now).push(", ");
        insert.push_bind(now).push(", ");
        insert.push_bind(description).push(", 'None', ");
        insert.push_bind(new.source.as_str()).push(", ");
        insert.push_bind(new.run_id.clone()).push(", 'READY'");
        if has_location {
            insert.push(", ").push_bind(new.source.as_str());
        }
        insert.push(")");
        self.execute(&mut tx, insert).await?;
        for (key, value) in &new.tags {
            let insert = Statement::new(
                "INSERT INTO model_version_tags (key, value, name, version) VALUES ($1, $2, $3, $4)",
            )
            .bind(key.as_str())
            .bind(value.as_str())
            .bind(name)
            .bind(version);
            self.execute(&mut tx, insert).await?;
        }
        self.commit(tx).await?;
        Ok(version)
    }

    async fn set_stage(
        &self,
        name: &ModelName,
        version: i64,
        stage: Stage,
    ) -> Result<(), StoreError> {
        let now = now_ms();
        let mut tx = self.begin().await?;
        // MLflow hides a deleted version behind a stage of its own; it is not brought back from here.
        let mut update = Statement::new(
            "UPDATE model_versions SET current_stage = $1, last_updated_time = $2 \
             WHERE name = $3 AND version = $4 AND coalesce(current_stage, '') <> 'Deleted_Internal'",
        )
        .bind(stage.as_str())
        .bind(now)
        .bind(name.as_str())
        .bind(version);
        update.push(self.layout.in_default_workspace("model_versions"));
        if self.execute(&mut tx, update).await? == 0 {
            return Err(self.not_found(format!("version {version} of model {:?}", name.as_str())));
        }
        self.touch_model(&mut tx, name.as_str(), now).await?;
        self.commit(tx).await
    }

    async fn version_files(&self) -> Result<Vec<VersionFiles>, StoreError> {
        self.files_of_versions().await
    }
}

impl SqlStore {
    async fn touch_model(
        &self,
        tx: &mut Transaction,
        name: &str,
        now: i64,
    ) -> Result<(), StoreError> {
        let mut update =
            Statement::new("UPDATE registered_models SET last_updated_time = $1 WHERE name = $2")
                .bind(now)
                .bind(name);
        update.push(self.layout.in_default_workspace("registered_models"));
        self.execute(tx, update).await?;
        Ok(())
    }
}
