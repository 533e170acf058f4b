//! The training loop.

use std::time::Instant;

use serde_json::Value;

use crate::{
    batches::Batches,
    callbacks::{BatchEnd, Callback, Epoch, Flow, Plan, Snapshot},
    error::{Error, Result},
    fit_config::{FitConfig, Position},
    learner::Learner,
    optim::{Optimizer, clip_grad_norm},
    schedule::Schedule,
};

/// Parts of a training, which the loop puts together.
pub struct Training<'a, 'c, B> {
    /// Network, loss and metrics.
    pub learner: &'a mut dyn Learner<B>,
    /// Batches that the network learns from.
    pub train: &'a mut dyn Batches<B>,
    /// Batches that it is measured by after each epoch.
    pub val: Option<&'a mut dyn Batches<B>>,
    /// Optimiser of the network's parameters.
    pub optimizer: &'a mut dyn Optimizer,
    /// Learning rate by step.
    pub schedule: &'a dyn Schedule,
    /// Callbacks, which run in this order.
    pub callbacks: &'a mut [&'c mut dyn Callback],
    /// Settings that the checkpoints keep.
    pub hyper_parameters: Value,
}

/// Report of a training.
#[derive(Debug)]
pub struct FitReport {
    /// Every epoch, with its metrics.
    pub epochs: Vec<Epoch>,
    /// Reason for which the training ended before `max_epochs`, if it did.
    pub stopped: Option<String>,
    /// Seconds from the first step to the last callback.
    pub seconds: f64,
}

