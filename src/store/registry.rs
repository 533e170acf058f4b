//! The model registry: registered models, their versions, stages, aliases and tags.
//!
//! A registry is the database or the server of MLflow itself. A stock client reads what is written here, and this
//! module reads what a stock client writes. A version that MLflow has deleted (MLflow keeps its row without the
//! content) does not exist here.

use std::{collections::BTreeMap, fmt};

use async_trait::async_trait;

use super::error::StoreError;
use crate::mlflow::{
    key::Key,
    model::{Alias, ModelName, Stage, TagValue},
    run::RunInfo,
    search::models::{ModelQuery, VersionQuery},
};

/// Status of a version whose files the registry has.
pub(crate) const READY: &str = "READY";
/// Status of a version that a server is still taking in.
pub(crate) const PENDING: &str = "PENDING_REGISTRATION";

/// A store of registered models.
#[async_trait]
pub trait ModelRegistry: fmt::Debug + Send + Sync {
    /// Creates a model without versions.
    async fn create_model(&self, new: &NewModel) -> Result<RegisteredModel, StoreError>;

    /// Returns a registered model.
    async fn model(&self, name: &ModelName) -> Result<RegisteredModel, StoreError>;

    /// Renames a model with all of its versions.
    async fn rename_model(
        &self,
        name: &ModelName,
        new_name: &ModelName,
    ) -> Result<RegisteredModel, StoreError>;

    /// Replaces the description of a model.
    async fn describe_model(
        &self,
        name: &ModelName,
        description: &str,
    ) -> Result<RegisteredModel, StoreError>;

    /// Deletes a model with all of its versions.
    async fn delete_model(&self, name: &ModelName) -> Result<(), StoreError>;

    /// Sets a tag of a model.
    async fn set_model_tag(
        &self,
        name: &ModelName,
        key: &Key,
        value: &TagValue,
    ) -> Result<(), StoreError>;

    /// Removes a tag of a model; a tag that the model does not have is no error.
    async fn delete_model_tag(&self, name: &ModelName, key: &Key) -> Result<(), StoreError>;

    /// Returns the models that a query finds, in the order of the query.
    async fn search_models(&self, query: &ModelQuery) -> Result<Vec<RegisteredModel>, StoreError>;

    /// Adds a version to a model, which is created if it does not exist. Where several processes do so at the same
    /// time, each version gets a number of its own.
    async fn create_version(&self, new: &NewVersion) -> Result<ModelVersion, StoreError>;

    /// Returns a version of a model.
    async fn version(&self, name: &ModelName, version: i64) -> Result<ModelVersion, StoreError>;

    /// Returns the version that an alias of a model points to.
    async fn version_by_alias(
        &self,
        name: &ModelName,
        alias: &Alias,
    ) -> Result<ModelVersion, StoreError>;

    /// Returns the newest version of a model in each of the given stages, sorted by version number.
    async fn latest_versions(
        &self,
        name: &ModelName,
        stages: &[Stage],
    ) -> Result<Vec<ModelVersion>, StoreError> {
        let mut latest = self.model(name).await?.latest_versions;
        latest.retain(|version| stages.iter().any(|stage| stage.as_str() == version.stage));
        Ok(latest)
    }

    /// Returns the versions that a query finds, in the order of the query.
    async fn search_versions(&self, query: &VersionQuery) -> Result<Vec<ModelVersion>, StoreError>;

    /// Returns the URI from which the files of a version are read.
    async fn download_uri(&self, name: &ModelName, version: i64) -> Result<String, StoreError>;

    /// Replaces the description of a version.
    async fn describe_version(
        &self,
        name: &ModelName,
        version: i64,
        description: &str,
    ) -> Result<ModelVersion, StoreError>;

    /// Moves a version to a stage; where `archive` is true, the versions that were in that stage move to `Archived`.
    async fn set_stage(
        &self,
        name: &ModelName,
        version: i64,
        stage: Stage,
        archive: bool,
    ) -> Result<(), StoreError>;

    /// Sets a tag of a version.
    async fn set_version_tag(
        &self,
        name: &ModelName,
        version: i64,
        key: &Key,
        value: &TagValue,
    ) -> Result<(), StoreError>;

    /// Removes a tag of a version; a tag that the version does not have is no error.
    async fn delete_version_tag(
        &self,
        name: &ModelName,
        version: i64,
        key: &Key,
    ) -> Result<(), StoreError>;

    /// Deletes a version; the number is not given again while the model exists.
    async fn delete_version(&self, name: &ModelName, version: i64) -> Result<(), StoreError>;

    /// Makes an alias of a model point to this version.
    async fn set_alias(
        &self,
        name: &ModelName,
        alias: &Alias,
        version: i64,
    ) -> Result<(), StoreError>;

    /// Removes an alias of a model; an alias that the model does not have is no error.
    async fn delete_alias(&self, name: &ModelName, alias: &Alias) -> Result<(), StoreError>;

    /// Returns a model that MLflow 3 has logged to an experiment.
    async fn logged_model(&self, model_id: &str) -> Result<LoggedModel, StoreError>;

    /// Returns the newest model that a run has logged under a name, if there is one.
    async fn logged_model_of(
        &self,
        run: &RunInfo,
        name: &str,
    ) -> Result<Option<LoggedModel>, StoreError>;

    /// Writes to a logged model that it is registered as a version, as MLflow does.
    async fn link_logged_model(
        &self,
        model_id: &str,
        name: &str,
        version: i64,
    ) -> Result<(), StoreError>;

