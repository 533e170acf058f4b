//! Histories against the state machine alone: the journal is a list, and a death forgets everything except the saved
//! position.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::model::{
    Fate, HistoryEvent, Promised, StoreContent, file_of, histories, is_rewound, is_target,
};
use crate::{
    delivery::scheduler::{Action, Event, Scheduler},
    journal::{
        position::Position,
        reader::Placed,
        record::{Entry, Record},
    },
    mlflow::run::RunId,
};

/// Most uploads at a time, as the machine promises.
const MAX_UPLOADS: usize = 16;

/// The process dies.
struct Died;

/// The journal of one process, as it survives the process.
#[derive(Debug, Default)]
struct SavedJournal {
    records: Vec<Record>,
    /// Number of entries whose position is saved.
    saved: usize,
}

impl SavedJournal {
    fn placed(&self, from: usize) -> Vec<Placed> {
        let placed = |(number, record): (usize, &Record)| Placed {
            number: number as u64,
            behind: Position::START,
            entry: Entry {
                at: 0,
                record: self.without_rewound(number, record),
            },
        };
        let all = self.records.iter().enumerate();
        all.skip(from).map(placed).collect()
    }

    /// Returns a record without the points that a later record of the journal deletes, as the delivery of a dead
    /// process' journal leaves them out.
    fn without_rewound(&self, number: usize, record: &Record) -> Record {
        let mut record = record.clone();
        if let Record::Metrics {
            run, step, values, ..
        } = &mut record
        {
            let later: Vec<&Record> = self.records[number..].iter().collect();
            values.retain(|(key, _)| !is_rewound(*run, key.as_str(), *step, &later));
        }
        record
    }

    /// Returns the runs that had started and not ended before the saved position.
    fn open_runs(&self) -> BTreeSet<RunId> {
        let mut open = BTreeSet::new();
        for record in &self.records[..self.saved] {
            match record {
                Record::RunStarted(start) => {
                    open.insert(start.run);
                }
                Record::RunResumed { run } => {
                    open.insert(*run);
                }
                Record::RunEnded { run, .. } => {
                    open.remove(run);
                }
                _ => {}
            }
        }
        open
    }
}

/// The memory of a process: the machine, and the running uploads.
struct Process {
    scheduler: Scheduler,
    running: Vec<Placed>,
    read: usize,
}

impl Process {
    fn new(journal: &SavedJournal) -> Self {
        Self {
            scheduler: Scheduler::new(size),
            running: Vec::new(),
            read: journal.saved,
        }
    }

    /// Delivers until nothing is left to read. Running uploads may continue, unless `to_the_end` is set.
    fn deliver(
        &mut self,
        journal: &mut SavedJournal,
        content: &mut StoreContent,
        fates: &mut Vec<Fate>,
        to_the_end: bool,
    ) -> Result<(), Died> {
        self.scheduler
            .handle(Event::Read(journal.placed(self.read)));
        self.read = journal.records.len();
        loop {
            match self.scheduler.next() {
                Action::Write(entries) => {
                    let records: Vec<_> =
                        entries.iter().map(|it| it.entry.record.clone()).collect();
                    attempt(fates, false, || content.apply(&records))?;
                    self.scheduler.handle(Event::Written);
                }
                Action::Upload(placed) => {
                    assert!(self.running.len() < MAX_UPLOADS);
                    let mut running = self.running.iter();
                    assert!(
                        running.all(|it| !overlap(it, &placed)),
                        "one at a time to a path"
                    );
                    self.running.push(placed);
                }
                Action::Save(entries) => {
                    let end = entries.last().map_or(0, |last| last.number as usize + 1);
                    assert_eq!(journal.saved, entries[0].number as usize, "without a gap");
                    journal.saved = end;
                }
                Action::WaitForUpload => self.finish_one(journal, content, fates)?,
                Action::Read if to_the_end && !self.running.is_empty() => {
                    self.finish_one(journal, content, fates)?;
                }
                Action::Read => return Ok(()),
            }
        }
    }

