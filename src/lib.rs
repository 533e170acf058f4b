//! The tracker of heimdall-tracking.
//!
//! A call on [`Tracker`] is validated, appended to the [`journal`] on local disk and returns. Behind the
//! journal a [`delivery`] worker for each destination writes the records into a [`store`] (an MLflow database or
//! server) and the files into an [`artifacts`] store, and moves its position only after they have committed. A process that dies
//! leaves its journal; the next one delivers it. Questions (`get_run_info`, `get_best_run`) and the model
//! [registry](store::registry) go to the store directly, after everything recorded before them has arrived.
//!
//! ```text
//! call → record (validate) → journal (append) ┆ delivery worker → store / artifacts → position moved
//! ```
//!
//! Beside an active run, where they are asked for, [`system_metrics`] are sampled and its [`environment`] is
//! found, each by a thread that ends with the run.
//!
//! What nobody needs any more is found and deleted by the [`gc`].
//!
//! Everything here is free of Python but the `python` module, which the feature of that name adds.

pub mod artifacts;
pub mod config;
pub mod delivery;
pub mod environment;
pub mod error;
pub mod gc;
pub mod journal;
pub mod mlflow;
pub mod net;
pub mod os;
pub mod store;
pub mod system_metrics;
pub mod tracker;

#[cfg(feature = "python")]
mod python;

pub use crate::config::tracker::TrackerConfig;
pub use crate::error::{Error, Result};
pub use crate::mlflow::run::{RunId, RunInfo, RunStatus};
pub use crate::tracker::open::Tracker;
