//! AdamW.

use tch::Tensor;

use super::{
    Optimizer, OptimizerGroup, OptimizerState, ParameterState, Setting, gradients_of,
    plain::{Number, are_alike, for_each},
    zero_gradients_of,
};
use crate::error::Result;

/// Settings of [`AdamW`] besides the learning rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay rates of the running means of the gradient and of its square.
    pub betas: [f64; 2],
    /// Small number that keeps the division by the root of the mean square finite.
    pub eps: f64,
    /// Share of lr by which each weight shrinks in a step.
    pub weight_decay: f64,
    /// True where vectors shrink as well: biases and the scales of normalisations.
    pub decays_vectors: bool,
}

impl Default for AdamWConfig {
    /// Returns the settings that `torch.optim.AdamW` has by itself.
    fn default() -> Self {
        Self {
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.01,
            decays_vectors: true,
        }
    }
}

/// AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019) with the arithmetic of
/// `torch.optim.AdamW`.
///
/// libtorch's own C++ optimiser does not expose its moments, and without them a training cannot continue from a
/// checkpoint. As in PyTorch, a parameter without a gradient is left alone; once it has had one, a step in which it has
/// none counts as a gradient of 0.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    parameters: Vec<Tensor>,
    /// State of each parameter that has had a gradient.
    moments: Vec<Option<Moments>>,
}

/// State of one parameter.
#[derive(Debug)]
pub struct Moments {
    /// Steps done.
    pub step: usize,
    /// Running mean of the gradient.
    pub exp_avg: Tensor,
    /// Running mean of the gradient's square.
    pub exp_avg_sq: Tensor,
}

impl AdamW {
    /// Makes an optimiser of these parameters.
    pub fn new(parameters: Vec<Tensor>, config: AdamWConfig) -> Self {
        Self {
            config,
            moments: parameters.iter().map(|_| None).collect(),
            parameters,
        }
    }

    /// Goes on with the state of a checkpoint: one entry for each parameter, in order.
    pub fn restore(&mut self, moments: Vec<Option<Moments>>) {
        self.moments = moments;
    }

    /// Returns true where weight decay applies to a parameter.
    fn decays(&self, index: usize) -> bool {
        self.config.decays_vectors || self.parameters[index].dim() > 1
    }
}

impl Optimizer for AdamW {
    fn step(&mut self, lr: f64) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        for index in 0..self.parameters.len() {
            let decays = self.decays(index);
            let parameter = &mut self.parameters[index];
            let gradient = parameter.f_grad()?;
            if !gradient.defined() {
                continue;
            }
            let moments = match &mut self.moments[index] {
                Some(moments) => moments,
                new => new.insert(Moments {
                    step: 0,
                    exp_avg: parameter.f_zeros_like()?,
                    exp_avg_sq: parameter.f_zeros_like()?,
                }),
            };
            moments.step += 1;
            let numbers = Numbers::of(&self.config, moments.step, lr, decays);
            if !move_by::<f32>(parameter, &gradient, moments, &numbers)?
                && !move_by::<f64>(parameter, &gradient, moments, &numbers)?
            {
                move_tensors(parameter, &gradient, moments, &numbers)?;
            }
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
        let state = |index: usize| {
            let moments = self.moments[index].as_ref();
            let tensors = moments.map(|it| {
                let [first, second] = [&it.exp_avg, &it.exp_avg_sq].map(Tensor::shallow_clone);
                vec![("exp_avg", first), ("exp_avg_sq", second)]
            });
            ParameterState {
                step: moments.map(|moments| moments.step),
                tensors: tensors.unwrap_or_default(),
            }
        };
        let group = |decays, weight_decay| OptimizerGroup {
            settings: vec![
                ("betas", Setting::Pair(self.config.betas)),
                ("eps", Setting::Number(self.config.eps)),
                ("weight_decay", Setting::Number(weight_decay)),
            ],
            parameters: (0..self.parameters.len())
                .filter(|&index| self.decays(index) == decays)
                .map(state)
                .collect(),
        };
        let mut groups = vec![group(true, self.config.weight_decay)];
        if !self.config.decays_vectors {
            groups.push(group(false, 0.0));
        }
        Ok(OptimizerState { groups })
    }
}

/// Numbers of one step.
struct Numbers {
    shrink: f64,
    first: f64,
    second: f64,
    step_size: f64,
    root_of_correction: f64,
    eps: f64,
}

impl Numbers {
    fn of(config: &AdamWConfig, steps: usize, lr: f64, decays: bool) -> Self {
        let [beta1, beta2] = config.betas;
        // PyTorch counts steps in a tensor of a float, and so takes powers of floats.
        let steps = steps as f64;
        Self {
            shrink: if decays {
                1.0 - lr * config.weight_decay
            } else {
                1.0
            },
            first: 1.0 - beta1,
            second: beta2,
            step_size: lr / (1.0 - beta1.powf(steps)),
            root_of_correction: (1.0 - beta2.powf(steps)).sqrt(),
            eps: config.eps,
        }
    }
}

