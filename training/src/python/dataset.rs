//! The Python class `RssDataset`.

use std::path::PathBuf;

use pyo3::prelude::*;

use super::{
    errors::to_python,
    positions::{ReceiverTuple, degrees, receiver_tuples},
    settings::as_dict,
    tensors::wrap,
};
use crate::{
    dataset::{self, SplitConfig},
    error::{Error, Result},
};

#[pyclass(frozen, module = "heimdall_training")]
pub(super) struct RssDataset(pub dataset::RssDataset);

impl RssDataset {
    pub(super) fn rows(&self, part: &str) -> Result<&[usize]> {
        match part {
            "train" => Ok(&self.0.split.train),
            "val" => Ok(&self.0.split.val),
            "test" => Ok(&self.0.split.test),
            _ => Err(Error::Shape {
                what: "part",
                expected: "\"train\", \"val\" or \"test\"".to_owned(),
                found: format!("{part:?}"),
            }),
        }
    }
}

#[pymethods]
impl RssDataset {
    #[staticmethod]
    #[pyo3(signature = (path, test="grid_test".to_owned(), val_fraction=SplitConfig::default().val_fraction, square_m=SplitConfig::default().square_m, seed=0))]
    fn load(
        py: Python<'_>,
        path: PathBuf,
        test: String,
        val_fraction: f64,
        square_m: f64,
        seed: u64,
    ) -> PyResult<Self> {
        let config = SplitConfig {
            test,
            val_fraction,
            square_m,
            seed,
        };
        let loaded = py.detach(|| dataset::RssDataset::load(&path, config));
        loaded.map(Self).map_err(|error| to_python(py, error))
    }

    #[getter]
    fn path(&self) -> PathBuf {
        self.0.path.clone()
    }

    #[getter]
    fn receivers(&self) -> Vec<ReceiverTuple> {
        receiver_tuples(&self.0.receivers)
    }

    #[getter]
    fn hyper_parameters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        as_dict(py, &self.0.split_config)
    }

    #[pyo3(name = "rows")]
    fn rows_of(&self, py: Python<'_>, part: &str) -> PyResult<Vec<usize>> {
        self.rows(part)
            .map(<[usize]>::to_vec)
            .map_err(|error| to_python(py, error))
    }

    fn rss<'py>(&self, py: Python<'py>, part: &str) -> PyResult<Bound<'py, PyAny>> {
        let tensor = self.rows(part).and_then(|rows| self.0.rss(rows));
        wrap(py, &tensor.map_err(|error| to_python(py, error))?)?.call_method0("numpy")
    }

    fn positions<'py>(&self, py: Python<'py>, part: &str) -> PyResult<Bound<'py, PyAny>> {
        let tensor = self
            .rows(part)
            .and_then(|rows| degrees(&self.0.positions(rows)));
        wrap(py, &tensor.map_err(|error| to_python(py, error))?)?.call_method0("numpy")
    }

    fn timestamps(&self, py: Python<'_>, part: &str) -> PyResult<Vec<&str>> {
        let rows = self.rows(part).map_err(|error| to_python(py, error))?;
        Ok(rows
            .iter()
            .map(|&row| self.0.recordings[row].timestamp.as_str())
            .collect())
    }

    fn __len__(&self) -> usize {
        self.0.recordings.len()
    }

    fn __repr__(&self) -> String {
        let split = &self.0.split;
        format!(
            "RssDataset({}, {} receivers, {} train / {} val / {} test rows, test={:?})",
            self.0.path.display(),
            self.0.receivers.len(),
            split.train.len(),
            split.val.len(),
            split.test.len(),
            self.0.split_config.test,
        )
    }
}

#[pyfunction]
pub(crate) fn baselines(
    py: Python<'_>,
    dataset: &RssDataset,
) -> PyResult<Vec<(&'static str, f64, f64)>> {
    let scored = py
        .detach(|| crate::baselines::baselines(&dataset.0))
        .map_err(|error| to_python(py, error))?;
    Ok(scored
        .into_iter()
        .map(|baseline| (baseline.name, baseline.median_m, baseline.mean_m))
        .collect())
}
