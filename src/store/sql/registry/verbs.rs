//! The operations of the model registry in a database.

use async_trait::async_trait;

use super::{changes::ATTEMPTS, rows::DELETED};
use crate::{
    mlflow::{
        key::Key,
        model::{Alias, ModelName, Stage, TagValue},
        run::RunInfo,
        search::models::{ModelQuery, VersionQuery},
    },
    os::clock::now_ms,
    store::{
        error::StoreError,
        registry::{
            LoggedModel, ModelRegistry, ModelVersion, NewModel, NewVersion, RegisteredModel,
            VersionFiles,
        },
        sql::{statement::Statement, store::SqlStore},
    },
};

#[async_trait]
impl ModelRegistry for SqlStore {
    async fn create_model(&self, new: &NewModel) -> Result<RegisteredModel, StoreError> {
        let name = &new.name;
        let mut tx = self.begin().await?;
        let description = Some(new.description.as_str()).filter(|text| !text.is_empty());
        if !self.insert_model(&mut tx, name, description).await? {
            return Err(self.model_exists(name));
        }
        for (key, value) in &new.tags {
            let of = [("name", name.as_str().into())];
            self.put_tag(&mut tx, "registered_model_tags", &of, key, value)
                .await?;
        }
        self.commit(tx).await?;
        self.model(name).await
    }

    async fn model(&self, name: &ModelName) -> Result<RegisteredModel, StoreError> {
        let found = self.model_named(name).await?;
        found.ok_or_else(|| self.no_model(name))
    }

    async fn rename_model(
        &self,
        name: &ModelName,
        new_name: &ModelName,
    ) -> Result<RegisteredModel, StoreError> {
        let now = now_ms();
        let mut tx = self.begin().await?;
        self.hold_model(&mut tx, name).await?;
        // Versions, tags and aliases are updated by their foreign keys.
        let mut update = Statement::new(
            "UPDATE registered_models SET name = $1, last_updated_time = $2 WHERE name = $3",
        )
        .bind(new_name.as_str())
        .bind(now)
        .bind(name.as_str());
        update.push(self.layout.in_default_workspace("registered_models"));
        tx.execute(update).await.map_err(|error| {
            let is_taken = error
                .as_database_error()
                .is_some_and(|error| error.is_unique_violation());
            if is_taken {
                self.model_exists(new_name)
            } else {
                self.error(error)
            }
        })?;
        let mut update =
            Statement::new("UPDATE model_versions SET last_updated_time = $1 WHERE name = $2")
                .bind(now)
                .bind(new_name.as_str());
        update.push(self.layout.in_default_workspace("model_versions"));
        self.execute(&mut tx, update).await?;
        self.commit(tx).await?;
        self.model(new_name).await
    }

    async fn describe_model(
        &self,
        name: &ModelName,
        description: &str,
    ) -> Result<RegisteredModel, StoreError> {
        let mut update = Statement::new(
            "UPDATE registered_models SET description = $1, last_updated_time = $2 WHERE name = $3",
        )
        .bind(description)
        .bind(now_ms())
        .bind(name.as_str());
        update.push(self.layout.in_default_workspace("registered_models"));
        let mut tx = self.begin().await?;
        if self.execute(&mut tx, update).await? == 0 {
            return Err(self.no_model(name));
        }
        self.commit(tx).await?;
        self.model(name).await
    }

