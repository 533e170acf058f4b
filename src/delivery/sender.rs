//! The sender: delivers the entries of journals to one destination, and waits until outages are over.

use std::{
    collections::HashMap,
    path::PathBuf,
    slice,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::{
    dead_letter::DeadLetters,
    destination::{DestinationState, Refused, Traffic},
    notices::Notices,
    outage::{Attempts, DeadlineReached, Failure},
    outbox::{Outbox, size},
    transfer::{Finished, Transfer},
    uploads::{Action, Event},
};
use crate::{
    artifacts::{open::Access, store::ArtifactStore},
    journal::{
        abandoned::Abandoned,
        error::JournalError,
        reader::{Placed, Reader},
        record::Record,
    },
    mlflow::{artifact_path::ArtifactPath, run::RunId},
    net::retry::Backoff,
    os::clock::now_ms,
    store::{deferred::DeferredStore, error::StoreError},
};

/// Longest time that a run which another process has started may take to appear in the store.
const ATTACHED_PATIENCE: Duration = Duration::from_secs(600);
/// Most refused artifacts that are remembered for callers that wait for them.
const MAX_REFUSED: usize = 10_000;

/// A reason for which the journal of a dead process is not delivered completely.
#[derive(Debug)]
pub(crate) enum NotDelivered {
    DeadlineReached,
    /// The journal belongs to a run that is not in the store yet.
    TooEarly,
    /// The files of the journal cannot be sent at present.
    Stalled,
    Journal(JournalError),
}

impl From<DeadlineReached> for NotDelivered {
    fn from(_: DeadlineReached) -> Self {
        Self::DeadlineReached
    }
}

/// Delivers entries to one destination.
#[derive(Debug)]
pub(crate) struct Sender {
    heimdall_dir: PathBuf,
    store: Arc<DeferredStore>,
    access: Access,
    destination: Arc<DestinationState>,
    notices: Arc<Notices>,
    attempts: Attempts,
    artifacts: HashMap<RunId, Arc<dyn ArtifactStore>>,
    /// Longest time that files of a dead process are tried at a store that does not accept them.
    pub stalls_after: Option<Duration>,
    /// Records of dead processes that were delivered or parked.
    pub recovered: Arc<AtomicU64>,
}

impl Sender {
    /// Returns a sender that works until `deadline` says that the time is over.
    pub(crate) fn new(
        heimdall_dir: PathBuf,
        store: Arc<DeferredStore>,
        access: Access,
        destination: Arc<DestinationState>,
        notices: Arc<Notices>,
        deadline: watch::Sender<bool>,
    ) -> Self {
        let attempts = Attempts::new(
            heimdall_dir.clone(),
            Arc::clone(&destination),
            Arc::clone(&notices),
            deadline,
        );
        Self {
            heimdall_dir,
            store,
            access,
            destination,
            notices,
            attempts,
            artifacts: HashMap::new(),
            stalls_after: None,
            recovered: Arc::default(),
        }
    }

    /// Waits for `pause`. Returns true as soon as there is no time left for delivery.
    pub(crate) async fn wait_to_close(&self, pause: Duration) -> bool {
        self.attempts.wait_to_close(pause).await
    }

    /// Delivers entries: when this returns, they are written, parked or in transit.
    pub(crate) async fn deliver(
        &mut self,
        outbox: &mut Outbox,
        entries: Vec<Placed>,
    ) -> Result<(), DeadlineReached> {
        if outbox.is_live {
            let oldest = entries.first().map(|placed| placed.entry.at);
            self.destination.update(|state| state.oldest = oldest);
        }
        let end = entries.last().map(|last| last.number + 1);
        outbox.uploads.handle(Event::Read(entries));
        self.perform(outbox).await?;
        if outbox.is_live {
            let written = end.map(|end| outbox.written(end));
            self.destination.update(|state| {
                state.oldest = None;
                state.written = written.unwrap_or(state.written);
            });
        }
        Ok(())
    }

    /// Waits until all uploads have finished and all records that waited for them are written.
    pub(crate) async fn finish_uploads(
        &mut self,
        outbox: &mut Outbox,
    ) -> Result<(), DeadlineReached> {
        while outbox.has_uploads() {
            self.finish_upload(outbox).await?;
            self.perform(outbox).await?;
        }
        Ok(())
    }

    /// Continues after an upload has finished.
    pub(crate) async fn finished(
        &mut self,
        outbox: &mut Outbox,
        finished: Finished,
    ) -> Result<(), DeadlineReached> {
        self.take_finished(outbox, finished).await?;
        self.perform(outbox).await
    }

    /// Performs actions until more entries are needed.
    async fn perform(&mut self, outbox: &mut Outbox) -> Result<(), DeadlineReached> {
        loop {
            match outbox.uploads.next() {
                Action::Write(entries) => {
                    self.write_or_park(&outbox.reader, &outbox.letters, outbox.is_live, entries)
                        .await?;
                    outbox.uploads.handle(Event::Written);
                }
                Action::Upload(placed) => self.start_upload(outbox, placed).await?,
                Action::Save(entries) => self.save(outbox, &entries),
                Action::WaitForUpload => self.finish_upload(outbox).await?,
                Action::Read => return Ok(()),
            }
        }
    }

    fn save(&self, outbox: &mut Outbox, entries: &[Placed]) {
        if let Err(error) = outbox.reader.advance(entries) {
            // The entries are delivered all the same; the next start would only deliver them again.
            outbox.error = Some(error);
        }
        if outbox.is_live {
            let next = outbox.reader.next();
            self.destination.update(|state| state.delivered = next);
        } else {
            let count = entries.len() as u64;
            self.recovered.fetch_add(count, Ordering::Relaxed);
        }
    }

    async fn finish_upload(&mut self, outbox: &mut Outbox) -> Result<(), DeadlineReached> {
        let finished = outbox.transfers.next(&self.destination).await;
        let finished = finished.ok_or(DeadlineReached)?;
        self.take_finished(outbox, finished).await
    }

    /// Parks a file that could not be uploaded.
    async fn take_finished(
        &mut self,
        outbox: &mut Outbox,
        finished: Finished,
    ) -> Result<(), DeadlineReached> {
        let Finished { placed, outcome } = finished;
        let (outcome, record) = (outcome?, &placed.entry.record);
        tracing::debug!(
            name: "upload_finished",
            target: "heimdall_tracking.artifacts",
            run_id = %record.run(),
            path = record.artifact_path().map_or("", ArtifactPath::as_str),
            error = outcome.as_ref().err().map(tracing::field::display),
        );
        match outcome {
            Err(failure) => {
                self.park(
                    &outbox.reader,
                    &outbox.letters,
                    outbox.is_live,
                    &placed,
                    &failure,
                )
                .await?;
            }
            Ok(()) => self.forget_refusals(&placed.entry.record),
        }
        outbox.uploads.handle(Event::Finished(placed.number));
        Ok(())
    }

    /// Notes that a file has arrived at a path, so that earlier refused files of that path no longer count as missing.
    fn forget_refusals(&self, artifact: &Record) {
        let mut state = self.destination.state();
        for refused in state.refused.values_mut() {
            refused.is_replaced |=
                refused.run == artifact.run() && Some(&refused.path) == artifact.artifact_path();
        }
    }

    /// Delivers the journal of a dead process and ends the runs that the process left open.
    pub(crate) async fn deliver_abandoned(
        &mut self,
        abandoned: &Abandoned,
        destination: usize,
    ) -> Result<(), NotDelivered> {
        match self.adopt(abandoned, destination).await {
            Err(NotDelivered::DeadlineReached) if !self.attempts.is_over() => {
                Err(NotDelivered::Stalled)
            }
            delivered => delivered,
        }
    }

    async fn adopt(
        &mut self,
        abandoned: &Abandoned,
        destination: usize,
    ) -> Result<(), NotDelivered> {
        let reader = abandoned.reader(destination);
        if reader.is_done(abandoned.end) {
            return Ok(());
        }
        tracing::info!(
            name: "journal_adopted",
            target: "heimdall_tracking.delivery",
            destination = self.destination.uri,
            journal = %abandoned.dir.display(),
            pid = abandoned.manifest.pid,
        );
        let letters = DeadLetters::of(&self.heimdall_dir, &abandoned.dir, destination);
        let mut outbox = Outbox {
            is_live: false,
            limit: self.stalls_after,
            ..Outbox::live(reader, letters)
        };
        loop {
            let batch = outbox.reader.read(abandoned.end);
            let batch = batch.map_err(NotDelivered::Journal)?;
            self.tell_damage(&batch.damage);
            if batch.entries.is_empty() {
                break;
            }
            // A run that another process has to start first may be in a later journal.
            if self.awaited(&batch.entries).await?.is_some() {
                return Err(NotDelivered::TooEarly);
            }
            self.deliver(&mut outbox, batch.entries).await?;
        }
        self.finish_uploads(&mut outbox).await?;
        // Damage behind the last entry is skipped.
        let advanced = outbox.reader.advance(&[]);
        if let Some(error) = outbox.take_error().or(advanced.err()) {
            return Err(NotDelivered::Journal(error));
        }
        for (run_id, last) in outbox.reader.progress().open_runs.clone() {
            self.fail_run(&run_id, last).await?;
            self.notices.tell(format!(
                "run {run_id} was left open by process {}, which has died: what it had recorded is \
                 delivered, and the run is marked FAILED",
                abandoned.manifest.pid
            ));
        }
        outbox.reader.runs_closed().map_err(NotDelivered::Journal)
    }

    /// Returns the run of some entries that is missing only because the process that has started the run has not
    /// delivered the start yet.
    pub(crate) async fn awaited(
        &self,
        entries: &[Placed],
    ) -> Result<Option<RunId>, DeadlineReached> {
        let patience = i64::try_from(ATTACHED_PATIENCE.as_millis()).unwrap_or(i64::MAX);
        for placed in entries {
            if let Record::RunAttached { run } = &placed.entry.record
                && now_ms() - placed.entry.at < patience
                && self.is_missing(*run).await?
            {
                let error = format!(
                    "run {run}, which another process has started, is not in the store: deliver its journal first"
                );
                self.destination.note_outage(Traffic::Records, error);
                return Ok(Some(*run));
            }
        }
        Ok(None)
    }

    /// Returns true where the store does not know a run.
    async fn is_missing(&self, run: RunId) -> Result<bool, DeadlineReached> {
        let run = run.to_string();
        let ask = || async { Ok(self.store.tracking().await?.artifact_uri(&run).await?) };
        let answer = self.attempts.make(None, ask).await?;
        Ok(answer.is_err_and(|failure| failure.is_not_found()))
    }

    async fn fail_run(&self, run_id: &str, end_time: i64) -> Result<(), DeadlineReached> {
        let fail = || async {
            let store = self.store.tracking().await?;
            Ok(store.fail_run(run_id, end_time).await?)
        };
        match self.attempts.make(None, fail).await? {
            // A run that was deleted meanwhile needs no end.
            Ok(())
            | Err(Failure::Store(StoreError::NotFound { .. } | StoreError::RunDeleted { .. })) => {}
            Err(error) => {
                self.notices
                    .tell(format!("run {run_id} cannot be marked FAILED: {error}"));
            }
        }
        Ok(())
    }

    async fn write_or_park(
        &self,
        reader: &Reader,
        letters: &DeadLetters,
        is_live: bool,
        entries: &[Placed],
    ) -> Result<(), DeadlineReached> {
        let Err(failure) = self.write(reader, entries).await? else {
            return Ok(());
        };
        if let [placed] = entries {
            return self.park(reader, letters, is_live, placed, &failure).await;
        }
        // One of the records is at fault: writing each record separately shows which.
        for placed in entries {
            if let Err(failure) = self.write(reader, slice::from_ref(placed)).await? {
                self.park(reader, letters, is_live, placed, &failure)
                    .await?;
            }
        }
        Ok(())
    }

    async fn write(
        &self,
        reader: &Reader,
        entries: &[Placed],
    ) -> Result<Result<(), Failure>, DeadlineReached> {
        let records: Vec<&Record> = entries.iter().map(|placed| &placed.entry.record).collect();
        let write = || async { Ok(self.store.tracking().await?.write(&records).await?) };
        let note = reader.trouble_note();
        let written = self.attempts.make(Some(&note), write).await?;
        if written.is_ok() {
            tracing::debug!(
                name: "batch_delivered",
                target: "heimdall_tracking.delivery",
                destination = self.destination.uri,
                records = records.len(),
            );
        }
        Ok(written)
    }

    /// Starts the upload of an artifact.
    async fn start_upload(
        &mut self,
        outbox: &mut Outbox,
        placed: Placed,
    ) -> Result<(), DeadlineReached> {
        let (reader, record) = (&outbox.reader, &placed.entry.record);
        let store = match self.artifact_store(reader, record.run()).await? {
            Ok(store) => store,
            Err(failure) => {
                let outcome = Ok(Err(failure));
                return self
                    .take_finished(outbox, Finished { placed, outcome })
                    .await;
            }
        };
        let staged = match record {
            Record::Artifact { staged, .. } => Some(reader.staged(staged)),
            _ => None,
        };
        let resume = staged.clone();
        let transfer = Transfer {
            store,
            size: size(record),
            is_ours: reader.is_alone(),
            resume: resume.unwrap_or_else(|| reader.staged(&format!("place-{}", placed.number))),
            staged,
            note: reader.trouble_note(),
            heimdall_dir: self.heimdall_dir.clone(),
        };
        let attempts = self.attempts.for_artifacts(outbox.limit);
        outbox
            .transfers
            .start(placed, transfer, attempts, &self.destination);
        Ok(())
    }

    async fn artifact_store(
        &mut self,
        reader: &Reader,
        run: RunId,
    ) -> Result<Result<Arc<dyn ArtifactStore>, Failure>, DeadlineReached> {
        if let Some(store) = self.artifacts.get(&run) {
            return Ok(Ok(Arc::clone(store)));
        }
        let id = run.to_string();
        let find = || async {
            let store = self.store.tracking().await?;
            let uri = store.artifact_uri(&id).await?;
            let found = store
                .artifacts(&uri)
                .map_or_else(|| self.access.open(&uri), Ok)?;
            Ok(Arc::<dyn ArtifactStore>::from(found))
        };
        let note = reader.trouble_note();
        let found = self.attempts.make(Some(&note), find).await?;
        if let Ok(store) = &found {
            self.artifacts.insert(run, Arc::clone(store));
        }
        Ok(found)
    }

    /// Parks a record that the store finally refuses where the user can find it, as soon as the disk accepts it.
    async fn park(
        &self,
        reader: &Reader,
        letters: &DeadLetters,
        is_live: bool,
        placed: &Placed,
        failure: &Failure,
    ) -> Result<(), DeadlineReached> {
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
        while let Err(error) = letters.park(entry, &failure.to_string(), staged.as_deref()) {
            if backoff.attempts() == 0 {
                self.notices.tell(format!(
                    "{what}. Nor can it be kept in {file} at present: {error}"
                ));
            }
            if self.wait_to_close(backoff.pause()).await {
                return Err(DeadlineReached);
            }
        }
        tracing::info!(
            name: "record_parked",
            target: "heimdall_tracking.delivery",
            destination = self.destination.uri,
            run_id = %entry.record.run(),
            record = entry.record.summary(),
            reason = %failure,
            file = %letters.path().display(),
        );
        // One message is enough: the user can read the other records in the same file.
        if self.destination.state().parked == 0 {
            self.notices.tell(format!(
                "{what}. It is kept in {file}, as is whatever else cannot be; status() counts it"
            ));
        }
        self.destination.update(|state| {
            state.parked += 1;
            if let Some(path) = entry.record.artifact_path()
                && state.refused.len() < MAX_REFUSED
                && is_live
            {
                let refused = Refused {
                    run: entry.record.run(),
                    path: path.clone(),
                    reason: failure.to_string(),
                    is_replaced: false,
                };
                state.refused.insert(placed.number, refused);
            }
        });
        Ok(())
    }

    /// Tells the user about damage in a journal.
    pub(crate) fn tell_damage(&self, damage: &[String]) {
        for text in damage {
            self.notices.tell(format!("the journal is damaged: {text}"));
        }
    }
}