/// Trains a network. Afterwards the network has the weights of the last epoch; the best weights are in the checkpoints,
/// if a callback wrote any.
///
/// The same seed, data and number of threads give exactly the same weights, as long as no other code draws from
/// libtorch's generator meanwhile.
///
/// # Errors
/// [`Error::Configuration`] for settings that cannot work, [`Error::NonFinite`] for a loss that is no number, and the
/// errors of the parts.
pub fn fit<B>(mut training: Training<'_, '_, B>, config: &FitConfig) -> Result<FitReport> {
    config.validate()?;
    let _threads = Threads::set(config.num_threads);
    if let Some(seed) = config.seed {
        tch::manual_seed(seed as i64);
    }
    let plan = Plan {
        epochs: config.max_epochs,
        batches_per_epoch: training.train.per_epoch(),
    };
    for callback in training.callbacks.iter_mut() {
        callback.on_fit_start(&plan)?;
    }

    let started = Instant::now();
    let mut epochs = Vec::new();
    let mut stopped = None;
    let mut place = config.first;
    while stopped.is_none() && place.epoch < config.max_epochs {
        let lr = train_epoch(&mut training, config, &mut place, &mut stopped)?;
        let mut epoch = Epoch::new(place.epoch, place.step, lr);
        epoch.metrics = training.learner.training_metrics()?;
        if config.val_check_interval.is_none() {
            epoch.metrics.extend(validate(&mut training, place)?);
        }
        let reason = report(&mut training, |callback, snapshot| {
            callback.on_epoch_end(&mut epoch, snapshot)
        })?;
        stopped = stopped.or(reason);
        epochs.push(epoch);
        place = Position {
            epoch: place.epoch + 1,
            batch: 0,
            ..place
        };
    }

    for callback in training.callbacks.iter_mut() {
        callback.on_fit_end()?;
    }
    Ok(FitReport {
        epochs,
        stopped,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Takes a step for every batch, or for every few; returns the last learning rate. `stopped` gets the reason of a
/// callback that ends the training in the middle of the epoch.
fn train_epoch<B>(
    training: &mut Training<'_, '_, B>,
    config: &FitConfig,
    place: &mut Position,
    stopped: &mut Option<String>,
) -> Result<f64> {
    let share = 1.0 / config.accumulate_grad_batches as f64;
    let (mut lr, mut waiting) = (0.0, 0);
    training.train.begin(place.epoch)?;
    let mut next = training.train.next()?;
    while let Some(batch) = next.take().filter(|_| stopped.is_none()) {
        let mut loss = training.learner.training_step(&batch)?;
        finite("train/loss", loss.f_double_value(&[])?, *place)?;
        if config.accumulate_grad_batches > 1 {
            loss = loss.f_mul_scalar(share)?;
        }
        loss.f_backward()?;
        waiting += 1;
        next = training.train.next()?;
        let has_stepped = waiting == config.accumulate_grad_batches || next.is_none();
        let mut grad_norm = None;
        if has_stepped {
            lr = training.schedule.lr(place.step);
            grad_norm = take_step(training, config, place.step, lr)?;
            place.step += 1;
            waiting = 0;
        }
        place.batch += 1;
        end_batch(training, *place, has_stepped, grad_norm)?;
        let interval = config.val_check_interval;
        if interval.is_some_and(|interval| place.batch.is_multiple_of(interval)) {
            *stopped = validate_inside(training, *place, lr)?;
        }
    }
    Ok(lr)
}

/// Moves the parameters; returns the norm of the gradient before clipping, where it is measured.
fn take_step<B>(
    training: &mut Training<'_, '_, B>,
    config: &FitConfig,
    step: usize,
    lr: f64,
) -> Result<Option<f64>> {
    for callback in training.callbacks.iter_mut() {
        callback.on_before_optimizer_step()?;
    }
    let is_due = config.grad_norm_every > 0 && (step + 1).is_multiple_of(config.grad_norm_every);
    let max_norm = config.gradient_clip_val;
    let mut grad_norm = None;
    if let Some(max_norm) = max_norm.or_else(|| is_due.then_some(f64::INFINITY)) {
        grad_norm = Some(clip_grad_norm(
            &mut training.optimizer.gradients()?,
            max_norm,
        )?);
    }
    training.optimizer.step(lr)?;
    training.optimizer.zero_grad()?;
    Ok(grad_norm)
}

fn end_batch<B>(
    training: &mut Training<'_, '_, B>,
    place: Position,
    has_stepped: bool,
    grad_norm: Option<f64>,
) -> Result<()> {
    let batch = BatchEnd {
        epoch: place.epoch,
        batches: place.batch,
        step: place.step,
        has_stepped,
        grad_norm,
    };
    report(training, |callback, snapshot| {
        callback.on_train_batch_end(&batch, snapshot)?;
        Ok(Flow::Continue)
    })
    .map(drop)
}

/// Validates in the middle of an epoch; returns the reason for an end of the training, if a callback has one.
fn validate_inside<B>(
    training: &mut Training<'_, '_, B>,
    place: Position,
    lr: f64,
) -> Result<Option<String>> {
    let mut epoch = Epoch::new(place.epoch, place.step, lr);
    epoch.metrics = validate(training, place)?;
    report(training, |callback, snapshot| {
        callback.on_validation_end(&mut epoch, snapshot)
    })
}

/// Measures the network on the validation batches.
fn validate<B>(training: &mut Training<'_, '_, B>, place: Position) -> Result<Vec<(String, f64)>> {
    let Some(val) = training.val.as_mut() else {
        return Ok(Vec::new());
    };
    let _no_grad = tch::no_grad_guard();
    val.begin(place.epoch)?;
    while let Some(batch) = val.next()? {
        training.learner.validation_step(&batch)?;
    }
    let metrics = training.learner.validation_metrics()?;
    if let Some((_, loss)) = metrics.iter().find(|(name, _)| name == "val/loss") {
        let last = Position {
            batch: place.batch.saturating_sub(1),
            ..place
        };
        finite("val/loss", *loss, last)?;
    }
    Ok(metrics)
}

/// Calls each callback; returns the reason for an end of the training, if one of them has one.
fn report<B>(
    training: &mut Training<'_, '_, B>,
    mut call: impl FnMut(&mut dyn Callback, &Snapshot<'_>) -> Result<Flow>,
) -> Result<Option<String>> {
    let snapshot = Snapshot {
        network: &*training.learner,
        optimizer: &*training.optimizer,
        hyper_parameters: &training.hyper_parameters,
    };
    let mut stopped = None;
    for callback in training.callbacks.iter_mut() {
        if let Flow::Stop(reason) = call(*callback, &snapshot)? {
            stopped = Some(reason);
        }
    }
    Ok(stopped)
}

fn finite(what: &'static str, value: f64, place: Position) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    Err(Error::NonFinite {
        what,
        value,
        epoch: place.epoch,
        batch: place.batch,
        step: place.step,
    })
}

/// Sets libtorch's number of threads for the whole process, until this value is dropped.
struct Threads {
    before: i32,
}

impl Threads {
    fn set(threads: usize) -> Self {
        let before = tch::get_num_threads();
        tch::set_num_threads(threads as i32);
        Self { before }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        tch::set_num_threads(self.before);
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::{
        batches::{Batch, Order, ShuffledRows, TensorBatches},
        learner::{Network, StateDict, Supervised},
        optim::{Sgd, SgdConfig},
        schedule::Constant,
    };

    /// A straight line.
    struct Line {
        slope: Tensor,
        offset: Tensor,
    }

    impl Network for Line {
        fn forward(&self, inputs: &[Tensor], _train: bool) -> Result<Vec<Tensor>> {
            Ok(vec![&inputs[0] * &self.slope + &self.offset])
        }
    }

    impl StateDict for Line {
        fn state_dict(&self) -> Result<Vec<(String, Tensor)>> {
            let named = [("slope", &self.slope), ("offset", &self.offset)].into_iter();
            Ok(named
                .map(|(name, it)| (name.to_owned(), it.shallow_clone()))
                .collect())
        }
    }

    fn line() -> Line {
        let number = || Tensor::zeros([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        Line {
            slope: number(),
            offset: number(),
        }
    }

    fn points() -> TensorBatches {
        let x = Tensor::arange(60, (Kind::Float, Device::Cpu)) / 30.0 - 1.0;
        let order = Order::Shuffled {
            rows: ShuffledRows::new(60, 6).unwrap(),
            seed: 0,
        };
        TensorBatches::new(
            vec![x.view([-1, 1])],
            vec![(x * 3.0 + 1.0).view([-1, 1])],
            order,
        )
    }

    fn squares(outputs: &[Tensor], targets: &[Tensor]) -> Result<Tensor> {
        Ok((&outputs[0] - &targets[0])
            .f_square()?
            .f_mean(Kind::Float)?)
    }

    fn train(line: &Line, config: &FitConfig, lr: f64) -> Result<FitReport> {
        let mut learner = Supervised::new(line, &squares, Vec::new);
        let parameters = vec![line.slope.shallow_clone(), line.offset.shallow_clone()];
        fit::<Batch>(
            Training {
                learner: &mut learner,
                train: &mut points(),
                val: Some(&mut points()),
                optimizer: &mut Sgd::new(parameters, SgdConfig::default()),
                schedule: &Constant(lr),
                callbacks: &mut [],
                hyper_parameters: Value::Null,
            },
            config,
        )
    }

    #[test]
    fn any_network_learns() {
        let line = line();
        let config = FitConfig {
            max_epochs: 30,
            ..FitConfig::default()
        };
        let report = train(&line, &config, 0.1).unwrap();
        assert!((line.slope.double_value(&[0]) - 3.0).abs() < 0.05);
        assert!((line.offset.double_value(&[0]) - 1.0).abs() < 0.05);
        assert_eq!((report.epochs.len(), report.epochs[29].step), (30, 300));
        assert!(report.epochs[29].metric("val/loss").unwrap() < 1e-3);
    }

    #[test]
    fn gradients_are_accumulated_over_batches() {
        let config = FitConfig {
            max_epochs: 1,
            accumulate_grad_batches: 4,
            gradient_clip_val: None,
            ..FitConfig::default()
        };
        // Ten batches are two steps of four batches, and one of two.
        assert_eq!(train(&line(), &config, 0.1).unwrap().epochs[0].step, 3);
    }

    #[test]
    fn a_training_that_diverges_says_where() {
        let config = FitConfig {
            gradient_clip_val: None,
            ..FitConfig::default()
        };
        let error = train(&line(), &config, 1e30).unwrap_err();
        assert!(
            matches!(
                error,
                Error::NonFinite {
                    epoch: 0,
                    step: 1..,
                    ..
                }
            ),
            "{error}"
        );
    }
}
