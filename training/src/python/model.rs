//! The Python class `RssLocalizationNet`.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use pyo3::{
    exceptions::PyRuntimeError,
    prelude::*,
    types::{PyDict, PyTuple},
};
use serde::Serialize;
use tch::{Kind, Tensor};

use super::{
    dataset::degrees,
    errors::to_python,
    tensors::{unwrap, wrap},
};
use crate::{
    dataset::Receiver,
    error::{Error, Result},
    geo::LatLon,
    metrics::Prediction,
    model::{self, RssNetConfig},
    optim::count,
};

/// A receiver in Python: id, latitude, longitude.
pub(crate) type ReceiverTuple = (String, f64, f64);

pub(crate) fn tuples(receivers: &[Receiver]) -> Vec<ReceiverTuple> {
    receivers
        .iter()
        .map(|rx| (rx.id.clone(), rx.position.lat, rx.position.lon))
        .collect()
}

fn receivers(tuples: Vec<ReceiverTuple>) -> Result<Vec<Receiver>> {
    let parse = |(id, lat, lon)| match LatLon::new(lat, lon) {
        Some(position) => Ok(Receiver { id, position }),
        None => {
            let value = format!("{id:?} at ({lat}, {lon})");
            Err(Error::configuration(
                "receivers",
                value,
                "a position is a latitude and a longitude in degrees",
            ))
        }
    };
    tuples.into_iter().map(parse).collect()
}

/// Returns settings as a dictionary.
pub(crate) fn json<'py>(py: Python<'py>, settings: &impl Serialize) -> PyResult<Bound<'py, PyAny>> {
    let text = serde_json::to_string(settings)
        .map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
    py.import("json")?.call_method1("loads", (text,))
}

#[pyclass(frozen, module = "heimdall_training")]
pub(super) struct RssLocalizationNet {
    net: Mutex<model::RssLocalizationNet>,
    config: RssNetConfig,
    training: AtomicBool,
}

/// Marks a network as being trained, until this value is dropped.
pub(super) struct Training<'a>(&'a RssLocalizationNet);

impl Drop for Training<'_> {
    fn drop(&mut self) {
        self.0.training.store(false, Ordering::Release);
    }
}

impl RssLocalizationNet {
    /// Marks the network as being trained. Other uses are refused meanwhile: a callback that waited for the network
    /// would wait for itself.
    pub(super) fn begin_training(&self) -> PyResult<Training<'_>> {
        if self.training.swap(true, Ordering::AcqRel) {
            Err(busy())
        } else {
            Ok(Training(self))
        }
    }

    /// Locks the network. Call this only while detached from the interpreter: the owner of the lock may be waiting for
    /// the interpreter.
    pub(super) fn lock(&self) -> MutexGuard<'_, model::RssLocalizationNet> {
        self.net.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `use_it` on the network without holding the interpreter.
    pub(super) fn with<T: Send>(
        &self,
        py: Python<'_>,
        use_it: impl Send + FnOnce(&model::RssLocalizationNet) -> Result<T>,
    ) -> PyResult<T> {
        if self.training.load(Ordering::Acquire) {
            return Err(busy());
        }
        py.detach(|| use_it(&self.lock()))
            .map_err(|error| to_python(py, error))
    }
}

fn busy() -> PyErr {
    PyRuntimeError::new_err("the model is being trained: use it after fit() has returned")
}

/// Returns positions in degrees and sigmas in metres as two arrays, `[n, 2]`.
pub(crate) fn arrays<'py>(
    py: Python<'py>,
    predictions: &[Prediction],
) -> PyResult<Bound<'py, PyTuple>> {
    let positions: Vec<LatLon> = predictions
        .iter()
        .map(|prediction| prediction.position)
        .collect();
    let sigmas: Vec<f64> = predictions
        .iter()
        .flat_map(|p| [p.sigma.east, p.sigma.north])
        .collect();
    let tensors = || -> Result<[Tensor; 2]> {
        Ok([
            degrees(&positions)?,
            Tensor::f_from_slice(&sigmas)?.f_view([-1, 2])?,
        ])
    };
    let tensors = tensors().map_err(|error| to_python(py, error))?;
    let arrays: Vec<_> = tensors
        .iter()
        .map(|tensor| wrap(py, tensor)?.call_method0("numpy"))
        .collect::<PyResult<_>>()?;
    PyTuple::new(py, arrays)
}

