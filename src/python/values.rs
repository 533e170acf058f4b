//! What Python callers pass as params, tags and metrics.

use std::{borrow::Cow, path::PathBuf};

use pyo3::{
    prelude::*,
    types::{PyBool, PyDict, PyFloat, PyInt, PyMapping, PyString},
};

use crate::{
    error::{Error, Result},
    record::Key,
};

/// Key and text of each param: lists and dicts as JSON, everything else as `str()` gives it.
pub fn params(params: &Bound<'_, PyMapping>) -> PyResult<Result<Vec<(String, String)>>> {
    texts("param", params, |value| {
        if value.is_instance_of::<pyo3::types::PyList>() || value.is_instance_of::<PyDict>() {
            json(value)
        } else {
            text(value)
        }
    })
}

/// Key and text of each tag.
pub fn tags(tags: Option<&Bound<'_, PyMapping>>) -> PyResult<Result<Vec<(String, String)>>> {
    tags.map_or_else(|| Ok(Ok(Vec::new())), |tags| texts("tag", tags, text))
}

fn texts(
    what: &'static str,
    mapping: &Bound<'_, PyMapping>,
    value: impl Fn(&Bound<'_, PyAny>) -> PyResult<String>,
) -> PyResult<Result<Vec<(String, String)>>> {
    let mut texts = Vec::with_capacity(mapping.len()?);
    for item in mapping.items()? {
        let (key, item): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
        match key_text(what, &key)? {
            Ok(key) => texts.push((key.into_owned(), value(&item)?)),
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(texts))
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

fn metric(key: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<Result<(Key, f64)>> {
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
        Ok(Err(Error::WrongType {
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
        Err(error) => Ok(Err(Error::invalid(
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
        Ok(key) => Ok(key.to_cow()?),
        Err(_) => Err(Error::WrongType {
            what,
            key: key.str()?.to_string(),
            expected: "under a key that is a str",
            found: key.get_type().name()?.to_string(),
        }),
    })
}

fn text(value: &Bound<'_, PyAny>) -> PyResult<String> {
    Ok(value.str()?.to_cow()?.into_owned())
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
