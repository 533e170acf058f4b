//! The worker: reads this process' journal for one destination and passes it to the sender.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    abandoned::NotDelivered,
    attempts::{DeadlineReached, REPORT_AFTER},
    dead_letter::DeadLetters,
    destination::{DestinationState, EndGuard},
    outbox::Outbox,
    sender::Sender,
    state::DeliveryState,
};
use crate::{
    artifacts::open::Access,
    journal::{
        error::JournalError,
        reader::{Placed, Reader},
        writer::JournalEnd,
    },
    net::retry::Backoff,
    store::deferred::DeferredStore,
};

/// Pause before a part of the journal that could not be read is read again.
const REREAD_INTERVAL: Duration = Duration::from_secs(1);
/// Longest time that a failing upload of a dead process is repeated, because the records of this process wait meanwhile.
const ABANDONED_RETRY_LIMIT: Duration = Duration::from_secs(5);
/// Time after which the journal with such an upload is tried again.
const STALLED_RETRY_INTERVAL: Duration = Duration::from_secs(120);

/// Tells the user when a worker panics.
struct PanicGuard(Arc<DeliveryState>, Arc<DestinationState>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.notices.tell(format!(
                "tracking is degraded, training is not: delivery to {} has failed; the next start delivers",
                self.1.uri
            ));
        }
    }
}

/// Delivers one tracker's journal to one destination, and the journals that dead processes left for it.
#[derive(Debug)]
pub(crate) struct Worker {
    heimdall_dir: PathBuf,
    index: usize,
    delivery: Arc<DeliveryState>,
    destination: Arc<DestinationState>,
    sender: Sender,
    /// True once the user was told that a journal cannot be read or its position cannot be saved.
    told: bool,
    /// Journals whose files cannot be sent at present, each with the time since which it is left alone.
    stalled: HashMap<PathBuf, Instant>,
}

impl Worker {
    /// Returns the worker for the destination of this index.
    pub(crate) fn new(
        heimdall_dir: PathBuf,
        index: usize,
        store: Arc<DeferredStore>,
        access: Access,
        delivery: Arc<DeliveryState>,
    ) -> Self {
        let destination = Arc::clone(&delivery.destinations[index]);
        let mut sender = Sender::new(
            heimdall_dir.clone(),
            store,
            access,
            Arc::clone(&destination),
            Arc::clone(&delivery.notices),
            delivery.shutdown.deadline.clone(),
        );
        sender.abandoned_retry_limit = Some(ABANDONED_RETRY_LIMIT);
        Self {
            heimdall_dir,
            index,
            delivery,
            destination,
            sender,
            told: false,
            stalled: HashMap::new(),
        }
    }

    /// Works until it is told to close and everything is delivered, or until the time for that is over.
    pub(crate) async fn run(mut self) {
        let end = EndGuard(Arc::clone(&self.destination));
        let panic = PanicGuard(Arc::clone(&self.delivery), Arc::clone(&self.destination));
        let reader = Reader::live(Arc::clone(&self.delivery.journal), self.index);
        let letters = DeadLetters::of(&self.heimdall_dir, &reader.dir(), self.index);
        let mut outbox = Outbox::live(reader, letters);
        if self.deliver(&mut outbox).await.is_ok() {
            let leaves_runs = !outbox.journal.reader.progress().open_runs.is_empty();
            if self.delivery.shutdown.destination_is_done(leaves_runs) {
                self.delivery.journal.remove();
            }
        }
        drop(panic);
        drop(end);
    }

    /// Reads the journal and delivers its entries.
    async fn deliver(&mut self, outbox: &mut Outbox) -> Result<(), DeadlineReached> {
        loop {
            // Journals of dead processes come first, because this process may continue their runs.
            self.deliver_abandoned().await?;
            let end = self.delivery.journal.end();
            let batch = match outbox.journal.reader.read(end.position) {
                Ok(batch) => batch,
                Err(error) => {
                    self.tell_once(&error);
                    if self.sender.reaches_deadline_within(REREAD_INTERVAL).await {
                        return Err(DeadlineReached);
                    }
                    continue;
                }
            };
            self.sender.tell_damage(&batch.damage);
            if !batch.entries.is_empty() {
                self.deliver_entries(outbox, batch.entries).await?;
            } else {
                let took_from_memory = end.in_memory > 0 && self.deliver_memory(outbox).await?;
                if !took_from_memory && self.wait_for_more(outbox, end).await? {
                    return Ok(());
                }
            }
        }
    }

    /// Delivers entries of this process' journal.
    async fn deliver_entries(
        &mut self,
        outbox: &mut Outbox,
        entries: Vec<Placed>,
    ) -> Result<(), DeadlineReached> {
        self.wait_for_runs(&entries).await?;
        // The journal may have a new folder.
        let dir = outbox.journal.reader.dir();
        outbox.journal.letters = DeadLetters::of(&self.heimdall_dir, &dir, self.index);
        self.sender.send(outbox, entries).await?;
        self.tell_unsaved(outbox);
        Ok(())
    }

