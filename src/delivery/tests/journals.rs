//! Histories against real journals and the sender. The file system is real; the test controls time, store and order of
//! events, so that a failing case fails again.

use std::{
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex, OnceLock, atomic::Ordering},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures_util::StreamExt;
use proptest::prelude::*;
use tokio::sync::{Notify, watch};

use super::model::{Fate, HistoryEvent, Promised, StoreContent, file_of, histories};
use crate::{
    artifacts::{
        error::ArtifactError,
        open::Access,
        store::{ArtifactStore, Content, FileInfo, FileState, Upload},
    },
    config::{tracker::FreshSchema, uri::Destination},
    delivery::{
        dead_letter::DeadLetters, destination::DestinationState, notices::Notices, outbox::Outbox,
        sender::Sender,
    },
    journal::{
        abandoned,
        append::{Admission, EncodedRecords},
        config::JournalConfig,
        layout,
        position::Position,
        reader::Reader,
        record::{Record, RunStart},
        staging::Staged,
        writer::Journal,
    },
    mlflow::{
        artifact_path::ArtifactPath,
        key::Key,
        rewind::AppliedRewinds,
        run::{LifecycleStage, MetricPoint, RunId, RunInfo, ViewType},
        search::runs::RunQuery,
    },
    store::{
        deferred::DeferredStore,
        error::StoreError,
        sql::store::SqlStore,
        tracking::{Experiment, LoggedModelFiles, RunRow, TrackingStore},
    },
};

/// A store in memory whose writes and uploads end as the test says.
#[derive(Clone, Debug, Default)]
struct MemoryStore(Arc<MemoryStoreState>);

#[derive(Debug, Default)]
struct MemoryStoreState {
    content: Mutex<StoreContent>,
    fates: Mutex<Vec<Fate>>,
    died: Notify,
}

/// The end of an attempt that the process survives.
enum AttemptOutcome {
    Committed,
    Failed,
    Refused,
}

impl MemoryStore {
    fn content(&self) -> std::sync::MutexGuard<'_, StoreContent> {
        self.0.content.lock().unwrap()
    }

    /// Makes an attempt end as the test says.
    async fn attempt(
        &self,
        may_refuse: bool,
        commit: impl FnOnce(&mut StoreContent),
    ) -> AttemptOutcome {
        let fate = self
            .0
            .fates
            .lock()
            .unwrap()
            .pop()
            .unwrap_or(Fate::Committed);
        match fate {
            Fate::FailedBefore => return AttemptOutcome::Failed,
            Fate::Refused if may_refuse => return AttemptOutcome::Refused,
            Fate::DiedBefore => self.die().await,
            _ => commit(&mut self.content()),
        }
        match fate {
            Fate::FailedAfter => AttemptOutcome::Failed,
            Fate::DiedAfter => self.die().await,
            _ => AttemptOutcome::Committed,
        }
    }

    async fn die(&self) -> ! {
        self.0.died.notify_one();
        std::future::pending().await
    }

    fn not_asked(&self) -> StoreError {
        StoreError::NotFound {
            what: "a question that a delivery never asks".into(),
            destination: "memory".into(),
        }
    }

    fn unavailable(&self) -> StoreError {
        StoreError::Unavailable {
            destination: "memory".into(),
            source: "the connection broke".into(),
            retry_after: None,
        }
    }
}

#[async_trait]
impl TrackingStore for MemoryStore {
    async fn write(&self, records: &[&Record]) -> Result<(), StoreError> {
        let commit = |content: &mut StoreContent| content.apply(records.iter().copied());
        match self.attempt(false, commit).await {
            AttemptOutcome::Committed | AttemptOutcome::Refused => Ok(()),
            AttemptOutcome::Failed => Err(self.unavailable()),
        }
    }

    fn can_rewind(&self) -> bool {
        true
    }

    async fn applied_rewinds(&self, run_id: &str) -> Result<AppliedRewinds, StoreError> {
        let run = run_id.parse().map_err(|_| self.not_asked())?;
        let applied = self.content().rewinds.get(&run).cloned();
        Ok(applied.unwrap_or_default())
    }

    async fn fail_run(&self, run_id: &str, _end_time: i64) -> Result<(), StoreError> {
        let run: RunId = run_id.parse().map_err(|_| self.not_asked())?;
        self.content().fail(run);
        Ok(())
    }

    async fn artifact_uri(&self, run_id: &str) -> Result<String, StoreError> {
        Ok(run_id.to_owned())
    }

