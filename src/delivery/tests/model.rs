//! The model: the promises to callers, and a store with MLflow's rules of identity.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use crate::{
    journal::record::{Record, RunStart},
    mlflow::{
        artifact_path::ArtifactPath,
        key::Key,
        run::{RunId, RunStatus},
    },
};

/// The end of a write or of an upload.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fate {
    Committed,
    /// The connection breaks before the commit, or between the commit and the answer.
    FailedBefore,
    FailedAfter,
    /// The process dies before the commit, or after it.
    DiedBefore,
    DiedAfter,
    /// The store finally refuses it. Records of the model are never refused; uploads can be.
    Refused,
}

/// A file of a run, with the mark that represents its content.
pub(crate) type File = (RunId, String, u64);

/// An event of a history.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    StartRun,
    /// Resumes the run that has ended last.
    ResumeRun,
    /// Logs this many points, with one call each.
    Log(u8),
    Tag(u8),
    /// Logs files, each at one of a few paths.
    Files(Vec<u8>),
    EndRun,
    /// Lets the delivery work; its writes and uploads end like this, the first one last.
    Deliver(Vec<Fate>),
    /// The process dies in the middle of an append, which leaves this many bytes of a frame. Another process starts,
    /// and the writes and uploads of its recovery end like this.
    Crash(u8, Vec<Fate>),
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate = prop_oneof![
        6 => Just(Fate::Committed),
        1 => Just(Fate::FailedBefore),
        1 => Just(Fate::FailedAfter),
        1 => Just(Fate::DiedBefore),
        1 => Just(Fate::DiedAfter),
        1 => Just(Fate::Refused),
    ];
    proptest::collection::vec(fate, 0..8)
}

/// Generates histories of up to `length` events.
pub(crate) fn histories(length: usize) -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        2 => Just(Event::StartRun),
        4 => (1u8..20).prop_map(Event::Log),
        2 => (0u8..3).prop_map(Event::Tag),
        4 => proptest::collection::vec(0u8..4, 1..6).prop_map(Event::Files),
        2 => Just(Event::EndRun),
        1 => Just(Event::ResumeRun),
        4 => fates().prop_map(Event::Deliver),
        2 => (0u8..60, fates()).prop_map(|(torn, fates)| Event::Crash(torn, fates)),
    ];
    proptest::collection::vec(event, 1..length)
}

/// The promises to callers: the kept records and files.
#[derive(Debug, Default)]
pub(crate) struct Promised {
    points: BTreeSet<(RunId, String, i64)>,
    tags: BTreeMap<(RunId, String), String>,
    files: Vec<File>,
    runs: BTreeMap<RunId, &'static str>,
    active: Option<RunId>,
    /// The run that has ended last.
    ended: Option<RunId>,
    step: i64,
}

impl Promised {
    /// Makes the records of a caller's event, and promises that they are kept.
    pub(crate) fn record(&mut self, event: &Event) -> Vec<Record> {
        match event {
            Event::StartRun if self.active.is_none() => {
                let run = RunId::random();
                self.active = Some(run);
                self.runs.insert(run, "RUNNING");
                vec![Record::RunStarted(RunStart {
                    run,
                    experiment: "e".into(),
                    artifact_location: None,
                    name: "n".into(),
                    user: "u".into(),
                    start_time: 1,
                })]
            }
            Event::ResumeRun if self.active.is_none() => {
                let run = self.ended.take();
                self.active = run;
                run.into_iter().map(|run| self.resume(run)).collect()
            }
            Event::Log(count) => (0..*count).filter_map(|_| self.point()).collect(),
            Event::Tag(key) => self.tag(*key).into_iter().collect(),
            Event::Files(paths) => paths.iter().filter_map(|path| self.file(*path)).collect(),
            Event::EndRun => self
                .active
                .take()
                .into_iter()
                .map(|run| self.end(run))
                .collect(),
            _ => Vec::new(),
        }
    }

    fn point(&mut self) -> Option<Record> {
        let run = self.active?;
        self.step += 1;
        self.points.insert((run, "m".into(), self.step));
        Some(Record::Metrics {
            run,
            step: self.step,
            timestamp: self.step,
            values: vec![(Key::parse("metric key", "m").unwrap(), 0.5)],
        })
    }

    fn tag(&mut self, key: u8) -> Option<Record> {
        let run = self.active?;
        self.step += 1;
        let (key, value) = (format!("t{key}"), self.step.to_string());
        let values = vec![(Key::parse("tag key", &key).unwrap(), value.clone())];
        self.tags.insert((run, key), value);
        Some(Record::Tags { run, values })
    }

    /// Makes a file, whose name in the staging folder and length are its mark.
    fn file(&mut self, path: u8) -> Option<Record> {
        let run = self.active?;
        self.step += 1;
        let (path, mark) = (format!("f{path}"), self.step as u64);
        self.files.push((run, path.clone(), mark));
        Some(Record::Artifact {
            run,
            staged: mark.to_string(),
            path: ArtifactPath::parse(&path).unwrap(),
            size: mark,
        })
    }

    fn end(&mut self, run: RunId) -> Record {
        self.runs.insert(run, "FINISHED");
        self.ended = Some(run);
        Record::RunEnded {
            run,
            status: RunStatus::Finished,
            end_time: self.step,
        }
    }

