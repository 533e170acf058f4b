//! The model: the promises to callers, and a store with MLflow's rules of identity.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use crate::{
    journal::record::{Record, RunStart},
    mlflow::{
        artifact_path::ArtifactPath,
        key::Key,
        rewind::{AppliedRewinds, Rewind},
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

/// A deletion of the files of a run at a path, or of all of them, with its mark.
#[derive(Clone, Debug)]
pub(crate) struct Deletion {
    run: RunId,
    path: ArtifactPath,
    mark: u64,
}

impl Deletion {
    fn deletes(&self, file: &File) -> bool {
        self.mark > file.2 && is_target(self.run, &self.path, file)
    }
}

/// Returns true for a file that the deletion of a path deletes if it is there.
pub(crate) fn is_target(run: RunId, path: &ArtifactPath, file: &File) -> bool {
    let place = ArtifactPath::parse(&file.1).unwrap();
    run == file.0 && place.is_within(path)
}

/// An event of a history.
#[derive(Clone, Debug)]
pub(crate) enum HistoryEvent {
    StartRun,
    /// Resumes the run that has ended last.
    ResumeRun,
    /// Logs this many points, with one call each.
    Log(u8),
    Tag(u8),
    /// Rewinds the run by this many steps.
    Rewind(u8),
    /// Logs files, each at one of a few paths.
    Files(Vec<u8>),
    /// Deletes the files at one of these paths; without a path, all files of the run.
    DeleteFiles(Option<u8>),
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
pub(crate) fn histories(length: usize) -> impl Strategy<Value = Vec<HistoryEvent>> {
    let event = prop_oneof![
        2 => Just(HistoryEvent::StartRun),
        4 => (1u8..20).prop_map(HistoryEvent::Log),
        2 => (0u8..3).prop_map(HistoryEvent::Tag),
        1 => (0u8..20).prop_map(HistoryEvent::Rewind),
        4 => proptest::collection::vec(0u8..4, 1..6).prop_map(HistoryEvent::Files),
        2 => proptest::option::weighted(0.8, 0u8..4).prop_map(HistoryEvent::DeleteFiles),
        2 => Just(HistoryEvent::EndRun),
        1 => Just(HistoryEvent::ResumeRun),
        4 => fates().prop_map(HistoryEvent::Deliver),
        2 => (0u8..60, fates()).prop_map(|(torn, fates)| HistoryEvent::Crash(torn, fates)),
    ];
    proptest::collection::vec(event, 1..length)
}

/// The promises to callers: the kept records and files.
#[derive(Debug, Default)]
pub(crate) struct Promised {
    points: BTreeSet<(RunId, String, i64)>,
    tags: BTreeMap<(RunId, String), String>,
    files: Vec<File>,
    deletions: Vec<Deletion>,
    runs: BTreeMap<RunId, &'static str>,
    active: Option<RunId>,
    /// The run that has ended last.
    ended: Option<RunId>,
    step: i64,
}

impl Promised {
    /// Makes the records of a caller's event, and promises that they are kept.
    pub(crate) fn record(&mut self, event: &HistoryEvent) -> Vec<Record> {
        match event {
            HistoryEvent::StartRun if self.active.is_none() => {
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
            HistoryEvent::ResumeRun if self.active.is_none() => {
                let run = self.ended.take();
                self.active = run;
                run.into_iter().map(|run| self.resume(run)).collect()
            }
            HistoryEvent::Log(count) => (0..*count).filter_map(|_| self.point()).collect(),
            HistoryEvent::Tag(key) => self.tag(*key).into_iter().collect(),
            HistoryEvent::Rewind(steps) => self.rewind(*steps).into_iter().collect(),
            HistoryEvent::Files(paths) => {
                paths.iter().filter_map(|path| self.file(*path)).collect()
            }
            HistoryEvent::DeleteFiles(path) => self.delete(*path).into_iter().collect(),
            HistoryEvent::EndRun => self
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

    fn rewind(&mut self, steps: u8) -> Option<Record> {
        let run = self.active?;
        self.step += 1;
        let rewind = Rewind {
            id: self.step as u64,
            step: self.step - i64::from(steps),
            at: 0,
        };
        self.points
            .retain(|(of, key, step)| *of != run || !rewind.covers(key, *step));
        Some(Record::RunRewound { run, rewind })
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

    fn delete(&mut self, path: Option<u8>) -> Option<Record> {
        let run = self.active?;
        self.step += 1;
        let path = path.map_or(String::new(), |path| format!("f{path}"));
        let path = ArtifactPath::parse(&path).unwrap();
        self.deletions.push(Deletion {
            run,
            path: path.clone(),
            mark: self.step as u64,
        });
        Some(Record::ArtifactsDeleted { run, path })
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
    pub(crate) fn check(&self, content: &StoreContent) -> Result<(), TestCaseError> {
        let points: BTreeSet<_> = content.points.iter().cloned().collect();
        prop_assert_eq!(points.len(), content.points.len(), "nothing is there twice");
        prop_assert_eq!(&points, &self.points);
        prop_assert_eq!(&content.tags, &self.tags);
        let runs: BTreeMap<RunId, &str> = content
            .runs
            .iter()
            .map(|(run, status)| (*run, status.as_str()))
            .collect();
        prop_assert_eq!(&runs, &self.runs);
        let is_deleted = |file: &File| self.deletions.iter().any(|it| it.deletes(file));
        let mut files = BTreeMap::new();
        for file in self.files.iter().filter(|file| !is_deleted(file)) {
            let (run, path, mark) = file;
            let file = (*run, path.clone(), *mark);
            prop_assert!(
                content.arrived.contains(&file),
                "{file:?} was uploaded or parked"
            );
            if !content.parked.contains(&file) {
                files.insert((*run, path.clone()), *mark);
            }
        }
        // A later process may have delivered a file that was refused once.
        for (place, mark) in &content.files {
            let (run, path) = place.clone();
            let file = (run, path.clone(), *mark);
            prop_assert!(!is_deleted(&file), "{file:?} is deleted");
            let is_last = files.get(place) == Some(mark);
            prop_assert!(
                is_last || content.parked.contains(&(run, path, *mark)),
                "{place:?}"
            );
        }
        for place in files.keys() {
            prop_assert!(content.files.contains_key(place), "{place:?} is there");
        }
        prop_assert_eq!(
            &content.early_ends,
            &Vec::<RunId>::new(),
            "a run ends after its files"
        );
        Ok(())
    }
}

/// The rows and files of a store with MLflow's rules of identity.
#[derive(Debug, Default)]
pub(crate) struct StoreContent {
    pub runs: BTreeMap<RunId, String>,
    points: Vec<(RunId, String, i64)>,
    tags: BTreeMap<(RunId, String), String>,
    files: BTreeMap<(RunId, String), u64>,
    pub rewinds: BTreeMap<RunId, AppliedRewinds>,
    /// Files that were uploaded or parked at some time, and the files that were parked.
    arrived: BTreeSet<File>,
    parked: BTreeSet<File>,
    /// Files that were handed to the delivery, in order.
    expected: Vec<File>,
    /// Runs that were ended before all of their files had arrived.
    early_ends: Vec<RunId>,
}

impl StoreContent {
    /// Notes a file that the delivery must upload before the end of its run.
    pub(crate) fn expect(&mut self, record: &Record) {
        if let Some(file) = file_of(record) {
            self.expected.push(file);
        }
        if let Record::ArtifactsDeleted { run, path } = record {
            self.expected.retain(|file| !is_target(*run, path, file));
        }
    }

    /// Writes records, as a transaction that was committed.
    pub(crate) fn apply<'a>(&mut self, records: impl IntoIterator<Item = &'a Record>) {
        let records: Vec<&Record> = records.into_iter().collect();
        for (place, record) in records.iter().enumerate() {
            match record {
                Record::RunStarted(start) => {
                    self.runs.entry(start.run).or_insert("RUNNING".into());
                }
                Record::Metrics {
                    run, step, values, ..
                } => {
                    for (key, _) in values {
                        let point = (*run, key.as_str().to_owned(), *step);
                        let is_rewound = is_rewound(*run, key.as_str(), *step, &records[place..]);
                        // This is `ON CONFLICT DO NOTHING`.
                        if !is_rewound && !self.points.contains(&point) {
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
                Record::RunRewound { run, rewind } => {
                    let applied = self.rewinds.entry(*run).or_default();
                    if !applied.has(rewind) {
                        applied.add(*rewind);
                        self.points
                            .retain(|(of, key, step)| of != run || !rewind.covers(key, *step));
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

    /// Deletes the files at a path.
    pub(crate) fn delete(&mut self, run: RunId, path: &ArtifactPath) {
        self.files
            .retain(|(of, place), mark| !is_target(run, path, &(*of, place.clone(), *mark)));
    }

    /// Returns true where a file is there.
    pub(crate) fn has(&self, (run, path, mark): &File) -> bool {
        self.files.get(&(*run, path.clone())) == Some(mark)
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

/// Returns true for a point that one of the later records deletes.
pub(crate) fn is_rewound(run: RunId, key: &str, step: i64, later: &[&Record]) -> bool {
    let covers = |record: &&Record| match record {
        Record::RunRewound { run: of, rewind } => *of == run && rewind.covers(key, step),
        _ => false,
    };
    later.iter().any(covers)
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
