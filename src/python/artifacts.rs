//! Artifacts as Python sees them.

use std::time::Duration;

use pyo3::{prelude::*, types::PyString};

use super::{tracker::MLflowTracker, values};
use crate::{
    artifacts::store,
    tracker::artifacts::{Keep, Logged},
};

/// Files that were logged by one call.
#[pyclass(frozen, module = "heimdall_tracking")]
pub struct Upload {
    tracker: Py<MLflowTracker>,
    logged: Logged,
}

impl Upload {
    pub fn new(tracker: &Bound<'_, MLflowTracker>, logged: Logged) -> Self {
        Self {
            tracker: tracker.clone().unbind(),
            logged,
        }
    }
}

#[pymethods]
impl Upload {
    #[getter]
    fn paths(&self) -> Vec<String> {
        self.logged.paths.clone()
    }

    #[getter]
    fn done(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.tracker.get().tracker(py)?.has_arrived(&self.logged))
    }

    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        let tracker = self.tracker.get();
        let timeout: Option<Duration> = tracker.answer(py, values::timeout(timeout))?;
        tracker.ask(py, |tracker, keep_waiting| {
            tracker.wait_for(&self.logged, timeout, keep_waiting)
        })
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let state = if self.done(py)? { "done" } else { "on its way" };
        Ok(match self.logged.paths.as_slice() {
            [path] => format!("Upload({path:?}, {state})"),
            paths => format!("Upload({} files, {state})", paths.len()),
        })
    }
}

/// A file or folder among a run's artifacts.
#[pyclass(frozen, eq, hash, get_all, module = "heimdall_tracking")]
#[derive(PartialEq, Eq, Hash)]
pub struct FileInfo {
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

#[pymethods]
impl MLflowTracker {
    #[pyo3(signature = (path="", run_id=None))]
    fn list_artifacts(
        &self,
        py: Python<'_>,
        path: &str,
        run_id: Option<&Bound<'_, PyString>>,
    ) -> PyResult<Vec<FileInfo>> {
        let run = run_id
            .map(|run| values::argument("run id", run))
            .transpose();
        let run = self.answer(py, run)?;
        let listed = self.ask_of_files(py, |tracker, keep_waiting| {
            tracker.list_artifacts(path, run.as_deref(), keep_waiting)
        })?;
        Ok(listed.into_iter().map(Into::into).collect())
    }

    #[pyo3(signature = (source, path="", dst=None))]
    fn download_artifacts(
        &self,
        py: Python<'_>,
        source: &Bound<'_, PyAny>,
        path: &str,
        dst: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<String> {
        let source = values::path(source)?.to_string_lossy().into_owned();
        let dst = dst.map(values::path).transpose()?;
        let downloaded = self.ask_of_files(py, |tracker, keep_waiting| {
            tracker.download_artifacts(&source, path, dst.as_deref(), keep_waiting)
        })?;
        Ok(downloaded.to_string_lossy().into_owned())
    }
}

/// How a file is kept of which the caller says whether anybody changes it.
pub fn keep(immutable: bool) -> Keep {
    match immutable {
        true => Keep::Original,
        false => Keep::Copy,
    }
}