    /// Returns the places of the files of all versions of all models: garbage collection must not delete them.
    async fn version_files(&self) -> Result<Vec<VersionFiles>, StoreError>;
}

/// The place of the files of a model version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionFiles {
    /// Name of the registered model.
    pub name: String,
    /// Number of the version.
    pub version: i64,
    /// Source that the version was registered from.
    pub source: String,
    /// URI from which the files are read, if the store tells it and it is not the source.
    pub location: Option<String>,
    /// Id of the run that made the version.
    pub run_id: Option<String>,
}

/// A model to register, without versions.
#[derive(Clone, Debug)]
pub struct NewModel {
    /// Name of the model.
    pub name: ModelName,
    /// Description for people.
    pub description: String,
    /// Tags of the model.
    pub tags: Vec<(Key, TagValue)>,
}

/// A model version to create.
#[derive(Clone, Debug)]
pub struct NewVersion {
    /// Name of the registered model.
    pub name: ModelName,
    /// Source of the version: an artifact URI, `models:/<name>/<version>` for a copy of another version, or
    /// `models:/<model id>` for a logged model.
    pub source: String,
    /// URI of the files, if it is not the source.
    pub location: Option<String>,
    /// Id of the run that made the version.
    pub run_id: Option<String>,
    /// Id of the logged model that is registered, if the version is made from one.
    pub model_id: Option<String>,
    /// Description for people.
    pub description: String,
    /// Tags of the version.
    pub tags: Vec<(Key, TagValue)>,
}

/// A registered model as the registry has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RegisteredModel {
    /// Name of the model.
    pub name: String,
    /// Milliseconds since 1970.
    pub creation_time: Option<i64>,
    /// Milliseconds since 1970.
    pub last_updated_time: Option<i64>,
    /// Description for people; empty where there is none.
    pub description: String,
    /// The newest version in each stage, sorted by version number.
    pub latest_versions: Vec<ModelVersion>,
    /// Tags by key.
    pub tags: BTreeMap<String, String>,
    /// The version of each alias.
    pub aliases: BTreeMap<String, i64>,
}

impl RegisteredModel {
    /// Copies this model's aliases that point to `version` into `version`.
    pub fn put_aliases(&self, version: &mut ModelVersion) {
        let of_it = self
            .aliases
            .iter()
            .filter(|(_, number)| **number == version.version);
        version.aliases = of_it.map(|(alias, _)| alias.clone()).collect();
    }
}

/// A model version as the registry has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelVersion {
    /// Name of the model.
    pub name: String,
    /// Number of the version.
    pub version: i64,
    /// Milliseconds since 1970.
    pub creation_time: Option<i64>,
    /// Milliseconds since 1970.
    pub last_updated_time: Option<i64>,
    /// Description for people; empty where there is none.
    pub description: String,
    /// The user that has registered the version, if the registry knows.
    pub user_id: Option<String>,
    /// `None`, `Staging`, `Production` or `Archived`.
    pub stage: String,
    /// Source that the version was registered from.
    pub source: String,
    /// Id of the run that made the version.
    pub run_id: Option<String>,
    /// A page that shows the run.
    pub run_link: Option<String>,
    /// `READY`, `PENDING_REGISTRATION` or `FAILED_REGISTRATION`.
    pub status: String,
    /// Message about the status.
    pub status_message: Option<String>,
    /// Tags by key.
    pub tags: BTreeMap<String, String>,
    /// Aliases of the model that point to this version.
    pub aliases: Vec<String>,
}

/// A model that MLflow 3 has logged to an experiment, apart from the artifacts of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoggedModel {
    /// Id of the model.
    pub model_id: String,
    /// URI of the files.
    pub artifact_uri: String,
    /// Id of the run that logged the model.
    pub run_id: Option<String>,
}

/// Tag of a logged model that lists, as MLflow writes it, the versions that the model is registered as.
pub(crate) const VERSIONS_TAG: &str = "mlflow.modelVersions";

/// Returns the value of [`VERSIONS_TAG`] with one more version; none where the version is listed already.
pub(crate) fn with_version(listed: Option<&str>, name: &str, version: i64) -> Option<String> {
    let mut all: Vec<serde_json::Value> = listed
        .and_then(|listed| serde_json::from_str(listed).ok())
        .unwrap_or_default();
    let is_this = |it: &serde_json::Value| {
        let number = &it["version"];
        let number = number.as_i64().or_else(|| number.as_str()?.parse().ok());
        it["name"] == name && number == Some(version)
    };
    if all.iter().any(is_this) {
        return None;
    }
    all.push(serde_json::json!({"name": name, "version": version}));
    Some(serde_json::Value::from(all).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_listed_once_whether_its_number_is_a_text_or_not() {
        let first = with_version(None, "m", 1).unwrap();
        assert_eq!(first, r#"[{"name":"m","version":1}]"#);
        assert_eq!(with_version(Some(&first), "m", 1), None);
        let theirs = r#"[{"name": "m", "version": "2"}]"#;
        assert_eq!(with_version(Some(theirs), "m", 2), None);
        let both = with_version(Some(theirs), "n", 2).unwrap();
        assert_eq!(
            both,
            r#"[{"name":"m","version":"2"},{"name":"n","version":2}]"#
        );
        assert!(with_version(Some("no JSON"), "m", 1).is_some());
    }
}
