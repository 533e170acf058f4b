//! Numbers as Python callers pass them: values, steps and times.

use pyo3::{
    exceptions::PyOverflowError,
    prelude::*,
    types::{PyBool, PyFloat, PyInt, PyString},
};

use super::values::wrong_type;
use crate::mlflow::invalid::Invalid;

/// A whole number that was read.
pub(crate) struct Whole {
    pub number: i64,
    /// True where it had a fraction, which is left out.
    pub is_cut: bool,
}

/// Returns the value of a metric: of everything that converts to a float, and of arrays and tensors of one element.
/// A strict tracker refuses bools and texts, which stock MLflow takes.
///
/// # Errors
/// [`Invalid`] for a value that is not a number.
pub(crate) fn number(key: &str, value: &Bound<'_, PyAny>, is_strict: bool) -> PyResult<f64> {
    if let Ok(number) = value.cast_exact::<PyFloat>() {
        return Ok(number.value());
    }
    let wrong = || wrong_type("metric", key, "a number", value);
    let Ok(item) = item(value)? else {
        return Err(wrong());
    };
    let is_text = !(item.is_instance_of::<PyInt>() || item.hasattr("__float__")?);
    if is_strict && (item.is_instance_of::<PyBool>() || is_text) {
        return Err(wrong());
    }
    let float = item.py().get_type::<PyFloat>().call1((&item,));
    match float.and_then(|float| float.extract::<f64>()) {
        Ok(number) => Ok(number),
        Err(error) if error.is_instance_of::<PyOverflowError>(item.py()) => {
            // The value is an int beyond the range of a double.
            let raised = error.value(item.py());
            let reason = format!("its value does not turn into a number: {raised}");
            Err(Invalid::value("metric", key, reason).into())
        }
        Err(_) => Err(wrong()),
    }
}

/// Returns a step or a time. Where the tracker is not strict, it may have a fraction, which is left out, or be a text.
///
/// # Errors
/// [`Invalid`] for a value that is no whole number of 64 bits.
pub(crate) fn whole(
    what: &'static str,
    key: &str,
    value: &Bound<'_, PyAny>,
    is_strict: bool,
) -> PyResult<Whole> {
    let wrong = || wrong_type(what, key, "a whole number", value);
    let beyond = || {
        let reason = "it is beyond a 64-bit whole number";
        PyErr::from(Invalid::value(what, key, reason))
    };
    if is_strict && value.is_instance_of::<PyBool>() {
        return Err(wrong());
    }
    match value.extract::<i64>() {
        Ok(number) => return Ok(exactly(number)),
        Err(error) if error.is_instance_of::<PyOverflowError>(value.py()) => return Err(beyond()),
        Err(_) => {}
    }
    let Ok(item) = item(value)? else {
        return Err(wrong());
    };
    if is_strict && !item.is_instance_of::<PyFloat>() {
        return Err(wrong());
    }
    if item.is_instance_of::<PyString>()
        && let Ok(number) = item.py().get_type::<PyInt>().call1((&item,))
    {
        let number = number.extract::<i64>();
        return number.map(exactly).map_err(|_| beyond());
    }
    let float = item.py().get_type::<PyFloat>().call1((&item,));
    let Ok(number) = float.and_then(|float| float.extract::<f64>()) else {
        return Err(wrong());
    };
    if is_strict && number.fract() != 0.0 || number.is_nan() {
        return Err(wrong());
    }
    // The bounds are powers of two, which a double has exactly.
    if !(-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&number) {
        return Err(beyond());
    }
    #[expect(clippy::cast_possible_truncation, reason = "the fraction is left out")]
    let cut = number.trunc() as i64;
    Ok(Whole {
        number: cut,
        is_cut: number.fract() != 0.0,
    })
}

fn exactly(number: i64) -> Whole {
    Whole {
        number,
        is_cut: false,
    }
}

/// Returns a single element of NumPy or torch as a number of Python, and everything else as it is. Several elements
/// have no such form: the inner error.
fn item<'py>(value: &Bound<'py, PyAny>) -> PyResult<Result<Bound<'py, PyAny>, PyErr>> {
    if value.hasattr("item")? {
        return Ok(value.call_method0("item"));
    }
    Ok(Ok(value.clone()))
}
