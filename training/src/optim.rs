//! The optimiser and the bound on the gradient.

use tch::Tensor;

use crate::error::Result;

/// Scales all gradients together so that their common L2 norm is at most `max_norm`; returns the norm before scaling.
///
/// The results are those of `torch.nn.utils.clip_grad_norm_`.
pub fn clip_grad_norm(gradients: &mut [Tensor], max_norm: f64) -> Result<f64> {
    let norms = gradients
        .iter()
        .map(|gradient| gradient.f_norm())
        .collect::<Result<Vec<_>, _>>()?;
    let norm = Tensor::f_stack(&norms, 0)?.f_norm()?.f_double_value(&[])?;
    let scale = max_norm / (norm + 1e-6);
    if scale < 1.0 {
        for gradient in gradients {
            let _ = gradient.f_mul_scalar_(scale)?;
        }
    }
    Ok(norm)
}

/// Settings of [`AdamW`] besides the learning rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay rates of the running means of the gradient and of its square.
    pub betas: [f64; 2],
    /// Small number that keeps the division by the root of the mean square finite.
    pub eps: f64,
    /// Share of lr by which each weight shrinks in a step; biases and the scales of normalisations do not shrink.
    pub weight_decay: f64,
}

/// State of the optimiser for one parameter.
#[derive(Debug)]
pub struct Moments {
    /// Running mean of the gradient.
    pub exp_avg: Tensor,
    /// Running mean of the gradient's square.
    pub exp_avg_sq: Tensor,
}

/// AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019) with the arithmetic of
/// `torch.optim.AdamW`.
///
/// libtorch's own C++ optimiser does not expose its moments, and without them a training cannot continue from a
/// checkpoint.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    parameters: Vec<Tensor>,
    moments: Vec<Moments>,
    steps: usize,
}

impl AdamW {
    /// Makes an optimiser of these parameters.
    pub fn new(parameters: Vec<Tensor>, config: AdamWConfig) -> Result<Self> {
        let _no_grad = tch::no_grad_guard();
        let moments = parameters
            .iter()
            .map(|parameter| {
                Ok(Moments {
                    exp_avg: parameter.f_zeros_like()?,
                    exp_avg_sq: parameter.f_zeros_like()?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            config,
            parameters,
            moments,
            steps: 0,
        })
    }

    /// Returns true where weight decay applies to a parameter: it applies to matrices, and not to vectors.
    pub fn decays(parameter: &Tensor) -> bool {
        parameter.dim() > 1
    }

    /// Returns the parameters in order.
    pub fn parameters(&self) -> &[Tensor] {
        &self.parameters
    }

    /// Returns the moments, one entry per parameter.
    pub fn moments(&self) -> &[Moments] {
        &self.moments
    }

    /// Returns the settings.
    pub fn config(&self) -> AdamWConfig {
        self.config
    }

    /// Returns the number of steps done.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Returns the gradient of `loss` for every parameter.
    pub fn gradients(&self, loss: &Tensor) -> Result<Vec<Tensor>> {
        Ok(Tensor::f_run_backward(
            &[loss],
            &self.parameters,
            false,
            false,
        )?)
    }

    /// Moves every parameter against its gradient.
    pub fn step(&mut self, gradients: &[Tensor], lr: f64) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        self.steps += 1;
        let AdamWConfig {
            betas: [beta1, beta2],
            eps,
            weight_decay,
        } = self.config;
        let steps = self.steps as f64;
        let step_size = lr / (1.0 - beta1.powf(steps));
        let root_of_correction = (1.0 - beta2.powf(steps)).sqrt();
        for ((parameter, moments), gradient) in self
            .parameters
            .iter_mut()
            .zip(&mut self.moments)
            .zip(gradients)
        {
            if Self::decays(parameter) {
                let _ = parameter.f_mul_scalar_(1.0 - lr * weight_decay)?;
            }
            let _ = moments.exp_avg.f_lerp_(gradient, 1.0 - beta1)?;
            let square = gradient.f_square()?.f_mul_scalar_(1.0 - beta2)?;
            let _ = moments.exp_avg_sq.f_mul_scalar_(beta2)?.f_add_(&square)?;
            let denominator = moments
                .exp_avg_sq
                .f_sqrt()?
                .f_div_scalar_(root_of_correction)?
                .f_add_scalar_(eps)?;
            let _ =
                parameter.f_addcdiv_(&moments.exp_avg.f_mul_scalar(-step_size)?, &denominator)?;
        }
        Ok(())
    }
}

/// Returns the number of elements of some tensors.
pub fn count(tensors: &[Tensor]) -> usize {
    tensors.iter().map(Tensor::numel).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.f_detach().unwrap().f_view([-1]).unwrap()).unwrap()
    }

    #[test]
    fn three_steps_end_where_torch_ends() {
        // The expected values are those of torch.optim.AdamW(lr=0.1, weight_decay=0.1), with gradients of (w **
        // 2).sum() from [[1, -2]].
        let weight = Tensor::from_slice(&[1f32, -2.0])
            .view([1, 2])
            .set_requires_grad(true);
        let config = AdamWConfig {
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.1,
        };
        let mut optimizer = AdamW::new(vec![weight.shallow_clone()], config).unwrap();
        for _ in 0..3 {
            let loss = weight.f_square().unwrap().f_sum(Kind::Float).unwrap();
            let gradients = optimizer.gradients(&loss).unwrap();
            optimizer.step(&gradients, 0.1).unwrap();
        }
        for (found, torch) in values(&weight).iter().zip(TORCH_AFTER_THREE) {
            assert!((found - torch).abs() < 2e-6, "{found} {torch}");
        }
    }

    const TORCH_AFTER_THREE: [f32; 2] = [0.675_101, -1.644_369];

    #[test]
    fn vectors_do_not_decay() {
        let bias = Tensor::from_slice(&[3f32]).set_requires_grad(true);
        let config = AdamWConfig {
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.5,
        };
        let mut optimizer = AdamW::new(vec![bias.shallow_clone()], config).unwrap();
        optimizer.step(&[Tensor::from_slice(&[0f32])], 0.1).unwrap();
        assert_eq!(values(&bias), [3.0]);
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
