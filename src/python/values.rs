//! What Python callers pass as params, tags and metrics.

use std::{borrow::Cow, path::PathBuf, time::Duration};

use pyo3::{
    exceptions::PyOverflowError,
    prelude::*,
    types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyMapping, PyString, PyTuple},
};

type Result<T> = std::result::Result<T, Invalid>;

use crate::{
    journal::frame::{Checked, MetricsDraft},
    mlflow::{invalid::Invalid, key::Key, run::MetricPoint},
};

/// Key and text of each param.
pub fn params(params: Option<&Bound<'_, PyAny>>) -> PyResult<Result<Vec<(String, String)>>> {
    params.map_or_else(
        || Ok(Ok(Vec::new())),
        |params| texts("param", params, param),
    )
}

/// The text of a param: lists and dicts as JSON, everything else as `str()` gives it.
pub fn param(key: &str, value: &Bound<'_, PyAny>) -> PyResult<Result<String>> {
    if value.is_instance_of::<PyList>() || value.is_instance_of::<PyDict>() {
        return json(value).map(Ok);
    }
    text("param", key, value)
}

/// Key and text of each tag.
pub fn tags(tags: Option<&Bound<'_, PyAny>>) -> PyResult<Result<Vec<(String, String)>>> {
    tags.map_or_else(|| Ok(Ok(Vec::new())), |tags| texts("tag", tags, tag))
}

/// The text of a tag: what `str()` gives.
pub fn tag(key: &str, value: &Bound<'_, PyAny>) -> PyResult<Result<String>> {
    text("tag", key, value)
}

/// Keys and texts of a mapping, or of objects such as MLflow's own `Param` and `RunTag`.
fn texts(
    what: &'static str,
    given: &Bound<'_, PyAny>,
    value: impl Fn(&str, &Bound<'_, PyAny>) -> PyResult<Result<String>>,
) -> PyResult<Result<Vec<(String, String)>>> {
    let mut texts = Vec::new();
    let mut add = |key: &Bound<'_, PyAny>, item: &Bound<'_, PyAny>| -> PyResult<Result<()>> {
        let key = match key_text(what, key)? {
            Ok(key) => key,
            Err(error) => return Ok(Err(error)),
        };
        Ok(value(&key, item)?.map(|text| texts.push((key.into_owned(), text))))
    };
    if let Ok(mapping) = given.cast::<PyMapping>() {
        for item in mapping.items()? {
            let (key, item): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
            if let Err(error) = add(&key, &item)? {
                return Ok(Err(error));
            }
        }
        return Ok(Ok(texts));
    }
    for entity in given.try_iter()? {
        let entity = entity?;
        if let Err(error) = add(&entity.getattr("key")?, &entity.getattr("value")?)? {
            return Ok(Err(error));
        }
    }
    Ok(Ok(texts))
}

/// Key and point of each of some tuples (key, value, step, timestamp), of which step and timestamp may be left
/// out, or of objects such as MLflow's own `Metric`.
pub fn points(metrics: &Bound<'_, PyAny>, now: i64) -> PyResult<Result<Vec<(Key, MetricPoint)>>> {
    let mut points = Vec::with_capacity(metrics.len().unwrap_or(0));
    for item in metrics.try_iter()? {
        let item = item?;
        let parts: [Option<Bound<'_, PyAny>>; 4] = if let Ok(tuple) = item.cast::<PyTuple>() {
            if !(2..=4).contains(&tuple.len()) {
                return Ok(Err(Invalid::value(
                    "metric",
                    &tuple.repr()?.to_string(),
                    "it is (key, value, step, timestamp), of which the last two may be left out",
                )));
            }
            std::array::from_fn(|place| tuple.get_item(place).ok())
        } else {
            let part = |name| item.getattr(name).map(Some);
            [
                part("key")?,
                part("value")?,
                part("step")?,
                part("timestamp")?,
            ]
        };
        let [Some(key), Some(value), step, timestamp] = parts else {
            continue;
        };
        let (key, value) = match metric(&key, &value)? {
            Ok(pair) => pair,
            Err(error) => return Ok(Err(error)),
        };
        let whole = |what, given: Option<Bound<'_, PyAny>>, default| match given {
            Some(given) if !given.is_none() => whole_number(what, key.as_str(), &given),
            _ => Ok(Ok(default)),
        };
        let step = match whole("step of metric", step, 0)? {
            Ok(step) => step,
            Err(error) => return Ok(Err(error)),
        };
        let timestamp = match whole("timestamp of metric", timestamp, now)? {
            Ok(timestamp) => timestamp,
            Err(error) => return Ok(Err(error)),
        };
        points.push((
            key,
            MetricPoint {
                value,
                timestamp,
                step,
            },
        ));
    }
    Ok(Ok(points))
}

