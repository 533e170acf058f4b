//! Settings as Python dictionaries.

use pyo3::{exceptions::PyRuntimeError, prelude::*};
use serde::Serialize;

/// Returns settings as a dictionary.
pub(super) fn as_dict<'py>(
    py: Python<'py>,
    settings: &impl Serialize,
) -> PyResult<Bound<'py, PyAny>> {
    let text = serde_json::to_string(settings)
        .map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
    py.import("json")?.call_method1("loads", (text,))
}
