//! The layers of the networks, initialised as in `torch.nn`, with calls that return errors.
//!
//! `tch::nn` has the same layers, but its first weights differ from PyTorch's, its BatchNorm does not count batches,
//! and its calls panic where these return an error.

use tch::{Device, Kind, Tensor};

use super::state::Scope;
use crate::error::Result;

/// `torch.nn.Linear`.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor,
    pub(crate) bias: Tensor,
}

impl Linear {
    pub(crate) fn new(mut scope: Scope<'_>, inputs: i64, outputs: i64) -> Result<Self> {
        // As in nn.Linear, Kaiming's uniform distribution with a = √5 gives this bound for weight and bias alike.
        let bound = 1.0 / (inputs as f64).sqrt();
        let weight = scope.uniform("weight", &[outputs, inputs], bound)?;
        Ok(Self {
            weight,
            bias: scope.uniform("bias", &[outputs], bound)?,
        })
    }

    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        Ok(input.f_linear(&self.weight, Some(&self.bias))?)
    }
}

/// `torch.nn.LayerNorm` over the last axis.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    pub(crate) fn new(mut scope: Scope<'_>, features: i64) -> Result<Self> {
        let weight = scope.constant("weight", &[features], 1.0)?;
        Ok(Self {
            weight,
            bias: scope.constant("bias", &[features], 0.0)?,
        })
    }

    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        Ok(input.f_layer_norm(
            self.weight.size(),
            Some(&self.weight),
            Some(&self.bias),
            1e-5,
            true,
        )?)
    }
}

/// `torch.nn.BatchNorm1d`.
#[derive(Debug)]
pub(crate) struct BatchNorm1d {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    batches: Tensor,
}

impl BatchNorm1d {
    pub(crate) fn new(mut scope: Scope<'_>, features: i64) -> Result<Self> {
        let options = (Kind::Float, Device::Cpu);
        Ok(Self {
            weight: scope.constant("weight", &[features], 1.0)?,
            bias: scope.constant("bias", &[features], 0.0)?,
            running_mean: scope.buffer("running_mean", Tensor::f_zeros([features], options)?),
            running_var: scope.buffer("running_var", Tensor::f_ones([features], options)?),
            batches: scope.buffer(
                "num_batches_tracked",
                Tensor::f_zeros([], (Kind::Int64, Device::Cpu))?,
            ),
        })
    }

    pub(crate) fn forward(&self, input: &Tensor, train: bool) -> Result<Tensor> {
        if train {
            let _ = self.batches.shallow_clone().f_add_scalar_(1)?;
        }
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        let (mean, var) = (Some(&self.running_mean), Some(&self.running_var));
        Ok(input.f_batch_norm(weight, bias, mean, var, train, 0.1, 1e-5, true)?)
    }
}
