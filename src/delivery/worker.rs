//! The worker: reads the journal from its position, writes to the destination, saves the new position.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Shared, dead_letter::DeadLetters, retry::Backoff};
use crate::{
    artifacts::{self, ArtifactError, ArtifactStore},
    journal::{
        Entry, Journal, JournalError,
        recovery::{self, Abandoned, Reader},
    },
    record::Record,
    run::RunId,
    store::{StoreError, TrackingStore},
};

/// A destination that fails for longer than this is worth a word to the user.
const QUIET: Duration = Duration::from_secs(2);
/// Pause after a wake-up, so that a burst of calls becomes one transaction.
const GATHER: Duration = Duration::from_millis(20);
/// Pause before a part of the journal that could not be read is read again.
const REREAD: Duration = Duration::from_secs(1);
/// Entries taken from memory at a time when the disk takes none.
const MEMORY_BATCH: usize = 10_000;

/// The process ends before all is delivered: the rest stays in the journal.
#[derive(Debug)]
struct Closing;

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

/// Delivers one tracker's journal, and those that dead processes left for the same destination.
#[derive(Debug)]
pub(super) struct Worker {
    pub heimdall_dir: PathBuf,
    pub destination: String,
    pub store: Arc<dyn TrackingStore>,
    pub journal: Arc<Journal>,
    pub shared: Arc<Shared>,
    pub artifacts: HashMap<RunId, Arc<dyn ArtifactStore>>,
}

impl Worker {
    /// Works until it is told to close and all is delivered, or the time for that is over.
    pub async fn run(mut self) {
        let mut reader = Reader::open(self.journal.dir());
        let delivered = match self.deliver_abandoned().await {
            Ok(()) => self.deliver_live(&mut reader).await,
            closing => closing,
        };
        if delivered.is_ok() {
            reader.remove();
        }
        self.shared.update(|state| {
            state.recovering = false;
            state.ended = true;
        });
    }

    async fn deliver_live(&mut self, reader: &mut Reader) -> Result<(), Closing> {
        let letters = DeadLetters::of(&self.heimdall_dir, reader.dir());
        let mut told = false;
        loop {
            let end = self.journal.end();
            let batch = match reader.read(end.position) {
                Ok(batch) => batch,
                Err(error) => {
                    self.tell_once(&mut told, &error);
                    if self.shared.wait_to_close(REREAD).await {
                        return Err(Closing);
                    }
                    continue;
                }
            };
            self.tell_damage(&batch.damage);
            if !batch.entries.is_empty() {
                self.deliver(reader, &batch.entries, &letters).await?;
                if let Err(error) = reader.advance(&batch.entries) {
                    // Delivered all the same; a next start would only deliver it again.
                    self.tell_once(&mut told, &error);
                }
                self.shared
                    .update(|state| state.delivered += batch.entries.len() as u64);
                continue;
            }
            let in_memory = self.journal.in_memory(MEMORY_BATCH);
            if !in_memory.is_empty() {
                self.deliver(reader, &in_memory, &letters).await?;
                self.journal.forget_in_memory(in_memory.len());
                self.shared
                    .update(|state| state.delivered += in_memory.len() as u64);
                continue;
            }
            // Everything that was there when the end was read is delivered, damaged records included.
            self.shared.update(|state| state.delivered = end.appended);
            if self.shared.is_closing() {
                if self.journal.seal(end.appended) {
                    return Ok(());
                }
                continue;
            }
            self.shared.wake.notified().await;
            if !self.shared.is_urgent() {
                tokio::time::sleep(GATHER).await;
            }
        }
    }

    /// Delivers what dead processes left for this destination and closes the runs they left open.
    async fn deliver_abandoned(&mut self) -> Result<(), Closing> {
        let heimdall_dir = self.heimdall_dir.clone();
        let found = tokio::task::spawn_blocking(move || recovery::abandoned(&heimdall_dir)).await;
        for mut abandoned in found.unwrap_or_default() {
            if abandoned.manifest.destination != self.destination {
                continue;
            }
            if let Err(error) = self.deliver_one_abandoned(&mut abandoned).await? {
                // It stays for another start; what this process records goes on.
                self.shared
                    .notices
                    .tell(format!("a journal of a dead process is left: {error}"));
            }
        }
        self.shared.update(|state| state.recovering = false);
        Ok(())
    }

    async fn deliver_one_abandoned(
        &mut self,
        abandoned: &mut Abandoned,
    ) -> Result<Result<(), JournalError>, Closing> {
        let letters = DeadLetters::of(&self.heimdall_dir, abandoned.reader.dir());
        loop {
            let batch = match abandoned.reader.read(abandoned.end) {
                Ok(batch) => batch,
                Err(error) => return Ok(Err(error)),
            };
            self.tell_damage(&batch.damage);
            if batch.entries.is_empty() {
                break;
            }
            self.deliver(&abandoned.reader, &batch.entries, &letters)
                .await?;
            if let Err(error) = abandoned.reader.advance(&batch.entries) {
                return Ok(Err(error));
            }
        }
        for (run_id, last) in abandoned.reader.progress().open_runs.clone() {
            self.fail_run(&run_id, last).await?;
            self.shared.notices.tell(format!(
                "run {run_id} was left open by process {}, which has died: what it had recorded is \
                 delivered, and the run is marked FAILED",
                abandoned.manifest.pid
            ));
        }
        abandoned.reader.remove();
        Ok(Ok(()))
    }

