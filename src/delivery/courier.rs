//! The courier: brings entries of any journal to one destination, whatever has to be waited out.

use std::{
    collections::HashMap,
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::{Either, select};
use tokio::sync::watch;

use super::{Shared, dead_letter::DeadLetters, notices::Notices, retry::Backoff};
use crate::{
    artifacts::{self, ArtifactError, ArtifactStore},
    journal::{
        JournalError,
        reader::{Placed, Reader},
        recovery::Abandoned,
    },
    record::{ArtifactPath, Record},
    run::{RunId, now_ms},
    store::{StoreError, TrackingStore},
};

/// A destination that fails for longer than this is worth a word to the user.
const QUIET: Duration = Duration::from_secs(2);
/// How long a run that another process has started may take to be there.
const ATTACHED_PATIENCE: Duration = Duration::from_secs(600);

/// The process ends before all is delivered: the rest stays in the journal.
#[derive(Debug)]
pub(super) struct Closing;

/// What failed at the destination.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

impl Failure {
    fn is_transient(&self) -> bool {
        match self {
            Self::Store(error) => error.is_transient(),
            Self::Artifact(error) => error.is_transient(),
        }
    }

    fn is_not_found(&self) -> bool {
        matches!(self, Self::Store(StoreError::NotFound { .. }))
    }

    /// How long the destination wants to be left alone.
    fn retry_after(&self) -> Duration {
        let asked = match self {
            Self::Store(error) => error.retry_after(),
            Self::Artifact(ArtifactError::Server { source, .. }) => source.retry_after(),
            Self::Artifact(_) => None,
        };
        asked.unwrap_or_default()
    }
}

/// Why a journal of a dead process is not delivered whole.
#[derive(Debug)]
pub(super) enum Left {
    Closing,
    /// It belongs to a run that is not there yet.
    Early,
    Journal(JournalError),
}

impl From<Closing> for Left {
    fn from(_: Closing) -> Self {
        Self::Closing
    }
}

/// Brings entries to one destination.
#[derive(Debug)]
pub(super) struct Courier {
    heimdall_dir: PathBuf,
    store: Arc<dyn TrackingStore>,
    shared: Arc<Shared>,
    notices: Arc<Notices>,
    deadline: watch::Sender<bool>,
    artifacts: HashMap<RunId, Arc<dyn ArtifactStore>>,
    /// Runs that other processes have started, and since when the store has said that they are not there.
    attached: HashMap<RunId, Option<Instant>>,
    /// Records of dead processes that were delivered or parked.
    pub recovered: Arc<AtomicU64>,
}

impl Courier {
    /// A courier that works until `deadline` says that the time is over.
    pub fn new(
        heimdall_dir: PathBuf,
        store: Arc<dyn TrackingStore>,
        shared: Arc<Shared>,
        notices: Arc<Notices>,
        deadline: watch::Sender<bool>,
    ) -> Self {
        Self {
            heimdall_dir,
            store,
            shared,
            notices,
            deadline,
            artifacts: HashMap::new(),
            attached: HashMap::new(),
            recovered: Arc::default(),
        }
    }

    /// Waits for `pause`; true as soon as there is no time left to deliver in.
    pub async fn wait_to_close(&self, pause: Duration) -> bool {
        let mut deadline = self.deadline.subscribe();
        tokio::time::timeout(pause, deadline.wait_for(|over| *over))
            .await
            .is_ok()
    }

    /// Delivers what a dead process left and closes the runs it left open.
    pub async fn deliver_abandoned(
        &mut self,
        abandoned: &Abandoned,
        destination: usize,
    ) -> Result<(), Left> {
        let mut reader = abandoned.reader(destination);
        if reader.is_done(abandoned.end) {
            return Ok(());
        }
        let letters = DeadLetters::of(&self.heimdall_dir, &abandoned.dir, destination);
        loop {
            let batch = reader.read(abandoned.end).map_err(Left::Journal)?;
            self.tell_damage(&batch.damage);
            let is_last = batch.entries.is_empty();
            // What another process has to start first may be in a journal that comes after this one.
            for placed in &batch.entries {
                let patience = i64::try_from(ATTACHED_PATIENCE.as_millis()).unwrap_or(i64::MAX);
                if let Record::RunAttached { run } = &placed.entry.record
                    && now_ms() - placed.entry.at < patience
                    && self.is_missing(*run).await?
                {
                    return Err(Left::Early);
                }
            }
            self.deliver(&reader, &batch.entries, &letters).await?;
            reader.advance(&batch.entries).map_err(Left::Journal)?;
            self.recovered
                .fetch_add(batch.entries.len() as u64, Ordering::Relaxed);
            if is_last {
                break;
            }
        }
        for (run_id, last) in reader.progress().open_runs.clone() {
            self.fail_run(&run_id, last).await?;
            self.notices.tell(format!(
                "run {run_id} was left open by process {}, which has died: what it had recorded is \
                 delivered, and the run is marked FAILED",
                abandoned.manifest.pid
            ));
        }
        reader.runs_closed().map_err(Left::Journal)
    }

    /// Whether the store does not know a run.
    async fn is_missing(&self, run: RunId) -> Result<bool, Closing> {
        let mut trouble = Trouble::default();
        let is_missing = loop {
            match self.store.artifact_uri(&run.to_string()).await {
                Err(error) if error.is_transient() => {
                    self.wait_out(&mut trouble, &error.into(), None).await?;
                }
                answer => break matches!(answer, Err(StoreError::NotFound { .. })),
            }
        };
        self.trouble_over(&trouble);
        Ok(is_missing)
    }

    async fn fail_run(&self, run_id: &str, end_time: i64) -> Result<(), Closing> {
        let mut trouble = Trouble::default();
        loop {
            match self.store.fail_run(run_id, end_time).await {
                Ok(()) => break,
                Err(error) if error.is_transient() => {
                    self.wait_out(&mut trouble, &error.into(), None).await?;
                }
                // A run that was deleted since needs no end.
                Err(StoreError::NotFound { .. } | StoreError::RunDeleted { .. }) => break,
                Err(error) => {
                    self.notices
                        .tell(format!("run {run_id} cannot be marked FAILED: {error}"));
                    break;
                }
            }
        }
        self.trouble_over(&trouble);
        Ok(())
    }

    /// Delivers entries in order: records between artifacts in one transaction, each artifact in its place.
    pub async fn deliver(
        &mut self,
        reader: &Reader,
        entries: &[Placed],
        letters: &DeadLetters,
    ) -> Result<(), Closing> {
        for placed in entries {
            if let Record::RunAttached { run } = placed.entry.record {
                self.attached.entry(run).or_default();
            }
        }
        let oldest = entries.first().map(|placed| placed.entry.at);
        self.shared.update(|state| state.oldest = oldest);
        let is_artifact = |placed: &Placed| placed.entry.record.is_artifact();
        for group in entries.chunk_by(|a, b| !is_artifact(a) && !is_artifact(b)) {
            if let Err(failure) = self.attempt(reader, group).await? {
                if let [placed] = group {
                    self.park(reader, placed, &failure, letters).await?;
                    continue;
                }
                // One of them is at fault: each on its own finds out which.
                for placed in group {
                    let one = std::slice::from_ref(placed);
                    if let Err(failure) = self.attempt(reader, one).await? {
                        self.park(reader, placed, &failure, letters).await?;
                    }
                }
            }
        }
        self.shared.update(|state| state.oldest = None);
        Ok(())
    }

    /// Tries until it succeeds or it is clear that it never will.
    async fn attempt(
        &mut self,
        reader: &Reader,
        group: &[Placed],
    ) -> Result<Result<(), Failure>, Closing> {
        let mut trouble = Trouble::default();
        loop {
            let mut deadline = self.deadline.subscribe();
            let over = pin!(deadline.wait_for(|over| *over));
            let outcome = match select(pin!(self.write(reader, group)), over).await {
                Either::Left((outcome, _)) => outcome,
                // What is broken off here is written again by whoever delivers the rest.
                Either::Right(_) => return Err(Closing),
            };
            match outcome {
                Err(failure) if failure.is_transient() || self.is_early(&failure, group) => {
                    self.wait_out(&mut trouble, &failure, Some(reader)).await?;
                }
                settled => {
                    if trouble.told {
                        reader.note_trouble(None);
                    }
                    self.trouble_over(&trouble);
                    return Ok(settled);
                }
            }
        }
    }

    async fn write(&mut self, reader: &Reader, group: &[Placed]) -> Result<(), Failure> {
        if let [placed] = group
            && placed.entry.record.is_artifact()
        {
            return self.put(reader, &placed.entry.record).await;
        }
        let records: Vec<&Record> = group.iter().map(|placed| &placed.entry.record).collect();
        Ok(self.store.write(&records).await?)
    }

    /// Whether a run is not there only because the process that has started it has not delivered that yet.
    fn is_early(&mut self, failure: &Failure, group: &[Placed]) -> bool {
        if !failure.is_not_found() {
            return false;
        }
        let mut is_early = false;
        for placed in group {
            if let Some(since) = self.attached.get_mut(&placed.entry.record.run()) {
                let since = since.get_or_insert_with(Instant::now);
                is_early |= since.elapsed() < ATTACHED_PATIENCE;
            }
        }
        is_early
    }

    async fn put(&mut self, reader: &Reader, record: &Record) -> Result<(), Failure> {
        let store = self.artifact_store(record.run()).await?;
        let lost = |file: &Path, path: &ArtifactPath| ArtifactError::StagedLost {
            staged: file.to_owned(),
            artifact: path.as_str().to_owned(),
        };
        match record {
            Record::Artifact {
                staged, path, size, ..
            } => store.put(&reader.staged(staged), path, *size).await?,
            Record::ArtifactInPlace { source, path, .. } => {
                let file = Path::new(source);
                let metadata = fs::metadata(file).map_err(|_| lost(file, path))?;
                store.put(file, path, metadata.len()).await?;
            }
            Record::ArtifactInline { content, path, .. } => {
                let name = format!(".inline-{:016x}", rand::random::<u64>());
                // The journal's own disk may be the full one.
                let places = [self.heimdall_dir.clone(), std::env::temp_dir()];
                let file = places
                    .iter()
                    .map(|place| place.join(&name))
                    .find(|file| write_private(file, content).is_ok());
                let Some(file) = file else {
                    return Err(Failure::Artifact(ArtifactError::Io {
                        artifact: path.as_str().to_owned(),
                        target: places[1].join(&name),
                        source: io::ErrorKind::StorageFull.into(),
                    }));
                };
                let put = store.put(&file, path, content.len() as u64).await;
                let _ = fs::remove_file(&file);
                put?;
            }
            _ => {}
        }
        Ok(())
    }

    async fn artifact_store(&mut self, run: RunId) -> Result<Arc<dyn ArtifactStore>, Failure> {
        if let Some(store) = self.artifacts.get(&run) {
            return Ok(Arc::clone(store));
        }
        let uri = self.store.artifact_uri(&run.to_string()).await?;
        let store = match self.store.artifacts(&uri) {
            Some(store) => store,
            None => artifacts::open(&uri)?,
        };
        let store: Arc<dyn ArtifactStore> = Arc::from(store);
        self.artifacts.insert(run, Arc::clone(&store));
        Ok(store)
    }

    async fn wait_out(
        &self,
        trouble: &mut Trouble,
        failure: &Failure,
        reader: Option<&Reader>,
    ) -> Result<(), Closing> {
        let since = *trouble.since.get_or_insert_with(Instant::now);
        self.shared.update(|state| {
            state.last_error = Some(failure.to_string());
            state.since.get_or_insert_with(now_ms);
        });
        if !trouble.told && since.elapsed() >= QUIET {
            trouble.told = true;
            if let Some(reader) = reader {
                reader.note_trouble(Some(&failure.to_string()));
            }
            // Once for an outage, although every attempt at something else finds it anew.
            if self.shared.tell_outage() {
                self.notices.tell(format!(
                    "tracking is degraded, training is not: {failure}. What is recorded is kept in {} and \
                     delivered as soon as it can be",
                    self.heimdall_dir.display()
                ));
            }
        }
        let pause = trouble.backoff.pause().max(failure.retry_after());
        if self.wait_to_close(pause).await {
            if let Some(reader) = reader {
                reader.note_trouble(Some(&failure.to_string()));
            }
            Err(Closing)
        } else {
            Ok(())
        }
    }

    fn trouble_over(&self, trouble: &Trouble) {
        if trouble.since.is_some() || self.shared.state().since.is_some() {
            self.shared.update(|state| {
                state.last_error = None;
                state.since = None;
            });
        }
        if self.shared.outage_over() {
            self.notices.tell(format!(
                "tracking works again: {} takes records",
                self.shared.uri
            ));
        }
    }

    /// Keeps a record that the store refuses for good where the user finds it, as soon as the disk takes it.
    async fn park(
        &self,
        reader: &Reader,
        placed: &Placed,
        failure: &Failure,
        letters: &DeadLetters,
    ) -> Result<(), Closing> {
        let entry = &placed.entry;
        let staged = match &entry.record {
            Record::Artifact { staged, .. } => Some(reader.staged(staged)),
            _ => None,
        };
        let what = format!(
            "{} of run {} cannot be delivered: {failure}",
            entry.record.summary(),
            entry.record.run()
        );
        let file = letters.path().display();
        let mut backoff = Backoff::default();
        let mut told = false;
        while let Err(error) = letters.park(entry, &failure.to_string(), staged.as_deref()) {
            if !std::mem::replace(&mut told, true) {
                self.notices.tell(format!(
                    "{what}. Nor can it be kept in {file} at present: {error}"
                ));
            }
            if self.wait_to_close(backoff.pause()).await {
                return Err(Closing);
            }
        }
        // The first stands for all: whoever is told can read the others in the same file.
        if self.shared.state().parked == 0 {
            self.notices.tell(format!(
                "{what}. It is kept in {file}, as is whatever else cannot be; status() counts it"
            ));
        }
        self.shared.update(|state| state.parked += 1);
        Ok(())
    }

    pub fn tell_damage(&self, damage: &[String]) {
        for text in damage {
            self.notices.tell(format!("the journal is damaged: {text}"));
        }
    }
}

/// Writes a file that nobody else may read.
fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(content).inspect_err(|_| {
        let _ = fs::remove_file(path);
    })
}

/// A destination that does not take something.
#[derive(Debug, Default)]
struct Trouble {
    since: Option<Instant>,
    told: bool,
    backoff: Backoff,
}