    fn artifacts(&self, uri: &str) -> Option<Box<dyn ArtifactStore>> {
        let run = uri.parse().unwrap();
        let store = self.clone();
        Some(Box::new(MemoryArtifacts { store, run }))
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

/// The artifacts of a run.
#[derive(Debug)]
struct MemoryArtifacts {
    store: MemoryStore,
    run: RunId,
}

impl MemoryArtifacts {
    fn broken(&self, path: &ArtifactPath) -> ArtifactError {
        ArtifactError::Server {
            artifact: path.as_str().to_owned(),
            source: "the connection broke".into(),
            is_transient: true,
            retry_after: None,
        }
    }

    fn not_found(&self, path: &ArtifactPath) -> ArtifactError {
        ArtifactError::NotFound {
            artifact: path.as_str().to_owned(),
            store: self.uri(),
        }
    }
}

#[async_trait]
impl ArtifactStore for MemoryArtifacts {
    fn uri(&self) -> String {
        self.run.to_string()
    }

    async fn put(&self, upload: Upload<'_>) -> Result<(), ArtifactError> {
        // The copy is gone where the file arrived before a kill.
        let Ok(content) = std::fs::read_to_string(upload.file) else {
            return Ok(());
        };
        let record = Record::Artifact {
            run: self.run,
            staged: content,
            path: upload.path.clone(),
            size: upload.size,
        };
        upload.sent.store(upload.size, Ordering::Relaxed);
        match self
            .store
            .attempt(true, |content| content.put(&record))
            .await
        {
            AttemptOutcome::Committed => Ok(()),
            AttemptOutcome::Failed => Err(self.broken(upload.path)),
            AttemptOutcome::Refused => {
                self.store.content().park(&record);
                Err(ArtifactError::BadName {
                    name: upload.path.as_str().to_owned(),
                    store: self.uri(),
                })
            }
        }
    }

    async fn list(&self, folder: &ArtifactPath) -> Result<Vec<FileInfo>, ArtifactError> {
        Err(self.not_found(folder))
    }

    async fn head(&self, path: &ArtifactPath) -> Result<FileState, ArtifactError> {
        Err(self.not_found(path))
    }

    async fn read(
        &self,
        _path: &ArtifactPath,
        _range: Option<std::ops::Range<u64>>,
        _version: Option<&str>,
    ) -> Result<Content, ArtifactError> {
        Ok(futures_util::stream::empty().boxed())
    }

    async fn delete(&self, path: &ArtifactPath) -> Result<(), ArtifactError> {
        Err(self.not_found(path))
    }

    async fn delete_tree(&self, path: &ArtifactPath) -> Result<(), ArtifactError> {
        let delete = |content: &mut StoreContent| content.delete(self.run, path);
        match self.store.attempt(false, delete).await {
            AttemptOutcome::Committed | AttemptOutcome::Refused => Ok(()),
            AttemptOutcome::Failed => Err(self.broken(path)),
        }
    }
}

/// Returns a registry that the tests never query.
fn registry() -> Arc<SqlStore> {
    static REGISTRY: OnceLock<Arc<SqlStore>> = OnceLock::new();
    let open = || {
        let dir = tempfile::tempdir().unwrap();
        let file = Destination::Sqlite(dir.path().join("mlflow.db"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let opened = runtime.block_on(SqlStore::open(&file, &FreshSchema::Newest));
        Arc::new(opened.unwrap())
    };
    // The store is opened on a separate thread, because the caller's thread may drive a runtime already.
    let open = || std::thread::spawn(open).join().unwrap();
    Arc::clone(REGISTRY.get_or_init(open))
}

const URI: &str = "memory";
/// Longest time for which a process that is starting holds the locks of this one.
const LOCKS_TIMEOUT: Duration = Duration::from_secs(30);

struct World {
    dir: tempfile::TempDir,
    store: MemoryStore,
    promised: Promised,
    journal: Arc<Journal>,
    outbox: Outbox,
}

impl World {
    fn new() -> Self {
        // The files are in memory where there is such a folder: a power cut is not part of the model.
        let shm = Path::new("/dev/shm");
        let dir = if shm.is_dir() {
            tempfile::tempdir_in(shm)
        } else {
            tempfile::tempdir()
        };
        let dir = dir.unwrap();
        let (journal, outbox) = begin(dir.path());
        Self {
            store: MemoryStore::default(),
            promised: Promised::default(),
            journal,
            outbox,
            dir,
        }
    }

    fn sender(&self) -> Sender {
        let destination = Destination::Sqlite(self.dir.path().join("none"));
        let store = DeferredStore::of(destination, Arc::new(self.store.clone()), registry());
        Sender::new(
            self.dir.path().to_owned(),
            Arc::new(store),
            Access::default(),
            Arc::new(DestinationState::new(URI.into())),
            Arc::new(Notices::default()),
            watch::Sender::new(false),
        )
    }

    async fn happen(&mut self, event: HistoryEvent) {
        for record in self.promised.record(&event) {
            self.append(record);
        }
        match event {
            HistoryEvent::Deliver(fates) => {
                *self.store.0.fates.lock().unwrap() = fates;
                if !self.deliver().await {
                    self.die(0);
                    self.recover().await;
                }
            }
            HistoryEvent::Crash(torn, fates) => {
                self.die(torn);
                *self.store.0.fates.lock().unwrap() = fates;
                self.recover().await;
            }
            _ => {}
        }
    }

    /// Appends a record. The content of a file is its mark.
    fn append(&self, mut record: Record) {
        self.store.content().expect(&record);
        if let Some((_, _, mark)) = file_of(&record)
            && let Record::Artifact { staged, size, .. } = &mut record
        {
            let copy = self.journal.stage_bytes(mark.to_string().as_bytes());
            let Staged::Copied { name, size: length } = copy.unwrap() else {
                panic!("the disk takes a copy");
            };
            (*staged, *size) = (name, length);
        }
        let batch = EncodedRecords::of(vec![record]).unwrap();
        self.journal.append(batch, Admission::Bounded).unwrap();
    }

    /// Delivers as a worker does; returns false when the process dies meanwhile.
    async fn deliver(&mut self) -> bool {
        let mut sender = self.sender();
        let store = self.store.clone();
        let (journal, outbox) = (&self.journal, &mut self.outbox);
        let work = async {
            loop {
                let batch = outbox.journal.reader.read(journal.end().position).unwrap();
                if batch.entries.is_empty() {
                    break;
                }
                sender.send(outbox, batch.entries).await.unwrap();
            }
            assert!(outbox.take_error().is_none());
        };
        tokio::select! {
            () = work => true,
            () = store.0.died.notified() => false,
        }
    }

    /// Lets the process die; the kernel keeps the written data and releases the lock.
    fn die(&mut self, torn: u8) {
        let end = self.journal.end().position;
        let path = layout::segment_path(&self.journal.dir(), end.segment);
        (self.journal, self.outbox) = begin(self.dir.path());
        self.promised.die();
        // The marker of a frame is written last.
        let bytes = vec![0xA5; usize::from(torn)];
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.write_all_at(&bytes, end.offset + 4).unwrap();
    }

    /// Runs the first steps of the next process, again and again if it dies during them, and until only the journal of
    /// the living process is left: a process that another test has just started holds a lock until it executes its
    /// program.
    async fn recover(&self) {
        let begun = Instant::now();
        loop {
            let found = abandoned::lock_all(self.dir.path(), |_| true);
            let store = self.store.clone();
            let mut sender = self.sender();
            let work = async {
                for journal in &found {
                    let delivered = sender.deliver_abandoned(journal, 0).await;
                    delivered.expect("the journal is delivered");
                    journal.remove();
                }
            };
            tokio::select! {
                () = work => {}
                () = store.0.died.notified() => continue,
            }
            let left = layout::folders(self.dir.path()).unwrap();
            if left == [self.journal.dir()] || begun.elapsed() > LOCKS_TIMEOUT {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Begins the journal of a process.
fn begin(dir: &Path) -> (Arc<Journal>, Outbox) {
    let journal = Arc::new(Journal::create(config(dir)));
    let letters = DeadLetters::of(dir, &journal.dir(), 0);
    let outbox = Outbox::live(Reader::live(Arc::clone(&journal), 0), letters);
    (journal, outbox)
}

/// Returns a configuration with short segments, which are made quickly.
fn config(dir: &Path) -> JournalConfig {
    JournalConfig {
        disk_limit: 1 << 20,
        ..JournalConfig::new(dir, vec![URI.into()])
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn what_was_promised_is_in_the_store_once_whatever_dies_when(history in histories(40)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut world = World::new();
            for event in history {
                world.happen(event).await;
            }
            world.store.0.fates.lock().unwrap().clear();
            world.die(0);
            world.recover().await;
            world.promised.check(&world.store.content())?;
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
        let batch = EncodedRecords::of(vec![metric(step)]).unwrap();
        journal.append(batch, Admission::Bounded).unwrap();
        let entries = readers[0].read(journal.end().position).unwrap().entries;
        readers[0].advance(&entries).unwrap();
    }
    drop((journal, readers));

    let left = abandoned::lock_all(dir.path(), |_| true).remove(0);
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
