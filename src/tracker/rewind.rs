//! Rewinds of resumed runs.

use super::{call::Caller, lock::lock, open::Tracker};
use crate::{
    journal::record::Record,
    mlflow::{
        rewind::Rewind,
        run::{NewRun, RunId},
    },
    os::clock::now_ms,
};

impl Tracker {
    /// Returns the record for the rewind that a resumption asks for; none on a rank that only records into the run of
    /// rank 0, because rank 0 rewinds that run.
    pub(super) fn rewind_of(&self, run: RunId, resumption: &NewRun) -> Option<Record> {
        let step = resumption.from_step?;
        let rewind = Rewind {
            id: rand::random(),
            step,
            at: now_ms(),
        };
        let attaches = self.stores.config.options.attaches();
        (!attaches).then_some(Record::RunRewound { run, rewind })
    }

    /// Returns true where the run is the active run of the caller.
    pub(super) fn is_active_run_of(&self, caller: &Caller, run: RunId) -> bool {
        lock(&self.recorder().active).of(caller) == Some(run)
    }
}
