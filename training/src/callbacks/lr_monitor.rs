//! Records the learning rate.

use super::{Callback, Epoch, Flow, Snapshot};
use crate::error::Result;

/// Logs the rate of the last step of each epoch as `lr-AdamW`, the name Lightning's callback gives it.
#[derive(Debug)]
pub struct LearningRateMonitor;

impl Callback for LearningRateMonitor {
    fn on_epoch_end(&mut self, epoch: &mut Epoch, _snapshot: &Snapshot<'_>) -> Result<Flow> {
        let lr = epoch.lr;
        epoch.log("lr-AdamW", lr);
        Ok(Flow::Continue)
    }
}
