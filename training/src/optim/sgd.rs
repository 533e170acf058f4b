//! Stochastic gradient descent.

use tch::Tensor;

use super::{
    Optimizer, OptimizerGroup, OptimizerState, ParameterState, Setting, gradients_of,
    zero_gradients_of,
};
use crate::error::Result;

/// Settings of [`Sgd`] besides the learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SgdConfig {
    /// Share of the last move that a step repeats; 0 for none.
    pub momentum: f64,
    /// Share of each weight that is added to its gradient.
    pub weight_decay: f64,
    /// True for Nesterov's momentum.
    pub nesterov: bool,
}

/// Stochastic gradient descent with the arithmetic of `torch.optim.SGD`, without dampening.
#[derive(Debug)]
pub struct Sgd {
    config: SgdConfig,
    parameters: Vec<Tensor>,
    /// Last move of each parameter that has had a gradient.
    moves: Vec<Option<Tensor>>,
}

impl Sgd {
    /// Makes an optimiser of these parameters.
    pub fn new(parameters: Vec<Tensor>, config: SgdConfig) -> Self {
        Self {
            config,
            moves: parameters.iter().map(|_| None).collect(),
            parameters,
        }
    }
}

impl Optimizer for Sgd {
    fn step(&mut self, lr: f64) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let SgdConfig {
            momentum,
            weight_decay,
            nesterov,
        } = self.config;
        for (parameter, last) in self.parameters.iter_mut().zip(&mut self.moves) {
            let gradient = parameter.f_grad()?;
            if !gradient.defined() {
                continue;
            }
            let mut change = gradient.shallow_clone();
            if weight_decay != 0.0 {
                change = change.f_add(&parameter.f_mul_scalar(weight_decay)?)?;
            }
            if momentum != 0.0 {
                let moved = match last.take() {
                    None => change.f_mul_scalar(1.0)?,
                    Some(mut last) => last.f_mul_scalar_(momentum)?.f_add_(&change)?,
                };
                change = if nesterov {
                    change.f_add(&moved.f_mul_scalar(momentum)?)?
                } else {
                    moved.shallow_clone()
                };
                *last = Some(moved);
            }
            let _ = parameter.f_add_(&change.f_mul_scalar(-lr)?)?;
        }
        Ok(())
    }

    fn zero_grad(&mut self) -> Result<()> {
        zero_gradients_of(&self.parameters)
    }

    fn gradients(&mut self) -> Result<Vec<Tensor>> {
        gradients_of(&self.parameters)
    }

    fn state(&self) -> Result<OptimizerState> {
        let parameters = self.moves.iter().map(|last| ParameterState {
            step: None,
            tensors: last
                .iter()
                .map(|last| ("momentum_buffer", last.shallow_clone()))
                .collect(),
        });
        let settings = vec![
            ("momentum", Setting::Number(self.config.momentum)),
            ("dampening", Setting::Number(0.0)),
            ("weight_decay", Setting::Number(self.config.weight_decay)),
            ("nesterov", Setting::Switch(self.config.nesterov)),
        ];
        Ok(OptimizerState {
            groups: vec![OptimizerGroup {
                settings,
                parameters: parameters.collect(),
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::tests::values;
    use tch::Kind;

    #[test]
    fn three_steps_end_where_torch_ends() {
        // The expected values are those of torch.optim.SGD(lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=…), with
        // gradients of (w ** 2).sum() from [1, -2].
        for (nesterov, torch) in [(false, TORCH), (true, TORCH_NESTEROV)] {
            let weight = Tensor::from_slice(&[1f32, -2.0]).set_requires_grad(true);
            let config = SgdConfig {
                momentum: 0.9,
                weight_decay: 0.1,
                nesterov,
            };
            let mut optimizer = Sgd::new(vec![weight.shallow_clone()], config);
            for _ in 0..3 {
                weight.f_square().unwrap().sum(Kind::Float).backward();
                optimizer.step(0.1).unwrap();
                optimizer.zero_grad().unwrap();
            }
            for (found, torch) in values(&weight).iter().zip(torch) {
                assert!((found - torch).abs() < 1e-6, "{found} {torch}");
            }
        }
    }

    const TORCH: [f32; 2] = [0.024_319_041, -0.048_638_083];
    const TORCH_NESTEROV: [f32; 2] = [-0.140_468_37, 0.280_936_75];
}
