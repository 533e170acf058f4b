//! Runs, their parts, and experiments.

use std::fmt::Write;

use pyo3::{prelude::*, types::PyDict};

use super::escaped;
use crate::{
    artifacts::store,
    mlflow::run::{self, RunInfo},
    store::tracking,
};

/// A run, as it was in the store at the time of the query.
#[pyclass(frozen, eq, module = "heimdall_tracking")]
#[derive(PartialEq)]
pub(crate) struct Run(RunInfo);

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
        html(&self.0)
    }
}

/// Returns a run as an HTML table.
fn html(run: &RunInfo) -> String {
    let (name, status) = (escaped(&run.run_name), escaped(&run.status));
    let mut html = format!("<table><caption><b>{name}</b> {status}</caption>");
    let metrics = run.metrics.iter().map(|(key, it)| (key, it.to_string()));
    let params = run.params.iter().map(|(key, it)| (key, it.clone()));
    let id = (&"run_id".to_owned(), run.run_id.clone());
    for (key, value) in std::iter::once(id).chain(metrics).chain(params) {
        let (key, value) = (escaped(key), escaped(&value));
        let _ = write!(html, "<tr><th>{key}</th><td>{value}</td></tr>");
    }
    html + "</table>"
}

/// A dataset that is an input of a run.
#[pyclass(frozen, eq, module = "heimdall_tracking")]
#[derive(Clone, PartialEq)]
pub(crate) struct DatasetInput(run::DatasetInput);

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
pub(crate) struct MetricPoint {
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

/// An experiment, as it was in the store at the time of the query.
#[pyclass(frozen, eq, module = "heimdall_tracking")]
#[derive(PartialEq)]
pub(crate) struct Experiment(tracking::Experiment);

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

/// A file or folder among a run's artifacts.
#[pyclass(frozen, eq, hash, get_all, module = "heimdall_tracking")]
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct FileInfo {
    path: String,
    is_dir: bool,
    file_size: Option<u64>,
}

impl From<store::FileInfo> for FileInfo {
    fn from(info: store::FileInfo) -> Self {
        Self {
            path: info.path.as_str().to_owned(),
            is_dir: info.size.is_none(),
            file_size: info.size,
        }
    }
}

#[pymethods]
impl FileInfo {
    fn __repr__(&self) -> String {
        match self.file_size {
            Some(size) => format!("FileInfo({:?}, {size} bytes)", self.path),
            None => format!("FileInfo({:?}, folder)", self.path),
        }
    }
}

/// Returns a run for `get_run_info`: a dict with the names of the original.
pub(crate) fn run_info(py: Python<'_>, run: RunInfo) -> PyResult<Bound<'_, PyDict>> {
    let info = PyDict::new(py);
    info.set_item("run_id", run.run_id)?;
    info.set_item("experiment_id", run.experiment_id)?;
    info.set_item("status", run.status)?;
    info.set_item("start_time", run.start_time)?;
    info.set_item("end_time", run.end_time)?;
    info.set_item("parameters", run.params)?;
    info.set_item("metrics", run.metrics)?;
    info.set_item("tags", run.tags)?;
    Ok(info)
}

/// Returns a run for `get_best_run`: a dict with the names of the original.
pub(crate) fn best_run<'py>(
    py: Python<'py>,
    run: RunInfo,
    metric: &str,
) -> PyResult<Bound<'py, PyDict>> {
    let best = PyDict::new(py);
    best.set_item("run_id", run.run_id)?;
    best.set_item("metric_value", run.metrics.get(metric))?;
    best.set_item("params", run.params)?;
    Ok(best)
}