#[pymethods]
impl RssLocalizationNet {
    #[new]
    #[pyo3(signature = (receivers, *, hidden=None, dropout=None, head_dropout=None, rss_scale_db=None, position_scale_m=None, sigma_floor_m=None, sigma_init_m=None, seed=None))]
    #[expect(
        clippy::too_many_arguments,
        reason = "keyword arguments of the Python class"
    )]
    fn new(
        py: Python<'_>,
        receivers: Vec<ReceiverTuple>,
        hidden: Option<Vec<i64>>,
        dropout: Option<f64>,
        head_dropout: Option<[f64; 2]>,
        rss_scale_db: Option<f64>,
        position_scale_m: Option<f64>,
        sigma_floor_m: Option<f64>,
        sigma_init_m: Option<f64>,
        seed: Option<u64>,
    ) -> PyResult<Self> {
        let make = || {
            let default = RssNetConfig::new(self::receivers(receivers)?);
            let config = RssNetConfig {
                hidden: hidden.unwrap_or(default.hidden),
                dropout: dropout.unwrap_or(default.dropout),
                head_dropout: head_dropout.unwrap_or(default.head_dropout),
                rss_scale_db: rss_scale_db.unwrap_or(default.rss_scale_db),
                position_scale_m: position_scale_m.unwrap_or(default.position_scale_m),
                sigma_floor_m: sigma_floor_m.unwrap_or(default.sigma_floor_m),
                sigma_init_m: sigma_init_m.unwrap_or(default.sigma_init_m),
                seed: seed.unwrap_or(default.seed),
                receivers: default.receivers,
            };
            let net = Mutex::new(model::RssLocalizationNet::new(config.clone())?);
            Ok(Self {
                net,
                config,
                training: AtomicBool::new(false),
            })
        };
        make().map_err(|error| to_python(py, error))
    }

    #[getter]
    fn receivers(&self) -> Vec<ReceiverTuple> {
        tuples(&self.config.receivers)
    }

    #[getter]
    fn origin(&self, py: Python<'_>) -> PyResult<(f64, f64)> {
        self.with(py, |net| {
            Ok((net.frame().origin.lat, net.frame().origin.lon))
        })
    }

    #[getter]
    fn hyper_parameters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let settings = json(py, &self.config)?;
        settings.del_item("receivers")?;
        Ok(settings)
    }

    #[getter]
    fn num_parameters(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |net| Ok(count(&net.state().parameters())))
    }

    fn state_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let state = self.with(py, |net| net.state().copy())?;
        let dict = PyDict::new(py);
        for (name, tensor) in state {
            dict.set_item(name, wrap(py, &tensor)?)?;
        }
        Ok(dict)
    }

    fn load_state_dict(&self, py: Python<'_>, state_dict: &Bound<'_, PyDict>) -> PyResult<()> {
        let mut tensors = Vec::new();
        for (name, tensor) in state_dict {
            tensors.push((name.extract::<String>()?, unwrap(&tensor)?));
        }
        self.with(py, move |net| net.state().load(&tensors))
    }

    fn predict<'py>(
        &self,
        py: Python<'py>,
        rss: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let torch = py.import("torch")?;
        let options = PyDict::new(py);
        options.set_item("dtype", torch.getattr("float32")?)?;
        let rss = unwrap(&torch.call_method("as_tensor", (rss,), Some(&options))?)?;
        let predictions = self.with(py, move |net| {
            // NaN means not heard, too, so it becomes a value below all others.
            let rss = rss.f_nan_to_num(f64::NEG_INFINITY, f64::INFINITY, f64::NEG_INFINITY)?;
            let floor = f64::from(crate::dataset::NOT_HEARD_DBM);
            net.predict(&rss.f_clamp_min(floor)?.f_to_kind(Kind::Float)?)
        })?;
        arrays(py, &predictions)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let parameters = self.num_parameters(py)?;
        let (receivers, hidden) = (self.config.receivers.len(), &self.config.hidden);
        Ok(format!(
            "RssLocalizationNet({receivers} receivers, hidden={hidden:?}, {parameters} parameters)"
        ))
    }
}
