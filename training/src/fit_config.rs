//! Settings of the training loop.

use serde::Serialize;

use crate::{
    batch::Augmentation,
    error::{Error, Result},
    schedule::WarmupCosine,
};

/// Settings of the loop.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FitConfig {
    /// Most epochs: passes over the training rows.
    pub max_epochs: usize,
    /// Rows in a batch.
    pub batch_size: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// Last learning rate of the cosine.
    pub min_lr: f64,
    /// Steps in which the learning rate rises; `None` means a twentieth of all steps.
    pub warmup_steps: Option<usize>,
    /// Weight decay; see [`AdamWConfig::weight_decay`](crate::optim::AdamWConfig::weight_decay).
    pub weight_decay: f64,
    /// Bound on the norm of the gradient of all parameters together; `None` means no bound.
    pub gradient_clip_val: Option<f64>,
    /// Random changes to training rows.
    #[serde(flatten)]
    pub augmentation: Augmentation,
    /// Seed of the order of rows, of dropout and of augmentation.
    pub seed: u64,
    /// Threads that share one operation. Operations of a network of this size are usually too short to be shared.
    pub num_threads: usize,
}

impl Default for FitConfig {
    fn default() -> Self {
        Self {
            max_epochs: 40,
            batch_size: 128,
            lr: 2e-3,
            min_lr: 0.0,
            warmup_steps: None,
            weight_decay: 0.01,
            gradient_clip_val: Some(1.0),
            augmentation: Augmentation {
                drop_receivers: 0.03,
                noise_db: 0.0,
                gain_db: 0.0,
            },
            seed: 0,
            num_threads: 1,
        }
    }
}

impl FitConfig {
    pub(crate) fn validate(&self) -> Result<()> {
        if self.max_epochs == 0 {
            return Err(Error::configuration(
                "max_epochs",
                0,
                "training needs at least 1 epoch",
            ));
        }
        if !(1..=1024).contains(&self.num_threads) {
            return Err(Error::configuration(
                "num_threads",
                self.num_threads,
                "it must be a number from 1 to 1024",
            ));
        }
        let not_negative = [
            ("weight_decay", Some(self.weight_decay)),
            ("gradient_clip_val", self.gradient_clip_val),
            ("drop_receivers", Some(self.augmentation.drop_receivers)),
            ("noise_db", Some(self.augmentation.noise_db)),
            ("gain_db", Some(self.augmentation.gain_db)),
        ];
        for (name, value) in not_negative {
            if let Some(value) = value.filter(|value| !(*value >= 0.0 && value.is_finite())) {
                return Err(Error::configuration(
                    name,
                    value,
                    "it must be a number from 0 on",
                ));
            }
        }
        Ok(())
    }

    pub(crate) fn schedule(&self, total_steps: usize) -> Result<WarmupCosine> {
        let warmup = self.warmup_steps.unwrap_or(total_steps / 20);
        WarmupCosine::new(self.lr, self.min_lr, warmup, total_steps)
    }
}
