//! The model registry as Python sees it: methods of the tracker, and registered models and versions as objects that
//! do not change. Names are those of MLflow's client.

use std::time::Duration;

use pyo3::{
    prelude::*,
    types::{PyDict, PyString},
};

use super::{
    answers::{self, Run},
    tracker::MLflowTracker,
    values,
};
use crate::{
    error::{Error, Result},
    store::registry,
    tracker::registry::RegistrySearch,
};

#[pymethods]
impl MLflowTracker {
    #[pyo3(signature = (model_name, model_uri, description="", tags=None, await_registration_for=300.0))]
    fn register_model(
        &self,
        py: Python<'_>,
        model_name: &Bound<'_, PyString>,
        model_uri: &Bound<'_, PyAny>,
        description: &str,
        tags: Option<&Bound<'_, PyAny>>,
        await_registration_for: Option<f64>,
    ) -> PyResult<String> {
        let name = self.answer(py, values::argument("model name", model_name))?;
        let uri = self.uri(py, model_uri)?;
        let tags = self.answer(py, values::tags(tags)?)?;
        let patience = self.answer(py, patience(await_registration_for))?;
        let version = self.ask_of_files(py, |tracker, keep_waiting| {
            tracker.register_model(&name, &uri, description, tags, patience, keep_waiting)
        })?;
        Ok(version.version.to_string())
    }

    #[pyo3(signature = (model_name, version, stage, archive_existing_versions=false))]
    fn transition_model_stage(
        &self,
        py: Python<'_>,
        model_name: &Bound<'_, PyString>,
        version: &Bound<'_, PyAny>,
        stage: &str,
        archive_existing_versions: bool,
    ) -> PyResult<()> {
        let (name, version) = self.version_of(py, model_name, version)?;
        self.ask(py, |tracker, keep_waiting| {
            let archive = archive_existing_versions;
            tracker.transition_model_stage(&name, &version, stage, archive, keep_waiting)
        })
    }

    #[pyo3(signature = (name, tags=None, description=None))]
    fn create_registered_model(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        tags: Option<&Bound<'_, PyAny>>,
        description: Option<&Bound<'_, PyString>>,
    ) -> PyResult<RegisteredModel> {
        let name = self.answer(py, values::argument("model name", name))?;
        let tags = self.answer(py, values::tags(tags)?)?;
        let description = description.map(|text| values::argument("description", text));
        let description = self
            .answer(py, description.transpose())?
            .unwrap_or_default();
        let model = self.ask(py, |tracker, keep_waiting| {
            tracker.create_registered_model(&name, tags, &description, keep_waiting)
        })?;
        Ok(RegisteredModel(model))
    }

    fn get_registered_model(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
    ) -> PyResult<RegisteredModel> {
        let name = self.answer(py, values::argument("model name", name))?;
        let model = self.ask(py, |tracker, keep_waiting| {
            tracker.registered_model(&name, keep_waiting)
        })?;
        Ok(RegisteredModel(model))
    }

    fn rename_registered_model(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        new_name: &Bound<'_, PyString>,
    ) -> PyResult<RegisteredModel> {
        let name = self.answer(py, values::argument("model name", name))?;
        let new_name = self.answer(py, values::argument("model name", new_name))?;
        let model = self.ask(py, |tracker, keep_waiting| {
            tracker.rename_registered_model(&name, &new_name, keep_waiting)
        })?;
        Ok(RegisteredModel(model))
    }

    fn update_registered_model(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        description: &Bound<'_, PyString>,
    ) -> PyResult<RegisteredModel> {
        let name = self.answer(py, values::argument("model name", name))?;
        let description = self.answer(py, values::argument("description", description))?;
        let model = self.ask(py, |tracker, keep_waiting| {
            tracker.update_registered_model(&name, &description, keep_waiting)
        })?;
        Ok(RegisteredModel(model))
    }

    fn delete_registered_model(&self, py: Python<'_>, name: &Bound<'_, PyString>) -> PyResult<()> {
        let name = self.answer(py, values::argument("model name", name))?;
        self.ask(py, |tracker, keep_waiting| {
            tracker.delete_registered_model(&name, keep_waiting)
        })
    }