fn whole_number(what: &'static str, key: &str, value: &Bound<'_, PyAny>) -> PyResult<Result<i64>> {
    let py = value.py();
    if value.is_instance_of::<PyBool>() {
        return Ok(Err(wrong_number(what, key, value)?));
    }
    Ok(match value.extract::<i64>() {
        Ok(number) => Ok(number),
        Err(error) if error.is_instance_of::<PyOverflowError>(py) => Err(Invalid::value(
            what,
            key,
            "it is beyond a 64-bit whole number",
        )),
        Err(_) => Err(wrong_number(what, key, value)?),
    })
}

fn wrong_number(what: &'static str, key: &str, value: &Bound<'_, PyAny>) -> PyResult<Invalid> {
    Ok(Invalid::Type {
        what,
        key: key.to_owned(),
        expected: "a whole number",
        found: value.get_type().name()?.to_string(),
    })
}

/// Key and number of each metric. Anything that turns into a float by itself is a number, and so is an array or
/// tensor of one element; a bool and a text are not.
pub fn metrics(metrics: &Bound<'_, PyMapping>) -> PyResult<Result<Vec<(Key, f64)>>> {
    let mut values = Vec::with_capacity(metrics.len()?);
    // The common case, without a list of tuples in between.
    if let Ok(dict) = metrics.cast::<PyDict>() {
        for (key, value) in dict {
            match metric(&key, &value)? {
                Ok(pair) => values.push(pair),
                Err(error) => return Ok(Err(error)),
            }
        }
    } else {
        for item in metrics.items()? {
            let (key, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
            match metric(&key, &value)? {
                Ok(pair) => values.push(pair),
                Err(error) => return Ok(Err(error)),
            }
        }
    }
    Ok(Ok(values))
}

/// Metrics that are not of the common kind, or wrong: [`metrics`] looks at them and says which.
pub struct Unpushed;

impl From<Invalid> for Unpushed {
    fn from(_: Invalid) -> Self {
        Self
    }
}

impl From<crate::error::Error> for Unpushed {
    fn from(_: crate::error::Error) -> Self {
        Self
    }
}

/// Pushes metrics of the common kind, floats and ints under texts, to a frame. Runs no code of Python's.
pub fn push_metrics(
    metrics: &Bound<'_, PyDict>,
    draft: &mut MetricsDraft<'_>,
) -> std::result::Result<(), Unpushed> {
    for (key, value) in metrics {
        push_metric(&key, &value, draft)?;
    }
    Ok(())
}

/// Pushes one such metric.
pub fn push_metric(
    key: &Bound<'_, PyAny>,
    value: &Bound<'_, PyAny>,
    draft: &mut MetricsDraft<'_>,
) -> std::result::Result<(), Unpushed> {
    let key = key.cast::<PyString>().map_err(|_| Unpushed)?;
    let key = key.to_str().map_err(|_| Unpushed)?;
    let number = if let Ok(number) = value.cast::<PyFloat>() {
        number.value()
    } else if let Ok(number) = value.cast_exact::<PyInt>() {
        number.extract::<f64>().map_err(|_| Unpushed)?
    } else {
        return Err(Unpushed);
    };
    draft.push(Checked::parse("metric key", key)?, number);
    Ok(())
}

/// Key and number of one metric.
pub fn metric(key: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<Result<(Key, f64)>> {
    let key = match key_text("metric", key)?.and_then(|key| Key::parse("metric key", &key)) {
        Ok(key) => key,
        Err(error) => return Ok(Err(error)),
    };
    Ok(number(key.as_str(), value)?.map(|number| (key, number)))
}

fn number(key: &str, value: &Bound<'_, PyAny>) -> PyResult<Result<f64>> {
    if let Ok(number) = value.cast_exact::<PyFloat>() {
        return Ok(Ok(number.value()));
    }
    let kind = value.get_type().name()?.to_string();
    let wrong = || {
        Ok(Err(Invalid::Type {
            what: "metric",
            key: key.to_owned(),
            expected: "a number",
            found: kind,
        }))
    };
    // What NumPy and torch hold in one element, as a number of Python's own; several elements have no such form.
    let value = match value.hasattr("item")? {
        true => match value.call_method0("item") {
            Ok(item) => item,
            Err(_) => return wrong(),
        },
        false => value.clone(),
    };
    if value.is_instance_of::<PyBool>()
        || value.is_instance_of::<PyString>()
        || !(value.is_instance_of::<PyInt>() || value.hasattr("__float__")?)
    {
        return wrong();
    }
    match value.extract::<f64>() {
        Ok(number) => Ok(Ok(number)),
        // An int beyond a double.
        Err(error) => Ok(Err(Invalid::value(
            "metric",
            key,
            format!(
                "its value does not turn into a number: {}",
                error.value(value.py())
            ),
        ))),
    }
}

fn key_text<'a>(what: &'static str, key: &'a Bound<'_, PyAny>) -> PyResult<Result<Cow<'a, str>>> {
    Ok(match key.cast::<PyString>() {
        Ok(key) => argument(what, key),
        Err(_) => Err(Invalid::Type {
            what,
            key: key.str()?.to_string_lossy().into_owned(),
            expected: "under a key that is a str",
            found: key.get_type().name()?.to_string(),
        }),
    })
}

