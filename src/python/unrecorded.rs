//! Values of calls of the Python layer that cannot be recorded, and the data of a run that starts.

use pyo3::{prelude::*, types::PyDict};

use super::{arguments::RunId, calls, entries::Entries, runs::run_of, tracker::MLflowTracker};
use crate::{
    mlflow::{
        limits::{MAX_RUN_NAME_LENGTH, cut},
        run::{NewRun, RUN_NAME_TAG},
    },
    tracker::unrecorded::{Unrecorded, mended},
};

#[pymethods]
impl MLflowTracker {
    /// Returns the id of the run that a call is for.
    fn _run_of(slf: &Bound<'_, Self>, run_id: Option<RunId>, action: &str) -> PyResult<String> {
        let action = ACTIONS.iter().find(|known| **known == action);
        let given = run_id.as_ref().map(|run| run.0.as_str());
        Ok(run_of(slf, given, action.unwrap_or(&ACTIONS[0]))?.to_string())
    }

    /// Notes a value that a call of the Python layer cannot record.
    fn _note_unrecorded(
        slf: &Bound<'_, Self>,
        kind: &str,
        value: (String, String, String),
        run_id: &str,
    ) -> PyResult<()> {
        let kind = KINDS.iter().find(|known| **known == kind);
        let kind = *kind.unwrap_or(&KINDS[0]);
        note(slf, kind, value, run_id)
    }

    /// Tells, once per key, of something that is recorded in another form than it was given.
    fn _tell_once(slf: &Bound<'_, Self>, key: &str, text: String) -> PyResult<()> {
        let this = slf.get().of_this_process()?;
        this.tell_once("form", key, || text);
        calls::answer(slf.py(), this, Ok(()))
    }
}

/// Calls of the Python layer that need a run.
const ACTIONS: [&str; 9] = [
    "log_artifact",
    "log_artifacts_dir",
    "log_text",
    "log_dict",
    "log_figure",
    "log_image",
    "log_table",
    "log_input",
    "log_model",
];
/// Kinds of values of these calls.
const KINDS: [&str; 2] = ["artifact", "input"];

fn note(
    tracker: &Bound<'_, MLflowTracker>,
    kind: &'static str,
    (key, value, reason): (String, String, String),
    run_id: &str,
) -> PyResult<()> {
    let this = tracker.get().of_this_process()?;
    let value = Unrecorded {
        kind,
        key,
        value,
        step: None,
        reason,
    };
    this.note_unrecorded(run_id.parse().ok(), vec![value]);
    calls::answer(tracker.py(), this, Ok(()))
}

/// Returns a path among the artifacts as one that stays below them; an empty text where nothing is left.
#[pyfunction]
pub(crate) fn mended_path(path: &str) -> String {
    let path: String = path
        .chars()
        .map(|c| match c {
            '\\' => '/',
            c if c.is_control() => '_',
            c => c,
        })
        .collect();
    mended(&path)
}

/// Returns a new run of the given arguments, and the tags that it cannot have.
pub(crate) fn new_run<'py>(
    tracker: &Bound<'py, MLflowTracker>,
    given: &Bound<'py, PyDict>,
) -> PyResult<(NewRun, Vec<Unrecorded>)> {
    if tracker.get().is_strict {
        return Ok((given.extract()?, Vec::new()));
    }
    let given = given.copy()?;
    let mut entries = Entries::of(tracker)?;
    if let Some(tags) = given.get_item("tags")?.filter(|tags| !tags.is_none()) {
        entries.add_tags(&tags)?;
    }
    given.set_item("tags", given.py().None())?;
    for name in ["run_name", "description"] {
        if let Some(text) = given.get_item(name)?.filter(|text| !text.is_none()) {
            let text = text.str()?;
            given.set_item(name, text.to_string_lossy().replace('\0', "_"))?;
        }
    }
    let mut new: NewRun = given.extract()?;
    let (mut tags, refused) = entries.into_tags();
    let named = tags.iter_mut().find(|(key, _)| key == RUN_NAME_TAG);
    let names = new.name.iter_mut().chain(named.map(|(_, value)| value));
    for name in names {
        *name = cut(std::mem::take(name), MAX_RUN_NAME_LENGTH);
    }
    new.tags = tags;
    Ok((new, refused))
}