    async fn delete_model(&self, name: &ModelName) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        self.hold_model(&mut tx, name).await?;
        // Tables that refer to others come first.
        for table in [
            "model_version_tags",
            "model_versions",
            "registered_model_tags",
            "registered_model_aliases",
            "registered_models",
        ] {
            let mut delete = Statement::new("DELETE FROM ");
            delete.push(table).push(" WHERE name = ");
            delete.push_bind(name.as_str());
            delete.push(self.layout.in_default_workspace(table));
            self.execute(&mut tx, delete).await?;
        }
        self.commit(tx).await
    }

    async fn set_model_tag(
        &self,
        name: &ModelName,
        key: &Key,
        value: &TagValue,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        self.hold_model(&mut tx, name).await?;
        let of = [("name", name.as_str().into())];
        self.put_tag(&mut tx, "registered_model_tags", &of, key, value)
            .await?;
        self.commit(tx).await
    }

    async fn delete_model_tag(&self, name: &ModelName, key: &Key) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        self.hold_model(&mut tx, name).await?;
        let mut delete =
            Statement::new("DELETE FROM registered_model_tags WHERE name = $1 AND key = $2")
                .bind(name.as_str())
                .bind(key.as_str());
        delete.push(self.layout.in_default_workspace("registered_model_tags"));
        self.execute(&mut tx, delete).await?;
        self.commit(tx).await
    }

    async fn search_models(&self, query: &ModelQuery) -> Result<Vec<RegisteredModel>, StoreError> {
        self.models_of(query).await
    }

    async fn create_version(&self, new: &NewVersion) -> Result<ModelVersion, StoreError> {
        for _ in 1..ATTEMPTS {
            if let Some(version) = self.try_to_create(new).await? {
                return self.version(&new.name, version).await;
            }
        }
        match self.try_to_create(new).await? {
            Some(version) => self.version(&new.name, version).await,
            None => Err(StoreError::Unavailable {
                destination: self.destination.uri(),
                source: format!("others change model {:?} all the time", new.name.as_str()).into(),
                retry_after: None,
            }),
        }
    }

    async fn version(&self, name: &ModelName, version: i64) -> Result<ModelVersion, StoreError> {
        let found = self.version_numbered(name, version).await?;
        found.ok_or_else(|| self.no_version(name, version))
    }

    async fn version_by_alias(
        &self,
        name: &ModelName,
        alias: &Alias,
    ) -> Result<ModelVersion, StoreError> {
        let mut query = Statement::new(
            "SELECT version FROM registered_model_aliases WHERE name = $1 AND alias = $2",
        )
        .bind(name.as_str())
        .bind(alias.as_str());
        query.push(self.layout.in_default_workspace("registered_model_aliases"));
        let found = self.ask(query, |row| row.int(0)).await?.pop().flatten();
        match found {
            Some(version) => self.version(name, version).await,
            None => {
                // The error is about the model, not about the alias, where the model does not exist.
                self.model(name).await?;
                let (name, alias) = (name.as_str(), alias.as_str());
                Err(self.not_found(format!("alias {alias:?} of model {name:?}")))
            }
        }
    }

    async fn search_versions(&self, query: &VersionQuery) -> Result<Vec<ModelVersion>, StoreError> {
        self.versions_of(query).await
    }

    async fn download_uri(&self, name: &ModelName, version: i64) -> Result<String, StoreError> {
        let location = if self.layout.has("model_versions", "storage_location") {
            "coalesce(nullif(storage_location, ''), source)"
        } else {
            "source"
        };
        let mut query = Statement::new(format!("SELECT {location} FROM model_versions WHERE "));
        self.push_version(&mut query, name, version);
        let found = self.ask(query, |row| row.string(0)).await?.pop();
        found.ok_or_else(|| self.no_version(name, version))
    }

    async fn describe_version(
        &self,
        name: &ModelName,
        version: i64,
        description: &str,
    ) -> Result<ModelVersion, StoreError> {
        let mut update = Statement::new("UPDATE model_versions SET description = ");
        update.push_bind(description).push(", last_updated_time = ");
        update.push_bind(now_ms()).push(" WHERE ");
        self.push_version(&mut update, name, version);
        let mut tx = self.begin().await?;
        if self.execute(&mut tx, update).await? == 0 {
            return Err(self.no_version(name, version));
        }
        self.commit(tx).await?;
        self.version(name, version).await
    }

    async fn set_stage(
        &self,
        name: &ModelName,
        version: i64,
        stage: Stage,
        archive: bool,
    ) -> Result<(), StoreError> {
        let now = now_ms();
        let mut tx = self.begin().await?;
        if !self.touch_model(&mut tx, name, now).await? {
            return Err(self.no_version(name, version));
        }
        if archive {
            let mut update = Statement::new(
                "UPDATE model_versions SET current_stage = $1, last_updated_time = $2 \
                 WHERE name = $3 AND version <> $4 AND current_stage = $5",
            )
            .bind(Stage::Archived.as_str())
            .bind(now)
            .bind(name.as_str())
            .bind(version)
            .bind(stage.as_str());
            update.push(self.layout.in_default_workspace("model_versions"));
            self.execute(&mut tx, update).await?;
        }
        let mut update = Statement::new("UPDATE model_versions SET current_stage = ");
        update
            .push_bind(stage.as_str())
            .push(", last_updated_time = ");
        update.push_bind(now).push(" WHERE ");
        self.push_version(&mut update, name, version);
        if self.execute(&mut tx, update).await? == 0 {
            return Err(self.no_version(name, version));
        }
        self.commit(tx).await
    }

    async fn set_version_tag(
        &self,
        name: &ModelName,
        version: i64,
        key: &Key,
        value: &TagValue,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        self.hold_version(&mut tx, name, version).await?;
        let of = [("name", name.as_str().into()), ("version", version.into())];
        self.put_tag(&mut tx, "model_version_tags", &of, key, value)
            .await?;
        self.commit(tx).await
    }

    async fn delete_version_tag(
        &self,
        name: &ModelName,
        version: i64,
        key: &Key,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        self.hold_version(&mut tx, name, version).await?;
        let mut delete = Statement::new(
            "DELETE FROM model_version_tags WHERE name = $1 AND version = $2 AND key = $3",
        )
        .bind(name.as_str())
        .bind(version)
        .bind(key.as_str());
        delete.push(self.layout.in_default_workspace("model_version_tags"));
        self.execute(&mut tx, delete).await?;
        self.commit(tx).await
    }

    async fn delete_version(&self, name: &ModelName, version: i64) -> Result<(), StoreError> {
        let now = now_ms();
        let mut tx = self.begin().await?;
        if !self.touch_model(&mut tx, name, now).await? {
            return Err(self.no_version(name, version));
        }
        // MLflow keeps the row, so that the number is not given again, and deletes its content.
        let mut update = Statement::new("UPDATE model_versions SET current_stage = ");
        update.push_bind(DELETED).push(", last_updated_time = ");
        update.push_bind(now);
        update.push(
            ", description = NULL, user_id = NULL, status_message = NULL, source = 'REDACTED-SOURCE-PATH', \
             run_id = 'REDACTED-RUN-ID', run_link = 'REDACTED-RUN-LINK' WHERE ",
        );
        self.push_version(&mut update, name, version);
        if self.execute(&mut tx, update).await? == 0 {
            return Err(self.no_version(name, version));
        }
        let mut delete =
            Statement::new("DELETE FROM registered_model_aliases WHERE name = $1 AND version = $2")
                .bind(name.as_str())
                .bind(version);
        delete.push(self.layout.in_default_workspace("registered_model_aliases"));
        self.execute(&mut tx, delete).await?;
        self.commit(tx).await
    }

    async fn set_alias(
        &self,
        name: &ModelName,
        alias: &Alias,
        version: i64,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        self.hold_version(&mut tx, name, version).await?;
        let mut update = Statement::new(
            "UPDATE registered_model_aliases SET version = $1 WHERE name = $2 AND alias = $3",
        )
        .bind(version)
        .bind(name.as_str())
        .bind(alias.as_str());
        update.push(self.layout.in_default_workspace("registered_model_aliases"));
        if self.execute(&mut tx, update).await? == 0 {
            let insert = Statement::new(
                "INSERT INTO registered_model_aliases (name, alias, version) VALUES ($1, $2, $3)",
            )
            .bind(name.as_str())
            .bind(alias.as_str())
            .bind(version);
            self.execute(&mut tx, insert).await?;
        }
        self.commit(tx).await
    }

    async fn delete_alias(&self, name: &ModelName, alias: &Alias) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        self.hold_model(&mut tx, name).await?;
        let mut delete =
            Statement::new("DELETE FROM registered_model_aliases WHERE name = $1 AND alias = $2")
                .bind(name.as_str())
                .bind(alias.as_str());
        delete.push(self.layout.in_default_workspace("registered_model_aliases"));
        self.execute(&mut tx, delete).await?;
        self.commit(tx).await
    }

    async fn logged_model(&self, model_id: &str) -> Result<LoggedModel, StoreError> {
        self.logged(model_id).await
    }

    async fn logged_model_of(
        &self,
        run: &RunInfo,
        name: &str,
    ) -> Result<Option<LoggedModel>, StoreError> {
        self.logged_by(&run.run_id, name).await
    }

    async fn link_logged_model(
        &self,
        model_id: &str,
        name: &str,
        version: i64,
    ) -> Result<(), StoreError> {
        self.link(model_id, name, version).await
    }

    async fn version_files(&self) -> Result<Vec<VersionFiles>, StoreError> {
        self.files_of_versions().await
    }
}