/// Moves a parameter by two passes over its numbers, with every rounding of `torch.optim.AdamW`. Returns false, and
/// does nothing, where the numbers are of another kind.
fn move_by<T: Arithmetic>(
    parameter: &Tensor,
    gradient: &Tensor,
    moments: &Moments,
    numbers: &Numbers,
) -> Result<bool> {
    let (means, squares) = (&moments.exp_avg, &moments.exp_avg_sq);
    if parameter.kind() != T::KIND || !are_alike(&[parameter, gradient, means, squares]) {
        return Ok(false);
    }
    for_each([gradient, means, squares], |parts| {
        T::average(parts, numbers);
    });
    // libtorch's roots are not all correctly rounded, so they are taken from there.
    let roots = squares.f_sqrt()?;
    for_each([parameter, means, &roots], |parts| {
        T::shift(parts, numbers);
    });
    Ok(true)
}

/// Arithmetic on one kind of numbers.
trait Arithmetic: Number {
    /// Takes a gradient into the running means of it and of its square.
    fn average(parts: [&mut [Self]; 3], numbers: &Numbers);

    /// Moves values by their running means and the roots of the mean squares.
    fn shift(parts: [&mut [Self]; 3], numbers: &Numbers);
}

macro_rules! arithmetic {
    ($number:ty, $with_fma:ident) => {
        impl Arithmetic for $number {
            fn average(parts: [&mut [Self]; 3], numbers: &Numbers) {
                #[cfg(target_arch = "x86_64")]
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the processor has these instructions.
                    #[allow(unsafe_code, reason = "instructions that not every processor has")]
                    unsafe {
                        $with_fma(parts, numbers);
                    }
                    return;
                }
                if cfg!(target_arch = "aarch64") {
                    average(parts, numbers, <$number>::mul_add);
                } else {
                    average(parts, numbers, |a, b, c| a * b + c);
                }
            }

            fn shift([values, means, roots]: [&mut [Self]; 3], numbers: &Numbers) {
                let shrink = numbers.shrink as $number;
                let step_size = -numbers.step_size as $number;
                let correction = numbers.root_of_correction as $number;
                let eps = numbers.eps as $number;
                for ((value, mean), root) in values.iter_mut().zip(means).zip(roots) {
                    let denominator = *root / correction + eps;
                    *value = *value * shrink + step_size * *mean / denominator;
                }
            }
        }

        /// libtorch's loops for processors with AVX2 round a product and its sum once.
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn $with_fma(parts: [&mut [$number]; 3], numbers: &Numbers) {
            average(parts, numbers, <$number>::mul_add);
        }
    };
}

arithmetic!(f32, average_f32_with_fma);
arithmetic!(f64, average_f64_with_fma);

/// Does the arithmetic of `exp_avg.lerp_(…)` and `exp_avg_sq.mul_(…).addcmul_(…)`. `add` is `a * b + c`.
#[inline(always)]
fn average<T>(
    [gradients, means, squares]: [&mut [T]; 3],
    numbers: &Numbers,
    add: impl Fn(T, T, T) -> T,
) where
    T: Number + std::ops::Mul<Output = T> + std::ops::Sub<Output = T>,
{
    let (first, second) = (T::of(numbers.first), T::of(numbers.second));
    let rest = T::of(1.0 - numbers.second);
    for ((gradient, mean), square) in gradients.iter().zip(means).zip(squares) {
        let gradient = *gradient;
        *mean = add(first, gradient - *mean, *mean);
        *square = add(rest * gradient, gradient, *square * second);
    }
}

