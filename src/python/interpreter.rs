//! The interpreter that runs the caller, where what a run was started with is recorded.

use std::path::PathBuf;

use pyo3::prelude::*;

use super::errors::to_python;
use crate::{config::tracker::TrackerConfig, environment::capture::Interpreter};

/// What Python knows of itself, if it is to be recorded.
pub fn asked_for(py: Python<'_>, config: &TrackerConfig) -> PyResult<Option<Interpreter>> {
    match config.wants_environment() {
        Ok(true) => this_one(py).map(Some),
        Ok(false) => Ok(None),
        Err(error) => Err(to_python(py, &error.into())),
    }
}

fn this_one(py: Python<'_>) -> PyResult<Interpreter> {
    let (sys, platform) = (py.import("sys")?, py.import("platform")?);
    let path = sys.getattr("path")?.try_iter()?;
    // What is on the path and no path is a matter of whoever has put it there.
    let path: Vec<PathBuf> = path
        .filter_map(|folder| folder.ok()?.extract().ok())
        .collect();
    let arguments: Vec<String> = sys.getattr("orig_argv")?.extract().unwrap_or_default();
    let executable = sys.getattr("executable")?.extract::<Option<String>>()?;
    Ok(Interpreter::new(
        platform.call_method0("python_version")?.extract()?,
        platform.call_method0("python_implementation")?.extract()?,
        executable.unwrap_or_default(),
        path,
        &arguments,
    ))
}
