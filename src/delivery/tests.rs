//! The protocol of journal, delivery and recovery against a model of what was promised.
//!
//! A process appends, delivers and dies at any point: between a commit and the saved position, in the middle of an
//! append, during the recovery of the one before it; stores answer errors before they have committed and after. The
//! model is what a caller was told. The file system is a real one; time, store and order of events are the test's
//! own, so that a case that fails does so again.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use proptest::prelude::*;
use tokio::sync::{Notify, watch};

use super::{
    dead_letter::DeadLetters,
    destination::Shared,
    notices::Notices,
    sender::{Courier, Left},
};
use crate::{
    journal::{
        abandoned,
        config::JournalConfig,
        layout,
        position::Position,
        reader::Reader,
        record::{Record, RunStart},
        writer::Journal,
    },
    mlflow::{
        key::Key,
        run::{LifecycleStage, MetricPoint, RunId, RunInfo, RunStatus, ViewType},
        search::runs::RunQuery,
    },
    store::{
        error::StoreError,
        tracking::{Experiment, LoggedModelFiles, RunRow, TrackingStore},
    },
};

/// How a write ends.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Committed,
    /// The connection breaks before the commit, or after it and before the answer.
    FailedBefore,
    FailedAfter,
    /// The process dies there.
    DiedBefore,
    DiedAfter,
}

#[derive(Debug, Default)]
struct Rows {
    runs: BTreeMap<RunId, String>,
    points: Vec<(RunId, String, i64)>,
    tags: BTreeMap<(RunId, String), String>,
}

/// A store in memory with MLflow's rules of identity, whose writes end as the test says.
#[derive(Debug, Default)]
struct MemoryStore {
    rows: Mutex<Rows>,
    fates: Mutex<Vec<Fate>>,
    died: Notify,
}

impl MemoryStore {
    fn apply(&self, records: &[&Record]) {
        let mut rows = self.rows.lock().unwrap();
        for record in records {
            match record {
                Record::RunStarted(start) => {
                    rows.runs.entry(start.run).or_insert("RUNNING".into());
                }
                Record::Metrics {
                    run, step, values, ..
                } => {
                    for (key, _) in values {
                        let point = (*run, key.as_str().to_owned(), *step);
                        // As `ON CONFLICT DO NOTHING`.
                        if !rows.points.contains(&point) {
                            rows.points.push(point);
                        }
                    }
                }
                Record::Tags { run, values } => {
                    for (key, value) in values {
                        let key = (*run, key.as_str().to_owned());
                        rows.tags.insert(key, value.clone());
                    }
                }
                Record::RunEnded { run, status, .. } => {
                    rows.runs.insert(*run, status.as_str().to_owned());
                }
                _ => {}
            }
        }
    }

    async fn die(&self) -> ! {
        self.died.notify_one();
        std::future::pending().await
    }

    fn not_asked(&self) -> StoreError {
        StoreError::NotFound {
            what: "what a delivery never asks for".into(),
            destination: "memory".into(),
        }
    }
}

#[async_trait]
impl TrackingStore for MemoryStore {
    async fn write(&self, records: &[&Record]) -> Result<(), StoreError> {
        let fate = self.fates.lock().unwrap().pop().unwrap_or(Fate::Committed);
        let failed = || StoreError::Unavailable {
            destination: "memory".into(),
            source: "the connection broke".into(),
            retry_after: None,
        };
        match fate {
            Fate::FailedBefore => return Err(failed()),
            Fate::DiedBefore => self.die().await,
            _ => self.apply(records),
        }
        match fate {
            Fate::FailedAfter => Err(failed()),
            Fate::DiedAfter => self.die().await,
            _ => Ok(()),
        }
    }

    async fn fail_run(&self, run_id: &str, _end_time: i64) -> Result<(), StoreError> {
        let run: RunId = run_id.parse().map_err(|_| self.not_asked())?;
        let mut rows = self.rows.lock().unwrap();
        let status = rows.runs.get_mut(&run).ok_or_else(|| self.not_asked())?;
        if status == "RUNNING" {
            *status = "FAILED".into();
        }
        Ok(())
    }

    async fn artifact_uri(&self, _run_id: &str) -> Result<String, StoreError> {
        Ok(String::new())
    }

    async fn get_or_create_experiment(
        &self,
        _name: &str,
        _location: Option<&str>,
    ) -> Result<Experiment, StoreError> {
        Err(self.not_asked())
    }

    async fn experiment(&self, _id: &str) -> Result<Experiment, StoreError> {
        Err(self.not_asked())
    }

    async fn experiment_by_name(&self, _name: &str) -> Result<Experiment, StoreError> {
        Err(self.not_asked())
    }

    async fn experiments(&self, _view: ViewType) -> Result<Vec<Experiment>, StoreError> {
        Err(self.not_asked())
    }

    async fn set_experiment_stage(
        &self,
        _id: &str,
        _stage: LifecycleStage,
    ) -> Result<(), StoreError> {
        Err(self.not_asked())
    }

    async fn create_run(
        &self,
        _start: &RunStart,
        _tags: &[(Key, String)],
    ) -> Result<Option<RunId>, StoreError> {
        Ok(None)
    }

