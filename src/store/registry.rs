//! The model registry: registered models, their versions, stages, aliases and tags.
//!
//! A registry is the database or the server of MLflow itself. What is written here a stock client reads, and the
//! other way round; a version that MLflow has deleted (it keeps a row without its content) does not exist here.

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
pub const READY: &str = "READY";
/// Status of a version that a server is still taking in.
pub const PENDING: &str = "PENDING_REGISTRATION";

/// A store of registered models.
#[async_trait]
pub trait ModelRegistry: fmt::Debug + Send + Sync {
    /// Creates a model without versions.
    async fn create_model(&self, new: &NewModel) -> Result<RegisteredModel, StoreError>;

    /// A registered model.
    async fn model(&self, name: &ModelName) -> Result<RegisteredModel, StoreError>;

    /// Renames a model with all of its versions.
    async fn rename_model(
        &self,
        name: &ModelName,
        new_name: &ModelName,
    ) -> Result<RegisteredModel, StoreError>;

    /// Gives a model another description.
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

    /// Removes a tag of a model; one that it does not have is no error.
    async fn delete_model_tag(&self, name: &ModelName, key: &Key) -> Result<(), StoreError>;

    /// The models that a query finds, in its order.
    async fn search_models(&self, query: &ModelQuery) -> Result<Vec<RegisteredModel>, StoreError>;

    /// Adds a version to a model, which is created if it is not there. Of processes that do so at once each gets a
    /// number of its own.
    async fn create_version(&self, new: &NewVersion) -> Result<ModelVersion, StoreError>;

    /// A version of a model.
    async fn version(&self, name: &ModelName, version: i64) -> Result<ModelVersion, StoreError>;

    /// The version that an alias of a model is of.
    async fn version_by_alias(
        &self,
        name: &ModelName,
        alias: &Alias,
    ) -> Result<ModelVersion, StoreError>;

    /// The newest version of a model in each of some stages, by their numbers.
    async fn latest_versions(
        &self,
        name: &ModelName,
        stages: &[Stage],
    ) -> Result<Vec<ModelVersion>, StoreError> {
        let mut latest = self.model(name).await?.latest_versions;
        latest.retain(|version| stages.iter().any(|stage| stage.as_str() == version.stage));
        Ok(latest)
    }

    /// The versions that a query finds, in its order.
    async fn search_versions(&self, query: &VersionQuery) -> Result<Vec<ModelVersion>, StoreError>;

    /// Where the files of a version are to be read.
    async fn download_uri(&self, name: &ModelName, version: i64) -> Result<String, StoreError>;

    /// Gives a version another description.
    async fn describe_version(
        &self,
        name: &ModelName,
        version: i64,
        description: &str,
    ) -> Result<ModelVersion, StoreError>;

    /// Puts a version into a stage, and those that were there into the archive where `archive` says so.
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

    /// Removes a tag of a version; one that it does not have is no error.
    async fn delete_version_tag(
        &self,
        name: &ModelName,
        version: i64,
        key: &Key,
    ) -> Result<(), StoreError>;

    /// Deletes a version; its number is not given again while the model is there.
    async fn delete_version(&self, name: &ModelName, version: i64) -> Result<(), StoreError>;

    /// Makes an alias of a model one of this version.
    async fn set_alias(
        &self,
        name: &ModelName,
        alias: &Alias,
        version: i64,
    ) -> Result<(), StoreError>;

    /// Removes an alias of a model; one that it does not have is no error.
    async fn delete_alias(&self, name: &ModelName, alias: &Alias) -> Result<(), StoreError>;

    /// A model that MLflow 3 has logged to an experiment.
    async fn logged_model(&self, model_id: &str) -> Result<LoggedModel, StoreError>;

    /// The newest model that a run has logged under a name, if it has.
    async fn logged_model_of(
        &self,
        run: &RunInfo,
        name: &str,
    ) -> Result<Option<LoggedModel>, StoreError>;

