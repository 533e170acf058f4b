//! Reading of registered models and versions.

use std::collections::{BTreeMap, HashMap};

use super::{
    rows::{DELETED, MODEL_COLUMNS, VERSION_COLUMNS, model, version},
    search,
};
use crate::{
    mlflow::{
        model::ModelName,
        search::models::{ModelQuery, VersionQuery},
    },
    store::{
        error::StoreError,
        registry::{ModelVersion, RegisteredModel},
        sql::{statement::Statement, store::SqlStore},
    },
};

/// Number of models or versions whose tags and aliases are fetched at a time.
const PAGE: usize = 500;

impl SqlStore {
    pub(crate) async fn model_named(
        &self,
        name: &ModelName,
    ) -> Result<Option<RegisteredModel>, StoreError> {
        let mut query = Statement::new(format!(
            "SELECT {MODEL_COLUMNS} FROM registered_models m WHERE m.name = $1"
        ))
        .bind(name.as_str());
        query.push(self.layout.in_default_workspace("registered_models"));
        let found = self.ask(query, model).await?;
        Ok(self.with_versions(found).await?.pop())
    }

    pub(crate) async fn models_of(
        &self,
        query: &ModelQuery,
    ) -> Result<Vec<RegisteredModel>, StoreError> {
        let statement = search::models(query, &self.layout, self.database.dialect());
        let found = self.ask(statement, model).await?;
        self.with_versions(found).await
    }

    pub(crate) async fn version_numbered(
        &self,
        name: &ModelName,
        number: i64,
    ) -> Result<Option<ModelVersion>, StoreError> {
        let mut query = Statement::new(format!(
            "SELECT {VERSION_COLUMNS} FROM model_versions v WHERE "
        ));
        self.push_version(&mut query, name, number);
        let found = self.ask(query, version).await?;
        Ok(self.with_tags(found).await?.pop())
    }

    pub(crate) async fn versions_of(
        &self,
        query: &VersionQuery,
    ) -> Result<Vec<ModelVersion>, StoreError> {
        let statement = search::versions(query, &self.layout, self.database.dialect());
        let found = self.ask(statement, version).await?;
        self.with_tags(found).await
    }

    /// Adds the tags, aliases and newest versions to models.
    async fn with_versions(
        &self,
        mut models: Vec<RegisteredModel>,
    ) -> Result<Vec<RegisteredModel>, StoreError> {
        for page in models.chunks_mut(PAGE) {
            let names: Vec<String> = page.iter().map(|model| model.name.clone()).collect();
            let mut by_name: HashMap<String, &mut RegisteredModel> = page
                .iter_mut()
                .map(|model| (model.name.clone(), model))
                .collect();
            let tags = self.of_models("name, key, value", "registered_model_tags", &names);
            for (name, key, value) in self
                .ask(tags, |row| {
                    Ok((row.string(0)?, row.string(1)?, row.string(2)?))
                })
                .await?
            {
                if let Some(model) = by_name.get_mut(&name) {
                    model.tags.insert(key, value);
                }
            }
            for (name, alias, version) in self.aliases_of(&names).await? {
                if let Some(model) = by_name.get_mut(&name) {
                    model.aliases.insert(alias, version);
                }
            }
            let mut newest = Statement::new(format!(
                "SELECT {VERSION_COLUMNS} FROM model_versions v WHERE v.name "
            ));
            newest.push_one_of(self.database.dialect(), &names);
            newest.push(" AND v.current_stage <> ").push_bind(DELETED);
            newest.push(self.layout.in_default_workspace("model_versions"));
            newest.push(
                " AND NOT EXISTS (SELECT 1 FROM model_versions n WHERE n.name = v.name \
                 AND n.current_stage = v.current_stage AND n.version > v.version",
            );
            newest.push(self.layout.in_default_workspace("model_versions"));
            newest.push(") ORDER BY v.version");
            let newest = self.ask(newest, version).await?;
            for version in self.with_tags(newest).await? {
                if let Some(model) = by_name.get_mut(&version.name) {
                    model.latest_versions.push(version);
                }
            }
        }
        Ok(models)
    }

    /// Adds the tags and aliases to versions.
    async fn with_tags(
        &self,
        mut versions: Vec<ModelVersion>,
    ) -> Result<Vec<ModelVersion>, StoreError> {
        for page in versions.chunks_mut(PAGE) {
            let mut names: Vec<String> = page.iter().map(|it| it.name.clone()).collect();
            names.sort();
            names.dedup();
            let mut numbers: Vec<i64> = page.iter().map(|it| it.version).collect();
            numbers.sort_unstable();
            numbers.dedup();
            let mut tags =
                self.of_models("name, version, key, value", "model_version_tags", &names);
            tags.push(" AND version IN ").push_list(numbers);
            let mut by_version: HashMap<(String, i64), BTreeMap<String, String>> = HashMap::new();
            for (of, key, value) in self
                .ask(tags, |row| {
                    let of = (row.string(0)?, row.int(1)?.unwrap_or_default());
                    Ok((of, row.string(2)?, row.string(3)?))
                })
                .await?
            {
                by_version.entry(of).or_default().insert(key, value);
            }
            let mut aliases: HashMap<(String, i64), Vec<String>> = HashMap::new();
            for (name, alias, version) in self.aliases_of(&names).await? {
                aliases.entry((name, version)).or_default().push(alias);
            }
            for version in page {
                let of = (version.name.clone(), version.version);
                version.tags = by_version.remove(&of).unwrap_or_default();
                version.aliases = aliases.remove(&of).unwrap_or_default();
            }
        }
        Ok(versions)
    }

    async fn aliases_of(&self, names: &[String]) -> Result<Vec<(String, String, i64)>, StoreError> {
        let mut query = self.of_models("name, alias, version", "registered_model_aliases", names);
        query.push(" ORDER BY alias");
        self.ask(query, |row| {
            let version = row.int(2)?.unwrap_or_default();
            Ok((row.string(0)?, row.string(1)?, version))
        })
        .await
    }

    fn of_models(&self, columns: &str, table: &str, names: &[String]) -> Statement {
        let mut query = Statement::new(format!("SELECT {columns} FROM {table} WHERE name "));
        query.push_one_of(self.database.dialect(), names);
        query.push(self.layout.in_default_workspace(table));
        query
    }
}
