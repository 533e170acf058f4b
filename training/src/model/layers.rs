//! The layers of the networks, initialised as in `torch.nn`, with calls that return errors.
//!
//! `tch::nn` has the same layers, but its first weights differ from PyTorch's, its BatchNorm does not count batches,
//! and its calls panic where these return an error.

use tch::{Device, Kind, Tensor};

use super::state::Scope;
use crate::error::Result;

/// Standard deviation of ConvNeXt's first weights. torchvision cuts the distribution off at −2 and 2, which are 100
/// standard deviations and never reached.
const NARROW: f64 = 0.02;

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

    /// Makes a layer with the first weights that ConvNeXt has in torchvision.
    pub(crate) fn narrow(mut scope: Scope<'_>, inputs: i64, outputs: i64) -> Result<Self> {
        let weight = scope.normal("weight", &[outputs, inputs], NARROW)?;
        Ok(Self {
            weight,
            bias: scope.constant("bias", &[outputs], 0.0)?,
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
    eps: f64,
}

impl LayerNorm {
    pub(crate) fn new(scope: Scope<'_>, features: i64) -> Result<Self> {
        Self::with_eps(scope, features, 1e-5)
    }

    pub(crate) fn with_eps(mut scope: Scope<'_>, features: i64, eps: f64) -> Result<Self> {
        let weight = scope.constant("weight", &[features], 1.0)?;
        Ok(Self {
            weight,
            bias: scope.constant("bias", &[features], 0.0)?,
            eps,
        })
    }

    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        Ok(input.f_layer_norm(
            self.weight.size(),
            Some(&self.weight),
            Some(&self.bias),
            self.eps,
            true,
        )?)
    }
}

/// `torch.nn.Conv2d` with as many groups as it says, and the first weights that ConvNeXt has in torchvision.
#[derive(Debug)]
pub(crate) struct Conv2d {
    weight: Tensor,
    bias: Tensor,
    geometry: Geometry,
}

/// Sizes of a [`Conv2d`], the same in both directions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub(crate) kernel: i64,
    pub(crate) stride: i64,
    pub(crate) padding: i64,
    pub(crate) groups: i64,
}

impl Conv2d {
    pub(crate) fn new(
        mut scope: Scope<'_>,
        inputs: i64,
        outputs: i64,
        geometry: Geometry,
    ) -> Result<Self> {
        let Geometry { kernel, groups, .. } = geometry;
        let shape = [outputs, inputs / groups, kernel, kernel];
        let weight = scope.normal("weight", &shape, NARROW)?;
        Ok(Self {
            weight,
            bias: scope.constant("bias", &[outputs], 0.0)?,
            geometry,
        })
    }

    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let Geometry {
            stride,
            padding,
            groups,
            ..
        } = self.geometry;
        let bias = Some(&self.bias);
        Ok(input.f_conv2d(
            &self.weight,
            bias,
            [stride; 2],
            [padding; 2],
            [1; 2],
            groups,
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