    /// Notes at a logged model that it is registered as a version, as MLflow does.
    async fn link_logged_model(
        &self,
        model_id: &str,
        name: &str,
        version: i64,
    ) -> Result<(), StoreError>;

    /// Where the files of all versions of all models are: what no collection of garbage may touch.
    async fn version_files(&self) -> Result<Vec<VersionFiles>, StoreError>;
}

/// Where the files of a model version are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionFiles {
    /// The registered model.
    pub name: String,
    /// Number of the version.
    pub version: i64,
    /// What it was registered from.
    pub source: String,
    /// Where its files are to be read, if that is told and is not the source.
    pub location: Option<String>,
    /// The run that made it.
    pub run_id: Option<String>,
}

/// A model to register, without versions.
#[derive(Clone, Debug)]
pub struct NewModel {
    /// Its name.
    pub name: ModelName,
    /// What people should know of it.
    pub description: String,
    /// Its tags.
    pub tags: Vec<(Key, TagValue)>,
}

/// A model version to create.
#[derive(Clone, Debug)]
pub struct NewVersion {
    /// The registered model.
    pub name: ModelName,
    /// What it was registered from: an artifact URI, `models:/<name>/<version>` for a copy of another version, or
    /// `models:/<model id>` for a logged model.
    pub source: String,
    /// Where its files are, if that is not the source.
    pub location: Option<String>,
    /// The run that made it.
    pub run_id: Option<String>,
    /// The logged model it is, if it is one.
    pub model_id: Option<String>,
    /// What people should know of it.
    pub description: String,
    /// Tags of the version.
    pub tags: Vec<(Key, TagValue)>,
}

/// A registered model as the registry has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RegisteredModel {
    /// Its name.
    pub name: String,
    /// Milliseconds since 1970.
    pub creation_time: Option<i64>,
    /// Milliseconds since 1970.
    pub last_updated_time: Option<i64>,
    /// What people should know of it; empty without one.
    pub description: String,
    /// The newest version in each stage, by their numbers.
    pub latest_versions: Vec<ModelVersion>,
    /// Tags by key.
    pub tags: BTreeMap<String, String>,
    /// The version of each alias.
    pub aliases: BTreeMap<String, i64>,
}

impl RegisteredModel {
    /// Gives a version of it those aliases that are of it.
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
    /// Its model.
    pub name: String,
    /// Its number.
    pub version: i64,
    /// Milliseconds since 1970.
    pub creation_time: Option<i64>,
    /// Milliseconds since 1970.
    pub last_updated_time: Option<i64>,
    /// What people should know of it; empty without one.
    pub description: String,
    /// Who has registered it, if the registry knows.
    pub user_id: Option<String>,
    /// `None`, `Staging`, `Production` or `Archived`.
    pub stage: String,
    /// What it was registered from.
    pub source: String,
    /// The run that made it.
    pub run_id: Option<String>,
    /// A page that shows the run.
    pub run_link: Option<String>,
    /// `READY`, `PENDING_REGISTRATION` or `FAILED_REGISTRATION`.
    pub status: String,
    /// What there is to say about the status.
    pub status_message: Option<String>,
    /// Tags by key.
    pub tags: BTreeMap<String, String>,
    /// Aliases of the model that are of this version.
    pub aliases: Vec<String>,
}

/// A model that MLflow 3 has logged to an experiment, apart from the artifacts of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoggedModel {
    /// Its id.
    pub model_id: String,
    /// Where its files are.
    pub artifact_uri: String,
    /// The run that logged it.
    pub run_id: Option<String>,
}

/// Tag of a logged model in which MLflow lists the versions that it is registered as.
pub const VERSIONS_TAG: &str = "mlflow.modelVersions";

/// The value of [`VERSIONS_TAG`] with one more version; none where it has that already.
pub fn with_version(listed: Option<&str>, name: &str, version: i64) -> Option<String> {
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
