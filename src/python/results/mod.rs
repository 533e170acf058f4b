//! Return values of calls: objects that do not change.

pub(crate) mod gc;
pub(crate) mod journal;
pub(crate) mod model;
pub(crate) mod run;
pub(crate) mod status;

use pyo3::{prelude::*, types::PyList};

/// Returns an optional text in Python's form.
pub(crate) fn optional(text: Option<&str>) -> String {
    text.map_or_else(|| "None".to_owned(), |text| format!("{text:?}"))
}

/// Escapes a text for HTML.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// Returns a list of new objects. Python's garbage collector pauses meanwhile: after every few hundred new objects it
/// would search the objects of the whole process, and no new object can be garbage yet.
pub(crate) fn list<'py, T: IntoPyObject<'py>>(
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

/// Shows an object by its members, as Python's dataclasses do.
fn of_members(class: &str, object: &Bound<'_, PyAny>, members: &[&str]) -> PyResult<String> {
    let mut shown = Vec::with_capacity(members.len());
    for member in members {
        shown.push(format!("{member}={}", object.getattr(*member)?.repr()?));
    }
    Ok(format!("{class}({})", shown.join(", ")))
}
