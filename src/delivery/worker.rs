//! The worker: reads this process' journal for one destination and passes it to the sender.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    dead_letter::DeadLetters,
    destination::{DestinationState, EndGuard},
    keeper::Common,
    outage::{DeadlineReached, QUIET},
    outbox::Outbox,
    sender::{NotDelivered, Sender},
};
use crate::{
    artifacts::open::Access,
    journal::{
        error::JournalError,
        reader::{Placed, Reader},
        writer::End,
    },
    net::retry::Backoff,
    store::deferred::DeferredStore,
};

/// Pause before a part of the journal that could not be read is read again.
const REREAD: Duration = Duration::from_secs(1);
/// Longest time that files of a dead process delay the records of this process while their store does not accept them.
const STALLS: Duration = Duration::from_secs(5);
/// Time after which such a journal is tried again.
const STALLED: Duration = Duration::from_secs(120);

/// Tells the user when a worker panics.
struct PanicGuard(Arc<Common>, Arc<DestinationState>);

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
    common: Arc<Common>,
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
        common: Arc<Common>,
    ) -> Self {
        let destination = Arc::clone(&common.destinations[index]);
        let mut sender = Sender::new(
            heimdall_dir.clone(),
            store,
            access,
            Arc::clone(&destination),
            Arc::clone(&common.notices),
            common.shutdown.deadline.clone(),
        );
        sender.stalls_after = Some(STALLS);
        Self {
            heimdall_dir,
            index,
            common,
            destination,
            sender,
            told: false,
            stalled: HashMap::new(),
        }
    }

    /// Works until it is told to close and everything is delivered, or until the time for that is over.
    pub(crate) async fn run(mut self) {
        let end = EndGuard(Arc::clone(&self.destination));
        let panic = PanicGuard(Arc::clone(&self.common), Arc::clone(&self.destination));
        let reader = Reader::live(Arc::clone(&self.common.journal), self.index);
        let letters = DeadLetters::of(&self.heimdall_dir, &reader.dir(), self.index);
        let mut outbox = Outbox::live(reader, letters);
        if self.deliver(&mut outbox).await.is_ok() {
            let leaves_runs = !outbox.reader.progress().open_runs.is_empty();
            if self.common.shutdown.destination_is_done(leaves_runs) {
                self.common.journal.remove();
            }
        }
        drop(panic);
        drop(end);
    }

    async fn deliver(&mut self, outbox: &mut Outbox) -> Result<(), DeadlineReached> {
        loop {
            // Journals of dead processes come first, because this process may continue their runs.
            self.adopt().await?;
            let end = self.common.journal.end();
            let batch = match outbox.reader.read(end.position) {
                Ok(batch) => batch,
                Err(error) => {
                    self.tell_once(&error);
                    if self.sender.wait_to_close(REREAD).await {
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

    async fn deliver_entries(
        &mut self,
        outbox: &mut Outbox,
        entries: Vec<Placed>,
    ) -> Result<(), DeadlineReached> {
        self.await_start(&entries).await?;
        outbox.set_letters(DeadLetters::of(
            &self.heimdall_dir,
            &outbox.reader.dir(),
            self.index,
        ));
        self.sender.deliver(outbox, entries).await?;
        self.tell_unsaved(outbox);
        Ok(())
    }

    /// Delivers the entries that are in memory only. Returns false once there are none.
    async fn deliver_memory(&mut self, outbox: &mut Outbox) -> Result<bool, DeadlineReached> {
        // Entries in memory have no position that could be saved, so no upload may be outstanding.
        self.sender.finish_uploads(outbox).await?;
        self.tell_unsaved(outbox);
        let entries = outbox.reader.in_memory();
        if entries.is_empty() {
            return Ok(false);
        }
        self.deliver_entries(outbox, entries).await?;
        self.sender.finish_uploads(outbox).await?;
        self.tell_unsaved(outbox);
        Ok(true)
    }

    /// Waits for more entries or for an upload. Returns true where everything is delivered and the journal is closed.
    async fn wait_for_more(
        &mut self,
        outbox: &mut Outbox,
        end: End,
    ) -> Result<bool, DeadlineReached> {
        let common = Arc::clone(&self.common);
        let woken = common.shutdown.wake.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        let now = common.journal.end();
        if now.appended != end.appended || now.in_memory != end.in_memory {
            return Ok(false);
        }
        let written = outbox.written(end.appended);
        self.destination.update(|state| state.written = written);
        if outbox.has_uploads() {
            tokio::select! {
                finished = outbox.next_finished(&self.destination) => {
                    let finished = finished.ok_or(DeadlineReached)?;
                    self.sender.finished(outbox, finished).await?;
                    self.tell_unsaved(outbox);
                }
                () = woken => {}
            }
            return Ok(false);
        }
        if outbox.reader.has_passed_over()
            && let Err(error) = outbox.reader.advance(&[])
        {
            self.tell_once(&error);
        }
        // Everything that existed when the end was read is delivered, including damaged records.
        self.destination
            .update(|state| state.delivered = end.appended);
        if self.has_adopted() {
            if common.shutdown.is_closing() {
                return Ok(common.journal.seal(end.appended));
            }
            woken.await;
        }
        Ok(false)
    }

    /// Waits until runs that another process has started are in the store. If that process has died, its journal has
    /// the start.
    async fn await_start(&mut self, entries: &[Placed]) -> Result<(), DeadlineReached> {
        let (mut backoff, mut quiet) = (Backoff::default(), Some(Instant::now()));
        while let Some(run) = self.sender.awaited(entries).await? {
            if quiet.take_if(|begun| begun.elapsed() >= QUIET).is_some() {
                self.common.notices.tell(format!(
                    "run {run}, which another process has started, is not in the store yet: the records that this \
                     process has of it wait"
                ));
            }
            self.adopt().await?;
            let pause = backoff.pause().min(REREAD);
            if self.sender.wait_to_close(pause).await {
                return Err(DeadlineReached);
            }
        }
        Ok(())
    }

    fn has_adopted(&self) -> bool {
        self.destination.state().adopted >= self.common.abandoned.requested()
    }

    /// Delivers the journals that dead processes left for this destination, if a search was requested.
    async fn adopt(&mut self) -> Result<(), DeadlineReached> {
        let request = self.common.abandoned.requested();
        if self.destination.state().adopted >= request {
            return Ok(());
        }
        let common = Arc::clone(&self.common);
        let found = tokio::task::spawn_blocking(move || common.abandoned.find()).await;
        self.stalled.retain(|_, since| since.elapsed() < STALLED);
        for abandoned in found.unwrap_or_default() {
            if self.stalled.contains_key(&abandoned.dir) {
                self.common.abandoned.release(&abandoned);
                continue;
            }
            let uris = abandoned.manifest.destinations.iter().enumerate();
            for (index, _) in uris.filter(|(_, uri)| **uri == self.destination.uri) {
                match self.sender.deliver_abandoned(&abandoned, index).await {
                    Ok(()) => self.common.abandoned.release_delivered(&abandoned),
                    Err(NotDelivered::DeadlineReached) => return Err(DeadlineReached),
                    Err(NotDelivered::TooEarly) => self.common.abandoned.release(&abandoned),
                    Err(NotDelivered::Stalled) => {
                        self.stalled.insert(abandoned.dir.clone(), Instant::now());
                        self.common.abandoned.release(&abandoned);
                    }
                    Err(NotDelivered::Journal(error)) => {
                        self.common.abandoned.release(&abandoned);
                        // The journal stays for another start; the records of this process continue.
                        if !std::mem::replace(&mut self.told, true) {
                            self.common
                                .notices
                                .tell(format!("a journal of a dead process is left: {error}"));
                        }
                    }
                }
            }
        }
        self.destination.update(|state| state.adopted = request);
        Ok(())
    }

    /// Tells the user that a position could not be saved.
    fn tell_unsaved(&mut self, outbox: &mut Outbox) {
        if let Some(error) = outbox.take_error() {
            self.tell_once(&error);
        }
    }

    fn tell_once(&mut self, error: &JournalError) {
        if !std::mem::replace(&mut self.told, true) {
            self.common
                .tell_disk(format!("tracking is degraded, training is not: {error}"));
        }
    }
}
