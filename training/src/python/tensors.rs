//! Exchange of tensors with Python: both sides use one libtorch tensor, and nothing is copied.
#![allow(unsafe_code, reason = "tch passes Python objects as raw pointers")]

use pyo3::{exceptions::PyTypeError, prelude::*, types::PyDict};
use tch::Tensor;

use super::errors::to_python;
use crate::error::Error;

/// Returns the `torch.Tensor` of a tensor; both share memory and autograd graph.
pub(crate) fn wrap<'py>(py: Python<'py>, tensor: &Tensor) -> PyResult<Bound<'py, PyAny>> {
    let object = tensor
        .pyobject_wrap()
        .map_err(|error| to_python(py, Error::from(error)))?;
    // SAFETY: THPVariable_Wrap returned a new reference (or null with the exception set, which `_or_err` checks), and
    // `py` shows that this thread is attached to the interpreter, which the previous call needed as well.
    unsafe { Bound::from_owned_ptr_or_err(py, object.cast()) }
}

/// Returns the tensor of a `torch.Tensor`; both share memory and autograd graph.
pub(crate) fn unwrap(object: &Bound<'_, PyAny>) -> PyResult<Tensor> {
    // SAFETY: the pointer is that of a live object, which `object` keeps alive during the call, on a thread that is
    // attached to the interpreter; the returned tensor holds its own reference.
    let tensor = unsafe { Tensor::pyobject_unpack(object.as_ptr().cast()) };
    match tensor.map_err(|error| to_python(object.py(), Error::from(error)))? {
        Some(tensor) => Ok(tensor),
        None => Err(PyTypeError::new_err(format!(
            "a torch.Tensor is needed, not {}",
            object.get_type().name()?
        ))),
    }
}

/// Returns the tensors of a dictionary by name.
pub(crate) fn named(state_dict: &Bound<'_, PyDict>) -> PyResult<Vec<(String, Tensor)>> {
    let items = state_dict.iter();
    items
        .map(|(name, tensor)| Ok((name.extract::<String>()?, unwrap(&tensor)?)))
        .collect()
}

/// Returns an array, a list or a tensor as a tensor of single precision.
pub(crate) fn float(numbers: &Bound<'_, PyAny>) -> PyResult<Tensor> {
    let torch = numbers.py().import("torch")?;
    let options = PyDict::new(numbers.py());
    options.set_item("dtype", torch.getattr("float32")?)?;
    unwrap(&torch.call_method("as_tensor", (numbers,), Some(&options))?)
}
