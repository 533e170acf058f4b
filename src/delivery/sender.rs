//! The sender: performs the actions of the scheduler at one destination, and waits until outages are over.

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
    attempts::{Attempts, DeadlineReached, DeliveryError},
    destination::{DestinationState, Refused, Traffic},
    notices::Notices,
    outbox::{Outbox, OutboxJournal, artifact_size},
    scheduler::{Action, Event},
    transfer::{FinishedUpload, Transfer, tell_finished},
};
use crate::{
    artifacts::{open::Access, store::ArtifactStore},
    journal::{reader::Placed, record::Record},
    mlflow::run::RunId,
    net::retry::Backoff,
    os::clock::now_ms,
    store::deferred::DeferredStore,
};

/// Longest time that a run which another process has started may take to appear in the store.
const ATTACHED_RUN_TIMEOUT: Duration = Duration::from_secs(600);
/// Most refused artifacts that are remembered for callers that wait for them.
const MAX_REFUSED: usize = 10_000;

/// Delivers entries to one destination.
#[derive(Debug)]
pub(crate) struct Sender {
    pub heimdall_dir: PathBuf,
    pub store: Arc<DeferredStore>,
    access: Access,
    pub destination: Arc<DestinationState>,
    pub notices: Arc<Notices>,
    pub attempts: Attempts,
    artifacts: HashMap<RunId, Arc<dyn ArtifactStore>>,
    /// Longest time that files of a dead process are tried at a store that does not accept them.
    pub abandoned_retry_limit: Option<Duration>,
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
            abandoned_retry_limit: None,
            recovered: Arc::default(),
        }
    }

    /// Passes entries to the scheduler and performs its actions. When this returns, each record is written or parked, or
    /// waits for an upload, and each artifact is uploaded, parked, being uploaded or queued.
    pub(crate) async fn send(
        &mut self,
        outbox: &mut Outbox,
        entries: Vec<Placed>,
    ) -> Result<(), DeadlineReached> {
        if outbox.journal.is_live {
            let oldest = entries.first().map(|placed| placed.entry.at);
            self.destination.update(|state| state.oldest = oldest);
        }
        let end = entries.last().map(|last| last.number + 1);
        outbox.scheduler.handle(Event::Read(entries));
        self.perform(outbox).await?;
        if outbox.journal.is_live {
            let written = end.map(|end| outbox.written(end));
            self.destination.update(|state| {
                state.oldest = None;
                if let Some(written) = written {
                    state.written = written;
                }
            });
        }
        Ok(())
    }

    /// Continues after an upload has finished.
    pub(crate) async fn continue_after(
        &mut self,
        outbox: &mut Outbox,
        finished: FinishedUpload,
    ) -> Result<(), DeadlineReached> {
        self.handle_finished(outbox, finished).await?;
        self.perform(outbox).await
    }

    /// Waits until all uploads have finished and all records that waited for them are written.
    pub(crate) async fn wait_for_uploads(
        &mut self,
        outbox: &mut Outbox,
    ) -> Result<(), DeadlineReached> {
        while outbox.has_uploads() {
            self.wait_for_upload(outbox).await?;
            self.perform(outbox).await?;
        }
        Ok(())
    }

    /// Performs actions until more entries are needed.
    async fn perform(&mut self, outbox: &mut Outbox) -> Result<(), DeadlineReached> {
        loop {
            match outbox.scheduler.next() {
                Action::Write(entries) => {
                    self.write_or_park(&outbox.journal, entries).await?;
                    outbox.scheduler.handle(Event::Written);
                }
                Action::Upload(placed) => self.start_upload(outbox, placed).await?,
                Action::Save(entries) => self.save(outbox, &entries),
                Action::WaitForUpload => self.wait_for_upload(outbox).await?,
                Action::Read => return Ok(()),
            }
        }
    }

    /// Writes records in one transaction, or parks the records that the store refuses.
    async fn write_or_park(
        &self,
        journal: &OutboxJournal,
        entries: &[Placed],
    ) -> Result<(), DeadlineReached> {
        let Err(failure) = self.write(journal, entries).await? else {
            return Ok(());
        };
        if let [placed] = entries {
            return self.park(journal, placed, &failure).await;
        }
        // One of the records is at fault: writing each record separately shows which.
        for placed in entries {
            if let Err(failure) = self.write(journal, slice::from_ref(placed)).await? {
                self.park(journal, placed, &failure).await?;
            }
        }
        Ok(())
    }

    /// Writes records in one transaction.
    async fn write(
        &self,
        journal: &OutboxJournal,
        entries: &[Placed],
    ) -> Result<Result<(), DeliveryError>, DeadlineReached> {
        let records: Vec<&Record> = entries.iter().map(|placed| &placed.entry.record).collect();
        let write = || async {
            let store = self.store.tracking().await?;
            store.write(&records).await?;
            Ok(store.can_rewind())
        };
        let outage_file = journal.reader.outage_file();
        let written = self.attempts.make(Some(&outage_file), write).await?;
        if let Ok(can_rewind) = written {
            if !can_rewind {
                self.tell_kept_points(&records);
            }
            tracing::debug!(
                name: "batch_delivered",
                target: "heimdall_tracking.delivery",
                destination = self.destination.uri,
                records = records.len(),
            );
        }
        Ok(written.map(|_| ()))
    }

    /// Starts the upload of an artifact.
    async fn start_upload(
        &mut self,
        outbox: &mut Outbox,
        placed: Placed,
    ) -> Result<(), DeadlineReached> {
        let (reader, record) = (&outbox.journal.reader, &placed.entry.record);
        let store = match self.artifact_store(&outbox.journal, record.run()).await? {
            Ok(store) => store,
            Err(failure) => {
                let outcome = Ok(Err(failure));
                return self
                    .handle_finished(outbox, FinishedUpload { placed, outcome })
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
            size: artifact_size(record),
            is_ours: reader.is_alone(),
            resume: resume.unwrap_or_else(|| reader.staged(&format!("place-{}", placed.number))),
            staged,
            outage_file: reader.outage_file(),
            heimdall_dir: self.heimdall_dir.clone(),
        };
        let attempts = self.attempts.for_artifacts(outbox.retry_limit);
        outbox
            .transfers
            .start(placed, transfer, attempts, &self.destination);
        Ok(())
    }

    /// Returns the artifact store of a run.
    async fn artifact_store(
        &mut self,
        journal: &OutboxJournal,
        run: RunId,
    ) -> Result<Result<Arc<dyn ArtifactStore>, DeliveryError>, DeadlineReached> {
        if let Some(store) = self.artifacts.get(&run) {
            return Ok(Ok(Arc::clone(store)));
        }
        let id = run.to_string();
        // The journal of a dead process may be from another folder than this one.
        let mut access = self.access.clone();
        if !journal.is_live {
            access.working_dir = journal.reader.working_dir();
        }
        let find = || async {
            let store = self.store.tracking().await?;
            let uri = store.artifact_uri(&id).await?;
            let found = store
                .artifacts(&uri)
                .map_or_else(|| access.open(&uri), Ok)?;
            Ok(Arc::<dyn ArtifactStore>::from(found))
        };
        let outage_file = journal.reader.outage_file();
        let found = self.attempts.make(Some(&outage_file), find).await?;
        if let Ok(store) = &found {
            self.artifacts.insert(run, Arc::clone(store));
        }
        Ok(found)
    }

    /// Saves the position behind delivered entries, and tells waiting callers.
    fn save(&self, outbox: &mut Outbox, entries: &[Placed]) {
        if let Err(error) = outbox.journal.reader.advance(entries) {
            // The entries are delivered all the same; the next start would only deliver them again.
            outbox.error = Some(error);
        }
        if outbox.journal.is_live {
            let next = outbox.journal.reader.next();
            self.destination.update(|state| state.delivered = next);
        } else {
            let count = entries.len() as u64;
            self.recovered.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Waits until one upload has finished, and handles its end.
    async fn wait_for_upload(&mut self, outbox: &mut Outbox) -> Result<(), DeadlineReached> {
        let finished = outbox.transfers.next(&self.destination).await;
        let finished = finished.ok_or(DeadlineReached)?;
        self.handle_finished(outbox, finished).await
    }

    /// Handles the end of an upload: parks the file if the store has refused it.
    async fn handle_finished(
        &mut self,
        outbox: &mut Outbox,
        finished: FinishedUpload,
    ) -> Result<(), DeadlineReached> {
        let FinishedUpload { placed, outcome } = finished;
        let outcome = outcome?;
        tell_finished(&placed.entry.record, &outcome);
        match outcome {
            Err(failure) => {
                self.park(&outbox.journal, &placed, &failure).await?;
            }
            Ok(()) => self.forget_refusals(&outbox.journal, &placed.entry.record),
        }
        outbox.scheduler.handle(Event::Finished(placed.number));
        Ok(())
    }

    /// Notes that a file has arrived at a path, or that files are deleted, so that earlier refused files of that path no
    /// longer count as missing.
    fn forget_refusals(&self, journal: &OutboxJournal, artifact: &Record) {
        let Some(path) = artifact.artifact_path() else {
            return;
        };
        let mut state = self.destination.state();
        // The deletion of a dead process is older than the files of this one.
        let deletes = artifact.is_deletion() && journal.is_live;
        for refused in state.refused.values_mut() {
            let is_there = refused.path == *path || deletes && refused.path.is_within(path);
            refused.is_replaced |= refused.run == artifact.run() && is_there;
        }
    }

    /// Parks a record that the store finally refuses where the user can find it, as soon as the disk accepts it.
    async fn park(
        &self,
        journal: &OutboxJournal,
        placed: &Placed,
        failure: &DeliveryError,
    ) -> Result<(), DeadlineReached> {
        let entry = &placed.entry;
        let staged = match &entry.record {
            Record::Artifact { staged, .. } => Some(journal.reader.staged(staged)),
            _ => None,
        };
        let what = format!(
            "{} of run {} cannot be delivered: {failure}",
            entry.record.summary(),
            entry.record.run()
        );
        let file = journal.letters.path().display();
        let mut backoff = Backoff::default();
        while let Err(error) = journal
            .letters
            .park(entry, &failure.to_string(), staged.as_deref())
        {
            if backoff.attempts() == 0 {
                self.notices.tell(format!(
                    "{what}. Nor can it be kept in {file} at present: {error}"
                ));
            }
            if self.reaches_deadline_within(backoff.pause()).await {
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
            file = %journal.letters.path().display(),
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
                && !entry.record.is_deletion()
                && state.refused.len() < MAX_REFUSED
                && journal.is_live
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

    /// Returns the run of some entries that is missing only because the process that has started the run has not
    /// delivered the start yet. Notes an outage if there is such a run.
    pub(crate) async fn missing_run(
        &self,
        entries: &[Placed],
    ) -> Result<Option<RunId>, DeadlineReached> {
        let timeout = i64::try_from(ATTACHED_RUN_TIMEOUT.as_millis()).unwrap_or(i64::MAX);
        for placed in entries {
            if let Record::RunAttached { run } = &placed.entry.record
                && now_ms() - placed.entry.at < timeout
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

    /// Returns true where the store has no such run.
    async fn is_missing(&self, run: RunId) -> Result<bool, DeadlineReached> {
        let run = run.to_string();
        let ask = || async { Ok(self.store.tracking().await?.artifact_uri(&run).await?) };
        let answer = self.attempts.make(None, ask).await?;
        Ok(answer.is_err_and(|failure| failure.is_not_found()))
    }

    /// Waits for `pause`. Returns true as soon as there is no time left for delivery.
    pub(crate) async fn reaches_deadline_within(&self, pause: Duration) -> bool {
        self.attempts.reaches_deadline_within(pause).await
    }

    /// Tells the user about damage in a journal.
    pub(crate) fn tell_damage(&self, damage: &[String]) {
        for text in damage {
            self.notices.tell(format!("the journal is damaged: {text}"));
        }
    }
}
