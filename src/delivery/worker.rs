//! The worker: reads this process' journal for one destination and has the courier deliver it.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{
    dead_letter::DeadLetters,
    destination::Shared,
    keeper::Common,
    outage::{Closing, QUIET},
    sender::{Courier, Left},
};
use crate::{
    artifacts::open,
    journal::{
        error::JournalError,
        reader::{Placed, Reader},
    },
    net::retry::Backoff,
    store::tracking::TrackingStore,
};

/// Pause before a part of the journal that could not be read is read again.
const REREAD: Duration = Duration::from_secs(1);
/// How long files of a dead process hold up this one's records where their store does not take them.
const STALLS: Duration = Duration::from_secs(5);
/// How long a journal is left alone then.
const STALLED: Duration = Duration::from_secs(120);

/// Tells who waits that a worker has ended, however it came.
struct Ending(Arc<Common>, Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.notices.tell(format!(
                "tracking is degraded, training is not: delivery to {} has failed; the next start delivers",
                self.1.uri
            ));
        }
        self.1.update(|state| state.ended = true);
    }
}

/// Delivers one tracker's journal to one destination, and what dead processes left for that one.
#[derive(Debug)]
pub(crate) struct Worker {
    heimdall_dir: PathBuf,
    destination: usize,
    common: Arc<Common>,
    shared: Arc<Shared>,
    courier: Courier,
    /// A message has been given for a journal that cannot be read or whose position cannot be saved.
    told: bool,
    /// Journals whose files cannot be sent at present, and since when they are left alone.
    stalled: HashMap<PathBuf, Instant>,
}

impl Worker {
    pub fn new(
        heimdall_dir: PathBuf,
        destination: usize,
        store: Arc<dyn TrackingStore>,
        access: open::Access,
        common: Arc<Common>,
    ) -> Self {
        let shared = Arc::clone(&common.destinations[destination]);
        let mut courier = Courier::new(
            heimdall_dir.clone(),
            store,
            access,
            Arc::clone(&shared),
            Arc::clone(&common.notices),
            common.deadline.clone(),
        );
        courier.stalls_after = Some(STALLS);
        Self {
            heimdall_dir,
            destination,
            common,
            shared,
            courier,
            told: false,
            stalled: HashMap::new(),
        }
    }

    /// Works until it is told to close and all is delivered, or the time for that is over.
    pub async fn run(mut self) {
        let ending = Ending(Arc::clone(&self.common), Arc::clone(&self.shared));
        let mut reader = Reader::live(Arc::clone(&self.common.journal), self.destination);
        if self.deliver_live(&mut reader).await.is_ok() {
            // A run whose end could not be recorded any more is ended by the next start.
            if !reader.progress().open_runs.is_empty() {
                self.common.leaves_runs.store(true, Ordering::Release);
            }
            if self.common.behind.fetch_sub(1, Ordering::AcqRel) == 1
                && !self.common.leaves_runs.load(Ordering::Acquire)
            {
                self.common.journal.remove();
            }
        }
        drop(ending);
    }

    async fn deliver_live(&mut self, reader: &mut Reader) -> Result<(), Closing> {
        loop {
            // Journals of dead processes come first: this one may go on with their runs.
            self.adopt().await?;
            let end = self.common.journal.end();
            let batch = match reader.read(end.position) {
                Ok(batch) => batch,
                Err(error) => {
                    self.tell_once(&error);
                    if self.courier.wait_to_close(REREAD).await {
                        return Err(Closing);
                    }
                    continue;
                }
            };
            self.courier.tell_damage(&batch.damage);
            let letters = DeadLetters::of(&self.heimdall_dir, &reader.dir(), self.destination);
            let mut entries = batch.entries;
            let is_in_memory = entries.is_empty() && end.in_memory > 0;
            if is_in_memory {
                // What is in memory has no place that a position could lie before.
                self.courier.land_all(reader, &letters).await?;
                self.advance(reader);
                entries = reader.in_memory();
            }
            if !entries.is_empty() {
                self.await_start(&entries).await?;
                self.courier.deliver(reader, entries, &letters).await?;
                if is_in_memory {
                    self.courier.land_all(reader, &letters).await?;
                }
                self.advance(reader);
                continue;
            }
            let common = Arc::clone(&self.common);
            let woken = common.wake.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            let now = self.common.journal.end();
            if now.appended != end.appended || now.in_memory != end.in_memory {
                continue;
            }
            let written = self.courier.written(end.appended);
            self.shared.update(|state| state.written = written);
            if self.courier.has_flights() {
                tokio::select! {
                    landed = self.courier.next_landed() => {
                        let landed = landed.ok_or(Closing)?;
                        self.courier.received(landed, reader, &letters).await?;
                        self.advance(reader);
                    }
                    () = woken => {}
                }
                continue;
            }
            if reader.has_passed_over() {
                let advanced = reader.advance(&[]);
                self.advanced(advanced, reader);
            }
            // Everything that was there when the end was read is delivered, damaged records included.
            self.shared.update(|state| state.delivered = end.appended);
            if self.has_adopted() {
                if self.common.is_closing() {
                    if self.common.journal.seal(end.appended) {
                        return Ok(());
                    }
                    continue;
                }
                woken.await;
            }
        }
    }

