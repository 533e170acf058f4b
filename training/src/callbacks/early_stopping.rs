//! Ends a training that no longer improves.

use super::{Callback, Epoch, Flow, MONITOR, Snapshot};
use crate::error::{Error, Result};

/// Stops after `patience` epochs in a row without a better validation loss.
#[derive(Debug)]
pub struct EarlyStopping {
    patience: usize,
    best: f64,
    waited: usize,
}

impl EarlyStopping {
    /// Makes a callback with the given patience in epochs.
    pub fn new(patience: usize) -> Result<Self> {
        if patience == 0 {
            let reason = "it must be a number of epochs from 1; None never stops";
            return Err(Error::configuration("patience", patience, reason));
        }
        Ok(Self {
            patience,
            best: f64::INFINITY,
            waited: 0,
        })
    }
}

impl Callback for EarlyStopping {
    fn on_epoch_end(&mut self, epoch: &mut Epoch, _snapshot: &Snapshot<'_>) -> Result<Flow> {
        let value = epoch.metric(MONITOR).unwrap_or(f64::NAN);
        if value < self.best {
            (self.best, self.waited) = (value, 0);
            return Ok(Flow::Continue);
        }
        self.waited += 1;
        if self.waited < self.patience {
            return Ok(Flow::Continue);
        }
        Ok(Flow::Stop(format!(
            "{MONITOR} has not improved on {:.4} for {} epochs",
            self.best, self.patience
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::callbacks::tests::run;

    #[test]
    fn it_waits_as_long_as_it_was_told_and_starts_anew_with_each_improvement() {
        assert_eq!(
            run(
                &mut EarlyStopping::new(2).unwrap(),
                &[3.0, 4.0, 2.0, 2.0, 2.5, 1.0]
            ),
            Some(4)
        );
    }

    #[test]
    fn it_lets_a_training_that_improves_run_to_the_end() {
        assert_eq!(
            run(
                &mut EarlyStopping::new(1).unwrap(),
                &[3.0, 2.0, 1.0, 0.0, -1.0]
            ),
            None
        );
    }
}
