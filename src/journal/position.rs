//! Positions in a journal, and the progress of a destination.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    record::{Entry, Record},
    segment,
};

/// A place between two frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Position {
    /// Number of the segment.
    pub segment: u64,
    /// Byte in the segment.
    pub offset: u64,
}

impl Position {
    /// The place before every frame.
    pub(crate) const START: Self = Self {
        segment: 1,
        offset: segment::HEADER_LEN,
    };
}

/// Progress of the delivery to one destination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Position before which the destination has committed everything.
    pub position: Position,
    /// Number of the first entry that the destination has not committed.
    pub next: u64,
    /// Runs that had started and not ended at the position, with the time of their last record (ms since the epoch).
    pub open_runs: BTreeMap<String, i64>,
}

impl Progress {
    /// The progress of a destination to which nothing is delivered.
    pub(crate) const START: Self = Self {
        position: Position::START,
        next: 0,
        open_runs: BTreeMap::new(),
    };

    /// Updates the open runs by an entry.
    pub(crate) fn observe(&mut self, entry: &Entry) {
        let run = entry.record.run().to_string();
        match &entry.record {
            Record::RunStarted(_) | Record::RunResumed { .. } | Record::RunCreating { .. } => {
                self.open_runs.insert(run, entry.at);
            }
            Record::RunEnded { .. } | Record::RunNamed { .. } => {
                self.open_runs.remove(&run);
            }
            _ => {
                if let Some(last) = self.open_runs.get_mut(&run) {
                    *last = entry.at.max(*last);
                }
            }
        }
    }
}