    /// Delivers the entries that are in memory only. Returns false once there are none.
    async fn deliver_memory(&mut self, outbox: &mut Outbox) -> Result<bool, DeadlineReached> {
        // Entries in memory have no position that could be saved, so no upload may be outstanding.
        self.sender.wait_for_uploads(outbox).await?;
        self.tell_unsaved(outbox);
        let entries = outbox.journal.reader.in_memory();
        if entries.is_empty() {
            return Ok(false);
        }
        self.deliver_entries(outbox, entries).await?;
        self.sender.wait_for_uploads(outbox).await?;
        self.tell_unsaved(outbox);
        Ok(true)
    }

    /// Waits for more entries or for an upload. Returns true where everything is delivered and the journal is closed.
    async fn wait_for_more(
        &mut self,
        outbox: &mut Outbox,
        end: JournalEnd,
    ) -> Result<bool, DeadlineReached> {
        let delivery = Arc::clone(&self.delivery);
        let woken = delivery.shutdown.wake.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        let now = delivery.journal.end();
        if now.appended != end.appended || now.in_memory != end.in_memory {
            return Ok(false);
        }
        let written = outbox.written(end.appended);
        self.destination.update(|state| state.written = written);
        if outbox.has_uploads() {
            tokio::select! {
                finished = outbox.next_finished(&self.destination) => {
                    let finished = finished.ok_or(DeadlineReached)?;
                    self.sender.continue_after(outbox, finished).await?;
                    self.tell_unsaved(outbox);
                }
                () = woken => {}
            }
            return Ok(false);
        }
        if outbox.journal.reader.has_passed_over()
            && let Err(error) = outbox.journal.reader.advance(&[])
        {
            self.tell_once(&error);
        }
        // Everything that existed when the end was read is delivered, including damaged records.
        self.destination
            .update(|state| state.delivered = end.appended);
        if self.has_fulfilled_requests() {
            if delivery.shutdown.is_closing() {
                return Ok(delivery.journal.seal(end.appended));
            }
            woken.await;
        }
        Ok(false)
    }

    /// Waits until runs that another process has started are in the store. If that process has died, its journal has
    /// the start.
    async fn wait_for_runs(&mut self, entries: &[Placed]) -> Result<(), DeadlineReached> {
        let (mut backoff, mut quiet) = (Backoff::default(), Some(Instant::now()));
        while let Some(run) = self.sender.missing_run(entries).await? {
            if quiet
                .take_if(|begun| begun.elapsed() >= REPORT_AFTER)
                .is_some()
            {
                self.delivery.notices.tell(format!(
                    "run {run}, which another process has started, is not in the store yet: the records that this \
                     process has of it wait"
                ));
            }
            self.deliver_abandoned().await?;
            let pause = backoff.pause().min(REREAD_INTERVAL);
            if self.sender.reaches_deadline_within(pause).await {
                return Err(DeadlineReached);
            }
        }
        Ok(())
    }

    /// Returns true where every adoption request is fulfilled.
    fn has_fulfilled_requests(&self) -> bool {
        self.destination.state().fulfilled_request >= self.delivery.adopted.last_request()
    }

    /// Delivers the journals that dead processes left for this destination, if that was requested.
    async fn deliver_abandoned(&mut self) -> Result<(), DeadlineReached> {
        let request = self.delivery.adopted.last_request();
        if self.destination.state().fulfilled_request >= request {
            return Ok(());
        }
        let delivery = Arc::clone(&self.delivery);
        let found = tokio::task::spawn_blocking(move || delivery.adopted.lock_all()).await;
        self.stalled
            .retain(|_, since| since.elapsed() < STALLED_RETRY_INTERVAL);
        for abandoned in found.unwrap_or_default() {
            if self.stalled.contains_key(&abandoned.dir) {
                self.delivery.adopted.release(&abandoned);
                continue;
            }
            let uris = abandoned.manifest.destinations.iter().enumerate();
            for (index, _) in uris.filter(|(_, uri)| **uri == self.destination.uri) {
                match self.sender.deliver_abandoned(&abandoned, index).await {
                    Ok(()) => self.delivery.adopted.release_delivered(&abandoned),
                    Err(NotDelivered::DeadlineReached) => return Err(DeadlineReached),
                    Err(NotDelivered::TooEarly) => self.delivery.adopted.release(&abandoned),
                    Err(NotDelivered::Stalled) => {
                        self.stalled.insert(abandoned.dir.clone(), Instant::now());
                        self.delivery.adopted.release(&abandoned);
                    }
                    Err(NotDelivered::Journal(error)) => {
                        self.delivery.adopted.release(&abandoned);
                        // The journal stays for another start; the records of this process continue.
                        if !std::mem::replace(&mut self.told, true) {
                            self.delivery
                                .notices
                                .tell(format!("a journal of a dead process is left: {error}"));
                        }
                    }
                }
            }
        }
        self.destination
            .update(|state| state.fulfilled_request = request);
        Ok(())
    }

    /// Tells the user that a position could not be saved.
    fn tell_unsaved(&mut self, outbox: &mut Outbox) {
        if let Some(error) = outbox.take_error() {
            self.tell_once(&error);
        }
    }

    /// Tells the user about an error of the journal, the first time.
    fn tell_once(&mut self, error: &JournalError) {
        if !std::mem::replace(&mut self.told, true) {
            self.delivery
                .tell_disk(format!("tracking is degraded, training is not: {error}"));
        }
    }
}