    async fn run(&self, _run_id: &str) -> Result<RunInfo, StoreError> {
        Err(self.not_asked())
    }

    async fn set_run_stage(&self, _id: &str, _stage: LifecycleStage) -> Result<(), StoreError> {
        Err(self.not_asked())
    }

    async fn search_runs(&self, _query: &RunQuery) -> Result<Vec<RunInfo>, StoreError> {
        Err(self.not_asked())
    }

    async fn metric_history(
        &self,
        _run_id: &str,
        _key: &str,
    ) -> Result<Vec<MetricPoint>, StoreError> {
        Err(self.not_asked())
    }

    async fn latest_step(&self, _run_id: &str, _prefix: &str) -> Result<Option<i64>, StoreError> {
        Ok(None)
    }

    async fn run_rows(&self, _experiment_id: &str) -> Result<Vec<RunRow>, StoreError> {
        Err(self.not_asked())
    }

    async fn logged_model_files(
        &self,
        _experiment_ids: &[String],
    ) -> Result<Vec<LoggedModelFiles>, StoreError> {
        Err(self.not_asked())
    }

    fn can_purge(&self) -> bool {
        false
    }

    async fn purge_run(&self, _run_id: &str) -> Result<bool, StoreError> {
        Err(self.not_asked())
    }
}

/// What happens in a case.
#[derive(Clone, Debug)]
enum Event {
    StartRun,
    /// So many points, one call each.
    Log(u8),
    Tag(u8),
    EndRun,
    /// Delivery gets to run; its writes end like this, the first one last.
    Deliver(Vec<Fate>),
    /// The process dies, in the middle of an append, which leaves so many bytes of a frame; another one starts, and
    /// the writes of its recovery end like this.
    Crash(u8, Vec<Fate>),
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate = prop_oneof![
        4 => Just(Fate::Committed),
        1 => Just(Fate::FailedBefore),
        1 => Just(Fate::FailedAfter),
        1 => Just(Fate::DiedBefore),
        1 => Just(Fate::DiedAfter),
    ];
    proptest::collection::vec(fate, 0..4)
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        2 => Just(Event::StartRun),
        6 => (1u8..20).prop_map(Event::Log),
        2 => (0u8..3).prop_map(Event::Tag),
        1 => Just(Event::EndRun),
        3 => fates().prop_map(Event::Deliver),
        2 => (0u8..60, fates()).prop_map(|(torn, fates)| Event::Crash(torn, fates)),
    ];
    proptest::collection::vec(event, 1..40)
}

/// What callers were told is kept.
#[derive(Debug, Default)]
struct Promised {
    points: BTreeSet<(RunId, String, i64)>,
    tags: BTreeMap<(RunId, String), String>,
    runs: BTreeMap<RunId, &'static str>,
}

const URI: &str = "memory";