    fn advance(&mut self, reader: &mut Reader) {
        let advanced = self.courier.advance(reader);
        self.advanced(advanced, reader);
    }

    fn advanced(&mut self, advanced: Result<(), JournalError>, reader: &Reader) {
        if let Err(error) = advanced {
            // Delivered all the same; a next start would only deliver it again.
            self.tell_once(&error);
        }
        self.shared.update(|state| state.delivered = reader.next());
    }

    /// Waits until runs that another process has started are there. It may have died: its journal has the start then.
    async fn await_start(&mut self, entries: &[Placed]) -> Result<(), Closing> {
        let (mut backoff, mut quiet) = (Backoff::default(), Some(Instant::now()));
        while let Some(run) = self.courier.awaited(entries).await? {
            if quiet.take_if(|begun| begun.elapsed() >= QUIET).is_some() {
                self.common.notices.tell(format!(
                    "run {run} is not there yet, which another process has started: what this process records of it \
                     waits"
                ));
            }
            self.adopt().await?;
            let pause = backoff.pause().min(REREAD);
            if self.courier.wait_to_close(pause).await {
                return Err(Closing);
            }
        }
        Ok(())
    }

    fn has_adopted(&self) -> bool {
        self.shared.state().adopted >= self.common.adopt.load(Ordering::Acquire)
    }

    /// Delivers what dead processes left for this destination, if somebody wants that now.
    async fn adopt(&mut self) -> Result<(), Closing> {
        let request = self.common.adopt.load(Ordering::Acquire);
        if self.shared.state().adopted >= request {
            return Ok(());
        }
        let common = Arc::clone(&self.common);
        let found = tokio::task::spawn_blocking(move || common.adoption.find()).await;
        self.stalled.retain(|_, since| since.elapsed() < STALLED);
        for abandoned in found.unwrap_or_default() {
            if self.stalled.contains_key(&abandoned.dir) {
                self.common.adoption.let_go(&abandoned);
                continue;
            }
            let uris = abandoned.manifest.destinations.iter().enumerate();
            for (place, _) in uris.filter(|(_, uri)| **uri == self.shared.uri) {
                match self.courier.deliver_abandoned(&abandoned, place).await {
                    Ok(()) => self.common.adoption.settle(&abandoned),
                    Err(Left::Closing) => return Err(Closing),
                    Err(Left::Early) => self.common.adoption.let_go(&abandoned),
                    Err(Left::Stalled) => {
                        self.stalled.insert(abandoned.dir.clone(), Instant::now());
                        self.common.adoption.let_go(&abandoned);
                    }
                    Err(Left::Journal(error)) => {
                        self.common.adoption.let_go(&abandoned);
                        // It stays for another start; what this process records goes on.
                        if !std::mem::replace(&mut self.told, true) {
                            self.common
                                .notices
                                .tell(format!("a journal of a dead process is left: {error}"));
                        }
                    }
                }
            }
        }
        self.shared.update(|state| state.adopted = request);
        Ok(())
    }

    fn tell_once(&mut self, error: &JournalError) {
        if !std::mem::replace(&mut self.told, true) {
            self.common
                .tell_disk(format!("tracking is degraded, training is not: {error}"));
        }
    }
}
