//! The function `position_metrics`, for the steps of the networks for spectrograms.

use pyo3::{prelude::*, types::PyDict};

use super::{errors::to_python, tensors::unwrap};
use crate::{
    geo::{LatLon, LocalFrame},
    learner::Metric,
    metrics::{LocalizationMetrics, OutputScale},
};

#[pyfunction]
pub(crate) fn position_metrics<'py>(
    py: Python<'py>,
    batches: Vec<[Bound<'py, PyAny>; 3]>,
    origin: (f64, f64),
    position_scale_m: f64,
) -> PyResult<Bound<'py, PyDict>> {
    let frame = LocalFrame {
        origin: LatLon {
            lat: origin.0,
            lon: origin.1,
        },
    };
    let metrics = measured(
        &batches,
        OutputScale {
            frame,
            position_scale_m,
        },
    )?;
    let answer = PyDict::new(py);
    for (name, value) in metrics {
        answer.set_item(name, value)?;
    }
    Ok(answer)
}

fn measured(batches: &[[Bound<'_, PyAny>; 3]], scale: OutputScale) -> PyResult<Vec<(String, f64)>> {
    let mut metrics = LocalizationMetrics::new(scale);
    for [mean, sigma, degrees] in batches {
        let outputs = [unwrap(mean)?, unwrap(sigma)?];
        // The second target is the truth in degrees.
        let degrees = unwrap(degrees)?;
        let targets = [degrees.shallow_clone(), degrees];
        let updated = metrics.update(&outputs, &targets);
        updated.map_err(|error| to_python(mean.py(), error))?;
    }
    let py = batches[0][0].py();
    metrics.compute().map_err(|error| to_python(py, error))
}
