//! The Python face of the tracker: values in, answers and exceptions out. Nothing else in the crate knows
//! Python.

mod answers;
mod artifacts;
mod caller;
mod errors;
mod exit;
mod interpreter;
mod lifecycle;
mod registry;
mod status;
mod sync;
mod tracker;
mod values;

use pyo3::{exceptions::PyImportError, prelude::*};

/// What is static here belongs to one interpreter.
fn check_interpreter() -> PyResult<()> {
    // SAFETY: called while attached to the interpreter that imports, which both functions ask for nothing else than.
    #[allow(unsafe_code)]
    let id = unsafe { pyo3::ffi::PyInterpreterState_GetID(pyo3::ffi::PyInterpreterState_Get()) };
    if id == 0 {
        return Ok(());
    }
    Err(PyImportError::new_err(
        "heimdall_tracking works in the main interpreter only, and this is a subinterpreter: import it in the main \
         one, or in a process of its own",
    ))
}

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::answers::{DatasetInput, Experiment, MetricPoint, Run};
    #[pymodule_export]
    use super::artifacts::{FileInfo, Upload};
    #[pymodule_export]
    use super::exit::{finish, forget_parent, progress};
    #[pymodule_export]
    use super::lifecycle::collect_garbage;
    #[pymodule_export]
    use super::registry::{ModelVersion, RegisteredModel};
    #[pymodule_export]
    use super::status::{DestinationStatus, Status};
    #[pymodule_export]
    use super::sync::{dead_letters, inspect, journals, sync};
    #[pymodule_export]
    use super::tracker::{ActiveRun, MLflowTracker, floor, without_credentials};

    #[pymodule_init]
    fn init(module: &pyo3::Bound<'_, pyo3::types::PyModule>) -> pyo3::PyResult<()> {
        use pyo3::types::PyModuleMethods;
        super::check_interpreter()?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