    /// Finishes one of the running uploads: any of them may be the first.
    fn finish_one(
        &mut self,
        journal: &SavedJournal,
        content: &mut StoreContent,
        fates: &mut Vec<Fate>,
    ) -> Result<(), Died> {
        assert!(!self.running.is_empty(), "something to wait for");
        let which = fates.len() % self.running.len();
        let placed = self.running.remove(which);
        let record = &placed.entry.record;
        if let Record::ArtifactsDeleted { run, path } = record {
            let later = &journal.records[placed.number as usize..];
            let mut later = later.iter().filter_map(file_of);
            assert!(
                !later.any(|file| is_target(*run, path, &file) && content.has(&file)),
                "a deletion never deletes a later file"
            );
            attempt(fates, false, || content.delete(*run, path))?;
            self.scheduler.handle(Event::Finished(placed.number));
            return Ok(());
        }
        match attempt(fates, true, || content.put(record)) {
            Ok(true) => {}
            Ok(false) => content.park(record),
            Err(died) => return Err(died),
        }
        self.scheduler.handle(Event::Finished(placed.number));
        Ok(())
    }
}

/// Returns true for uploads to the same path, and for a deletion and what is at or below its path.
fn overlap(a: &Placed, b: &Placed) -> bool {
    let (a, b) = (&a.entry.record, &b.entry.record);
    let (Some(of_a), Some(of_b)) = (a.artifact_path(), b.artifact_path()) else {
        return false;
    };
    let is_below = of_a.is_within(of_b) || of_b.is_within(of_a);
    let conflicts = if a.is_deletion() || b.is_deletion() {
        is_below
    } else {
        of_a == of_b
    };
    a.run() == b.run() && conflicts
}

/// Makes attempts until one succeeds. Returns false where the store refuses.
fn attempt(
    fates: &mut Vec<Fate>,
    may_refuse: bool,
    mut commit: impl FnMut(),
) -> Result<bool, Died> {
    loop {
        match fates.pop().unwrap_or(Fate::Committed) {
            Fate::Refused if may_refuse => return Ok(false),
            Fate::Committed | Fate::Refused => {
                commit();
                return Ok(true);
            }
            Fate::FailedBefore => {}
            Fate::FailedAfter => commit(),
            Fate::DiedBefore => return Err(Died),
            Fate::DiedAfter => {
                commit();
                return Err(Died);
            }
        }
    }
}

fn size(record: &Record) -> u64 {
    match record {
        // Some files are long, so that memory is scarce.
        Record::Artifact { size, .. } => size << (size % 26),
        _ => 0,
    }
}

/// Lets another process deliver the journal of a dead one, again and again if it dies meanwhile.
fn recover(journal: &mut SavedJournal, content: &mut StoreContent, fates: &mut Vec<Fate>) {
    while Process::new(journal)
        .deliver(journal, content, fates, true)
        .is_err()
    {}
    assert_eq!(journal.saved, journal.records.len(), "nothing is left");
    for run in journal.open_runs() {
        content.fail(run);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12_000, ..ProptestConfig::default() })]
    #[test]
    fn what_was_promised_arrives_in_order_whatever_dies_when(history in histories(40)) {
        let (mut promised, mut content) = (Promised::default(), StoreContent::default());
        let mut journal = SavedJournal::default();
        let mut process = Process::new(&journal);
        for event in history.into_iter().chain([HistoryEvent::Crash(0, Vec::new())]) {
            let records = promised.record(&event);
            records.iter().for_each(|record| content.expect(record));
            journal.records.extend(records);
            let mut fates = match event {
                HistoryEvent::Deliver(mut fates) => {
                    if process.deliver(&mut journal, &mut content, &mut fates, false).is_ok() {
                        continue;
                    }
                    fates
                }
                HistoryEvent::Crash(_, fates) => fates,
                _ => continue,
            };
            promised.die();
            recover(&mut journal, &mut content, &mut fates);
            journal = SavedJournal::default();
            process = Process::new(&journal);
        }
        promised.check(&content)?;
    }
}