    fn set_registered_model_tag(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        key: &Bound<'_, PyString>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let name = self.answer(py, values::argument("model name", name))?;
        let key = self.answer(py, values::argument("tag key", key))?;
        let value = self.answer(py, values::tag(&key, value)?)?;
        self.ask(py, |tracker, keep_waiting| {
            tracker.set_registered_model_tag(&name, &key, Some(value), keep_waiting)
        })
    }

    fn delete_registered_model_tag(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        key: &Bound<'_, PyString>,
    ) -> PyResult<()> {
        let name = self.answer(py, values::argument("model name", name))?;
        let key = self.answer(py, values::argument("tag key", key))?;
        self.ask(py, |tracker, keep_waiting| {
            tracker.set_registered_model_tag(&name, &key, None, keep_waiting)
        })
    }

    #[pyo3(signature = (filter_string=None, max_results=None, order_by=None))]
    fn search_registered_models(
        &self,
        py: Python<'_>,
        filter_string: Option<&Bound<'_, PyString>>,
        max_results: Option<i64>,
        order_by: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Vec<RegisteredModel>> {
        let search = self.search(py, filter_string, max_results, order_by)?;
        let models = self.ask(py, |tracker, keep_waiting| {
            tracker.search_registered_models(&search, keep_waiting)
        })?;
        Ok(models.into_iter().map(RegisteredModel).collect())
    }

    fn get_model_version(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        version: &Bound<'_, PyAny>,
    ) -> PyResult<ModelVersion> {
        let (name, version) = self.version_of(py, name, version)?;
        let version = self.ask(py, |tracker, keep_waiting| {
            tracker.model_version(&name, &version, keep_waiting)
        })?;
        Ok(ModelVersion(version))
    }

    fn get_model_version_by_alias(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        alias: &Bound<'_, PyString>,
    ) -> PyResult<ModelVersion> {
        let name = self.answer(py, values::argument("model name", name))?;
        let alias = self.answer(py, values::argument("alias", alias))?;
        let version = self.ask(py, |tracker, keep_waiting| {
            tracker.model_version_by_alias(&name, &alias, keep_waiting)
        })?;
        Ok(ModelVersion(version))
    }

    #[pyo3(signature = (name, stages=None))]
    fn get_latest_versions(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        stages: Option<Vec<String>>,
    ) -> PyResult<Vec<ModelVersion>> {
        let name = self.answer(py, values::argument("model name", name))?;
        let stages = stages.unwrap_or_default();
        let versions = self.ask(py, |tracker, keep_waiting| {
            tracker.latest_versions(&name, &stages, keep_waiting)
        })?;
        Ok(versions.into_iter().map(ModelVersion).collect())
    }

    #[pyo3(signature = (filter_string=None, max_results=None, order_by=None))]
    fn search_model_versions(
        &self,
        py: Python<'_>,
        filter_string: Option<&Bound<'_, PyString>>,
        max_results: Option<i64>,
        order_by: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Vec<ModelVersion>> {
        let search = self.search(py, filter_string, max_results, order_by)?;
        let versions = self.ask(py, |tracker, keep_waiting| {
            tracker.search_model_versions(&search, keep_waiting)
        })?;
        Ok(versions.into_iter().map(ModelVersion).collect())
    }

    /// Versions by their numbers, each with its run.
    fn _versions_with_runs(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        versions: Option<Vec<String>>,
    ) -> PyResult<Vec<(ModelVersion, Option<Run>)>> {
        let name = self.answer(py, values::argument("model name", name))?;
        let found = self.ask(py, |tracker, keep_waiting| {
            tracker.versions_with_runs(&name, versions.as_deref(), keep_waiting)
        })?;
        Ok(found
            .into_iter()
            .map(|(version, run)| (ModelVersion(version), run.map(Run::from)))
            .collect())
    }

    fn update_model_version(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        version: &Bound<'_, PyAny>,
        description: &Bound<'_, PyString>,
    ) -> PyResult<ModelVersion> {
        let (name, version) = self.version_of(py, name, version)?;
        let description = self.answer(py, values::argument("description", description))?;
        let version = self.ask(py, |tracker, keep_waiting| {
            tracker.update_model_version(&name, &version, &description, keep_waiting)
        })?;
        Ok(ModelVersion(version))
    }

    fn set_model_version_tag(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        version: &Bound<'_, PyAny>,
        key: &Bound<'_, PyString>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (name, version) = self.version_of(py, name, version)?;
        let key = self.answer(py, values::argument("tag key", key))?;
        let value = self.answer(py, values::tag(&key, value)?)?;
        self.ask(py, |tracker, keep_waiting| {
            tracker.set_model_version_tag(&name, &version, &key, Some(value), keep_waiting)
        })
    }

    fn delete_model_version_tag(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        version: &Bound<'_, PyAny>,
        key: &Bound<'_, PyString>,
    ) -> PyResult<()> {
        let (name, version) = self.version_of(py, name, version)?;
        let key = self.answer(py, values::argument("tag key", key))?;
        self.ask(py, |tracker, keep_waiting| {
            tracker.set_model_version_tag(&name, &version, &key, None, keep_waiting)
        })
    }

    fn delete_model_version(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        version: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (name, version) = self.version_of(py, name, version)?;
        self.ask(py, |tracker, keep_waiting| {
            tracker.delete_model_version(&name, &version, keep_waiting)
        })
    }

    fn set_model_alias(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        alias: &Bound<'_, PyString>,
        version: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (name, version) = self.version_of(py, name, version)?;
        let alias = self.answer(py, values::argument("alias", alias))?;
        self.ask(py, |tracker, keep_waiting| {
            tracker.set_model_alias(&name, &alias, &version, keep_waiting)
        })
    }

    fn delete_model_alias(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        alias: &Bound<'_, PyString>,
    ) -> PyResult<()> {
        let name = self.answer(py, values::argument("model name", name))?;
        let alias = self.answer(py, values::argument("alias", alias))?;
        self.ask(py, |tracker, keep_waiting| {
            tracker.delete_model_alias(&name, &alias, keep_waiting)
        })
    }

    fn get_model_version_download_uri(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        version: &Bound<'_, PyAny>,
    ) -> PyResult<String> {
        let (name, version) = self.version_of(py, name, version)?;
        self.ask(py, |tracker, keep_waiting| {
            tracker.download_uri(&name, &version, keep_waiting)
        })
    }

    fn resolve_model_uri(&self, py: Python<'_>, uri: &Bound<'_, PyAny>) -> PyResult<String> {
        let uri = self.uri(py, uri)?;
        self.ask(py, |tracker, keep_waiting| {
            tracker.model_location(&uri, keep_waiting)
        })
    }
}

impl MLflowTracker {
    /// A URI, or a path as any path object.
    fn uri(&self, py: Python<'_>, given: &Bound<'_, PyAny>) -> PyResult<String> {
        let path;
        let text = match given.cast::<PyString>() {
            Ok(text) => text,
            Err(_) => {
                path = given.py().import("os")?.call_method1("fspath", (given,))?;
                path.cast::<PyString>()?
            }
        };
        let uri = values::argument("model URI", text).map(std::borrow::Cow::into_owned);
        self.answer(py, uri)
    }

    /// A model's name and the number of a version, a str or an int.
    fn version_of(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        version: &Bound<'_, PyAny>,
    ) -> PyResult<(String, String)> {
        let name = values::argument("model name", name).map(std::borrow::Cow::into_owned);
        let version = version.str()?.to_string();
        Ok((self.answer(py, name)?, version))
    }

    fn search(
        &self,
        py: Python<'_>,
        filter: Option<&Bound<'_, PyString>>,
        max_results: Option<i64>,
        order_by: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<RegistrySearch> {
        let filter = filter.map(|filter| values::argument("filter", filter));
        let filter = self.answer(py, filter.transpose())?.unwrap_or_default();
        let max_results = max_results.map(|count| {
            usize::try_from(count).map_err(|_| {
                let reason = "it is 0 or more, or None";
                Error::invalid("max_results", &count.to_string(), reason)
            })
        });
        let order_by = match order_by {
            None => Vec::new(),
            Some(orders) => match orders.cast::<PyString>() {
                Ok(order) => vec![order.extract()?],
                Err(_) => orders.extract()?,
            },
        };
        Ok(RegistrySearch {
            filter: filter.into_owned(),
            order_by,
            max_results: self.answer(py, max_results.transpose())?,
        })
    }
}

/// How long is waited for a version; None and 0 are not at all.
fn patience(seconds: Option<f64>) -> Result<Duration> {
    let seconds = seconds.unwrap_or_default();
    if seconds == f64::INFINITY {
        return Ok(Duration::MAX);
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| {
        let reason = "it is a number of seconds from 0 on, or None";
        Error::invalid("await_registration_for", &seconds.to_string(), reason)
    })
}

/// A registered model as the registry had it when it was asked.
#[pyclass(frozen, eq, module = "heimdall_tracking")]
#[derive(PartialEq)]
pub struct RegisteredModel(registry::RegisteredModel);

#[pymethods]
impl RegisteredModel {
    #[getter]
    fn name(&self) -> &str {
        &self.0.name
    }

    #[getter]
    fn creation_timestamp(&self) -> Option<i64> {
        self.0.creation_time
    }

    #[getter]
    fn last_updated_timestamp(&self) -> Option<i64> {
        self.0.last_updated_time
    }

    #[getter]
    fn description(&self) -> &str {
        &self.0.description
    }

    #[getter]
    fn latest_versions(&self) -> Vec<ModelVersion> {
        let latest = self.0.latest_versions.iter();
        latest.cloned().map(ModelVersion).collect()
    }

    #[getter]
    fn tags<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        (&self.0.tags).into_pyobject(py)
    }

    #[getter]
    fn aliases<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let aliases = PyDict::new(py);
        for (alias, version) in &self.0.aliases {
            aliases.set_item(alias, version.to_string())?;
        }
        Ok(aliases)
    }

    fn __repr__(&self) -> String {
        let latest = self.0.latest_versions.iter();
        let newest = latest.map(|version| version.version).max();
        format!(
            "RegisteredModel(name={:?}, newest_version={})",
            self.0.name,
            newest.map_or_else(|| "None".to_owned(), |version| format!("\"{version}\""))
        )
    }
}

/// A model version as the registry had it when it was asked.
#[pyclass(frozen, eq, module = "heimdall_tracking")]
#[derive(PartialEq)]
pub struct ModelVersion(registry::ModelVersion);

#[pymethods]
impl ModelVersion {
    #[getter]
    fn name(&self) -> &str {
        &self.0.name
    }

