//! Losses: the negative log-likelihood of the truth under the predicted Gaussian, and those of PyTorch by name.

use tch::{Kind, Tensor};

use crate::{
    error::{Error, Result},
    learner::Loss,
};

/// Returns the mean over rows and both axes of `(y − µ)² / 2σ² + ln σ`, without the constant `½ ln 2π`.
///
/// The formula is from Nix and Weigend (1994), "Estimating the mean and variance of the target probability
/// distribution". All tensors are `[rows, 2]` in the same unit; `sigma` must be positive, which [`positive_sigma`]
/// ensures.
pub fn gaussian_nll(mean: &Tensor, sigma: &Tensor, truth: &Tensor) -> Result<Tensor> {
    let standardised = (truth.f_sub(mean)?).f_div(sigma)?;
    Ok(standardised
        .f_square()?
        .f_mul_scalar(0.5)?
        .f_add(&sigma.f_log()?)?
        .f_mean(None::<Kind>)?)
}

/// Returns `floor + softplus(raw)`: a standard deviation above `floor` whose gradient never vanishes, unlike that of a
/// clamp, which vanishes beyond both ends.
pub fn positive_sigma(raw: &Tensor, floor: f64) -> Result<Tensor> {
    Ok(raw.f_softplus()?.f_add_scalar(floor)?)
}

/// Returns the `raw` for which [`positive_sigma`] is `sigma`.
pub fn raw_for_sigma(sigma: f64, floor: f64) -> f64 {
    (sigma - floor).exp_m1().ln()
}

/// Losses by the names that PyTorch's functions have, each the mean over all elements or rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum NamedLoss {
    /// `mse_loss`.
    Mse,
    /// `l1_loss`.
    L1,
    /// `huber_loss`, with its delta.
    Huber(f64),
    /// `cross_entropy` of logits and classes.
    CrossEntropy,
    /// `binary_cross_entropy_with_logits`.
    BinaryCrossEntropy,
}

impl Loss for NamedLoss {
    fn loss(&self, outputs: &[Tensor], targets: &[Tensor]) -> Result<Tensor> {
        let (output, target) = (&outputs[0], &targets[0]);
        let mean = tch::Reduction::Mean;
        // PyTorch only warns of this, and computes something else than was meant.
        if !matches!(self, Self::CrossEntropy) && output.size() != target.size() {
            return Err(Error::Shape {
                what: "the targets",
                expected: format!("{:?}, as the outputs", output.size()),
                found: format!("{:?}", target.size()),
            });
        }
        Ok(match self {
            Self::Mse => output.f_mse_loss(target, mean)?,
            Self::L1 => output.f_l1_loss(target, mean)?,
            Self::Huber(delta) => output.f_huber_loss(target, mean, *delta)?,
            Self::CrossEntropy => {
                output.f_cross_entropy_loss(target, None::<Tensor>, mean, -100, 0.0)?
            }
            Self::BinaryCrossEntropy => output.f_binary_cross_entropy_with_logits(
                target,
                None::<Tensor>,
                None::<Tensor>,
                mean,
            )?,
        })
    }
}

/// Returns the loss of one batch for a check of its kind: it must be one floating-point number.
#[cfg(feature = "python")]
pub(crate) fn check_loss(loss: &Tensor) -> Result<()> {
    let is_float = matches!(
        loss.kind(),
        Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16
    );
    if loss.numel() == 1 && is_float && loss.requires_grad() {
        return Ok(());
    }
    Err(Error::Shape {
        what: "the loss",
        expected: "one floating-point number that depends on parameters".to_owned(),
        found: format!(
            "a tensor of {:?}, {:?}, {}",
            loss.kind(),
            loss.size(),
            if loss.requires_grad() {
                "which does"
            } else {
                "which does not"
            }
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::f_from_slice(values)
            .unwrap()
            .f_view([-1, 2])
            .unwrap()
    }

    fn value(tensor: &Tensor) -> f64 {
        tensor.f_double_value(&[]).unwrap()
    }

    #[test]
    fn the_loss_is_that_of_torch() {
        // The expected value is that of torch.nn.GaussianNLLLoss(full=False) for these numbers; its ½ ln σ² is our ln
        // σ.
        let (mean, sigma) = (tensor(&[0.0, 1.0, 2.0, 3.0]), tensor(&[0.5, 1.0, 2.0, 4.0]));
        let loss = gaussian_nll(&mean, &sigma, &tensor(&[1.0, 1.0, 0.0, -1.0])).unwrap();
        // By hand, the value is (2 + ln ½) + 0 + (½ + ln 2) + (½ + ln 4), divided by 4.
        let by_hand = (3.0 + 4f64.ln()) / 4.0;
        assert!((value(&loss) - by_hand).abs() < 1e-6, "{}", value(&loss));
    }

    #[test]
    fn the_gradient_is_the_derivative() {
        let mean = tensor(&[0.0, 1.0]).f_set_requires_grad(true).unwrap();
        let sigma = tensor(&[0.5, 2.0]).f_set_requires_grad(true).unwrap();
        let loss = gaussian_nll(&mean, &sigma, &tensor(&[1.0, 1.0])).unwrap();
        let gradients = Tensor::f_run_backward(&[&loss], &[&mean, &sigma], false, false).unwrap();
        // The derivatives are d/dµ = −(y − µ)/σ² and d/dσ = 1/σ − (y − µ)²/σ³, each divided by the two elements of the
        // mean.
        for (gradient, expected) in gradients.iter().zip([[-2.0, 0.0], [-3.0, 0.25]]) {
            let found = Vec::<f32>::try_from(gradient.view([-1])).unwrap();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn the_bound_on_sigma_is_smooth() {
        let raw = tensor(&[-20.0, 20.0]).f_set_requires_grad(true).unwrap();
        let sigma = positive_sigma(&raw, 0.01).unwrap();
        let gradient =
            Tensor::f_run_backward(&[sigma.sum(Kind::Float)], &[&raw], false, false).unwrap();
        assert!(sigma.min().double_value(&[]) >= 0.01);
        assert!(
            gradient[0].min().double_value(&[]) > 0.0,
            "no gradient at the bound"
        );
    }

    #[test]
    fn a_sigma_can_be_asked_for() {
        let raw = tensor(&[raw_for_sigma(0.3, 0.02) as f32; 2]);
        assert!(
            (value(
                &positive_sigma(&raw, 0.02)
                    .unwrap()
                    .f_mean(None::<Kind>)
                    .unwrap()
            ) - 0.3)
                .abs()
                < 1e-6
        );
    }

    #[test]
    fn targets_of_another_shape_are_refused() {
        let zeros = |size: &[i64]| [Tensor::zeros(size, (Kind::Float, tch::Device::Cpu))];
        let error = NamedLoss::Mse
            .loss(&zeros(&[4, 1]), &zeros(&[4]))
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "the targets must be [4, 1], as the outputs, not [4]"
        );
    }
}
