//! The Python class `RssLocalizationNet`.

use std::sync::MutexGuard;

use pyo3::{
    prelude::*,
    types::{PyDict, PyTuple},
};
use tch::{Kind, Tensor};

use super::{
    errors::to_python,
    guarded::{Guarded, Training},
    positions::{ReceiverTuple, degrees, receiver_tuples, receivers_of},
    settings::as_dict,
    tensors::{float, named, wrap},
};
use crate::{
    error::Result,
    geo::LatLon,
    metrics::Prediction,
    model::{self, RssNetConfig},
    optim::count,
};

#[pyclass(frozen, module = "heimdall_training")]
pub(super) struct RssLocalizationNet {
    net: Guarded<model::RssLocalizationNet>,
    config: RssNetConfig,
}

impl RssLocalizationNet {
    /// Marks the network as being trained; see [`Guarded::begin_training`].
    pub(super) fn begin_training(&self) -> PyResult<Training<'_>> {
        self.net.begin_training()
    }

    /// Locks the network; see [`Guarded::lock`].
    pub(super) fn lock(&self) -> MutexGuard<'_, model::RssLocalizationNet> {
        self.net.lock()
    }

    /// Runs `use_it` on the network; see [`Guarded::with`].
    pub(super) fn with<T: Send>(
        &self,
        py: Python<'_>,
        use_it: impl Send + FnOnce(&model::RssLocalizationNet) -> Result<T>,
    ) -> PyResult<T> {
        self.net.with(py, use_it)
    }
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
            let default = RssNetConfig::new(receivers_of(receivers)?);
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
            let net = Guarded::new(model::RssLocalizationNet::new(config.clone())?);
            Ok(Self { net, config })
        };
        make().map_err(|error| to_python(py, error))
    }

    #[getter]
    fn receivers(&self) -> Vec<ReceiverTuple> {
        receiver_tuples(&self.config.receivers)
    }

    #[getter]
    fn origin(&self, py: Python<'_>) -> PyResult<(f64, f64)> {
        self.with(py, |net| {
            Ok((net.frame().origin.lat, net.frame().origin.lon))
        })
    }

    #[getter]
    fn hyper_parameters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let settings = as_dict(py, &self.config)?;
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
        let tensors = named(state_dict)?;
        self.with(py, move |net| net.state().load(&tensors))
    }

    fn predict<'py>(
        &self,
        py: Python<'py>,
        rss: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let rss = float(rss)?;
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
