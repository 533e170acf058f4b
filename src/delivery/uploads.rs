//! The order in which the entries of one journal go to one destination: a state machine without I/O.
//!
//! Records are written in the order of the journal, with one transaction for each sequence without artifacts. Uploads
//! run in parallel with the records after them. The saved position passes an upload only once the upload has finished:
//! if the process dies before, the entries behind it are written again, which changes nothing. A run is marked ended
//! once all of its earlier uploads have finished. Records that the run logs after its end wait as well; other runs do
//! not wait.
//!
//! The sender passes in [`Event`]s and performs the [`Action`]s that [`Uploads::next`] returns.

use std::collections::{BTreeMap, HashSet, VecDeque};

use crate::{
    journal::{reader::Placed, record::Record},
    mlflow::{artifact_path::ArtifactPath, run::RunId},
};

/// Most uploads at a time.
const MAX_UPLOADS: usize = 16;
/// Most bytes that the uploads hold in memory at a time.
const MAX_MEMORY: u64 = 40 << 20;
/// Bytes that a long upload holds in memory: the parts that are being sent.
const MEMORY_OF_ONE: u64 = 32 << 20;
/// Most bytes of entries that wait for an earlier upload. A dead process leaves at most this many bytes to be written
/// again.
const MAX_UNSAVED: usize = 16 << 20;

/// An event that changes the possible actions.
#[derive(Debug)]
pub(crate) enum Event {
    /// Entries were read from the journal, in its order.
    Read(Vec<Placed>),
    /// The records of the last [`Action::Write`] are written or parked.
    Written,
    /// The upload of the entry of this number has finished, or its file is parked.
    Finished(u64),
}

/// The next action of the sender.
#[derive(Debug, PartialEq)]
pub(crate) enum Action<'a> {
    /// Write these records in one transaction, then pass in [`Event::Written`].
    Write(&'a [Placed]),
    /// Start the upload of this artifact; pass in [`Event::Finished`] once it has finished.
    Upload(Placed),
    /// Save the position behind these entries: they and all earlier entries are delivered.
    Save(Vec<Placed>),
    /// Wait until an upload has finished, because nothing else can be done.
    WaitForUpload,
    /// Read more entries. Uploads may still be running.
    Read,
}

/// Entries of a journal that are not delivered yet, or whose position is not saved yet.
#[derive(Debug)]
pub(crate) struct Uploads {
    /// Function that returns the length of an artifact in bytes.
    size: fn(&Record) -> u64,
    /// All entries that were passed in and whose position is not saved.
    unsaved: VecDeque<Placed>,
    unsaved_bytes: usize,
    /// Number of the first entry that no action has handled yet.
    unread: u64,
    /// Number of the first entry of the group that is being written.
    writing: Option<u64>,
    /// Artifacts that wait for room, or for an earlier upload to the same path.
    queue: VecDeque<u64>,
    running: BTreeMap<u64, Running>,
    /// Ends of runs that wait for earlier uploads.
    ends: VecDeque<u64>,
}

/// A running upload.
#[derive(Debug)]
struct Running {
    run: RunId,
    path: Option<ArtifactPath>,
    memory: u64,
}

impl Uploads {
    /// Returns a machine without entries; `size` returns the length of an artifact in bytes.
    pub(crate) fn new(size: fn(&Record) -> u64) -> Self {
        Self {
            size,
            unsaved: VecDeque::new(),
            unsaved_bytes: 0,
            unread: 0,
            writing: None,
            queue: VecDeque::new(),
            running: BTreeMap::new(),
            ends: VecDeque::new(),
        }
    }

    /// Handles an event.
    pub(crate) fn handle(&mut self, event: Event) {
        match event {
            Event::Read(entries) => {
                if self.all_taken_up()
                    && let Some(first) = entries.first()
                {
                    self.unread = first.number;
                }
                self.unsaved_bytes += entries.iter().map(held).sum::<usize>();
                self.unsaved.extend(entries);
            }
            Event::Written => self.writing = None,
            Event::Finished(number) => {
                self.running.remove(&number);
            }
        }
    }

