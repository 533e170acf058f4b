//! The optional observers of an active run: of the machine, and of the run's environment.

use std::time::Duration;

use crate::{
    environment::capture::{self, Capture},
    system_metrics::sampler::Sampler,
};

/// The observers of one run, which end before the run's end is recorded.
#[derive(Debug, Default)]
pub(crate) struct Observers {
    pub(super) sampler: Option<Sampler>,
    pub(super) capture: Option<Capture>,
}

impl Observers {
    /// Ends the observers. Waits for the environment of the run, for at most `timeout`.
    pub(crate) fn end(self, timeout: Duration) {
        drop(self.sampler);
        if let Some(capture) = self.capture {
            capture.finish(timeout.min(capture::CAPTURE_TIMEOUT));
        }
    }
}
