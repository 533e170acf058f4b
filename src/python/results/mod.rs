//! What calls return: objects that do not change.

pub mod gc;
pub mod journal;
pub mod model;
pub mod run;
pub mod status;

use pyo3::{prelude::*, types::PyList};

/// Returns a text that may be missing, as Python shows it.
pub fn optional(text: Option<&str>) -> String {
    text.map_or_else(|| "None".to_owned(), |text| format!("{text:?}"))
}

/// Returns a text as HTML shows it.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// Returns a list of new objects. While it is made Python's garbage collector rests: with every few hundred of them it would
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

/// Shows an object by its members, as Python's dataclasses do.
fn of_members(class: &str, object: &Bound<'_, PyAny>, members: &[&str]) -> PyResult<String> {
    let mut shown = Vec::with_capacity(members.len());
    for member in members {
        shown.push(format!("{member}={}", object.getattr(*member)?.repr()?));
    }
    Ok(format!("{class}({})", shown.join(", ")))
}
