//! Optimisers: each moves the parameters of a network against their gradients.

mod adamw;
mod plain;
mod sgd;

pub use adamw::{AdamW, AdamWConfig, Moments};
pub use sgd::{Sgd, SgdConfig};

use tch::Tensor;

use crate::error::Result;

/// Moves parameters against the gradients that `backward` has left in them.
pub trait Optimizer {
    /// Moves every parameter that has a gradient, at this learning rate.
    fn step(&mut self, lr: f64) -> Result<()>;

    /// Sets all gradients to zero, or removes them.
    fn zero_grad(&mut self) -> Result<()>;

    /// Returns the gradients of all parameters that have one. What is changed there is changed for the next step.
    fn gradients(&mut self) -> Result<Vec<Tensor>>;

    /// Returns the state for a checkpoint.
    fn state(&self) -> Result<OptimizerState>;
}

/// State of an optimiser, as `torch.optim.Optimizer.state_dict()` has it.
#[derive(Debug)]
pub struct OptimizerState {
    /// Groups of parameters with the same settings.
    pub groups: Vec<OptimizerGroup>,
}

/// Parameters with the same settings.
#[derive(Debug)]
pub struct OptimizerGroup {
    /// Names and values of the settings, without the learning rate.
    pub settings: Vec<(&'static str, Setting)>,
    /// State of each parameter.
    pub parameters: Vec<ParameterState>,
}

/// Value of a setting.
#[derive(Debug, Clone, PartialEq)]
pub enum Setting {
    /// A number.
    Number(f64),
    /// Two numbers.
    Pair([f64; 2]),
    /// A switch.
    Switch(bool),
}

/// State of one parameter.
#[derive(Debug)]
pub struct ParameterState {
    /// Steps that moved the parameter; `None` where the optimiser does not count them.
    pub step: Option<usize>,
    /// Names and values of the running means; none before the first step.
    pub tensors: Vec<(&'static str, Tensor)>,
}

/// Scales gradients together so that their common L2 norm is at most `max_norm`; returns the norm before scaling.
///
/// The results are those of `torch.nn.utils.clip_grad_norm_`.
pub fn clip_grad_norm(gradients: &mut [Tensor], max_norm: f64) -> Result<f64> {
    let _no_grad = tch::no_grad_guard();
    let norms = gradients.iter().map(|gradient| gradient.f_norm());
    let norms = norms.collect::<Result<Vec<_>, _>>()?;
    let Some(first) = norms.first() else {
        return Ok(0.0);
    };
    let norm = match norms.as_slice() {
        [_] => first.shallow_clone(),
        several => Tensor::f_stack(several, 0)?.f_norm()?,
    };
    // The roundings are those of PyTorch, which divides in the precision of the gradients.
    let scale = norm
        .f_add_scalar(1e-6)?
        .f_reciprocal()?
        .f_mul_scalar(max_norm)?;
    if scale.f_double_value(&[])? < 1.0 {
        for gradient in gradients {
            let _ = gradient.f_mul_(&scale)?;
        }
    }
    Ok(norm.f_double_value(&[])?)
}

/// Returns the gradients of the parameters that have one.
fn gradients_of(parameters: &[Tensor]) -> Result<Vec<Tensor>> {
    let gradients = parameters.iter().map(|it| Ok(it.f_grad()?));
    let gradients: Vec<Tensor> = gradients.collect::<Result<_>>()?;
    Ok(gradients.into_iter().filter(Tensor::defined).collect())
}

/// Sets the gradients of parameters to zero.
fn zero_gradients_of(parameters: &[Tensor]) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    for mut gradient in gradients_of(parameters)? {
        let is_done = plain::for_each::<f32, 1>([&gradient], |[numbers]| numbers.fill(0.0));
        if !is_done {
            let _ = gradient.f_detach_()?.f_zero_()?;
        }
    }
    Ok(())
}

/// Returns the number of elements of some tensors.
pub fn count(tensors: &[Tensor]) -> usize {
    tensors.iter().map(Tensor::numel).sum()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(
            tensor
                .f_detach()
                .unwrap()
                .f_contiguous()
                .unwrap()
                .f_view([-1])
                .unwrap(),
        )
        .unwrap()
    }

    #[test]
    fn a_long_gradient_is_cut_and_a_short_one_kept() {
        let gradients = || {
            vec![
                Tensor::from_slice(&[3f32, 0.0]),
                Tensor::from_slice(&[0f32, 4.0]),
            ]
        };
        let mut long = gradients();
        assert_eq!(clip_grad_norm(&mut long, 1.0).unwrap(), 5.0);
        assert!(
            (values(&long[0])[0] - 0.6).abs() < 1e-6 && (values(&long[1])[1] - 0.8).abs() < 1e-6
        );
        let mut short = gradients();
        clip_grad_norm(&mut short, 6.0).unwrap();
        assert_eq!(values(&short[0]), [3.0, 0.0]);
    }
}
