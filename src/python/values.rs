//! Texts of params and tags, and simple metrics, as Python callers pass them.

use std::borrow::Cow;

use pyo3::{
    prelude::*,
    types::{PyBool, PyDict, PyFloat, PyInt, PyMapping, PyString, PyTuple},
};

use super::arguments::{half_character, utf8};
use crate::{
    journal::frame::{Checked, MetricsDraft},
    mlflow::invalid::Invalid,
};

/// Tags by their keys, as texts.
#[derive(Default)]
pub(crate) struct Tags(pub Vec<(String, String)>);

impl<'py> FromPyObject<'_, 'py> for Tags {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        texts("tag", &given, |key, value| text("tag", key, value)).map(Self)
    }
}

/// Returns key and text of a tag, in the form of `str()`.
///
/// # Errors
/// [`Invalid`] for a text that has no form in UTF-8, and the exceptions that the value raises.
pub(crate) fn tag(
    key: &Bound<'_, PyString>,
    value: &Bound<'_, PyAny>,
) -> PyResult<(String, String)> {
    let key = utf8("tag key", key)?.into_owned();
    let value = text("tag", &key, value)?;
    Ok((key, value))
}

/// Returns the text of a param: the data of containers and of objects that hold data as JSON, everything else in the
/// form of `str()`.
///
/// # Errors
/// The errors of [`tag`].
pub(crate) fn param_text(key: &str, value: &Bound<'_, PyAny>) -> PyResult<String> {
    if value.is_none()
        || value.is_exact_instance_of::<PyString>()
        || value.is_exact_instance_of::<PyFloat>()
        || value.is_exact_instance_of::<PyInt>()
        || value.is_exact_instance_of::<PyBool>()
    {
        return text("param", key, value);
    }
    let data = value.py().import("heimdall_tracking._data")?;
    text("param", key, &data.call_method1("text", (value,))?)
}

/// Returns keys and texts of a mapping, or of objects such as MLflow's own `Param` and `RunTag`.
fn texts(
    what: &'static str,
    given: &Bound<'_, PyAny>,
    text: impl Fn(&str, &Bound<'_, PyAny>) -> PyResult<String>,
) -> PyResult<Vec<(String, String)>> {
    let mut texts = Vec::new();
    let mut add = |key: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>| -> PyResult<()> {
        let key = key_text(what, key)?.into_owned();
        let value = text(&key, value)?;
        texts.push((key, value));
        Ok(())
    };
    if let Ok(mapping) = given.cast::<PyMapping>() {
        for item in mapping.items()? {
            let (key, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
            add(&key, &value)?;
        }
        return Ok(texts);
    }
    for entity in given.try_iter()? {
        let entity = entity?;
        add(&entity.getattr("key")?, &entity.getattr("value")?)?;
    }
    Ok(texts)
}

/// Returns key, value, step and timestamp of a tuple, of which the last two may be left out, or of an object such as
/// MLflow's own `Metric`.
///
/// # Errors
/// [`Invalid`] for a tuple of another length, and the exception of an object without these attributes.
pub(crate) fn parts_of_point<'py>(item: &Bound<'py, PyAny>) -> PyResult<[Bound<'py, PyAny>; 4]> {
    let Ok(tuple) = item.cast::<PyTuple>() else {
        let part = |name| item.getattr(name);
        return Ok([
            part("key")?,
            part("value")?,
            part("step")?,
            part("timestamp")?,
        ]);
    };
    if !(2..=4).contains(&tuple.len()) {
        let reason =
            "it must be (key, value, step, timestamp), of which the last two may be left out";
        return Err(Invalid::value("metric", &tuple.repr()?.to_string(), reason).into());
    }
    let none = item.py().None().into_bound(item.py());
    Ok(std::array::from_fn(|place| {
        tuple.get_item(place).unwrap_or_else(|_| none.clone())
    }))
}

/// Returns the error for a value of a type that cannot be recorded there.
pub(crate) fn wrong_type(
    what: &'static str,
    key: &str,
    expected: &'static str,
    found: &Bound<'_, PyAny>,
) -> PyErr {
    let found = found.get_type().name();
    let found = found.map(|name| name.to_string()).unwrap_or_default();
    Invalid::Type {
        what,
        key: key.to_owned(),
        expected,
        found,
    }
    .into()
}

/// Error for metrics that were not appended: they are no simple values, or wrong. The slow path reads
/// each by itself.
pub(crate) struct NotAppended;

impl From<Invalid> for NotAppended {
    fn from(_: Invalid) -> Self {
        Self
    }
}

impl From<crate::error::Error> for NotAppended {
    fn from(_: crate::error::Error) -> Self {
        Self
    }
}

/// Appends simple metrics, a dict of floats and ints under texts, to a frame. Runs no Python code.
///
/// # Errors
/// [`NotAppended`] where one of the metrics is of another kind.
pub(crate) fn append_metrics(
    metrics: &Bound<'_, PyDict>,
    draft: &mut MetricsDraft<'_>,
) -> Result<(), NotAppended> {
    for (key, value) in metrics {
        append_metric(&key, &value, draft)?;
    }
    Ok(())
}

/// Appends one such metric.
///
/// # Errors
/// The errors of [`append_metrics`].
pub(crate) fn append_metric(
    key: &Bound<'_, PyAny>,
    value: &Bound<'_, PyAny>,
    draft: &mut MetricsDraft<'_>,
) -> Result<(), NotAppended> {
    let key = key.cast::<PyString>().map_err(|_| NotAppended)?;
    let key = key.to_str().map_err(|_| NotAppended)?;
    let number = if let Ok(number) = value.cast::<PyFloat>() {
        number.value()
    } else if let Ok(number) = value.cast_exact::<PyInt>() {
        number.extract::<f64>().map_err(|_| NotAppended)?
    } else {
        return Err(NotAppended);
    };
    draft.push(Checked::parse("metric key", key)?, number);
    Ok(())
}

/// Returns a key as it was given.
///
/// # Errors
/// [`Invalid`] for a key that is no text.
pub(crate) fn key_text<'a>(
    what: &'static str,
    key: &'a Bound<'_, PyAny>,
) -> PyResult<Cow<'a, str>> {
    match key.cast::<PyString>() {
        Ok(key) => Ok(utf8(what, key)?),
        Err(_) => {
            let shown = key.str()?.to_string_lossy().into_owned();
            Err(wrong_type(what, &shown, "under a key that is a str", key))
        }
    }
}

/// Returns a value in the form of `str()`.
///
/// # Errors
/// [`Invalid`] for a text that has no form in UTF-8, and the exceptions that the value raises.
pub(crate) fn text(what: &'static str, key: &str, value: &Bound<'_, PyAny>) -> PyResult<String> {
    let text = value.str()?;
    match text.to_cow() {
        Ok(text) => Ok(text.into_owned()),
        // The error names the value by its key.
        Err(_) => Err(half_character(what, key).into()),
    }
}