    /// Returns the next action.
    pub(crate) fn next(&mut self) -> Action<'_> {
        debug_assert!(self.writing.is_none(), "the last write is done");
        if let Some(end) = self.next_end() {
            self.writing = Some(end);
            let at = self.index(end);
            return Action::Write(&self.unsaved.make_contiguous()[at..=at]);
        }
        loop {
            if let Some(upload) = self.next_upload() {
                return Action::Upload(upload);
            }
            match self.next_group() {
                Group::Records(from, to) => {
                    return Action::Write(&self.unsaved.make_contiguous()[from..to]);
                }
                Group::Waiting => {}
                Group::Blocked | Group::None => break,
            }
        }
        let delivered = self.delivered();
        if delivered > 0 {
            let entries: Vec<_> = self.unsaved.drain(..delivered).collect();
            self.unsaved_bytes -= entries.iter().map(held).sum::<usize>();
            return Action::Save(entries);
        }
        if self.all_taken_up() {
            Action::Read
        } else {
            Action::WaitForUpload
        }
    }

    /// Returns true while uploads run or wait, or ends of runs wait for them.
    pub(crate) fn are_outstanding(&self) -> bool {
        !self.running.is_empty() || !self.queue.is_empty() || !self.ends.is_empty()
    }

    /// Returns the number of the first entry that is neither written nor being uploaded.
    pub(crate) fn first_unwritten(&self) -> Option<u64> {
        let unread = (!self.all_taken_up()).then_some(self.unread);
        [self.ends.front().copied(), self.writing, unread]
            .into_iter()
            .flatten()
            .min()
    }

    fn all_taken_up(&self) -> bool {
        let last = self.unsaved.back();
        last.is_none_or(|last| last.number < self.unread)
    }

    /// Returns the index of the first entry with at least this number.
    fn index(&self, number: u64) -> usize {
        self.unsaved.partition_point(|it| it.number < number)
    }

    fn record(&self, number: u64) -> Option<&Record> {
        let placed = self.unsaved.get(self.index(number))?;
        (placed.number == number).then_some(&placed.entry.record)
    }

    /// Takes the first end of a run whose earlier uploads have all finished.
    fn next_end(&mut self) -> Option<u64> {
        let is_free = |end: &u64| {
            let run = self.record(*end).map(Record::run);
            run.is_none_or(|run| !self.has_uploads(run, *end))
        };
        let at = self.ends.iter().position(is_free)?;
        self.ends.remove(at)
    }

    /// Returns true where uploads of a run are outstanding before an entry.
    fn has_uploads(&self, run: RunId, before: u64) -> bool {
        let mut queued = self.queue.iter().take_while(|number| **number < before);
        let mut running = self.running.range(..before);
        running.any(|(_, upload)| upload.run == run)
            || queued.any(|number| self.record(*number).is_some_and(|it| it.run() == run))
    }

    /// Takes the first artifact that there is room for.
    fn next_upload(&mut self) -> Option<Placed> {
        if self.running.len() >= MAX_UPLOADS || self.queue.is_empty() {
            return None;
        }
        // The later of two uploads to the same path must also arrive later.
        let running = self.running.values();
        let mut taken: HashSet<_> = running.map(|it| (it.run, it.path.as_ref())).collect();
        let mut paths = self.queue.iter().map(|number| {
            let record = self.record(*number)?;
            Some((record.run(), record.artifact_path()))
        });
        let at = paths.position(|path| path.is_none_or(|path| taken.insert(path)))?;
        let number = self.queue[at];
        let placed = self.unsaved.get(self.index(number))?.clone();
        let record = &placed.entry.record;
        let memory = (self.size)(record).min(MEMORY_OF_ONE);
        let held: u64 = self.running.values().map(|it| it.memory).sum();
        if !self.running.is_empty() && held + memory > MAX_MEMORY {
            return None;
        }
        let running = Running {
            run: record.run(),
            path: record.artifact_path().cloned(),
            memory,
        };
        self.running.insert(number, running);
        self.queue.remove(at);
        Some(placed)
    }

    /// Handles the next entries: queues an artifact, lets the end of a run wait, or returns records to write.
    fn next_group(&mut self) -> Group {
        let from = self.index(self.unread);
        let Some(first) = self.unsaved.get(from) else {
            return Group::None;
        };
        let is_full = self.are_outstanding() && self.unsaved_bytes >= MAX_UNSAVED;
        let record = &first.entry.record;
        if is_full || self.is_ending(record.run()) {
            return Group::Blocked;
        }
        let number = first.number;
        let waits = match record {
            Record::RunEnded { run, .. } => self.has_uploads(*run, number),
            record => record.is_artifact(),
        };
        if waits {
            let is_artifact = record.is_artifact();
            self.unread = number + 1;
            let queue = if is_artifact {
                &mut self.queue
            } else {
                &mut self.ends
            };
            queue.push_back(number);
            return Group::Waiting;
        }
        let goes_along = |placed: &&Placed| {
            let record = &placed.entry.record;
            !record.is_artifact()
                && !matches!(record, Record::RunEnded { .. })
                && !self.is_ending(record.run())
        };
        let others = self.unsaved.range(from + 1..).take_while(goes_along);
        let to = from + 1 + others.count();
        self.writing = Some(number);
        self.unread = self.unsaved[to - 1].number + 1;
        Group::Records(from, to)
    }

    /// Returns true where the end of a run waits for its uploads.
    fn is_ending(&self, run: RunId) -> bool {
        let mut ends = self.ends.iter();
        ends.any(|number| self.record(*number).is_some_and(|it| it.run() == run))
    }

    /// Returns the number of entries before the first outstanding entry.
    fn delivered(&self) -> usize {
        let outstanding = [
            self.running.keys().next().copied(),
            self.queue.front().copied(),
            self.ends.front().copied(),
            self.writing,
            Some(self.unread),
        ];
        let first = outstanding.into_iter().flatten().min();
        first.map_or(0, |first| self.index(first))
    }
}

/// The next entries of a journal.
enum Group {
    /// Records to write, from one index to another.
    Records(usize, usize),
    /// An entry that waits.
    Waiting,
    /// Entries that must wait for an upload.
    Blocked,
    None,
}

/// Returns the approximate number of bytes that an entry occupies.
fn held(placed: &Placed) -> usize {
    let content = match &placed.entry.record {
        Record::ArtifactInline { content, .. } => content.len(),
        _ => 0,
    };
    size_of::<Placed>() + content
}
