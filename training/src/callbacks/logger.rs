//! Logs the metrics of each epoch to the tracker.

use super::{Callback, Epoch, Flow, Snapshot};
use crate::error::Result;

/// Receiver of metrics.
pub trait Logger {
    /// Records metrics of one moment.
    fn log_metrics(&mut self, metrics: &[(String, f64)], step: usize) -> Result<()>;
}

/// Logs the metrics that an epoch has so far, with the number of optimiser steps done as the step, and the number of
/// the epoch as `epoch`, like Lightning's loggers. Place it after the callbacks whose metrics it must include.
#[derive(Debug)]
pub struct MetricsLogger<L>(pub L);

impl<L: Logger> Callback for MetricsLogger<L> {
    fn on_epoch_end(&mut self, epoch: &mut Epoch, _snapshot: &Snapshot<'_>) -> Result<Flow> {
        epoch.log("epoch", epoch.index as f64);
        self.0.log_metrics(&epoch.metrics, epoch.step)?;
        Ok(Flow::Continue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::callbacks::tests::run;

    impl Logger for Vec<(usize, Vec<(String, f64)>)> {
        fn log_metrics(&mut self, metrics: &[(String, f64)], step: usize) -> Result<()> {
            self.push((step, metrics.to_vec()));
            Ok(())
        }
    }

    #[test]
    fn every_epoch_is_logged_under_its_step() {
        let mut logger = MetricsLogger(Vec::new());
        run(&mut logger, &[0.5, 0.25]);
        let expected =
            |loss, epoch| vec![("val/loss".to_owned(), loss), ("epoch".to_owned(), epoch)];
        assert_eq!(
            logger.0,
            [(10, expected(0.5, 0.0)), (20, expected(0.25, 1.0))]
        );
    }
}
