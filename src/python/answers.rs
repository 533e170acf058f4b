//! What is read back of a store, as objects that do not change.

use std::fmt::Write;

use pyo3::{
    prelude::*,
    types::{PyDict, PyList},
};

use crate::{
    mlflow::run::{self, RunInfo},
    store::tracking,
};

/// A run as the store had it when it was asked.
#[pyclass(frozen, eq, module = "heimdall_tracking")]
#[derive(PartialEq)]
pub struct Run(RunInfo);

impl From<RunInfo> for Run {
    fn from(info: RunInfo) -> Self {
        Self(info)
    }
}

#[pymethods]
impl Run {
    #[getter]
    fn run_id(&self) -> &str {
        &self.0.run_id
    }

    #[getter]
    fn run_name(&self) -> &str {
        &self.0.run_name
    }

    #[getter]
    fn experiment_id(&self) -> &str {
        &self.0.experiment_id
    }

    #[getter]
    fn user_id(&self) -> &str {
        &self.0.user_id
    }

    #[getter]
    fn status(&self) -> &str {
        &self.0.status
    }

    #[getter]
    fn start_time(&self) -> Option<i64> {
        self.0.start_time
    }

    #[getter]
    fn end_time(&self) -> Option<i64> {
        self.0.end_time
    }

    #[getter]
    fn lifecycle_stage(&self) -> &str {
        &self.0.lifecycle_stage
    }

    #[getter]
    fn artifact_uri(&self) -> &str {
        &self.0.artifact_uri
    }

    #[getter]
    fn params<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        (&self.0.params).into_pyobject(py)
    }

    #[getter]
    fn metrics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        (&self.0.metrics).into_pyobject(py)
    }

    #[getter]
    fn tags<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        (&self.0.tags).into_pyobject(py)
    }

    #[getter]
    fn inputs(&self) -> Vec<DatasetInput> {
        self.0.inputs.iter().cloned().map(DatasetInput).collect()
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!(
            "Run(run_id={:?}, run_name={:?}, status={:?}, metrics={}, params={})",
            self.0.run_id,
            self.0.run_name,
            self.0.status,
            self.metrics(py)?.repr()?,
            self.params(py)?.repr()?
        ))
    }

    fn _repr_html_(&self) -> String {
        let run = &self.0;
        let mut html = format!(
            "<table><caption><b>{}</b> {}</caption>",
            escaped(&run.run_name),
            escaped(&run.status)
        );
        let metrics = run.metrics.iter().map(|(key, it)| (key, it.to_string()));
        let params = run.params.iter().map(|(key, it)| (key, it.clone()));
        let id = (&"run_id".to_owned(), run.run_id.clone());
        for (key, value) in std::iter::once(id).chain(metrics).chain(params) {
            let _ = write!(
                html,
                "<tr><th>{}</th><td>{}</td></tr>",
                escaped(key),
                escaped(&value)
            );
        }
        html + "</table>"
    }
}

/// A dataset that a run was given.
#[pyclass(frozen, eq, module = "heimdall_tracking")]
#[derive(Clone, PartialEq)]
pub struct DatasetInput(run::DatasetInput);

#[pymethods]
impl DatasetInput {
    #[getter]
    fn name(&self) -> &str {
        &self.0.name
    }

    #[getter]
    fn digest(&self) -> &str {
        &self.0.digest
    }

    #[getter]
    fn source_type(&self) -> &str {
        &self.0.source_type
    }

    #[getter]
    fn source(&self) -> &str {
        &self.0.source
    }

    #[getter]
    fn schema(&self) -> Option<&str> {
        self.0.schema.as_deref()
    }

    #[getter]
    fn profile(&self) -> Option<&str> {
        self.0.profile.as_deref()
    }

    #[getter]
    fn tags<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let tags = PyDict::new(py);
        for (key, value) in &self.0.tags {
            tags.set_item(key, value)?;
        }
        Ok(tags)
    }

    fn __repr__(&self) -> String {
        format!(
            "DatasetInput(name={:?}, digest={:?}, source={:?})",
            self.0.name, self.0.digest, self.0.source
        )
    }
}

/// A point of a metric's history.
#[pyclass(frozen, eq, get_all, module = "heimdall_tracking")]
#[derive(PartialEq)]
pub struct MetricPoint {
    value: f64,
    step: i64,
    timestamp: i64,
}

impl From<run::MetricPoint> for MetricPoint {
    fn from(point: run::MetricPoint) -> Self {
        Self {
            value: point.value,
            step: point.step,
            timestamp: point.timestamp,
        }
    }
}

#[pymethods]
impl MetricPoint {
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!(
            "MetricPoint(value={}, step={}, timestamp={})",
            self.value.into_pyobject(py)?.repr()?,
            self.step,
            self.timestamp
        ))
    }
}

/// An experiment as the store had it when it was asked.
#[pyclass(frozen, eq, module = "heimdall_tracking")]
#[derive(PartialEq)]
pub struct Experiment(tracking::Experiment);

impl From<tracking::Experiment> for Experiment {
    fn from(experiment: tracking::Experiment) -> Self {
        Self(experiment)
    }
}

#[pymethods]
impl Experiment {
    #[getter]
    fn experiment_id(&self) -> &str {
        &self.0.id
    }

    #[getter]
    fn name(&self) -> &str {
        &self.0.name
    }

    #[getter]
    fn artifact_location(&self) -> &str {
        &self.0.artifact_location
    }

    #[getter]
    fn lifecycle_stage(&self) -> &str {
        &self.0.lifecycle_stage
    }

    #[getter]
    fn creation_time(&self) -> Option<i64> {
        self.0.creation_time
    }

    #[getter]
    fn last_update_time(&self) -> Option<i64> {
        self.0.last_update_time
    }

    #[getter]
    fn tags<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        (&self.0.tags).into_pyobject(py)
    }

    fn __repr__(&self) -> String {
        format!(
            "Experiment(experiment_id={:?}, name={:?}, lifecycle_stage={:?})",
            self.0.id, self.0.name, self.0.lifecycle_stage
        )
    }
}

/// A text that may be missing, as Python shows it.
pub fn optional(text: Option<&str>) -> String {
    text.map_or_else(|| "None".to_owned(), |text| format!("{text:?}"))
}

/// A text as HTML shows it.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// A list of new objects. While it is made Python's garbage collector rests: with every few hundred of them it would
/// go through objects of the whole process, and nothing new can be garbage yet.
pub fn list<'py, T: IntoPyObject<'py>>(
    py: Python<'py>,
    objects: impl ExactSizeIterator<Item = T>,
) -> PyResult<Bound<'py, PyList>> {
    let gc = py.import("gc")?;
    let rests_already = !gc.call_method0("isenabled")?.extract::<bool>()?;
    gc.call_method0("disable")?;
    let list = PyList::new(py, objects);
    if !rests_already {
        gc.call_method0("enable")?;
    }
    list
}