/// Moves a parameter by operations of libtorch, which work on each device and kind.
fn move_tensors(
    parameter: &mut Tensor,
    gradient: &Tensor,
    moments: &mut Moments,
    numbers: &Numbers,
) -> Result<()> {
    let Moments {
        exp_avg,
        exp_avg_sq,
        ..
    } = moments;
    if numbers.shrink != 1.0 {
        let _ = parameter.f_mul_scalar_(numbers.shrink)?;
    }
    let _ = exp_avg.f_lerp_(gradient, numbers.first)?;
    let scaled = gradient.f_mul_scalar(1.0 - numbers.second)?;
    let _ = exp_avg_sq
        .f_mul_scalar_(numbers.second)?
        .f_addcmul_(&scaled, gradient)?;
    let denominator = exp_avg_sq
        .f_sqrt()?
        .f_div_scalar_(numbers.root_of_correction)?
        .f_add_scalar_(numbers.eps)?;
    let _ = parameter.f_addcdiv_(&exp_avg.f_mul_scalar(-numbers.step_size)?, &denominator)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::tests::values;
    use tch::Kind;

    fn step(weight: &Tensor, optimizer: &mut AdamW, lr: f64) {
        let kind = weight.kind();
        let loss = weight.f_square().unwrap().f_sum(kind).unwrap();
        loss.backward();
        optimizer.step(lr).unwrap();
        optimizer.zero_grad().unwrap();
    }

    #[test]
    fn three_steps_end_where_torch_ends() {
        // The expected values are those of torch.optim.AdamW(lr=0.1, weight_decay=0.1), with gradients of (w **
        // 2).sum() from [[1, -2]].
        for kind in [Kind::Float, Kind::Double] {
            let weight = Tensor::from_slice(&[1f32, -2.0])
                .view([1, 2])
                .to_kind(kind)
                .set_requires_grad(true);
            let config = AdamWConfig {
                weight_decay: 0.1,
                ..AdamWConfig::default()
            };
            let mut optimizer = AdamW::new(vec![weight.shallow_clone()], config);
            for _ in 0..3 {
                step(&weight, &mut optimizer, 0.1);
            }
            let found = values(&weight.to_kind(Kind::Float));
            for (found, torch) in found.iter().zip([0.675_101, -1.644_369]) {
                assert!((found - torch).abs() < 2e-6, "{found} {torch}");
            }
        }
    }

    #[test]
    fn the_operations_of_libtorch_give_the_same() {
        let config = AdamWConfig {
            weight_decay: 0.1,
            ..AdamWConfig::default()
        };
        let one = Tensor::from_slice(&[1f32, -2.0, 0.5]).view([1, 3]);
        let one = one.set_requires_grad(true);
        let mut other = one.detach().copy();
        let mut optimizer = AdamW::new(vec![one.shallow_clone()], config);
        let mut moments = Moments {
            step: 0,
            exp_avg: other.zeros_like(),
            exp_avg_sq: other.zeros_like(),
        };
        for steps in 1..=20 {
            step(&one, &mut optimizer, 0.01);
            let gradient = &other * 2.0;
            let numbers = Numbers::of(&config, steps, 0.01, true);
            move_tensors(&mut other, &gradient, &mut moments, &numbers).unwrap();
        }
        for (one, other) in values(&one).iter().zip(values(&other)) {
            assert!((one - other).abs() < 1e-6, "{one} {other}");
        }
    }

    #[test]
    fn vectors_do_not_decay_where_that_is_off() {
        let bias = Tensor::from_slice(&[3f32]).set_requires_grad(true);
        let config = AdamWConfig {
            weight_decay: 0.5,
            decays_vectors: false,
            ..AdamWConfig::default()
        };
        let mut optimizer = AdamW::new(vec![bias.shallow_clone()], config);
        (&bias * 0.0).sum(Kind::Float).backward();
        optimizer.step(0.1).unwrap();
        assert_eq!(values(&bias), [3.0]);
    }

    #[test]
    fn a_parameter_that_no_loss_reaches_stays_as_it_is() {
        let parameter = || {
            Tensor::from_slice(&[3f32])
                .view([1, 1])
                .set_requires_grad(true)
        };
        let (used, unused) = (parameter(), parameter());
        let both = vec![used.shallow_clone(), unused.shallow_clone()];
        let mut optimizer = AdamW::new(both, AdamWConfig::default());
        for _ in 0..2 {
            step(&used, &mut optimizer, 0.1);
        }
        assert!(values(&used)[0] < 3.0);
        assert_eq!(values(&unused), [3.0]);
        // It takes part as soon as it has a gradient, as its first step.
        step(&unused, &mut optimizer, 0.1);
        assert!((values(&unused)[0] - 2.897).abs() < 1e-4);
    }

    #[test]
    fn a_state_goes_on_where_it_was() {
        let weight = || {
            Tensor::from_slice(&[1f32, -2.0])
                .view([1, 2])
                .set_requires_grad(true)
        };
        let (whole, parted) = (weight(), weight());
        let mut optimizer = AdamW::new(vec![whole.shallow_clone()], AdamWConfig::default());
        let mut first = AdamW::new(vec![parted.shallow_clone()], AdamWConfig::default());
        for _ in 0..3 {
            step(&whole, &mut optimizer, 0.1);
            step(&parted, &mut first, 0.1);
        }
        let state = first.state().unwrap().groups.remove(0).parameters.remove(0);
        let [exp_avg, exp_avg_sq] = [0, 1].map(|at| state.tensors[at].1.copy());
        drop(first);
        let mut second = AdamW::new(vec![parted.shallow_clone()], AdamWConfig::default());
        second.restore(vec![Some(Moments {
            step: state.step.unwrap(),
            exp_avg,
            exp_avg_sq,
        })]);
        for _ in 0..3 {
            step(&whole, &mut optimizer, 0.1);
            step(&parted, &mut second, 0.1);
        }
        assert_eq!(values(&whole), values(&parted));
    }
}
