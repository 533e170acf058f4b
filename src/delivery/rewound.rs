//! Points of a dead process that a rewind has deleted.
//!
//! The entries of a journal are delivered again if their position was not saved, for example because an upload before
//! them could not finish. If the run was rewound in between, their points must not come back.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use super::{attempts::DeadlineReached, sender::Sender};
use crate::{
    journal::{
        layout,
        reader::{self, Placed, ReadBatch},
        record::Record,
    },
    mlflow::{
        rewind::{AppliedRewinds, Rewind},
        run::RunId,
    },
};

/// The rewinds that concern the journal of a dead process.
#[derive(Debug)]
pub(crate) struct Rewound {
    journal: PathBuf,
    destination: usize,
    /// File with the reason why the destination accepts nothing.
    outage_file: PathBuf,
    /// Rewinds that the store had applied to each run before this delivery.
    applied: HashMap<RunId, AppliedRewinds>,
    /// Content of the journal, once a run with rewinds was found.
    content: Option<JournalContent>,
}

/// The parts of a journal that decide which of its points come before a rewind.
#[derive(Debug, Default)]
struct JournalContent {
    /// Numbers of the entries that are rewinds, by the ids of the rewinds.
    rewinds: HashMap<u64, u64>,
    /// Time of the last entry.
    last: i64,
}

impl JournalContent {
    fn see(&mut self, batch: &ReadBatch) {
        for placed in &batch.entries {
            self.last = self.last.max(placed.entry.at);
            if let Record::RunRewound { rewind, .. } = &placed.entry.record {
                self.rewinds.insert(rewind.id, placed.number);
            }
        }
    }

    /// Returns true where an entry was recorded before a rewind. A rewind of another process comes after the whole
    /// journal or not at all: the clocks of two machines decide nothing more.
    fn is_before(&self, number: u64, rewind: &Rewind) -> bool {
        match self.rewinds.get(&rewind.id) {
            Some(own) => number < *own,
            None => self.last < rewind.at,
        }
    }
}

impl Rewound {
    /// Returns the rewinds that concern the journal in a folder, for one of its destinations.
    pub(crate) fn new(journal: PathBuf, destination: usize) -> Self {
        Self {
            outage_file: layout::outage_path(&journal, destination),
            journal,
            destination,
            applied: HashMap::new(),
            content: None,
        }
    }

    /// Returns the content of the journal. Reads it the first time; waits on the disk.
    async fn content(&mut self) -> &JournalContent {
        let content = match self.content.take() {
            Some(content) => content,
            None => {
                let (journal, destination) = (self.journal.clone(), self.destination);
                let read = move || {
                    let mut content = JournalContent::default();
                    // The delivery tells about parts that cannot be read.
                    let _ = reader::peek(&journal, destination, |batch| content.see(batch));
                    content
                };
                let read = tokio::task::spawn_blocking(read).await;
                read.unwrap_or_default()
            }
        };
        self.content.insert(content)
    }
}

impl Sender {
    /// Takes from entries of a dead process the points that a rewind has deleted at the destination.
    pub(crate) async fn take_rewound_points(
        &self,
        rewound: &mut Rewound,
        entries: &mut [Placed],
    ) -> Result<(), DeadlineReached> {
        for placed in entries {
            let Record::Metrics {
                run, step, values, ..
            } = &mut placed.entry.record
            else {
                continue;
            };
            if !rewound.applied.contains_key(run) {
                let applied = self.applied_rewinds(*run, &rewound.outage_file).await?;
                rewound.applied.insert(*run, applied);
            }
            let applied = rewound.applied[run].clone();
            if applied.is_empty() {
                continue;
            }
            let content = rewound.content().await;
            for rewind in applied.iter() {
                if content.is_before(placed.number, rewind) {
                    values.retain(|(key, _)| !rewind.covers(key.as_str(), *step));
                }
            }
        }
        Ok(())
    }

    async fn applied_rewinds(
        &self,
        run: RunId,
        outage_file: &Path,
    ) -> Result<AppliedRewinds, DeadlineReached> {
        let run_id = run.to_string();
        let ask = || async {
            let store = self.store.tracking().await?;
            Ok(store.applied_rewinds(&run_id).await?)
        };
        let applied = self.attempts.make(Some(outage_file), ask).await?;
        Ok(applied.unwrap_or_default())
    }

    /// Tells the user, once, that a server keeps the points that a rewind should delete.
    pub(crate) fn tell_kept_points(&self, records: &[&Record]) {
        let rewind = records.iter().find_map(|record| match record {
            Record::RunRewound { run, rewind } => Some((run, rewind.step)),
            _ => None,
        });
        if let Some((run, step)) = rewind
            && self.destination.tell_kept_points()
        {
            self.notices.tell(format!(
                "{} keeps the points of run {run} from step {step} on: an MLflow server has no request that deletes \
                 points, so what is recorded from here on is there beside them",
                self.destination.uri
            ));
        }
    }
}
