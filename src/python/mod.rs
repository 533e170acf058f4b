//! The Python face of the tracker: values in, answers and exceptions out. Nothing else in the crate knows
//! Python.

mod answers;
mod caller;
mod errors;
mod exit;
mod interpreter;
mod status;
mod sync;
mod tracker;
mod values;

use pyo3::prelude::*;

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::answers::{DatasetInput, Experiment, MetricPoint, Run};
    #[pymodule_export]
    use super::exit::{finish, forget_parent};
    #[pymodule_export]
    use super::status::{DestinationStatus, Status};
    #[pymodule_export]
    use super::sync::{dead_letters, inspect, journals, sync};
    #[pymodule_export]
    use super::tracker::{ActiveRun, MLflowTracker, floor, without_credentials};

    #[pymodule_init]
    fn init(module: &pyo3::Bound<'_, pyo3::types::PyModule>) -> pyo3::PyResult<()> {
        use pyo3::types::PyModuleMethods;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
