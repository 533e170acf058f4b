//! The training loop of heimdall-tracking, which calls libtorch from Rust.
//!
//! Read a [`dataset`], make a [`model`], [`fit`](fit::fit) it and [`evaluate`](evaluate::evaluate) the best checkpoint.
//! The loop performs the step — batch, forward, [`loss`], backward, [`optim`]iser, [`schedule`] — and reports it to the
//! [`callbacks`]; tracking, checkpoints, early stopping and the progress bar are callbacks.
//!
//! ```text
//! dataset/ → batch → model/ → loss → optim ← schedule
//!                       │        fit (the loop)
//!                       └→ evaluate, baselines        → callbacks/ → the world outside
//! ```
//!
//! Nothing here uses Python except the `python` module, which the feature of that name adds.

pub mod baselines;
pub mod batch;
pub mod callbacks;
pub mod dataset;
pub mod error;
pub mod evaluate;
pub mod fit;
pub mod fit_config;
pub mod geo;
pub mod loss;
pub mod metrics;
pub mod model;
pub mod optim;
mod rng;
pub mod schedule;

#[cfg(feature = "python")]
mod python;

pub use error::{Error, Result};
