//! The journal commands of the command line: deliver, list and inspect journals.

use std::{path::PathBuf, time::Duration};

use pyo3::prelude::*;

use super::{
    calls,
    results::journal::{JournalStatus, SyncOutcome},
    script,
};
use crate::{
    config::uri::Destination,
    delivery::sync::{self as delivery, SyncConfig},
    journal::inspect as journal,
};

/// Delivers the journals of dead processes below `heimdall_dir`. `known_uris` have the credentials that journals do not
/// have; if `uri` is given, everything goes there. Calls `progress` with the number of delivered records, the number of
/// all records, the bytes of the files in transit, and how many of these bytes are sent.
#[pyfunction]
#[pyo3(signature = (heimdall_dir, known_uris, uri=None, timeout=None, progress=None))]
pub(crate) fn sync(
    py: Python<'_>,
    heimdall_dir: PathBuf,
    known_uris: Vec<String>,
    uri: Option<&str>,
    timeout: Option<f64>,
    progress: Option<Py<PyAny>>,
) -> PyResult<SyncOutcome> {
    let instead = uri.map(|uri| Destination::parse("URI", uri)).transpose()?;
    let config = SyncConfig {
        heimdall_dir: std::path::absolute(heimdall_dir)?,
        // A URI that cannot be parsed cannot be in a journal, so it is skipped.
        known: known_uris
            .iter()
            .filter_map(|uri| Destination::parse("URI", uri).ok())
            .collect(),
        instead,
        fresh_schema: script::fresh_schema(py)?,
        timeout: timeout.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
    };
    let outcome = calls::waiting_with_progress(py, progress.as_ref(), |tick| {
        delivery::sync(&config, &mut |so_far| {
            tick(Some(&[
                so_far.delivered,
                so_far.total,
                so_far.uploading,
                so_far.uploaded,
            ]))
        })
    })?;
    Ok(outcome.into())
}

/// Returns the journals below `heimdall_dir`, oldest first.
#[pyfunction]
pub(crate) fn journals(py: Python<'_>, heimdall_dir: PathBuf) -> Vec<JournalStatus> {
    let found = py.detach(|| delivery::journals(&heimdall_dir));
    found.into_iter().map(Into::into).collect()
}

/// Returns the files of dead letters below `heimdall_dir`, and the number of records in each.
#[pyfunction]
pub(crate) fn dead_letters(heimdall_dir: PathBuf) -> Vec<(String, usize)> {
    let found = delivery::dead_letters(&heimdall_dir);
    let shown = |(path, count): (PathBuf, usize)| (path.display().to_string(), count);
    found.into_iter().map(shown).collect()
}

/// Calls `line` with each line that describes the segment in `file`.
#[pyfunction]
pub(crate) fn inspect(file: PathBuf, line: &Bound<'_, PyAny>) -> PyResult<()> {
    let mut failed = None;
    let inspected = journal::inspect(&file, &mut |text| match line.call1((text,)) {
        Ok(_) => true,
        Err(error) => {
            failed = Some(error);
            false
        }
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(inspected.map_err(crate::error::Error::from)?),
    }
}
