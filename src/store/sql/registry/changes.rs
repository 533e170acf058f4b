//! Steps that several changes of the registry share.

use super::rows::DELETED;
use crate::{
    mlflow::{
        key::Key,
        model::{ModelName, Stage, TagValue},
    },
    os::clock::now_ms,
    store::{
        error::StoreError,
        registry::{NewVersion, READY},
        sql::{
            database::Transaction,
            statement::{Statement, Value},
            store::SqlStore,
        },
    },
};

/// Number of attempts to create a version while other clients change the same model.
pub(crate) const ATTEMPTS: usize = 5;

impl SqlStore {
    /// Creates a version; returns `None`, and creates nothing, where another client was faster.
    pub(crate) async fn try_to_create(&self, new: &NewVersion) -> Result<Option<i64>, StoreError> {
        let now = now_ms();
        let name = new.name.as_str();
        let mut tx = self.begin().await?;
        self.insert_model(&mut tx, &new.name, None).await?;
        // The update also locks the model's row, so that no other client can take the number before the commit.
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
        // A revision without copies of versions has only one column, for the location of the files.
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
            // A stock client that has not locked the model's row was faster.
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

    /// Inserts a model; returns false where a model of this name exists.
    pub(crate) async fn insert_model(
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

    /// Sets a tag of the model or version that `of` names; the caller has locked its row.
    pub(crate) async fn put_tag(
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

    /// Locks a model's row until the end of the transaction.
    pub(crate) async fn hold_model(
        &self,
        tx: &mut Transaction,
        name: &ModelName,
    ) -> Result<(), StoreError> {
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

    /// Checks that a version exists and locks the row of its model.
    pub(crate) async fn hold_version(
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

    /// Updates the time of a model's last change; returns false where the model does not exist.
    pub(crate) async fn touch_model(
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

    /// Adds the condition for a version that is not deleted, to a statement with one table.
    pub(crate) fn push_version(&self, statement: &mut Statement, name: &ModelName, version: i64) {
        statement.push("name = ").push_bind(name.as_str());
        statement.push(" AND version = ").push_bind(version);
        statement.push(" AND current_stage <> ").push_bind(DELETED);
        statement.push(self.layout.in_default_workspace("model_versions"));
    }

    pub(crate) fn no_model(&self, name: &ModelName) -> StoreError {
        self.not_found(format!("registered model {:?}", name.as_str()))
    }

    pub(crate) fn no_version(&self, name: &ModelName, version: i64) -> StoreError {
        self.not_found(format!("version {version} of model {:?}", name.as_str()))
    }

    pub(crate) fn model_exists(&self, name: &ModelName) -> StoreError {
        StoreError::AlreadyExists {
            what: format!("registered model {:?}", name.as_str()),
            destination: self.destination.uri(),
        }
    }
}
