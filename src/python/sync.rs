//! What the command line does with journals: deliver them, list them, look into them.

use std::{path::PathBuf, time::Duration};

use pyo3::{
    prelude::*,
    types::{PyDict, PyList},
};

use super::{caller, errors::to_python, exit::shows, tracker::waiting};
use crate::{
    config::uri::Destination,
    delivery::sync::{self as delivery, Order},
    journal::inspect as journal,
    mlflow::invalid::Invalid,
};

/// Delivers the journals of dead processes below `heimdall_dir`. `known_uris` have the credentials that journals do
/// not; all goes to `uri` where it is given. `progress` is told how many
/// records are delivered, of how many, how many bytes of files are on their way and how many of them are sent.
#[pyfunction]
#[pyo3(signature = (heimdall_dir, known_uris, uri=None, timeout=None, progress=None))]
pub fn sync<'py>(
    py: Python<'py>,
    heimdall_dir: PathBuf,
    known_uris: Vec<String>,
    uri: Option<String>,
    timeout: Option<f64>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let failed = |error: Invalid| to_python(py, &error.into());
    let instead = uri.map(|uri| Destination::parse("URI", &uri));
    let order = Order {
        heimdall_dir: std::path::absolute(heimdall_dir)?,
        // One that is not for us is none that a journal names.
        known: known_uris
            .iter()
            .filter_map(|uri| Destination::parse("URI", uri).ok())
            .collect(),
        instead: instead.transpose().map_err(failed)?,
        fresh_schema: caller::fresh_schema(py)?,
        timeout: timeout.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
    };
    let mut interrupt = None;
    let done = waiting(py, |keep_waiting| {
        delivery::sync(&order, &mut |so_far| {
            if !keep_waiting() {
                return false;
            }
            if let Some(progress) = &progress {
                let numbers = (
                    so_far.delivered,
                    so_far.total,
                    so_far.uploading,
                    so_far.uploaded,
                );
                interrupt = Python::attach(|py| shows(py, progress, numbers));
            }
            interrupt.is_none()
        })
    });
    if let Some(interrupt) = interrupt {
        return Err(interrupt);
    }
    let done = done?;
    let answer = PyDict::new(py);
    answer.set_item("delivered", done.delivered)?;
    answer.set_item("parked", done.parked)?;
    answer.set_item("left", done.left)?;
    answer.set_item("notices", done.notices)?;
    Ok(answer)
}

/// The journals below `heimdall_dir`, oldest first.
#[pyfunction]
pub fn journals<'py>(py: Python<'py>, heimdall_dir: PathBuf) -> PyResult<Bound<'py, PyList>> {
    let found = py.detach(|| delivery::journals(&heimdall_dir));
    let list = PyList::empty(py);
    for journal in found {
        let item = PyDict::new(py);
        item.set_item("journal", journal.dir.display().to_string())?;
        item.set_item("pid", journal.pid)?;
        item.set_item("created", journal.created)?;
        item.set_item("alive", journal.is_alive)?;
        item.set_item("destinations", journal.destinations)?;
        list.append(item)?;
    }
    Ok(list)
}

/// The files of dead letters below `heimdall_dir`, and how many records each has.
#[pyfunction]
pub fn dead_letters(heimdall_dir: PathBuf) -> Vec<(String, usize)> {
    let found = delivery::dead_letters(&heimdall_dir);
    let shown = |(path, count): (PathBuf, usize)| (path.display().to_string(), count);
    found.into_iter().map(shown).collect()
}

/// Calls `line` with each line that describes the segment in `file`.
#[pyfunction]
pub fn inspect(py: Python<'_>, file: PathBuf, line: &Bound<'_, PyAny>) -> PyResult<()> {
    let mut failed = None;
    let looked = journal::inspect(&file, &mut |text| match line.call1((text,)) {
        Ok(_) => true,
        Err(error) => {
            failed = Some(error);
            false
        }
    });
    match failed {
        Some(error) => Err(error),
        None => looked.map_err(|error| to_python(py, &error.into())),
    }
}
