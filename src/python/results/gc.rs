//! Findings of a garbage collection.

use pyo3::{prelude::*, types::PyTuple};

use crate::{gc::report, net::secret::without_password};

/// An item that is to be deleted, or has been.
#[pyclass(frozen, eq, get_all, module = "heimdall_tracking")]
#[derive(PartialEq)]
pub(crate) struct GarbageItem {
    kind: &'static str,
    experiment: String,
    run_id: Option<String>,
    uri: String,
    files: u64,
    bytes: u64,
    reason: String,
    run_goes: bool,
    deleted: bool,
    error: Option<String>,
}

impl From<report::GarbageItem> for GarbageItem {
    fn from(item: report::GarbageItem) -> Self {
        Self {
            kind: item.kind.as_str(),
            experiment: item.experiment,
            run_id: item.run_id,
            uri: without_password(&item.uri),
            files: item.files,
            bytes: item.bytes,
            reason: item.reason,
            run_goes: item.purges,
            deleted: item.deleted,
            error: item.error,
        }
    }
}

impl GarbageItem {
    const MEMBERS: [&str; 10] = [
        "kind",
        "experiment",
        "run_id",
        "uri",
        "files",
        "bytes",
        "reason",
        "run_goes",
        "deleted",
        "error",
    ];
}

#[pymethods]
impl GarbageItem {
    #[classattr]
    fn __match_args__(py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
        PyTuple::new(py, Self::MEMBERS)
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        super::of_members("GarbageItem", slf, &Self::MEMBERS)
    }
}

/// An item that looked like garbage and stays.
#[pyclass(frozen, eq, get_all, module = "heimdall_tracking")]
#[derive(PartialEq)]
pub(crate) struct SparedItem {
    kind: &'static str,
    experiment: String,
    run_id: Option<String>,
    uri: String,
    reason: String,
}

impl From<report::SparedItem> for SparedItem {
    fn from(item: report::SparedItem) -> Self {
        Self {
            kind: item.kind.as_str(),
            experiment: item.experiment,
            run_id: item.run_id,
            uri: without_password(&item.uri),
            reason: item.reason,
        }
    }
}

impl SparedItem {
    const MEMBERS: [&str; 5] = ["kind", "experiment", "run_id", "uri", "reason"];
}

#[pymethods]
impl SparedItem {
    #[classattr]
    fn __match_args__(py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
        PyTuple::new(py, Self::MEMBERS)
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        super::of_members("SparedItem", slf, &Self::MEMBERS)
    }
}
