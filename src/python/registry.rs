//! The model registry, with the names of MLflow's client.

use pyo3::{prelude::*, types::PyString};

use super::{
    arguments::{
        self, Description, Filter, MODEL_TAG_KEY, MaxResults, ModelTagKey, ModelUri, NewAlias,
        RegistrySearch, Texts, VERSION_TAG_KEY, VersionNumber, VersionTagKey,
    },
    calls::Calls,
    results::{
        model::{ModelVersion, RegisteredModel},
        run::Run,
    },
    tracker::MLflowTracker,
    values::Tags,
};
use crate::{
    mlflow::model::{Alias, ModelName, Stage},
    mlflow::model_uri::Pick,
    store::registry::NewModel,
    tracker::registry::Registration,
};

/// Calls a method of the registry, and waits for the answer.
macro_rules! ask_registry {
    ($tracker:expr, $verb:ident($($argument:expr),*)) => {
        $tracker.ask(|stores| async move {
            let registry = stores.registry().await?;
            Ok(registry.$verb($($argument),*).await?)
        })
    };
}

#[pymethods]
impl MLflowTracker {
    fn _register_model(slf: &Bound<'_, Self>, model: Registration) -> PyResult<String> {
        let version =
            slf.ask_with_bar(|stores| async move { stores.register_model(model).await })?;
        Ok(version.version.to_string())
    }

    #[pyo3(signature = (model_name, version, stage, archive_existing_versions=false))]
    fn transition_model_stage(
        slf: &Bound<'_, Self>,
        model_name: ModelName,
        version: VersionNumber,
        stage: Stage,
        archive_existing_versions: bool,
    ) -> PyResult<()> {
        let archive = stage.archives(archive_existing_versions)?;
        ask_registry!(slf, set_stage(&model_name, version.0, stage, archive))
    }

    #[pyo3(signature = (name, tags=None, description=None))]
    fn create_registered_model(
        slf: &Bound<'_, Self>,
        name: ModelName,
        tags: Option<Tags>,
        description: Option<Description>,
    ) -> PyResult<RegisteredModel> {
        let new = new_model(name, tags, description)?;
        ask_registry!(slf, create_model(&new)).map(RegisteredModel)
    }

    fn get_registered_model(slf: &Bound<'_, Self>, name: ModelName) -> PyResult<RegisteredModel> {
        ask_registry!(slf, model(&name)).map(RegisteredModel)
    }

    fn rename_registered_model(
        slf: &Bound<'_, Self>,
        name: ModelName,
        new_name: ModelName,
    ) -> PyResult<RegisteredModel> {
        ask_registry!(slf, rename_model(&name, &new_name)).map(RegisteredModel)
    }

    fn update_registered_model(
        slf: &Bound<'_, Self>,
        name: ModelName,
        description: Description,
    ) -> PyResult<RegisteredModel> {
        ask_registry!(slf, describe_model(&name, &description.0)).map(RegisteredModel)
    }

    fn delete_registered_model(slf: &Bound<'_, Self>, name: ModelName) -> PyResult<()> {
        ask_registry!(slf, delete_model(&name))
    }

    fn set_registered_model_tag(
        slf: &Bound<'_, Self>,
        name: ModelName,
        key: &Bound<'_, PyString>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (key, value) = arguments::model_tag(MODEL_TAG_KEY, key, value)?;
        ask_registry!(slf, set_model_tag(&name, &key, &value))
    }

    fn delete_registered_model_tag(
        slf: &Bound<'_, Self>,
        name: ModelName,
        key: ModelTagKey,
    ) -> PyResult<()> {
        ask_registry!(slf, delete_model_tag(&name, &key.0))
    }

    #[pyo3(signature = (filter_string=None, max_results=None, order_by=None))]
    fn search_registered_models(
        slf: &Bound<'_, Self>,
        filter_string: Option<Filter>,
        max_results: Option<MaxResults>,
        order_by: Option<Texts>,
    ) -> PyResult<Vec<RegisteredModel>> {
        let query = RegistrySearch::new(filter_string, max_results, order_by).of_models()?;
        let found = ask_registry!(slf, search_models(&query))?;
        Ok(found.into_iter().map(RegisteredModel).collect())
    }

    fn get_model_version(
        slf: &Bound<'_, Self>,
        name: ModelName,
        version: VersionNumber,
    ) -> PyResult<ModelVersion> {
        ask_registry!(slf, version(&name, version.0)).map(ModelVersion)
    }