    #[getter]
    fn version(&self) -> String {
        self.0.version.to_string()
    }

    #[getter]
    fn creation_timestamp(&self) -> Option<i64> {
        self.0.creation_time
    }

    #[getter]
    fn last_updated_timestamp(&self) -> Option<i64> {
        self.0.last_updated_time
    }

    #[getter]
    fn description(&self) -> &str {
        &self.0.description
    }

    #[getter]
    fn user_id(&self) -> Option<&str> {
        self.0.user_id.as_deref()
    }

    #[getter]
    fn current_stage(&self) -> &str {
        &self.0.stage
    }

    #[getter]
    fn source(&self) -> &str {
        &self.0.source
    }

    #[getter]
    fn run_id(&self) -> Option<&str> {
        self.0.run_id.as_deref()
    }

    #[getter]
    fn run_link(&self) -> Option<&str> {
        self.0.run_link.as_deref()
    }

    #[getter]
    fn status(&self) -> &str {
        &self.0.status
    }

    #[getter]
    fn status_message(&self) -> Option<&str> {
        self.0.status_message.as_deref()
    }

    #[getter]
    fn tags<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        (&self.0.tags).into_pyobject(py)
    }

    #[getter]
    fn aliases(&self) -> Vec<String> {
        self.0.aliases.clone()
    }

    // Not its source, which may be a URI with an account in it.
    fn __repr__(&self) -> String {
        format!(
            "ModelVersion(name={:?}, version=\"{}\", current_stage={:?}, aliases={:?}, run_id={})",
            self.0.name,
            self.0.version,
            self.0.stage,
            self.0.aliases,
            answers::optional(self.0.run_id.as_deref())
        )
    }
}
