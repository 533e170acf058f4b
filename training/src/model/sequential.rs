//! Layers one after the other, whose tensors belong to somebody else, such as a `torch.nn.Sequential`.

use tch::Tensor;

use crate::{
    error::{Error, Result},
    learner::{Network, StateDict},
};

/// One layer, with the arithmetic of the module of `torch.nn` of that name.
#[derive(Debug)]
pub enum Layer {
    /// `Linear`.
    Linear {
        /// Weight, `[outputs, inputs]`.
        weight: Tensor,
        /// Bias, `[outputs]`.
        bias: Option<Tensor>,
    },
    /// `LayerNorm`.
    LayerNorm {
        /// Shape of the axes that are normalised.
        shape: Vec<i64>,
        /// Scale of each element.
        weight: Option<Tensor>,
        /// Offset of each element.
        bias: Option<Tensor>,
        /// Small number that keeps the division finite.
        eps: f64,
    },
    /// `ReLU`.
    Relu,
    /// `GELU`; the text is the approximation, `none` or `tanh`.
    Gelu(String),
    /// `SiLU`.
    Silu,
    /// `Tanh`.
    Tanh,
    /// `Sigmoid`.
    Sigmoid,
    /// `Dropout`; the number is the share that is set to 0.
    Dropout(f64),
    /// `Flatten`; the numbers are the first and the last axis.
    Flatten(i64, i64),
    /// `Identity`.
    Identity,
}

impl Layer {
    fn forward(&self, input: &Tensor, train: bool) -> Result<Tensor> {
        Ok(match self {
            Self::Linear { weight, bias } => input.f_linear(weight, bias.as_ref())?,
            Self::LayerNorm {
                shape,
                weight,
                bias,
                eps,
            } => {
                input.f_layer_norm(shape.as_slice(), weight.as_ref(), bias.as_ref(), *eps, true)?
            }
            Self::Relu => input.f_relu()?,
            Self::Gelu(approximation) => input.f_gelu(approximation)?,
            Self::Silu => input.f_silu()?,
            Self::Tanh => input.f_tanh()?,
            Self::Sigmoid => input.f_sigmoid()?,
            Self::Dropout(share) => input.f_dropout(*share, train)?,
            Self::Flatten(first, last) => input.f_flatten(*first, *last)?,
            Self::Identity => input.shallow_clone(),
        })
    }
}

/// Layers one after the other.
#[derive(Debug)]
pub struct Sequential {
    layers: Vec<Layer>,
    state: Vec<(String, Tensor)>,
}

impl Sequential {
    /// Makes a network of layers; `state` has all their tensors by name.
    pub fn new(layers: Vec<Layer>, state: Vec<(String, Tensor)>) -> Self {
        Self { layers, state }
    }
}

impl Network for Sequential {
    fn forward(&self, inputs: &[Tensor], train: bool) -> Result<Vec<Tensor>> {
        let [input] = inputs else {
            return Err(Error::Shape {
                what: "the batch",
                expected: "one input and its targets".to_owned(),
                found: format!("{} inputs", inputs.len()),
            });
        };
        let mut hidden = input.shallow_clone();
        for layer in &self.layers {
            hidden = layer.forward(&hidden, train)?;
        }
        Ok(vec![hidden])
    }
}

impl StateDict for Sequential {
    fn state_dict(&self) -> Result<Vec<(String, Tensor)>> {
        let state = self.state.iter();
        Ok(state
            .map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layers_compute_what_torch_computes() {
        let weight = Tensor::from_slice(&[1f32, 2.0, -3.0, 0.5]).view([2, 2]);
        let bias = Tensor::from_slice(&[0.5f32, -0.5]);
        let layers = vec![
            Layer::Linear {
                weight,
                bias: Some(bias),
            },
            Layer::Relu,
            Layer::Dropout(0.5),
            Layer::Identity,
        ];
        let network = Sequential::new(layers, Vec::new());
        let output = network
            .forward(&[Tensor::from_slice(&[1f32, 1.0]).view([1, 2])], false)
            .unwrap();
        assert_eq!(
            Vec::<f32>::try_from(output[0].view([-1])).unwrap(),
            [3.5, 0.0]
        );
    }
}
