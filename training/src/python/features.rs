//! The Python functions of the features.

use pyo3::{prelude::*, types::PyDict};
use serde::de::DeserializeOwned;
use tch::{Kind, Tensor};

use super::{
    errors::to_python,
    tensors::{unwrap, wrap},
};
use crate::{
    error::{Error, Result},
    features::{self, Complex64, DelaySettings, LevelSettings, MelSettings, MelSpectrogram},
};

/// A delay in Python: first and second channel, seconds, radians, coherence.
type DelayTuple = (usize, usize, f64, f64, f64);

#[pyfunction]
#[pyo3(signature = (iq, sample_rate, **settings))]
pub(crate) fn mel_spectrogram<'py>(
    py: Python<'py>,
    iq: &Bound<'py, PyAny>,
    sample_rate: f64,
    settings: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let settings = mel_settings(py, settings, Some(sample_rate))?;
    let iq = tensor_of(iq)?;
    let computed = py.detach(move || mel_tensor(&iq, settings));
    wrap(py, &computed.map_err(|error| to_python(py, error))?)
}

#[pyfunction]
#[pyo3(signature = (iq, *, n_fft = LevelSettings::default().n_fft))]
pub(crate) fn levels(
    py: Python<'_>,
    iq: &Bound<'_, PyAny>,
    n_fft: usize,
) -> PyResult<Vec<(f64, f64)>> {
    let iq = tensor_of(iq)?;
    let found = py.detach(move || features::levels(&channels_of(&iq)?, &LevelSettings { n_fft }));
    let found = found.map_err(|error| to_python(py, error))?;
    Ok(found.iter().map(|it| (it.level_db, it.snr_db)).collect())
}

#[pyfunction]
#[pyo3(signature = (iq, sample_rate, *, max_delay_s, band_hz = None, weighting = "none"))]
pub(crate) fn delays(
    py: Python<'_>,
    iq: &Bound<'_, PyAny>,
    sample_rate: f64,
    max_delay_s: f64,
    band_hz: Option<(f64, f64)>,
    weighting: &str,
) -> PyResult<Vec<DelayTuple>> {
    let settings = DelaySettings {
        sample_rate,
        band_hz: band_hz.unwrap_or((0.0, sample_rate)),
        weighting: parsed("weighting", weighting.into()).map_err(|error| to_python(py, error))?,
        max_delay_s,
    };
    let iq = tensor_of(iq)?;
    py.detach(move || delay_tuples(&iq, &settings))
        .map_err(|error| to_python(py, error))
}

/// Returns the settings of a mel spectrogram of keyword arguments.
pub(super) fn mel_settings(
    py: Python<'_>,
    settings: Option<&Bound<'_, PyDict>>,
    sample_rate: Option<f64>,
) -> PyResult<MelSettings> {
    let text: String = match settings {
        Some(settings) => py
            .import("json")?
            .call_method1("dumps", (settings,))?
            .extract()?,
        None => "{}".to_owned(),
    };
    let value = serde_json::from_str(&text).unwrap_or_default();
    let mut settings: MelSettings =
        parsed("settings", value).map_err(|error| to_python(py, error))?;
    settings.sample_rate = sample_rate.unwrap_or(settings.sample_rate);
    Ok(settings)
}

fn parsed<T: DeserializeOwned>(name: &'static str, value: serde_json::Value) -> Result<T> {
    let shown = value.to_string();
    serde_json::from_value(value)
        .map_err(|error| Error::configuration(name, shown, error.to_string()))
}

/// Returns samples as a tensor; arrays of NumPy share their memory with it.
fn tensor_of(iq: &Bound<'_, PyAny>) -> PyResult<Tensor> {
    let torch = iq.py().import("torch")?;
    unwrap(&torch.call_method1("as_tensor", (iq,))?)
}

fn channels_of(iq: &Tensor) -> Result<Vec<Vec<Complex64>>> {
    let &[channels, samples] = iq.size().as_slice() else {
        return Err(Error::Shape {
            what: "iq",
            expected: "of shape (channels, samples)".to_owned(),
            found: format!("{:?}", iq.size()),
        });
    };
    if channels == 0 || samples == 0 {
        return features::checked_length(&[], 1).map(|_| Vec::new());
    }
    let iq = iq
        .f_to_device(tch::Device::Cpu)?
        .f_to_kind(Kind::ComplexDouble)?;
    let numbers = Vec::<f64>::try_from(iq.f_view_as_real()?.f_reshape([-1])?)?;
    let (pairs, _) = numbers.as_chunks::<2>();
    let values: Vec<_> = pairs
        .iter()
        .map(|&[re, im]| Complex64::new(re, im))
        .collect();
    Ok(values.chunks(samples as usize).map(<[_]>::to_vec).collect())
}

fn mel_tensor(iq: &Tensor, settings: MelSettings) -> Result<Tensor> {
    let channels = channels_of(iq)?;
    let shape = [channels.len(), settings.bands, settings.frames].map(|it| it as i64);
    let values = MelSpectrogram::new(settings)?.of(&channels)?;
    Ok(Tensor::f_from_slice(&values)?.f_reshape(shape)?)
}

fn delay_tuples(iq: &Tensor, settings: &DelaySettings) -> Result<Vec<DelayTuple>> {
    let found = features::delays(&channels_of(iq)?, settings)?;
    let tuple =
        |it: &features::Delay| (it.first, it.second, it.delay_s, it.phase_rad, it.coherence);
    Ok(found.iter().map(tuple).collect())
}
