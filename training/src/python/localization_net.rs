//! The Python class `ConvNextLocalizationNet`, which `LocalizationNet` inherits from.

use pyo3::{
    prelude::*,
    types::{PyDict, PyTuple},
};

use super::{
    errors::to_python,
    guarded::Guarded,
    model::arrays,
    settings::as_dict,
    tensors::{float, named, unwrap, wrap},
};
use crate::{
    error::{Error, Result},
    geo::LatLon,
    model::{ConvNextSize, LocalizationNet, LocalizationNetConfig},
    optim::count,
};

#[pyclass(frozen, subclass, module = "heimdall_training._native")]
pub(super) struct ConvNextLocalizationNet {
    net: Guarded<LocalizationNet>,
    config: LocalizationNetConfig,
}

impl ConvNextLocalizationNet {
    /// Returns the tensors with their names; frozen ones and buffers are among them if `all`.
    fn tensors<'py>(
        &self,
        py: Python<'py>,
        all: bool,
    ) -> PyResult<Vec<(String, Bound<'py, PyAny>)>> {
        let tensors = self.net.with(py, |net| {
            let entries = net.state().entries().iter();
            let wanted = entries.filter(|entry| all || entry.learned);
            Ok(wanted
                .map(|entry| (entry.name.clone(), entry.tensor.shallow_clone()))
                .collect::<Vec<_>>())
        })?;
        let wrapped = tensors.into_iter();
        wrapped
            .map(|(name, tensor)| Ok((name, wrap(py, &tensor)?)))
            .collect()
    }
}

/// Settings as Python passes them; those that are missing have their defaults.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Settings {
    freeze_backbone: bool,
    stochastic_depth: Option<f64>,
    head_dropout: Option<[f64; 2]>,
    origin: Option<(f64, f64)>,
    position_scale_m: Option<f64>,
    sigma_floor_m: Option<f64>,
    sigma_init_m: Option<f64>,
    seed: Option<u64>,
}

impl Settings {
    fn of(self, size: ConvNextSize) -> LocalizationNetConfig {
        let default = LocalizationNetConfig::new(size);
        LocalizationNetConfig {
            backbone: size,
            freeze_backbone: self.freeze_backbone,
            stochastic_depth: self.stochastic_depth.unwrap_or(default.stochastic_depth),
            head_dropout: self.head_dropout.unwrap_or(default.head_dropout),
            origin: self
                .origin
                .map_or(default.origin, |(lat, lon)| LatLon { lat, lon }),
            position_scale_m: self.position_scale_m.unwrap_or(default.position_scale_m),
            sigma_floor_m: self.sigma_floor_m.unwrap_or(default.sigma_floor_m),
            sigma_init_m: self.sigma_init_m.unwrap_or(default.sigma_init_m),
            seed: self.seed.unwrap_or(default.seed),
        }
    }
}

/// Returns the size of a name.
fn size_of(backbone: &str) -> Result<ConvNextSize> {
    let mut sizes = ConvNextSize::ALL.into_iter();
    sizes.find(|size| size.name() == backbone).ok_or_else(|| {
        let known = ConvNextSize::ALL.map(ConvNextSize::name).join(", ");
        Error::configuration("backbone", backbone, format!("it must be one of {known}"))
    })
}

#[pymethods]
impl ConvNextLocalizationNet {
    #[new]
    fn new(py: Python<'_>, backbone: &str, settings: Settings) -> PyResult<Self> {
        let make = || {
            let config = settings.of(size_of(backbone)?);
            let net = Guarded::new(LocalizationNet::new(config.clone())?);
            Ok(Self { net, config })
        };
        py.detach(make).map_err(|error| to_python(py, error))
    }

    #[getter]
    fn backbone_name(&self) -> &'static str {
        self.config.backbone.name()
    }

    #[getter]
    fn num_features(&self) -> i64 {
        self.config.backbone.features()
    }

    #[getter]
    fn origin(&self) -> (f64, f64) {
        let LatLon { lat, lon } = self.config.origin;
        (lat, lon)
    }

    #[getter]
    fn hyper_parameters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let settings = as_dict(py, &self.config)?;
        settings.set_item("origin", self.origin())?;
        Ok(settings)
    }

    #[getter]
    fn num_parameters(&self, py: Python<'_>) -> PyResult<usize> {
        self.net
            .with(py, |net| Ok(count(&net.state().parameters())))
    }

    fn state_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for (name, tensor) in self.tensors(py, true)? {
            dict.set_item(name, tensor.call_method0("detach")?)?;
        }
        Ok(dict)
    }

    fn load_state_dict(&self, py: Python<'_>, state_dict: &Bound<'_, PyDict>) -> PyResult<()> {
        let tensors = named(state_dict)?;
        self.net.with(py, move |net| net.state().load(&tensors))
    }

    fn named_parameters<'py>(&self, py: Python<'py>) -> PyResult<Vec<(String, Bound<'py, PyAny>)>> {
        self.tensors(py, false)
    }

    #[pyo3(signature = (spectrograms, train=false))]
    fn forward<'py>(
        &self,
        py: Python<'py>,
        spectrograms: &Bound<'py, PyAny>,
        train: bool,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let input = unwrap(spectrograms)?;
        let output = self.net.with(py, move |net| net.forward(&input, train))?;
        Ok((wrap(py, &output.mean)?, wrap(py, &output.sigma)?))
    }

    fn targets<'py>(
        &self,
        py: Python<'py>,
        positions: Vec<(f64, f64)>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let positions: Vec<_> = positions
            .into_iter()
            .map(|(lat, lon)| LatLon { lat, lon })
            .collect();
        wrap(py, &self.net.with(py, |net| net.targets(&positions))?)
    }

    fn predict<'py>(
        &self,
        py: Python<'py>,
        spectrograms: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let input = float(spectrograms)?;
        let predictions = self.net.with(py, move |net| net.predict(&input))?;
        arrays(py, &predictions)
    }
}