struct World {
    dir: tempfile::TempDir,
    store: Arc<MemoryStore>,
    promised: Promised,
    journal: Arc<Journal>,
    reader: Reader,
    active: Option<RunId>,
    step: i64,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let journal = Arc::new(Journal::create(config(dir.path())));
        Self {
            store: Arc::default(),
            promised: Promised::default(),
            reader: Reader::live(Arc::clone(&journal), 0),
            journal,
            active: None,
            step: 0,
            dir,
        }
    }

    fn courier(&self) -> Courier {
        Courier::new(
            self.dir.path().to_owned(),
            Arc::clone(&self.store) as Arc<dyn TrackingStore>,
            crate::artifacts::open::Access::default(),
            Arc::new(Shared::new(URI.into())),
            Arc::new(Notices::default()),
            watch::Sender::new(false),
        )
    }

    async fn happen(&mut self, event: Event) {
        match event {
            Event::StartRun => {
                if self.active.is_none() {
                    let run = RunId::random();
                    let start = RunStart {
                        run,
                        experiment: "e".into(),
                        artifact_location: None,
                        name: "n".into(),
                        user: "u".into(),
                        start_time: 1,
                    };
                    self.journal.append(Record::RunStarted(start)).unwrap();
                    self.promised.runs.insert(run, "RUNNING");
                    self.active = Some(run);
                }
            }
            Event::Log(count) => {
                for _ in 0..count {
                    if let Some(run) = self.active {
                        self.step += 1;
                        let values = vec![(Key::parse("metric key", "m").unwrap(), 0.5)];
                        let (step, timestamp) = (self.step, self.step);
                        let record = Record::Metrics {
                            run,
                            step,
                            timestamp,
                            values,
                        };
                        self.journal.append(record).unwrap();
                        self.promised.points.insert((run, "m".into(), step));
                    }
                }
            }
            Event::Tag(key) => {
                if let Some(run) = self.active {
                    self.step += 1;
                    let (key, value) = (format!("t{key}"), self.step.to_string());
                    let values = vec![(Key::parse("tag key", &key).unwrap(), value.clone())];
                    self.journal.append(Record::Tags { run, values }).unwrap();
                    self.promised.tags.insert((run, key), value);
                }
            }
            Event::EndRun => {
                if let Some(run) = self.active.take() {
                    let (status, end_time) = (RunStatus::Finished, 2);
                    let record = Record::RunEnded {
                        run,
                        status,
                        end_time,
                    };
                    self.journal.append(record).unwrap();
                    self.promised.runs.insert(run, "FINISHED");
                }
            }
            Event::Deliver(fates) => {
                *self.store.fates.lock().unwrap() = fates;
                if !self.deliver().await {
                    self.die(0);
                    self.recover().await;
                }
            }
            Event::Crash(torn, fates) => {
                self.die(torn);
                *self.store.fates.lock().unwrap() = fates;
                self.recover().await;
            }
        }
    }

    /// As a worker does it; false when the process dies in it.
    async fn deliver(&mut self) -> bool {
        let mut courier = self.courier();
        let store = Arc::clone(&self.store);
        let (journal, reader) = (&self.journal, &mut self.reader);
        let letters = DeadLetters::of(self.dir.path(), &journal.dir(), 0);
        let work = async {
            loop {
                let batch = reader.read(journal.end().position).unwrap();
                if batch.entries.is_empty() {
                    break;
                }
                let delivered = courier.deliver(reader, batch.entries, &letters).await;
                delivered.unwrap();
                courier.advance(reader).unwrap();
            }
        };
        tokio::select! {
            () = work => true,
            () = store.died.notified() => false,
        }
    }

    /// The process dies; the kernel keeps what it has, and releases the lock.
    fn die(&mut self, torn: u8) {
        let end = self.journal.end().position;
        let path = layout::segment_path(&self.journal.dir(), end.segment);
        let next = Arc::new(Journal::create(config(self.dir.path())));
        self.reader = Reader::live(Arc::clone(&next), 0);
        self.journal = next;
        self.active = None;
        for status in self.promised.runs.values_mut() {
            if *status == "RUNNING" {
                *status = "FAILED";
            }
        }
        // The marker of a frame comes last.
        let bytes = vec![0xA5; usize::from(torn)];
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.write_all_at(&bytes, end.offset + 4).unwrap();
    }

    /// What the next process does first, again and again where it dies of it.
    async fn recover(&self) {
        loop {
            let found = abandoned::abandoned(self.dir.path(), |_| true);
            let store = Arc::clone(&self.store);
            let mut courier = self.courier();
            let work = async {
                for journal in &found {
                    match courier.deliver_abandoned(journal, 0).await {
                        Ok(()) => journal.remove(),
                        Err(Left::Closing | Left::Early | Left::Stalled | Left::Journal(_)) => {
                            panic!("left")
                        }
                    }
                }
            };
            tokio::select! {
                () = work => return,
                () = store.died.notified() => {}
            }
        }
    }
}

fn config(dir: &Path) -> JournalConfig {
    JournalConfig::new(dir, vec![URI.into()])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn what_was_promised_is_in_the_store_once_whatever_dies_when(events in events()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut world = World::new();
            for event in events {
                world.happen(event).await;
            }
            world.store.fates.lock().unwrap().clear();
            world.die(0);
            world.recover().await;

            let rows = world.store.rows.lock().unwrap();
            let points: BTreeSet<_> = rows.points.iter().cloned().collect();
            prop_assert_eq!(points.len(), rows.points.len(), "nothing is there twice");
            prop_assert_eq!(&points, &world.promised.points);
            prop_assert_eq!(&rows.tags, &world.promised.tags);
            let runs: BTreeMap<RunId, &str> =
                rows.runs.iter().map(|(run, status)| (*run, status.as_str())).collect();
            prop_assert_eq!(&runs, &world.promised.runs);
            let left = layout::folders(world.dir.path()).unwrap();
            prop_assert_eq!(left, vec![world.journal.dir()], "nothing is left but the living one's");
            Ok(())
        })?;
    }
}

#[test]
fn destinations_of_one_journal_go_at_their_own_pace() {
    let dir = tempfile::tempdir().unwrap();
    let uris = vec!["quick".to_owned(), "slow".to_owned()];
    let journal = Arc::new(Journal::create(JournalConfig::new(dir.path(), uris)));
    let run = RunId::random();
    let metric = |step| Record::Metrics {
        run,
        step,
        timestamp: step,
        values: vec![(Key::parse("metric key", "m").unwrap(), 0.5)],
    };
    let mut readers = [0, 1].map(|it| Reader::live(Arc::clone(&journal), it));
    for step in 0..100 {
        journal.append(metric(step)).unwrap();
        let entries = readers[0].read(journal.end().position).unwrap().entries;
        readers[0].advance(&entries).unwrap();
    }
    drop((journal, readers));

    let left = abandoned::abandoned(dir.path(), |_| true).remove(0);
    assert!(left.reader(0).is_done(left.end) || left.reader(0).next() == 100);
    let mut slow = left.reader(1);
    let mut seen = 0;
    while let Ok(batch) = slow.read(left.end)
        && !batch.entries.is_empty()
    {
        seen += batch.entries.len();
        slow.advance(&batch.entries).unwrap();
    }
    assert_eq!(seen, 100);
    assert!(left.end > Position::START);
}