fn text(what: &'static str, key: &str, value: &Bound<'_, PyAny>) -> PyResult<Result<String>> {
    let text = value.str()?;
    Ok(utf8(what, key, &text).map(Cow::into_owned))
}

/// A str as UTF-8; `shown` says which one it is where it has half a character.
fn utf8<'a>(
    what: &'static str,
    shown: &str,
    text: &'a Bound<'_, PyString>,
) -> Result<Cow<'a, str>> {
    text.to_cow().map_err(|_| {
        Invalid::value(
            what,
            shown,
            "it has a lone surrogate, half a character, which UTF-8 has no form for: remove it",
        )
    })
}

/// An argument that is a text.
pub fn argument<'a>(what: &'static str, text: &'a Bound<'_, PyString>) -> Result<Cow<'a, str>> {
    // What names it is made only where it is needed: every key of a metric passes here.
    text.to_cow()
        .or_else(|_| utf8(what, &text.to_string_lossy(), text))
}

fn json(value: &Bound<'_, PyAny>) -> PyResult<String> {
    let py = value.py();
    let options = PyDict::new(py);
    // What JSON has no form for (a Path, a tensor) is recorded by its text rather than not at all.
    options.set_item("default", py.get_type::<PyString>())?;
    py.import("json")?
        .call_method("dumps", (value,), Some(&options))?
        .extract()
}

/// A path given as `str` or as any path object.
pub fn path(value: &Bound<'_, PyAny>) -> PyResult<PathBuf> {
    value.extract()
}

/// Seconds that a call may wait; none is no limit.
pub fn timeout(timeout: Option<f64>) -> Result<Option<Duration>> {
    timeout
        .filter(|seconds| *seconds != f64::INFINITY)
        .map(|seconds| {
            Duration::try_from_secs_f64(seconds).map_err(|_| {
                Invalid::value(
                    "timeout",
                    &seconds.to_string(),
                    "it is a number of seconds from 0 on",
                )
            })
        })
        .transpose()
}
