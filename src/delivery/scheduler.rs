//! The order in which the entries of one journal go to one destination: a state machine without I/O.
//!
//! Records are written in the order of the journal, with one transaction for each sequence without artifacts. Uploads
//! run in parallel with the records after them. The saved position passes an upload only once the upload has finished:
//! if the process dies before, the entries behind it are written again, which changes nothing. A run is marked ended
//! once all of its earlier uploads have finished. Records that the run logs after its end wait as well; other runs do
//! not wait.
//!
//! A deletion of files is handled like an upload, and waits for earlier uploads below its path; those that have not begun
//! are left out. Later uploads below its path wait until its position is saved: a deletion that is repeated after the
//! death of the process cannot delete them.
//!
//! The sender passes in [`Event`]s and performs the [`Action`]s that [`Scheduler::next`] returns.

use std::collections::{BTreeMap, VecDeque};

use super::targets::{TakenTargets, Target};
use crate::{
    journal::{reader::Placed, record::Record},
    mlflow::run::RunId,
};

/// Most uploads at a time.
const MAX_UPLOADS: usize = 16;
/// Most bytes that the uploads hold in memory at a time.
const MAX_MEMORY: u64 = 40 << 20;
/// Bytes that a long upload holds in memory: the parts that are being sent.
const MAX_MEMORY_OF_ONE: u64 = 32 << 20;
/// Most bytes of entries that wait for an earlier upload. A dead process leaves at most this many bytes to be written
/// again.
const MAX_UNSAVED_BYTES: usize = 16 << 20;

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
    /// Start the upload of this artifact, or this deletion; pass in [`Event::Finished`] once it has finished.
    Upload(Placed),
    /// Save the position behind these entries: they and all earlier entries are delivered.
    Save(Vec<Placed>),
    /// Wait until an upload has finished, because nothing else can be done.
    WaitForUpload,
    /// Read more entries. Uploads may still be running.
    Read,
}

/// Decides the next action from the entries of one journal that are not delivered, or whose position is not saved.
#[derive(Debug)]
pub(crate) struct Scheduler {
    /// Function that returns the length of an artifact in bytes.
    size: fn(&Record) -> u64,
    /// All entries that were passed in and whose position is not saved.
    unsaved: VecDeque<Placed>,
    unsaved_bytes: usize,
    /// Number of the first entry that is neither written, nor being written, nor in a queue.
    unhandled: u64,
    /// Number of the first record that is being written.
    writing: Option<u64>,
    /// Uploads and deletions that wait for room, or for earlier ones to the same path.
    queue: VecDeque<u64>,
    running: BTreeMap<u64, Running>,
    /// Deletions that have finished, and whose position is not saved.
    unsaved_deletions: BTreeMap<u64, Target>,
    /// Ends of runs that wait for earlier uploads of the same run.
    ends: VecDeque<u64>,
}

/// A running upload.
#[derive(Debug)]
struct Running {
    target: Target,
    memory: u64,
}

impl Scheduler {
    /// Returns a scheduler without entries; `size` returns the length of an artifact in bytes.
    pub(crate) fn new(size: fn(&Record) -> u64) -> Self {
        Self {
            size,
            unsaved: VecDeque::new(),
            unsaved_bytes: 0,
            unhandled: 0,
            writing: None,
            queue: VecDeque::new(),
            running: BTreeMap::new(),
            unsaved_deletions: BTreeMap::new(),
            ends: VecDeque::new(),
        }
    }

    /// Handles an event.
    pub(crate) fn handle(&mut self, event: Event) {
        match event {
            Event::Read(entries) => {
                if self.all_handled()
                    && let Some(first) = entries.first()
                {
                    self.unhandled = first.number;
                }
                self.unsaved_bytes += entries.iter().map(size_in_memory).sum::<usize>();
                self.unsaved.extend(entries);
            }
            Event::Written => self.writing = None,
            Event::Finished(number) => {
                let finished = self.running.remove(&number).map(|it| it.target);
                if let Some(deletion) = finished.filter(|target| target.is_deletion) {
                    self.unsaved_deletions.insert(number, deletion);
                }
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
            match self.handle_next() {
                NextEntries::Records(from, to) => {
                    return Action::Write(&self.unsaved.make_contiguous()[from..to]);
                }
                NextEntries::Queued => {}
                NextEntries::Blocked | NextEntries::None => break,
            }
        }
        let delivered = self.count_delivered();
        if delivered > 0 {
            let entries: Vec<_> = self.unsaved.drain(..delivered).collect();
            self.unsaved_bytes -= entries.iter().map(size_in_memory).sum::<usize>();
            let saved = entries.last().map_or(0, |last| last.number + 1);
            self.unsaved_deletions = self.unsaved_deletions.split_off(&saved);
            return Action::Save(entries);
        }
        if self.all_handled() {
            Action::Read
        } else {
            Action::WaitForUpload
        }
    }

    /// Returns true while uploads run or wait, or ends of runs wait for them.
    pub(crate) fn has_outstanding_uploads(&self) -> bool {
        !self.running.is_empty() || !self.queue.is_empty() || !self.ends.is_empty()
    }

    /// Returns the number of the first entry that is neither written nor in a queue nor being uploaded.
    pub(crate) fn first_unhandled(&self) -> Option<u64> {
        let unhandled = (!self.all_handled()).then_some(self.unhandled);
        self.writing.into_iter().chain(unhandled).min()
    }

    /// Returns the ends of runs that wait for uploads of these runs: their numbers and their runs, in order.
    pub(crate) fn waiting_ends(&self) -> Vec<(u64, RunId)> {
        let ends = self.ends.iter();
        ends.filter_map(|number| Some((*number, self.record(*number)?.run())))
            .collect()
    }

    /// Returns true where every entry is written, being written or in a queue.
    fn all_handled(&self) -> bool {
        let last = self.unsaved.back();
        last.is_none_or(|last| last.number < self.unhandled)
    }

    /// Returns the index of the first entry with at least this number.
    fn index(&self, number: u64) -> usize {
        self.unsaved.partition_point(|it| it.number < number)
    }

    /// Returns the record of an entry whose position is not saved.
    fn record(&self, number: u64) -> Option<&Record> {
        let placed = self.unsaved.get(self.index(number))?;
        (placed.number == number).then_some(&placed.entry.record)
    }

    /// Removes and returns the first queued end of a run whose earlier uploads have all finished.
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
        running.any(|(_, upload)| upload.target.run == run)
            || queued.any(|number| self.record(*number).is_some_and(|it| it.run() == run))
    }

