//! The training loop of heimdall-tracking, which calls libtorch from Rust.
//!
//! [`fit`](fit::fit) puts together a [`learner`] (a network with a loss and metrics), [`batches`], an [`optim`]iser, a
//! [`schedule`] and [`callbacks`]. It performs the step — batch, forward, loss, backward, optimiser — and reports it to
//! the callbacks; tracking, checkpoints, early stopping and the progress bar are callbacks. [`rss_fit`] trains the
//! network for received powers this way.
//!
//! ```text
//! batches ──→ learner (network, loss, metrics) ──→ optim ← schedule
//!                        fit (the loop)
//!                              └→ callbacks/ ──→ the world outside
//! ```
//!
//! Nothing here uses Python except the `python` module, which the feature of that name adds.

pub mod baselines;
pub mod batches;
pub mod cache;
pub mod callbacks;
pub mod dataset;
pub mod error;
pub mod evaluate;
pub mod features;
pub mod fit;
pub mod fit_config;
pub mod geo;
pub mod interrupts;
pub mod learner;
pub mod loss;
pub mod metrics;
pub mod model;
pub mod optim;
pub mod recordings;
mod rng;
pub mod rss_batches;
pub mod rss_fit;
pub mod schedule;

#[cfg(feature = "python")]
mod python;

pub use error::{Error, Result};
