//! The training loop.

use std::time::Instant;

use crate::{
    batch::{Batches, Examples},
    callbacks::{Callback, Epoch, Flow, Learner, Plan},
    dataset::RssDataset,
    error::{Error, Result},
    evaluate::evaluate,
    fit_config::FitConfig,
    loss::gaussian_nll,
    metrics::Tally,
    model::RssLocalizationNet,
    optim::{AdamW, AdamWConfig, clip_grad_norm},
};

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

/// Trains a network on a dataset. Afterwards the network has the weights of the last epoch; the best weights are in the
/// checkpoints, if a callback wrote any.
///
/// The same seed, data and number of threads give exactly the same weights, as long as no other code draws from
/// libtorch's generator meanwhile.
pub fn fit(
    model: &RssLocalizationNet,
    dataset: &RssDataset,
    config: &FitConfig,
    callbacks: &mut [&mut dyn Callback],
) -> Result<FitReport> {
    config.validate()?;
    let _threads = Threads::set(config.num_threads);
    let train = Examples::new(dataset, &dataset.split.train, model)?;
    let val = Examples::new(dataset, &dataset.split.val, model)?;
    let batches = Batches::new(train.truth.len(), config.batch_size)?;
    let total_steps = batches.per_epoch() * config.max_epochs;
    let schedule = config.schedule(total_steps)?;
    let adamw = AdamWConfig {
        betas: [0.9, 0.999],
        eps: 1e-8,
        weight_decay: config.weight_decay,
    };
    let mut optimizer = AdamW::new(model.state().parameters(), adamw)?;
    tch::manual_seed(config.seed as i64);

    let plan = Plan {
        epochs: config.max_epochs,
        steps_per_epoch: batches.per_epoch(),
    };
    for callback in callbacks.iter_mut() {
        callback.on_fit_start(&plan)?;
    }

    let started = Instant::now();
    let mut epochs = Vec::new();
    let mut stopped = None;
    let mut step = 0;
    while stopped.is_none() && epochs.len() < config.max_epochs {
        let index = epochs.len();
        let mut seen = Tally::default();
        let mut lr = 0.0;
        for rows in batches.epoch(config.seed, index) {
            let batch = train.select(&rows)?;
            let output = model.forward(&config.augmentation.apply(&batch.rss)?, true)?;
            let loss = gaussian_nll(&output.mean, &output.sigma, &batch.targets)?;
            let loss_value = finite("train/loss", loss.f_double_value(&[])?, index, step)?;

            let mut gradients = optimizer.gradients(&loss)?;
            if let Some(max_norm) = config.gradient_clip_val {
                clip_grad_norm(&mut gradients, max_norm)?;
            }
            lr = schedule.lr(step);
            optimizer.step(&gradients, lr)?;
            step += 1;

            seen.add(loss_value, &model.predictions(&output)?, &batch.truth);
            for callback in callbacks.iter_mut() {
                callback.on_train_batch_end()?;
            }
        }

        let (val_metrics, _) = evaluate(model, &val)?;
        finite("val/loss", val_metrics.loss, index, step)?;
        let mut epoch = Epoch::new(index, step, lr);
        epoch.log_all("train", &seen.metrics());
        epoch.log_all("val", &val_metrics);
        let learner = Learner {
            model,
            optimizer: &optimizer,
            config,
        };
        for callback in callbacks.iter_mut() {
            if let Flow::Stop(reason) = callback.on_epoch_end(&mut epoch, &learner)? {
                stopped = Some(reason);
            }
        }
        epochs.push(epoch);
    }

    for callback in callbacks.iter_mut() {
        callback.on_fit_end()?;
    }
    Ok(FitReport {
        epochs,
        stopped,
        seconds: started.elapsed().as_secs_f64(),
    })
}

fn finite(what: &'static str, value: f64, epoch: usize, step: usize) -> Result<f64> {
    if value.is_finite() {
        Ok(value)
    } else {
        Err(Error::NonFinite {
            what,
            value,
            epoch,
            step,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{dataset::rss::tests::powder, model::RssNetConfig};

    fn network(dataset: &RssDataset) -> RssLocalizationNet {
        let config = RssNetConfig {
            hidden: vec![32],
            ..RssNetConfig::new(dataset.receivers.clone())
        };
        RssLocalizationNet::new(config).unwrap()
    }

    fn short() -> FitConfig {
        FitConfig {
            max_epochs: 3,
            ..FitConfig::default()
        }
    }

    #[test]
    fn training_learns() {
        let dataset = powder("grid_test");
        let report = fit(&network(&dataset), &dataset, &short(), &mut []).unwrap();
        let errors: Vec<_> = report
            .epochs
            .iter()
            .filter_map(|epoch| epoch.metric("val/position_error_mean"))
            .collect();
        assert_eq!(errors.len(), 3);
        assert!(errors[2] < 0.8 * errors[0], "{errors:?}");
    }

    #[test]
    fn a_training_that_diverges_says_where() {
        let dataset = powder("grid_test");
        let config = FitConfig {
            lr: 1e30,
            gradient_clip_val: None,
            warmup_steps: Some(0),
            ..short()
        };
        let error = fit(&network(&dataset), &dataset, &config, &mut []).unwrap_err();
        assert!(
            matches!(error, Error::NonFinite { epoch: 0, .. }),
            "{error}"
        );
    }

    #[test]
    fn settings_that_cannot_work_are_refused_before_the_first_step() {
        let dataset = powder("grid_test");
        let refused = |config: FitConfig| {
            fit(&network(&dataset), &dataset, &config, &mut [])
                .unwrap_err()
                .to_string()
        };
        assert!(
            refused(FitConfig {
                max_epochs: 0,
                ..short()
            })
            .starts_with("max_epochs=0 ")
        );
        assert!(
            refused(FitConfig {
                batch_size: 1,
                ..short()
            })
            .starts_with("batch_size=1 ")
        );
        assert!(
            refused(FitConfig {
                lr: -1.0,
                ..short()
            })
            .starts_with("lr=-1 ")
        );
        assert!(
            refused(FitConfig {
                num_threads: 0,
                ..short()
            })
            .starts_with("num_threads=0 ")
        );
        assert!(
            refused(FitConfig {
                weight_decay: -1.0,
                ..short()
            })
            .starts_with("weight_decay=-1 ")
        );
        assert!(
            refused(FitConfig {
                warmup_steps: Some(1_000_000),
                ..short()
            })
            .starts_with("warmup_steps=1000000 ")
        );
    }
}
