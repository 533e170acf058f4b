//! Settings of the training loop.

use serde::Serialize;

use crate::error::{Error, Result};

/// Settings of the loop.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FitConfig {
    /// Most epochs: passes over the training rows.
    pub max_epochs: usize,
    /// Batches whose gradients are averaged for one step.
    pub accumulate_grad_batches: usize,
    /// Bound on the norm of the gradient of all parameters together; `None` means no bound.
    pub gradient_clip_val: Option<f64>,
    /// Seed of dropout and of augmentation; `None` leaves libtorch's generator as it is.
    pub seed: Option<u64>,
    /// Threads that share one operation.
    pub num_threads: usize,
    /// Batches of an epoch after each of which the network is validated; `None` validates at the end of each epoch.
    #[serde(skip)]
    pub val_check_interval: Option<usize>,
    /// Steps from one measured norm of the gradient to the next; 0 measures none but those that clipping needs.
    #[serde(skip)]
    pub grad_norm_every: usize,
    /// Place from which an earlier training goes on.
    #[serde(skip)]
    pub first: Position,
}

/// A place in a training.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Position {
    /// Epochs that are done.
    pub epoch: usize,
    /// Optimiser steps that are done.
    pub step: usize,
    /// Batches of the next epoch that are done; the source leaves them out.
    pub batch: usize,
}

impl Default for FitConfig {
    fn default() -> Self {
        Self {
            max_epochs: 40,
            accumulate_grad_batches: 1,
            gradient_clip_val: Some(1.0),
            seed: Some(0),
            num_threads: 1,
            val_check_interval: None,
            grad_norm_every: 0,
            first: Position::default(),
        }
    }
}

impl FitConfig {
    pub(crate) fn validate(&self) -> Result<()> {
        let at_least_one = [
            ("max_epochs", self.max_epochs),
            ("accumulate_grad_batches", self.accumulate_grad_batches),
        ];
        for (name, value) in at_least_one {
            if value == 0 {
                return Err(Error::configuration(name, 0, "it must be at least 1"));
            }
        }
        if self.val_check_interval == Some(0) {
            return Err(Error::configuration(
                "val_check_interval",
                0,
                "it must be at least 1",
            ));
        }
        if !(1..=1024).contains(&self.num_threads) {
            return Err(Error::configuration(
                "num_threads",
                self.num_threads,
                "it must be a number from 1 to 1024",
            ));
        }
        not_negative("gradient_clip_val", self.gradient_clip_val)
    }
}

/// Checks a setting that must be a finite number from 0 on, where it is set.
pub(crate) fn not_negative(name: &'static str, value: Option<f64>) -> Result<()> {
    match value.filter(|value| !(*value >= 0.0 && value.is_finite())) {
        Some(value) => Err(Error::configuration(
            name,
            value,
            "it must be a number from 0 on",
        )),
        None => Ok(()),
    }
}
