//! Callbacks: the loop reports to each callback, and a callback may end the training.
//!
//! Callbacks run in the given order; the next ones see the metrics that one logs into the [`Epoch`].

pub mod checkpoint;
pub mod early_stopping;
pub mod logger;
pub mod lr_monitor;
pub mod progress;

pub use checkpoint::{Checkpoint, CheckpointStore, ModelCheckpoint};
pub use early_stopping::EarlyStopping;
pub use logger::{Logger, MetricsLogger};
pub use lr_monitor::LearningRateMonitor;
pub use progress::{Printer, Progress};

use serde_json::Value;

use crate::{error::Result, learner::StateDict, optim::Optimizer};

/// The metric that decides which checkpoint is best and when to stop; lower is better.
pub const MONITOR: &str = "val/loss";

/// Longest possible training.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Most epochs.
    pub epochs: usize,
    /// Batches in each epoch; `None` where that is not known before.
    pub batches_per_epoch: Option<usize>,
}

/// Results of an epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct Epoch {
    /// Number of the epoch, from 0.
    pub index: usize,
    /// Optimiser steps done since the training began.
    pub step: usize,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Logged metrics, in order.
    pub metrics: Vec<(String, f64)>,
}

impl Epoch {
    /// Returns an epoch without metrics.
    pub fn new(index: usize, step: usize, lr: f64) -> Self {
        Self {
            index,
            step,
            lr,
            metrics: Vec::new(),
        }
    }

    /// Logs one metric.
    pub fn log(&mut self, name: impl Into<String>, value: f64) {
        self.metrics.push((name.into(), value));
    }

    /// Returns the value of a metric, if it was logged.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metrics
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| *value)
    }
}

/// The state of the training, for callbacks to read.
#[derive(Clone, Copy)]
pub struct Snapshot<'a> {
    /// The network.
    pub network: &'a dyn StateDict,
    /// The optimiser of the network.
    pub optimizer: &'a dyn Optimizer,
    /// The settings that checkpoints keep.
    pub hyper_parameters: &'a Value,
}

/// End of a batch of the training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchEnd {
    /// Number of the epoch, from 0.
    pub epoch: usize,
    /// Batches of this epoch that are done.
    pub batches: usize,
    /// Optimiser steps done since the training began.
    pub step: usize,
    /// True where the optimiser has moved the parameters after this batch, and no gradient waits.
    pub has_stepped: bool,
    /// Norm of the whole gradient before clipping, where it was measured.
    pub grad_norm: Option<f64>,
}

/// Decision to continue or to end the loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flow {
    /// The loop continues.
    Continue,
    /// The loop ends after this epoch, for this reason.
    Stop(String),
}

/// Actions that the loop calls between its own steps. An error ends the training.
pub trait Callback {
    /// Runs before the first step.
    fn on_fit_start(&mut self, _plan: &Plan) -> Result<()> {
        Ok(())
    }

    /// Runs when the gradients of a step are complete, before they are clipped.
    fn on_before_optimizer_step(&mut self) -> Result<()> {
        Ok(())
    }

    /// Runs after each batch.
    fn on_train_batch_end(&mut self, _batch: &BatchEnd, _snapshot: &Snapshot<'_>) -> Result<()> {
        Ok(())
    }

    /// Runs after a validation inside of an epoch. The epoch is that far.
    fn on_validation_end(&mut self, _epoch: &mut Epoch, _snapshot: &Snapshot<'_>) -> Result<Flow> {
        Ok(Flow::Continue)
    }

    /// Runs after each epoch and its validation.
    fn on_epoch_end(&mut self, _epoch: &mut Epoch, _snapshot: &Snapshot<'_>) -> Result<Flow> {
        Ok(Flow::Continue)
    }

    /// Runs after the last epoch.
    fn on_fit_end(&mut self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        model::rss_net::tests::small,
        optim::{AdamW, AdamWConfig},
    };

    /// Ends epochs with these validation losses, one after the other, and returns the epoch after which the callback
    /// stops.
    pub(crate) fn run(callback: &mut dyn Callback, losses: &[f64]) -> Option<usize> {
        let model = small(0);
        let optimizer = AdamW::new(model.state().parameters(), AdamWConfig::default());
        let snapshot = Snapshot {
            network: &model,
            optimizer: &optimizer,
            hyper_parameters: &Value::Null,
        };
        callback
            .on_fit_start(&Plan {
                epochs: losses.len(),
                batches_per_epoch: Some(10),
            })
            .unwrap();
        for (index, &loss) in losses.iter().enumerate() {
            let mut epoch = Epoch::new(index, 10 * (index + 1), 1e-3);
            epoch.log(MONITOR, loss);
            if callback.on_epoch_end(&mut epoch, &snapshot).unwrap() != Flow::Continue {
                return Some(index);
            }
        }
        None
    }
}