    /// Removes and returns the first queued artifact that may be uploaded now.
    fn next_upload(&mut self) -> Option<Placed> {
        if self.running.len() >= MAX_UPLOADS || self.queue.is_empty() {
            return None;
        }
        // The later of two uploads to the same path must also arrive later.
        let mut taken = TakenTargets::default();
        let running = self.running.values().map(|running| &running.target);
        for target in running.chain(self.unsaved_deletions.values()) {
            taken.take(target.clone());
        }
        let mut queued = self.queue.iter();
        let at = queued.position(|number| self.target(*number).is_some_and(|it| taken.take(it)))?;
        let number = self.queue[at];
        let placed = self.unsaved.get(self.index(number))?.clone();
        let record = &placed.entry.record;
        let memory = (self.size)(record).min(MAX_MEMORY_OF_ONE);
        let held: u64 = self.running.values().map(|it| it.memory).sum();
        if !self.running.is_empty() && held + memory > MAX_MEMORY {
            return None;
        }
        let target = Target::of(record)?;
        self.running.insert(number, Running { target, memory });
        self.queue.remove(at);
        Some(placed)
    }

    /// Handles the next entries: queues an artifact, queues the end of a run that has uploads, or returns records to
    /// write.
    fn handle_next(&mut self) -> NextEntries {
        let from = self.index(self.unhandled);
        let Some(first) = self.unsaved.get(from) else {
            return NextEntries::None;
        };
        let is_full = self.has_outstanding_uploads() && self.unsaved_bytes >= MAX_UNSAVED_BYTES;
        let record = &first.entry.record;
        if is_full || self.waits_to_end(record.run()) {
            return NextEntries::Blocked;
        }
        let number = first.number;
        let is_queued = match record {
            Record::RunEnded { run, .. } => self.has_uploads(*run, number),
            record => record.is_artifact(),
        };
        if is_queued {
            let is_artifact = record.is_artifact();
            let deletion = Target::of(record).filter(|target| target.is_deletion);
            self.unhandled = number + 1;
            if let Some(deletion) = deletion {
                self.leave_out_uploads(&deletion);
            }
            let queue = if is_artifact {
                &mut self.queue
            } else {
                &mut self.ends
            };
            queue.push_back(number);
            return NextEntries::Queued;
        }
        let goes_along = |placed: &&Placed| {
            let record = &placed.entry.record;
            !record.is_artifact()
                && !matches!(record, Record::RunEnded { .. })
                && !self.waits_to_end(record.run())
        };
        let others = self.unsaved.range(from + 1..).take_while(goes_along);
        let to = from + 1 + others.count();
        self.writing = Some(number);
        self.unhandled = self.unsaved[to - 1].number + 1;
        NextEntries::Records(from, to)
    }

    /// Removes the queued uploads that a deletion would delete.
    fn leave_out_uploads(&mut self, deletion: &Target) {
        let queue = std::mem::take(&mut self.queue);
        let is_left = |number: &u64| !self.target(*number).is_some_and(|it| deletion.deletes(&it));
        self.queue = queue.into_iter().filter(is_left).collect();
    }

    /// Returns the target of an upload or deletion whose position is not saved.
    fn target(&self, number: u64) -> Option<Target> {
        self.record(number).and_then(Target::of)
    }

    /// Returns true where the end of a run waits for its uploads.
    fn waits_to_end(&self, run: RunId) -> bool {
        let mut ends = self.ends.iter();
        ends.any(|number| self.record(*number).is_some_and(|it| it.run() == run))
    }

    /// Returns the number of entries before the first outstanding entry.
    fn count_delivered(&self) -> usize {
        let outstanding = [
            self.running.keys().next().copied(),
            self.queue.front().copied(),
            self.ends.front().copied(),
            self.writing,
            Some(self.unhandled),
        ];
        let first = outstanding.into_iter().flatten().min();
        first.map_or(0, |first| self.index(first))
    }
}

/// The result of handling the next entries of a journal.
enum NextEntries {
    /// Records to write, from one index to another.
    Records(usize, usize),
    /// An entry that is now in a queue.
    Queued,
    /// Entries that must wait for an upload.
    Blocked,
    /// All entries are handled.
    None,
}

/// Returns the approximate number of bytes that an entry occupies.
fn size_in_memory(placed: &Placed) -> usize {
    let content = match &placed.entry.record {
        Record::ArtifactInline { content, .. } => content.len(),
        _ => 0,
    };
    size_of::<Placed>() + content
}
