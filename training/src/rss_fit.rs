//! The training of the network for received powers.

use serde::Serialize;
use serde_json::json;
use tch::Tensor;

use crate::{
    batches::{Batches, Order},
    callbacks::Callback,
    dataset::RssDataset,
    error::{Error, Result},
    fit::{FitReport, Training, fit},
    fit_config::{FitConfig, not_negative},
    learner::{Metrics, Supervised},
    loss::gaussian_nll,
    metrics::LocalizationMetrics,
    model::RssLocalizationNet,
    optim::{AdamW, AdamWConfig},
    rss_batches::{Augmentation, Examples, RssBatches},
    schedule::WarmupCosine,
};

/// Settings of the training.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RssFitConfig {
    /// Settings of the loop.
    #[serde(flatten)]
    pub fit: FitConfig,
    /// Rows in a batch.
    pub batch_size: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// Last learning rate of the cosine.
    pub min_lr: f64,
    /// Steps in which the learning rate rises; `None` means a twentieth of all steps.
    pub warmup_steps: Option<usize>,
    /// Weight decay of matrices; see [`AdamWConfig::weight_decay`].
    pub weight_decay: f64,
    /// Random changes to training rows.
    #[serde(flatten)]
    pub augmentation: Augmentation,
}

impl Default for RssFitConfig {
    fn default() -> Self {
        Self {
            fit: FitConfig::default(),
            batch_size: 128,
            lr: 2e-3,
            min_lr: 0.0,
            warmup_steps: None,
            weight_decay: 0.01,
            augmentation: Augmentation {
                drop_receivers: 0.03,
                noise_db: 0.0,
                gain_db: 0.0,
            },
        }
    }
}

impl RssFitConfig {
    fn validate(&self) -> Result<()> {
        self.fit.validate()?;
        let settings = [
            ("weight_decay", self.weight_decay),
            ("drop_receivers", self.augmentation.drop_receivers),
            ("noise_db", self.augmentation.noise_db),
            ("gain_db", self.augmentation.gain_db),
        ];
        for (name, value) in settings {
            not_negative(name, Some(value))?;
        }
        Ok(())
    }

    fn schedule(&self, total_steps: usize) -> Result<WarmupCosine> {
        let warmup = self.warmup_steps.unwrap_or(total_steps / 20);
        WarmupCosine::new(self.lr, self.min_lr, warmup, total_steps)
    }
}

/// Trains a network on the training rows of a dataset, as [`fit`] does, and measures it on the validation rows.
///
/// # Errors
/// The errors of [`fit`]; [`Error::Shape`] for a network that was made for other receivers.
pub fn fit_rss(
    model: &RssLocalizationNet,
    dataset: &RssDataset,
    config: &RssFitConfig,
    callbacks: &mut [&mut dyn Callback],
) -> Result<FitReport> {
    config.validate()?;
    let train = Examples::new(dataset, &dataset.split.train, model)?;
    let val = Examples::new(dataset, &dataset.split.val, model)?;
    let mut train = RssBatches::new(
        &train,
        config.batch_size,
        config.fit.seed.unwrap_or_default(),
        config.augmentation,
    )?;
    let batches = train.per_epoch().unwrap_or_default();
    let steps_per_epoch = batches.div_ceil(config.fit.accumulate_grad_batches);
    let adamw = AdamWConfig {
        weight_decay: config.weight_decay,
        decays_vectors: false,
        ..AdamWConfig::default()
    };
    let metrics = || -> Metrics { vec![Box::new(LocalizationMetrics::new(model.scale()))] };
    fit(
        Training {
            learner: &mut Supervised::new(model, &loss, metrics),
            train: &mut train,
            val: Some(&mut val.batches(Order::Whole)?),
            optimizer: &mut AdamW::new(model.state().parameters(), adamw),
            schedule: &config.schedule(steps_per_epoch * config.fit.max_epochs)?,
            callbacks,
            hyper_parameters: hyper_parameters(model, config)?,
        },
        &config.fit,
    )
}

fn loss(outputs: &[Tensor], targets: &[Tensor]) -> Result<Tensor> {
    gaussian_nll(&outputs[0], &outputs[1], &targets[0])
}

fn hyper_parameters(
    model: &RssLocalizationNet,
    config: &RssFitConfig,
) -> Result<serde_json::Value> {
    let value = serde_json::to_value(config).and_then(|trainer| {
        let model = serde_json::to_value(model.config())?;
        Ok(json!({"model": model, "trainer": trainer}))
    });
    value.map_err(|error| Error::Foreign(Box::new(error)))
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

    fn short() -> RssFitConfig {
        RssFitConfig {
            fit: FitConfig {
                max_epochs: 3,
                ..FitConfig::default()
            },
            ..RssFitConfig::default()
        }
    }

    #[test]
    fn training_learns() {
        let dataset = powder("grid_test");
        let report = fit_rss(&network(&dataset), &dataset, &short(), &mut []).unwrap();
        let errors: Vec<_> = report
            .epochs
            .iter()
            .filter_map(|epoch| epoch.metric("val/position_error_mean"))
            .collect();
        assert_eq!(errors.len(), 3);
        assert!(errors[2] < 0.8 * errors[0], "{errors:?}");
    }

    #[test]
    fn settings_that_cannot_work_are_refused_before_the_first_step() {
        let dataset = powder("grid_test");
        let refused = |config: RssFitConfig| {
            fit_rss(&network(&dataset), &dataset, &config, &mut [])
                .unwrap_err()
                .to_string()
        };
        let of_loop = |fit: FitConfig| RssFitConfig { fit, ..short() };
        let loop_settings = [
            (
                "max_epochs=0 ",
                FitConfig {
                    max_epochs: 0,
                    ..short().fit
                },
            ),
            (
                "accumulate_grad_batches=0 ",
                FitConfig {
                    accumulate_grad_batches: 0,
                    ..short().fit
                },
            ),
            (
                "num_threads=0 ",
                FitConfig {
                    num_threads: 0,
                    ..short().fit
                },
            ),
        ];
        for (begins, fit) in loop_settings {
            assert!(refused(of_loop(fit)).starts_with(begins));
        }
        let settings = [
            (
                "batch_size=1 ",
                RssFitConfig {
                    batch_size: 1,
                    ..short()
                },
            ),
            (
                "lr=-1 ",
                RssFitConfig {
                    lr: -1.0,
                    ..short()
                },
            ),
            (
                "weight_decay=-1 ",
                RssFitConfig {
                    weight_decay: -1.0,
                    ..short()
                },
            ),
            (
                "warmup_steps=1000000 ",
                RssFitConfig {
                    warmup_steps: Some(1_000_000),
                    ..short()
                },
            ),
        ];
        for (begins, config) in settings {
            assert!(refused(config).starts_with(begins));
        }
    }
}