    fn resume(&mut self, run: RunId) -> Record {
        self.runs.insert(run, "RUNNING");
        Record::RunResumed { run }
    }

    /// Lets the process die: its open runs must be marked as failed.
    pub(crate) fn die(&mut self) {
        self.ended = self.active.take().or(self.ended);
        for status in self
            .runs
            .values_mut()
            .filter(|status| **status == "RUNNING")
        {
            *status = "FAILED";
        }
    }

    /// Checks that a store has everything that was promised, and nothing twice.
    pub(crate) fn check(&self, rows: &Rows) -> Result<(), TestCaseError> {
        let points: BTreeSet<_> = rows.points.iter().cloned().collect();
        prop_assert_eq!(points.len(), rows.points.len(), "nothing is there twice");
        prop_assert_eq!(&points, &self.points);
        prop_assert_eq!(&rows.tags, &self.tags);
        let runs: BTreeMap<RunId, &str> = rows
            .runs
            .iter()
            .map(|(run, status)| (*run, status.as_str()))
            .collect();
        prop_assert_eq!(&runs, &self.runs);
        let mut files = BTreeMap::new();
        for (run, path, mark) in &self.files {
            let file = (*run, path.clone(), *mark);
            prop_assert!(
                rows.arrived.contains(&file),
                "{file:?} was uploaded or parked"
            );
            if !rows.parked.contains(&file) {
                files.insert((*run, path.clone()), *mark);
            }
        }
        // A later process may have delivered a file that was refused once.
        for (place, mark) in &rows.files {
            let (run, path) = place.clone();
            let is_last = files.get(place) == Some(mark);
            prop_assert!(
                is_last || rows.parked.contains(&(run, path, *mark)),
                "{place:?}"
            );
        }
        for place in files.keys() {
            prop_assert!(rows.files.contains_key(place), "{place:?} is there");
        }
        prop_assert_eq!(
            &rows.early_ends,
            &Vec::<RunId>::new(),
            "a run ends after its files"
        );
        Ok(())
    }
}

/// The rows and files of a store with MLflow's rules of identity.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    pub runs: BTreeMap<RunId, String>,
    points: Vec<(RunId, String, i64)>,
    tags: BTreeMap<(RunId, String), String>,
    files: BTreeMap<(RunId, String), u64>,
    /// Files that were uploaded or parked at some time, and the files that were parked.
    arrived: BTreeSet<File>,
    parked: BTreeSet<File>,
    /// Files that were handed to the delivery, in order.
    expected: Vec<File>,
    /// Runs that were ended before all of their files had arrived.
    early_ends: Vec<RunId>,
}

impl Rows {
    /// Notes a file that the delivery must upload before the end of its run.
    pub(crate) fn expect(&mut self, record: &Record) {
        if let Some(file) = file_of(record) {
            self.expected.push(file);
        }
    }

    /// Writes records, as a transaction that was committed.
    pub(crate) fn apply<'a>(&mut self, records: impl IntoIterator<Item = &'a Record>) {
        for record in records {
            match record {
                Record::RunStarted(start) => {
                    self.runs.entry(start.run).or_insert("RUNNING".into());
                }
                Record::Metrics {
                    run, step, values, ..
                } => {
                    for (key, _) in values {
                        let point = (*run, key.as_str().to_owned(), *step);
                        // This is `ON CONFLICT DO NOTHING`.
                        if !self.points.contains(&point) {
                            self.points.push(point);
                        }
                    }
                }
                Record::Tags { run, values } => {
                    for (key, value) in values {
                        let key = (*run, key.as_str().to_owned());
                        self.tags.insert(key, value.clone());
                    }
                }
                Record::RunResumed { run } => {
                    self.runs.insert(*run, "RUNNING".into());
                }
                Record::RunEnded {
                    run,
                    status,
                    end_time,
                } => {
                    self.runs.insert(*run, status.as_str().to_owned());
                    let is_before = |file: &&File| file.0 == *run && file.2 <= *end_time as u64;
                    let mut files = self.expected.iter().filter(is_before);
                    if !files.all(|file| self.arrived.contains(file)) {
                        self.early_ends.push(*run);
                    }
                }
                _ => {}
            }
        }
    }

    /// Puts the file of an artifact record.
    pub(crate) fn put(&mut self, record: &Record) {
        let Some((run, path, mark)) = file_of(record) else {
            return;
        };
        self.files.insert((run, path.clone()), mark);
        self.arrived.insert((run, path, mark));
    }

    /// Notes that an artifact was parked.
    pub(crate) fn park(&mut self, record: &Record) {
        if let Some(file) = file_of(record) {
            self.arrived.insert(file.clone());
            self.parked.insert(file);
        }
    }

    /// Ends a run whose process has died, unless it has ended.
    pub(crate) fn fail(&mut self, run: RunId) {
        if let Some(status) = self.runs.get_mut(&run)
            && status == "RUNNING"
        {
            *status = "FAILED".into();
        }
    }
}

/// Returns the file of an artifact record.
pub(crate) fn file_of(record: &Record) -> Option<File> {
    match record {
        Record::Artifact {
            run, path, staged, ..
        } => Some((*run, path.as_str().to_owned(), staged.parse().ok()?)),
        _ => None,
    }
}
