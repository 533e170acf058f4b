//! The Python interface of the training loop: values in, results and exceptions out. No other module of the crate uses
//! Python. The user documentation is in `_native.pyi`.
//!
//! libtorch is found because the package imports `torch` before this module: both use the same copy.

mod checkpoints;
mod dataset;
mod errors;
mod features;
mod fit;
mod guarded;
mod interrupts;
mod localization_net;
mod measures;
mod model;
mod module_fit;
mod optimizers;
mod outlets;
mod positions;
mod recordings;
mod sequential;
mod settings;
mod tensors;

use pyo3::prelude::*;

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::{
        dataset::{RssDataset, baselines},
        features::{delays, levels, mel_spectrogram},
        fit::{evaluate, fit},
        interrupts::SignalWatch,
        localization_net::ConvNextLocalizationNet,
        measures::position_metrics,
        model::RssLocalizationNet,
        module_fit::fit_module,
        recordings::{BatchReader, RecordingDataset},
    };

    #[pymodule_init]
    fn init(module: &pyo3::Bound<'_, pyo3::types::PyModule>) -> pyo3::PyResult<()> {
        use pyo3::types::PyModuleMethods;
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("EARTH_RADIUS_M", crate::geo::EARTH_RADIUS_M)?;
        module.add("NOT_HEARD_DBM", crate::dataset::NOT_HEARD_DBM)
    }
}