    async fn fail_run(&self, run_id: &str, end_time: i64) -> Result<(), Closing> {
        let mut trouble = Trouble::default();
        loop {
            match self.store.fail_run(run_id, end_time).await {
                Ok(()) => break,
                Err(error) if error.is_transient() => {
                    self.wait_out(&mut trouble, &error.into()).await?;
                }
                // A run that was deleted since needs no end.
                Err(_) => break,
            }
        }
        self.trouble_over(&trouble);
        Ok(())
    }

    /// Delivers entries in order: records between artifacts in one transaction, each artifact in its place.
    async fn deliver(
        &mut self,
        reader: &Reader,
        entries: &[Entry],
        letters: &DeadLetters,
    ) -> Result<(), Closing> {
        let is_artifact = |entry: &Entry| matches!(entry.record, Record::Artifact { .. });
        for group in entries.chunk_by(|a, b| !is_artifact(a) && !is_artifact(b)) {
            if let Err(failure) = self.attempt(reader, group).await? {
                if let [entry] = group {
                    self.park(reader, entry, &failure, letters);
                    continue;
                }
                // One of them is at fault: each on its own finds out which.
                for entry in group {
                    if let Err(failure) = self.attempt(reader, std::slice::from_ref(entry)).await? {
                        self.park(reader, entry, &failure, letters);
                    }
                }
            }
        }
        Ok(())
    }

    /// Tries until it succeeds or it is clear that it never will.
    async fn attempt(
        &mut self,
        reader: &Reader,
        group: &[Entry],
    ) -> Result<Result<(), Failure>, Closing> {
        let mut trouble = Trouble::default();
        loop {
            let outcome = match group {
                [
                    Entry {
                        record:
                            Record::Artifact {
                                run,
                                staged,
                                path,
                                size,
                            },
                        ..
                    },
                ] => match self.artifact_store(*run).await {
                    Ok(store) => store
                        .put(&reader.staged(staged), path, *size)
                        .await
                        .map_err(Failure::from),
                    Err(error) => Err(error),
                },
                _ => {
                    let records: Vec<&Record> = group.iter().map(|entry| &entry.record).collect();
                    self.store.write(&records).await.map_err(Failure::from)
                }
            };
            match outcome {
                Err(failure) if failure.is_transient() => {
                    self.wait_out(&mut trouble, &failure).await?;
                }
                settled => {
                    self.trouble_over(&trouble);
                    return Ok(settled);
                }
            }
        }
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

    async fn wait_out(&self, trouble: &mut Trouble, failure: &Failure) -> Result<(), Closing> {
        let since = *trouble.since.get_or_insert_with(Instant::now);
        self.shared
            .update(|state| state.last_error = Some(failure.to_string()));
        if !trouble.told && since.elapsed() >= QUIET {
            trouble.told = true;
            self.shared.notices.tell(format!(
                "tracking is degraded, training is not: {failure}. What is recorded is kept in {} and \
                 delivered as soon as it can be",
                self.journal.dir().display()
            ));
        }
        let pause = trouble.backoff.pause().max(failure.retry_after());
        if self.shared.wait_to_close(pause).await {
            Err(Closing)
        } else {
            Ok(())
        }
    }

    fn trouble_over(&self, trouble: &Trouble) {
        if trouble.since.is_some() {
            self.shared.update(|state| state.last_error = None);
        }
        if trouble.told {
            self.shared.notices.tell(format!(
                "tracking works again: {} takes records",
                self.destination
            ));
        }
    }

    fn park(&self, reader: &Reader, entry: &Entry, failure: &Failure, letters: &DeadLetters) {
        let staged = match &entry.record {
            Record::Artifact { staged, .. } => Some(reader.staged(staged)),
            _ => None,
        };
        let summary = entry.record.summary();
        let run = entry.record.run();
        let file = letters.path().display();
        let text = match letters.park(entry, &failure.to_string(), staged.as_deref()) {
            // The first stands for all: whoever is told can read the others in the same file.
            Ok(()) => (self.shared.state().parked == 0).then(|| {
                format!(
                    "{summary} of run {run} cannot be delivered: {failure}. It is kept in {file}, as is \
                     whatever else cannot be; status() counts it"
                )
            }),
            Err(error) => Some(format!(
                "{summary} of run {run} cannot be delivered: {failure}. Nor can it be kept in {file}: {error}"
            )),
        };
        if let Some(text) = text {
            self.shared.notices.tell(text);
        }
        self.shared.update(|state| state.parked += 1);
    }

    fn tell_once(&self, told: &mut bool, error: &JournalError) {
        if !std::mem::replace(told, true) {
            self.shared
                .notices
                .tell(format!("tracking is degraded, training is not: {error}"));
        }
    }

    fn tell_damage(&self, damage: &[String]) {
        for text in damage {
            self.shared
                .notices
                .tell(format!("the journal is damaged: {text}"));
        }
    }
}

/// A destination that does not take something.
#[derive(Debug, Default)]
struct Trouble {
    since: Option<Instant>,
    told: bool,
    backoff: Backoff,
}
