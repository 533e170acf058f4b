//! Registered models and their versions in the same database.
//!
//! Whatever changes a model first holds its row, by an update that changes nothing, so that of those who work on it
//! at once one comes after the other: numbers of versions are given once, and tags are not written twice. Stock
//! MLflow updates that row as well when it creates a version.

mod logged;
mod questions;
mod search;

use async_trait::async_trait;

use super::{
    SqlStore, StoreError,
    database::{Statement, Transaction, Value},
};
use crate::{
    record::Key,
    registry::{
        Alias, LoggedModel, ModelName, ModelRegistry, ModelVersion, NewModel, NewVersion, READY,
        RegisteredModel, Stage, TagValue, VersionFiles,
    },
    run::{RunInfo, now_ms},
    store::search::{ModelQuery, VersionQuery},
};

/// The stage behind which MLflow hides versions that are deleted.
const DELETED: &str = "Deleted_Internal";
/// How often the creation of a version is tried where others change the same model.
const ATTEMPTS: usize = 5;

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
        // Versions, tags and aliases follow: their keys say so.
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
            match is_taken {
                true => self.model_exists(new_name),
                false => self.error(error),
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
        // In the order in which they refer to each other.
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
                // That there is no such model is worth telling from that it has no such alias.
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
        let location = match self.layout.has("model_versions", "storage_location") {
            true => "coalesce(nullif(storage_location, ''), source)",
            false => "source",
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
        // MLflow keeps the row, so that the number is not given again, and nothing of its content.
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

impl SqlStore {
    /// Creates a version, or nothing where somebody else was in between.
    async fn try_to_create(&self, new: &NewVersion) -> Result<Option<i64>, StoreError> {
        let now = now_ms();
        let name = new.name.as_str();
        let mut tx = self.begin().await?;
        self.insert_model(&mut tx, &new.name, None).await?;
        // This also holds the model's row, so that nobody else can take the number before the commit.
        if !self.touch_model(&mut tx, &new.name, now).await? {
            tx.rollback().await;
            return Ok(None);
        }
        let mut newest = Statement::new(
            "SELECT CAST(coalesce(max(version), 0) AS BIGINT) FROM model_versions WHERE name = $1",
        )
        .bind(name);
        newest.push(self.layout.in_default_workspace("model_versions"));
        let newest = self.fetch_one(&mut tx, newest, |row| row.int(0)).await?;
        let version = newest.flatten().unwrap_or_default() + 1;
        let location = new.location.as_deref().unwrap_or(&new.source);
        let has_location = self.layout.has("model_versions", "storage_location");
        // A revision that knows no copies has the files' place alone.
        let source = if has_location { &new.source } else { location };
        let description = Some(new.description.clone()).filter(|text| !text.is_empty());
        let mut insert = Statement::new(
            "INSERT INTO model_versions (name, version, creation_time, last_updated_time, \
             description, current_stage, source, run_id, status",
        );
        insert.push(if has_location {
            ", storage_location) VALUES ("
        } else {
            ") VALUES ("
        });
        insert.push_bind(name).push(", ");
        insert.push_bind(version).push(", ");
        insert.push_bind(now).push(", ");
        insert.push_bind(now).push(", ");
        insert.push_bind(description).push(", ");
        insert.push_bind(Stage::None.as_str()).push(", ");
        insert.push_bind(source).push(", ");
        insert.push_bind(new.run_id.clone()).push(", ");
        insert.push_bind(READY);
        if has_location {
            insert.push(", ").push_bind(location);
        }
        insert.push(")");
        match tx.execute(insert).await {
            Ok(_) => {}
            // A stock client that has not held the model's row was faster.
            Err(error)
                if error
                    .as_database_error()
                    .is_some_and(|error| error.is_unique_violation()) =>
            {
                tx.rollback().await;
                return Ok(None);
            }
            Err(error) => return Err(self.error(error)),
        }
        for (key, value) in &new.tags {
            let of = [("name", name.into()), ("version", version.into())];
            self.put_tag(&mut tx, "model_version_tags", &of, key, value)
                .await?;
        }
        self.commit(tx).await?;
        Ok(Some(version))
    }

    /// Inserts a model; false where there is one of that name.
    async fn insert_model(
        &self,
        tx: &mut Transaction,
        name: &ModelName,
        description: Option<&str>,
    ) -> Result<bool, StoreError> {
        let now = now_ms();
        let insert = Statement::new(
            "INSERT INTO registered_models (name, creation_time, last_updated_time, description) \
             VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
        )
        .bind(name.as_str())
        .bind(now)
        .bind(now)
        .bind(description.map(str::to_owned));
        Ok(self.execute(tx, insert).await? > 0)
    }

    /// Sets a tag of what `of` names; its row is held by the caller.
    async fn put_tag(
        &self,
        tx: &mut Transaction,
        table: &'static str,
        of: &[(&'static str, Value)],
        key: &Key,
        value: &TagValue,
    ) -> Result<(), StoreError> {
        let mut update = Statement::new("UPDATE ");
        update.push(table).push(" SET value = ");
        update.push_bind(value.as_str()).push(" WHERE key = ");
        update.push_bind(key.as_str());
        for (column, it) in of {
            update.push(" AND ").push(column).push(" = ");
            update.push_bind(it.clone());
        }
        update.push(self.layout.in_default_workspace(table));
        if self.execute(tx, update).await? > 0 {
            return Ok(());
        }
        let mut insert = Statement::new("INSERT INTO ");
        insert.push(table).push(" (key, value");
        for (column, _) in of {
            insert.push(", ").push(column);
        }
        insert.push(") VALUES (").push_bind(key.as_str());
        insert.push(", ").push_bind(value.as_str());
        for (_, it) in of {
            insert.push(", ").push_bind(it.clone());
        }
        insert.push(")");
        self.execute(tx, insert).await?;
        Ok(())
    }

    /// Holds a model's row until the end of the transaction.
    async fn hold_model(&self, tx: &mut Transaction, name: &ModelName) -> Result<(), StoreError> {
        let mut hold = Statement::new(
            "UPDATE registered_models SET description = description WHERE name = $1",
        )
        .bind(name.as_str());
        hold.push(self.layout.in_default_workspace("registered_models"));
        match self.execute(tx, hold).await? {
            0 => Err(self.no_model(name)),
            _ => Ok(()),
        }
    }

    /// Holds the row of a version's model, once it is clear that there is such a version.
    async fn hold_version(
        &self,
        tx: &mut Transaction,
        name: &ModelName,
        version: i64,
    ) -> Result<(), StoreError> {
        let mut hold = Statement::new(
            "UPDATE registered_models SET description = description WHERE name = $1",
        )
        .bind(name.as_str());
        hold.push(self.layout.in_default_workspace("registered_models"));
        self.execute(tx, hold).await?;
        let mut query = Statement::new("SELECT version FROM model_versions WHERE ");
        self.push_version(&mut query, name, version);
        match self.fetch_one(tx, query, |row| row.int(0)).await? {
            None => Err(self.no_version(name, version)),
            Some(_) => Ok(()),
        }
    }

    /// Notes that a model has changed; false where there is none.
    async fn touch_model(
        &self,
        tx: &mut Transaction,
        name: &ModelName,
        now: i64,
    ) -> Result<bool, StoreError> {
        let mut update =
            Statement::new("UPDATE registered_models SET last_updated_time = $1 WHERE name = $2")
                .bind(now)
                .bind(name.as_str());
        update.push(self.layout.in_default_workspace("registered_models"));
        Ok(self.execute(tx, update).await? > 0)
    }

    /// Adds the condition for a version that is not deleted, of the only table of a statement.
    fn push_version(&self, statement: &mut Statement, name: &ModelName, version: i64) {
        statement.push("name = ").push_bind(name.as_str());
        statement.push(" AND version = ").push_bind(version);
        statement.push(" AND current_stage <> ").push_bind(DELETED);
        statement.push(self.layout.in_default_workspace("model_versions"));
    }

    fn no_model(&self, name: &ModelName) -> StoreError {
        self.not_found(format!("registered model {:?}", name.as_str()))
    }

    fn no_version(&self, name: &ModelName, version: i64) -> StoreError {
        self.not_found(format!("version {version} of model {:?}", name.as_str()))
    }

    fn model_exists(&self, name: &ModelName) -> StoreError {
        StoreError::AlreadyExists {
            what: format!("registered model {:?}", name.as_str()),
            destination: self.destination.uri(),
        }
    }
}
