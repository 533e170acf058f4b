//! The Python interface of the tracker: arguments in, results and exceptions out. No other module of the crate uses
//! Python.

mod arguments;
mod artifacts;
mod calls;
mod doctor;
mod entities;
mod entries;
mod errors;
mod exit;
mod gc;
mod logging;
mod numbers;
mod queries;
mod registry;
mod results;
mod runs;
mod script;
mod sync;
mod tracker;
mod unrecorded;
mod values;

use pyo3::{exceptions::PyImportError, prelude::*};

/// Checks that the main interpreter imports this module: its static values belong to one interpreter.
fn check_interpreter() -> PyResult<()> {
    // SAFETY: the thread is attached to the importing interpreter, and both functions require nothing else.
    #[expect(unsafe_code, reason = "PyO3 has no safe form of these")]
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
    use super::doctor::{check_artifacts, check_store};
    #[pymodule_export]
    use super::exit::{finish, forget_parent, progress, was_interrupted};
    #[pymodule_export]
    use super::gc::collect_garbage;
    #[pymodule_export]
    use super::logging::floor;
    #[pymodule_export]
    use super::results::{
        gc::{GarbageItem, SparedItem},
        journal::{JournalStatus, SyncOutcome, WaitingRecords},
        model::{ModelVersion, RegisteredModel},
        run::{DatasetInput, Experiment, FileInfo, MetricPoint, Run},
        status::{DestinationStatus, Status},
    };
    #[pymodule_export]
    use super::sync::{dead_letters, inspect, journals, sync};
    #[pymodule_export]
    use super::tracker::{MLflowTracker, without_credentials};
    #[pymodule_export]
    use super::unrecorded::mended_path;

    #[pymodule_init]
    fn init(module: &pyo3::Bound<'_, pyo3::types::PyModule>) -> pyo3::PyResult<()> {
        use pyo3::types::PyModuleMethods;
        super::check_interpreter()?;
        super::errors::import(module.py())?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
