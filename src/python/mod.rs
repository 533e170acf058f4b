//! The Python face of the tracker: values in, answers and exceptions out. Nothing else in the crate knows
//! Python.

mod answers;
mod errors;
mod interpreter;
mod tracker;
mod values;

use pyo3::prelude::*;

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::answers::{DatasetInput, Experiment, MetricPoint, Run};
    #[pymodule_export]
    use super::tracker::{ActiveRun, MLflowTracker, finish, forget_parent, without_credentials};

    #[pymodule_init]
    fn init(module: &pyo3::Bound<'_, pyo3::types::PyModule>) -> pyo3::PyResult<()> {
        use pyo3::types::PyModuleMethods;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
