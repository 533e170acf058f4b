//! Histories against the state machine alone: the journal is a list, and a death forgets everything except the saved
//! position.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::model::{Event as Happening, Fate, Promised, Rows, file_of, histories};
use crate::{
    delivery::uploads::{Action, Event, Uploads},
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
struct Kept {
    records: Vec<Record>,
    /// Number of entries whose position is saved.
    saved: usize,
}

impl Kept {
    fn placed(&self, from: usize) -> Vec<Placed> {
        let placed = |(number, record): (usize, &Record)| Placed {
            number: number as u64,
            behind: Position::START,
            entry: Entry {
                at: 0,
                record: record.clone(),
            },
        };
        let all = self.records.iter().enumerate();
        all.skip(from).map(placed).collect()
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
    uploads: Uploads,
    running: Vec<Placed>,
    read: usize,
}

impl Process {
    fn new(journal: &Kept) -> Self {
        Self {
            uploads: Uploads::new(size),
            running: Vec::new(),
            read: journal.saved,
        }
    }

    /// Delivers until nothing is left to read. Running uploads may continue, unless `to_the_end` is set.
    fn deliver(
        &mut self,
        journal: &mut Kept,
        rows: &mut Rows,
        fates: &mut Vec<Fate>,
        to_the_end: bool,
    ) -> Result<(), Died> {
        self.uploads.handle(Event::Read(journal.placed(self.read)));
        self.read = journal.records.len();
        loop {
            match self.uploads.next() {
                Action::Write(entries) => {
                    let records: Vec<_> =
                        entries.iter().map(|it| it.entry.record.clone()).collect();
                    attempt(fates, false, || rows.apply(&records))?;
                    self.uploads.handle(Event::Written);
                }
                Action::Upload(placed) => {
                    let place = |placed: &Placed| {
                        let file = file_of(&placed.entry.record).unwrap();
                        (file.0, file.1)
                    };
                    assert!(self.running.len() < MAX_UPLOADS);
                    let mut running = self.running.iter();
                    assert!(
                        running.all(|it| place(it) != place(&placed)),
                        "one at a time to a path"
                    );
                    self.running.push(placed);
                }
                Action::Save(entries) => {
                    let end = entries.last().map_or(0, |last| last.number as usize + 1);
                    assert_eq!(journal.saved, entries[0].number as usize, "without a gap");
                    journal.saved = end;
                }
                Action::WaitForUpload => self.finish_one(rows, fates)?,
                Action::Read if to_the_end && !self.running.is_empty() => {
                    self.finish_one(rows, fates)?;
                }
                Action::Read => return Ok(()),
            }
        }
    }

    /// Finishes one of the running uploads: any of them may be the first.
    fn finish_one(&mut self, rows: &mut Rows, fates: &mut Vec<Fate>) -> Result<(), Died> {
        assert!(!self.running.is_empty(), "something to wait for");
        let which = fates.len() % self.running.len();
        let placed = self.running.remove(which);
        let record = &placed.entry.record;
        match attempt(fates, true, || rows.put(record)) {
            Ok(true) => {}
            Ok(false) => rows.park(record),
            Err(died) => return Err(died),
        }
        self.uploads.handle(Event::Finished(placed.number));
        Ok(())
    }
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
fn recover(journal: &mut Kept, rows: &mut Rows, fates: &mut Vec<Fate>) {
    while Process::new(journal)
        .deliver(journal, rows, fates, true)
        .is_err()
    {}
    assert_eq!(journal.saved, journal.records.len(), "nothing is left");
    for run in journal.open_runs() {
        rows.fail(run);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12_000, ..ProptestConfig::default() })]
    #[test]
    fn what_was_promised_arrives_in_order_whatever_dies_when(history in histories(40)) {
        let (mut promised, mut rows) = (Promised::default(), Rows::default());
        let mut journal = Kept::default();
        let mut process = Process::new(&journal);
        for happening in history.into_iter().chain([Happening::Crash(0, Vec::new())]) {
            let records = promised.record(&happening);
            records.iter().for_each(|record| rows.expect(record));
            journal.records.extend(records);
            let mut fates = match happening {
                Happening::Deliver(mut fates) => {
                    if process.deliver(&mut journal, &mut rows, &mut fates, false).is_ok() {
                        continue;
                    }
                    fates
                }
                Happening::Crash(_, fates) => fates,
                _ => continue,
            };
            promised.die();
            recover(&mut journal, &mut rows, &mut fates);
            journal = Kept::default();
            process = Process::new(&journal);
        }
        promised.check(&rows)?;
    }
}
