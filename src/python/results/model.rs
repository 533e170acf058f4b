//! Registered models and their versions.

use pyo3::{prelude::*, types::PyDict};

use super::optional;
use crate::store::registry;

/// A registered model, as it was in the registry at the time of the query.
#[pyclass(frozen, eq, module = "heimdall_tracking")]
#[derive(PartialEq)]
pub(crate) struct RegisteredModel(pub registry::RegisteredModel);

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

/// A model version, as it was in the registry at the time of the query.
#[pyclass(frozen, eq, module = "heimdall_tracking")]
#[derive(PartialEq)]
pub(crate) struct ModelVersion(pub registry::ModelVersion);

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

    // The source is left out, because it may be a URI with credentials.
    fn __repr__(&self) -> String {
        format!(
            "ModelVersion(name={:?}, version=\"{}\", current_stage={:?}, aliases={:?}, run_id={})",
            self.0.name,
            self.0.version,
            self.0.stage,
            self.0.aliases,
            optional(self.0.run_id.as_deref())
        )
    }
}
