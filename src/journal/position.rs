//! Positions in a journal, and the progress of a destination.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    record::{Entry, Record},
    segment,
};

/// A place between two frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// Number of the segment.
    pub segment: u64,
    /// Byte in the segment.
    pub offset: u64,
}

impl Position {
    /// The place before every frame.
    pub const START: Self = Self {
        segment: 1,
        offset: segment::HEADER_LEN,
    };
    /// A place behind every frame.
    pub const END: Self = Self {
        segment: u64::MAX,
        offset: u64::MAX,
    };
}

/// How far a journal is delivered to one destination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Everything before it has been committed by the destination.
    pub position: Position,
    /// Number of the first entry that has not.
    pub next: u64,
    /// Runs that had started and not ended there, with the time of their last record (ms since 1970).
    pub open_runs: BTreeMap<String, i64>,
}

impl Progress {
    /// Nothing delivered.
    pub const START: Self = Self {
        position: Position::START,
        next: 0,
        open_runs: BTreeMap::new(),
    };

    /// Notes what an entry says about open runs.
    pub fn observe(&mut self, entry: &Entry) {
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
