//! Params, tags and metrics as Python callers pass them.

use std::borrow::Cow;

use pyo3::{
    exceptions::PyOverflowError,
    prelude::*,
    types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyMapping, PyString, PyTuple},
};

use super::arguments::{half_character, utf8};
use crate::{
    journal::frame::{Checked, MetricsDraft},
    mlflow::{invalid::Invalid, key::Key, run::MetricPoint},
    os::clock,
};

/// Params by their keys, as texts.
#[derive(Default)]
pub(crate) struct Params(pub Vec<(String, String)>);

/// Tags by their keys, as texts.
#[derive(Default)]
pub(crate) struct Tags(pub Vec<(String, String)>);

/// Metrics by their keys.
pub(crate) struct Metrics(pub Vec<(Key, f64)>);

/// Points of metrics, each with its key.
#[derive(Default)]
pub(crate) struct Points(pub Vec<(Key, MetricPoint)>);

impl<'py> FromPyObject<'_, 'py> for Params {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        texts("param", &given, param_text).map(Self)
    }
}

impl<'py> FromPyObject<'_, 'py> for Tags {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        texts("tag", &given, |key, value| text("tag", key, value)).map(Self)
    }
}

/// Returns key and text of a param: lists and dicts as JSON, everything else in the form of `str()`.
///
/// # Errors
/// [`Invalid`] for a text that has no form in UTF-8, and the exceptions that the value raises.
pub(crate) fn param(
    key: &Bound<'_, PyString>,
    value: &Bound<'_, PyAny>,
) -> PyResult<(String, String)> {
    let key = utf8("param key", key)?.into_owned();
    let value = param_text(&key, value)?;
    Ok((key, value))
}

/// Returns key and text of a tag, in the form of `str()`.
///
/// # Errors
/// The errors of [`param`].
pub(crate) fn tag(
    key: &Bound<'_, PyString>,
    value: &Bound<'_, PyAny>,
) -> PyResult<(String, String)> {
    let key = utf8("tag key", key)?.into_owned();
    let value = text("tag", &key, value)?;
    Ok((key, value))
}

fn param_text(key: &str, value: &Bound<'_, PyAny>) -> PyResult<String> {
    if value.is_instance_of::<PyList>() || value.is_instance_of::<PyDict>() {
        return json(value);
    }
    text("param", key, value)
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

impl<'py> FromPyObject<'_, 'py> for Points {
    type Error = PyErr;

    /// Accepts tuples (key, value, step, timestamp), of which step and timestamp are optional, and objects such as
    /// MLflow's own `Metric`.
    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let now = clock::now_ms();
        let mut points = Vec::with_capacity(given.len().unwrap_or(0));
        for item in given.try_iter()? {
            points.push(point(&item?, now)?);
        }
        Ok(Self(points))
    }
}

fn point(item: &Bound<'_, PyAny>, now: i64) -> PyResult<(Key, MetricPoint)> {
    let [key, value, step, timestamp] = parts_of_point(item)?;
    let (key, value) = metric(&key, &value)?;
    let whole = |what, given: Bound<'_, PyAny>, default| {
        if given.is_none() {
            return Ok(default);
        }
        whole_number(what, key.as_str(), &given)
    };
    let step = whole("step of metric", step, 0)?;
    let timestamp = whole("timestamp of metric", timestamp, now)?;
    let point = MetricPoint {
        value,
        timestamp,
        step,
    };
    Ok((key, point))
}

