//! The layers of a `torch.nn.Sequential` as a native network with the same tensors.

use pyo3::prelude::*;
use tch::Tensor;

use super::tensors::unwrap;
use crate::{
    loss::NamedLoss,
    model::sequential::{Layer, Sequential},
};

/// Layers, tensors by name, and the loss, as Python describes them.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Described<'py> {
    layers: Vec<Bound<'py, PyAny>>,
    state: Vec<(String, Bound<'py, PyAny>)>,
    loss: String,
    delta: f64,
}

/// Returns the network and its loss.
pub(super) fn network(described: &Bound<'_, PyAny>) -> PyResult<(Sequential, NamedLoss)> {
    let described: Described<'_> = described.extract()?;
    let layers = described.layers.iter().map(layer);
    let state = described.state.into_iter();
    let state = state.map(|(name, tensor)| Ok((name, unwrap(&tensor)?)));
    let loss = match described.loss.as_str() {
        "l1" => NamedLoss::L1,
        "huber" => NamedLoss::Huber(described.delta),
        "cross_entropy" => NamedLoss::CrossEntropy,
        "bce_with_logits" => NamedLoss::BinaryCrossEntropy,
        _ => NamedLoss::Mse,
    };
    let network = Sequential::new(
        layers.collect::<PyResult<_>>()?,
        state.collect::<PyResult<_>>()?,
    );
    Ok((network, loss))
}

/// Reads a module of one of the kinds that `native.py` lets through.
fn layer(module: &Bound<'_, PyAny>) -> PyResult<Layer> {
    let kind = module.get_type().name()?.to_string();
    let tensor = |name: &str| -> PyResult<Option<Tensor>> {
        let tensor = module.getattr(name)?;
        (!tensor.is_none()).then(|| unwrap(&tensor)).transpose()
    };
    Ok(match kind.as_str() {
        "Linear" => Layer::Linear {
            weight: unwrap(&module.getattr("weight")?)?,
            bias: tensor("bias")?,
        },
        "LayerNorm" => Layer::LayerNorm {
            shape: module.getattr("normalized_shape")?.extract()?,
            weight: tensor("weight")?,
            bias: tensor("bias")?,
            eps: module.getattr("eps")?.extract()?,
        },
        "ReLU" => Layer::Relu,
        "GELU" => Layer::Gelu(module.getattr("approximate")?.extract()?),
        "SiLU" => Layer::Silu,
        "Tanh" => Layer::Tanh,
        "Sigmoid" => Layer::Sigmoid,
        "Dropout" => Layer::Dropout(module.getattr("p")?.extract()?),
        "Flatten" => Layer::Flatten(
            module.getattr("start_dim")?.extract()?,
            module.getattr("end_dim")?.extract()?,
        ),
        _ => Layer::Identity,
    })
}