    fn get_model_version_by_alias(
        slf: &Bound<'_, Self>,
        name: ModelName,
        alias: Alias,
    ) -> PyResult<ModelVersion> {
        let pick = Pick::from(alias);
        slf.ask(|stores| async move { stores.model_version(&name, &pick).await })
            .map(ModelVersion)
    }

    #[pyo3(signature = (name, stages=None))]
    fn get_latest_versions(
        slf: &Bound<'_, Self>,
        name: ModelName,
        stages: Option<Vec<Stage>>,
    ) -> PyResult<Vec<ModelVersion>> {
        let stages = stages.filter(|stages| !stages.is_empty());
        let stages = stages.unwrap_or_else(|| Stage::ALL.to_vec());
        let latest = ask_registry!(slf, latest_versions(&name, &stages))?;
        Ok(latest.into_iter().map(ModelVersion).collect())
    }

    #[pyo3(signature = (filter_string=None, max_results=None, order_by=None))]
    fn search_model_versions(
        slf: &Bound<'_, Self>,
        filter_string: Option<Filter>,
        max_results: Option<MaxResults>,
        order_by: Option<Texts>,
    ) -> PyResult<Vec<ModelVersion>> {
        let query = RegistrySearch::new(filter_string, max_results, order_by).of_versions()?;
        let found = ask_registry!(slf, search_versions(&query))?;
        Ok(found.into_iter().map(ModelVersion).collect())
    }

    /// Returns versions by their numbers, each with its run.
    fn _versions_with_runs(
        slf: &Bound<'_, Self>,
        name: ModelName,
        versions: Option<Vec<VersionNumber>>,
    ) -> PyResult<Vec<(ModelVersion, Option<Run>)>> {
        versions_with_runs(slf, name, versions)
    }

    fn update_model_version(
        slf: &Bound<'_, Self>,
        name: ModelName,
        version: VersionNumber,
        description: Description,
    ) -> PyResult<ModelVersion> {
        ask_registry!(slf, describe_version(&name, version.0, &description.0)).map(ModelVersion)
    }

    fn set_model_version_tag(
        slf: &Bound<'_, Self>,
        name: ModelName,
        version: VersionNumber,
        key: &Bound<'_, PyString>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (key, value) = arguments::model_tag(VERSION_TAG_KEY, key, value)?;
        ask_registry!(slf, set_version_tag(&name, version.0, &key, &value))
    }

    fn delete_model_version_tag(
        slf: &Bound<'_, Self>,
        name: ModelName,
        version: VersionNumber,
        key: VersionTagKey,
    ) -> PyResult<()> {
        ask_registry!(slf, delete_version_tag(&name, version.0, &key.0))
    }

    fn delete_model_version(
        slf: &Bound<'_, Self>,
        name: ModelName,
        version: VersionNumber,
    ) -> PyResult<()> {
        ask_registry!(slf, delete_version(&name, version.0))
    }

    fn set_model_alias(
        slf: &Bound<'_, Self>,
        name: ModelName,
        alias: NewAlias,
        version: VersionNumber,
    ) -> PyResult<()> {
        ask_registry!(slf, set_alias(&name, &alias.0, version.0))
    }

    fn delete_model_alias(slf: &Bound<'_, Self>, name: ModelName, alias: Alias) -> PyResult<()> {
        ask_registry!(slf, delete_alias(&name, &alias))
    }

    fn get_model_version_download_uri(
        slf: &Bound<'_, Self>,
        name: ModelName,
        version: VersionNumber,
    ) -> PyResult<String> {
        ask_registry!(slf, download_uri(&name, version.0))
    }

    fn resolve_model_uri(slf: &Bound<'_, Self>, uri: ModelUri) -> PyResult<String> {
        slf.ask(|stores| async move { stores.model_location(&uri.0).await })
    }
}

fn new_model(
    name: ModelName,
    tags: Option<Tags>,
    description: Option<Description>,
) -> PyResult<NewModel> {
    Ok(NewModel {
        name,
        description: description.map_or_else(String::new, |description| description.0),
        tags: arguments::model_tags(MODEL_TAG_KEY, tags)?,
    })
}

fn versions_with_runs(
    tracker: &Bound<'_, MLflowTracker>,
    name: ModelName,
    versions: Option<Vec<VersionNumber>>,
) -> PyResult<Vec<(ModelVersion, Option<Run>)>> {
    let numbers = versions.map(|versions| versions.iter().map(|version| version.0).collect());
    let found =
        tracker.ask(|stores| async move { stores.versions_with_runs(&name, numbers).await })?;
    let shown = |(version, run): (_, Option<_>)| (ModelVersion(version), run.map(Run::from));
    Ok(found.into_iter().map(shown).collect())
}