fn parts_of_point<'py>(item: &Bound<'py, PyAny>) -> PyResult<[Bound<'py, PyAny>; 4]> {
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

fn whole_number(what: &'static str, key: &str, value: &Bound<'_, PyAny>) -> PyResult<i64> {
    let wrong = || wrong_type(what, key, "a whole number", value);
    if value.is_instance_of::<PyBool>() {
        return Err(wrong()?.into());
    }
    match value.extract::<i64>() {
        Ok(number) => Ok(number),
        Err(error) if error.is_instance_of::<PyOverflowError>(value.py()) => {
            let reason = "it is beyond a 64-bit whole number";
            Err(Invalid::value(what, key, reason).into())
        }
        Err(_) => Err(wrong()?.into()),
    }
}

fn wrong_type(
    what: &'static str,
    key: &str,
    expected: &'static str,
    found: &Bound<'_, PyAny>,
) -> PyResult<Invalid> {
    Ok(Invalid::Type {
        what,
        key: key.to_owned(),
        expected,
        found: found.get_type().name()?.to_string(),
    })
}

impl<'py> FromPyObject<'_, 'py> for Metrics {
    type Error = PyErr;

    /// Accepts everything that converts to a float by itself, and arrays and tensors of one element; refuses bools and
    /// texts.
    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let given = given.cast::<PyMapping>()?;
        let mut values = Vec::with_capacity(given.len()?);
        // This is the common case, without a list of tuples in between.
        if let Ok(dict) = given.cast::<PyDict>() {
            for (key, value) in dict.iter() {
                values.push(metric(&key, &value)?);
            }
            return Ok(Self(values));
        }
        for item in given.items()? {
            let (key, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
            values.push(metric(&key, &value)?);
        }
        Ok(Self(values))
    }
}

/// Error for metrics that were not appended: they are no simple values, or wrong. [`Metrics`] checks them and reports
/// which.
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
/// [`NotAppended`] where one of the metrics, or the mapping, is of another kind.
pub(crate) fn append_metrics(
    metrics: &Bound<'_, PyMapping>,
    draft: &mut MetricsDraft<'_>,
) -> Result<(), NotAppended> {
    let metrics = metrics.cast::<PyDict>().map_err(|_| NotAppended)?;
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

/// Returns key and number of one metric.
///
/// # Errors
/// [`Invalid`] for a key that MLflow refuses, and for a value that is not a number.
pub(crate) fn metric(key: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<(Key, f64)> {
    let key = Key::parse("metric key", &key_text("metric", key)?)?;
    let number = number(key.as_str(), value)?;
    Ok((key, number))
}

fn number(key: &str, value: &Bound<'_, PyAny>) -> PyResult<f64> {
    if let Ok(number) = value.cast_exact::<PyFloat>() {
        return Ok(number.value());
    }
    let wrong = || wrong_type("metric", key, "a number", value);
    // This converts a single element of NumPy or torch to a Python number; several elements have no such form.
    let item = if value.hasattr("item")? {
        match value.call_method0("item") {
            Ok(item) => item,
            Err(_) => return Err(wrong()?.into()),
        }
    } else {
        value.clone()
    };
    if item.is_instance_of::<PyBool>()
        || item.is_instance_of::<PyString>()
        || !(item.is_instance_of::<PyInt>() || item.hasattr("__float__")?)
    {
        return Err(wrong()?.into());
    }
    item.extract::<f64>().map_err(|error| {
        // The value is an int beyond the range of a double.
        let raised = error.value(item.py());
        let reason = format!("its value does not turn into a number: {raised}");
        Invalid::value("metric", key, reason).into()
    })
}

fn key_text<'a>(what: &'static str, key: &'a Bound<'_, PyAny>) -> PyResult<Cow<'a, str>> {
    match key.cast::<PyString>() {
        Ok(key) => Ok(utf8(what, key)?),
        Err(_) => {
            let shown = key.str()?.to_string_lossy().into_owned();
            Err(wrong_type(what, &shown, "under a key that is a str", key)?.into())
        }
    }
}

fn text(what: &'static str, key: &str, value: &Bound<'_, PyAny>) -> PyResult<String> {
    let text = value.str()?;
    match text.to_cow() {
        Ok(text) => Ok(text.into_owned()),
        // The error names the value by its key.
        Err(_) => Err(half_character(what, key).into()),
    }
}

fn json(value: &Bound<'_, PyAny>) -> PyResult<String> {
    let py = value.py();
    let options = PyDict::new(py);
    // A value that JSON has no form for (a Path, a tensor) is recorded by its text rather than not at all.
    options.set_item("default", py.get_type::<PyString>())?;
    py.import("json")?
        .call_method("dumps", (value,), Some(&options))?
        .extract()
}
