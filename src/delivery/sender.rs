//! The courier: brings entries of any journal to one destination, whatever has to be waited out.

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

pub(crate) use super::outage::Closing;
use super::{
    dead_letter::DeadLetters,
    destination::{Cargo, Refused, Shared},
    notices::Notices,
    outage::{Failure, Patience},
    uploads::{Flights, Landed, Order},
};
use crate::{
    artifacts::{open, store::ArtifactStore},
    journal::{
        abandoned::Abandoned,
        error::JournalError,
        reader::{Placed, Reader},
        record::Record,
    },
    mlflow::run::RunId,
    net::retry::Backoff,
    os::clock::now_ms,
    store::{error::StoreError, tracking::TrackingStore},
};

/// How long a run that another process has started may take to be there.
const ATTACHED_PATIENCE: Duration = Duration::from_secs(600);
/// Refused artifacts that are remembered for whoever waits for them.
const MAX_REFUSED: usize = 10_000;

/// Why a journal of a dead process is not delivered whole.
#[derive(Debug)]
pub(crate) enum Left {
    Closing,
    /// It belongs to a run that is not there yet.
    Early,
    /// Its files cannot be sent at present.
    Stalled,
    Journal(JournalError),
}

impl From<Closing> for Left {
    fn from(_: Closing) -> Self {
        Self::Closing
    }
}

/// Brings entries to one destination.
#[derive(Debug)]
pub(crate) struct Courier {
    heimdall_dir: PathBuf,
    store: Arc<dyn TrackingStore>,
    access: open::Access,
    shared: Arc<Shared>,
    notices: Arc<Notices>,
    patience: Patience,
    flights: Flights,
    /// What is delivered is of a dead process, whose numbers are its own.
    is_adopting: bool,
    /// How long files of a dead process are tried at a store that does not take them.
    pub stalls_after: Option<Duration>,
    artifacts: HashMap<RunId, Arc<dyn ArtifactStore>>,
    /// Records of dead processes that were delivered or parked.
    pub recovered: Arc<AtomicU64>,
}

impl Courier {
    /// A courier that works until `deadline` says that the time is over.
    pub fn new(
        heimdall_dir: PathBuf,
        store: Arc<dyn TrackingStore>,
        access: open::Access,
        shared: Arc<Shared>,
        notices: Arc<Notices>,
        deadline: watch::Sender<bool>,
    ) -> Self {
        let patience = Patience::new(
            heimdall_dir.clone(),
            Arc::clone(&shared),
            Arc::clone(&notices),
            deadline,
        );
        Self {
            heimdall_dir,
            store,
            access,
            shared,
            notices,
            patience,
            flights: Flights::default(),
            is_adopting: false,
            stalls_after: None,
            artifacts: HashMap::new(),
            recovered: Arc::default(),
        }
    }

    /// Waits for `pause`; true as soon as there is no time left to deliver in.
    pub async fn wait_to_close(&self, pause: Duration) -> bool {
        self.patience.wait_to_close(pause).await
    }

    /// Delivers what a dead process left and closes the runs it left open.
    pub async fn deliver_abandoned(
        &mut self,
        abandoned: &Abandoned,
        destination: usize,
    ) -> Result<(), Left> {
        // Files of this process stay on their way: neither numbers nor copies of the two may be mixed.
        let ours = std::mem::take(&mut self.flights);
        self.is_adopting = true;
        let delivered = self.adopt(abandoned, destination).await;
        self.is_adopting = false;
        self.flights = ours;
        match delivered {
            Err(Left::Closing) if !self.patience.is_over() => Err(Left::Stalled),
            delivered => delivered,
        }
    }

    async fn adopt(&mut self, abandoned: &Abandoned, destination: usize) -> Result<(), Left> {
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
            if self.awaited(&batch.entries).await?.is_some() {
                return Err(Left::Early);
            }
            self.deliver(&reader, batch.entries, &letters).await?;
            if is_last {
                self.land_all(&reader, &letters).await?;
            }
            let settled = self.flights.settled();
            // At the end, what is damaged behind the last entry is passed over.
            if is_last || !settled.is_empty() {
                reader.advance(&settled).map_err(Left::Journal)?;
            }
            self.recovered
                .fetch_add(settled.len() as u64, Ordering::Relaxed);
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

    /// The run of some entries that is not there only because the process that has started it has not delivered that
    /// yet.
    pub async fn awaited(&self, entries: &[Placed]) -> Result<Option<RunId>, Closing> {
        let patience = i64::try_from(ATTACHED_PATIENCE.as_millis()).unwrap_or(i64::MAX);
        for placed in entries {
            if let Record::RunAttached { run } = &placed.entry.record
                && now_ms() - placed.entry.at < patience
                && self.is_missing(*run).await?
            {
                self.shared.update(|state| {
                    let outage = state.outage_mut(Cargo::Records);
                    outage.error = Some(format!(
                        "run {run} is not there, which another process has started: deliver its journal first"
                    ));
                    outage.since.get_or_insert_with(now_ms);
                });
                return Ok(Some(*run));
            }
        }
        Ok(None)
    }

    /// Whether the store does not know a run.
    async fn is_missing(&self, run: RunId) -> Result<bool, Closing> {
        let run = run.to_string();
        let ask = || async { Ok(self.store.artifact_uri(&run).await?) };
        let answer = self.patience.settle(None, ask).await?;
        Ok(answer.is_err_and(|failure| failure.is_not_found()))
    }

    async fn fail_run(&self, run_id: &str, end_time: i64) -> Result<(), Closing> {
        let fail = || async { Ok(self.store.fail_run(run_id, end_time).await?) };
        match self.patience.settle(None, fail).await? {
            // A run that was deleted since needs no end.
            Ok(())
            | Err(Failure::Store(StoreError::NotFound { .. } | StoreError::RunDeleted { .. })) => {}
            Err(error) => {
                self.notices
                    .tell(format!("run {run_id} cannot be marked FAILED: {error}"));
            }
        }
        Ok(())
    }

    /// Delivers entries: records in order, those between artifacts in one transaction; artifacts beside them. The end of
    /// a run, and what the run records after it, waits until all of it has arrived; other runs do not.
    pub async fn deliver(
        &mut self,
        reader: &Reader,
        entries: Vec<Placed>,
        letters: &DeadLetters,
    ) -> Result<(), Closing> {
        let oldest = entries.first().map(|placed| placed.entry.at);
        if !self.is_adopting {
            self.shared.update(|state| state.oldest = oldest);
        }
        let goes_along = |a: &Placed, b: &Placed| {
            let (a, b) = (&a.entry.record, &b.entry.record);
            !a.is_artifact() && !b.is_artifact() && !matches!(b, Record::RunEnded { .. })
        };
        for group in entries.chunk_by(goes_along) {
            if self.flights.hold_up() {
                self.land_all(reader, letters).await?;
            }
            let mut group = group;
            if let [first, others @ ..] = group
                && self.flights.must_wait(&first.entry.record)
            {
                self.land_ending(slice::from_ref(first), reader, letters)
                    .await?;
                self.flights.wait(first.clone());
                self.launch(reader, letters).await?;
                group = others;
            }
            if !group.is_empty() {
                self.land_ending(group, reader, letters).await?;
                self.write_or_park(reader, group, letters).await?;
            }
        }
        if !self.is_adopting {
            self.shared.update(|state| {
                state.oldest = None;
                if let Some(last) = entries.last() {
                    state.written = self.flights.written(last.number + 1);
                }
            });
        }
        self.flights.follow(entries);
        Ok(())
    }

    /// Number of entries that are written, of those before `end`: all but those from the first end of a run on that
    /// waits.
    pub fn written(&self, end: u64) -> u64 {
        self.flights.written(end)
    }

    /// Moves the position behind all that has arrived.
    ///
    /// # Errors
    /// [`JournalError::Io`] when it cannot be saved.
    pub fn advance(&mut self, reader: &mut Reader) -> Result<(), JournalError> {
        match self.flights.settled() {
            settled if settled.is_empty() => Ok(()),
            settled => reader.advance(&settled),
        }
    }

    /// Whether uploads are on their way.
    pub fn has_flights(&self) -> bool {
        !self.flights.is_empty()
    }

    /// Waits until the next upload has ended; `None` where none is on its way. May be given up at any time.
    pub async fn next_landed(&mut self) -> Option<Landed> {
        self.flights.next(&self.shared).await
    }

    /// Keeps what could not be uploaded, and goes on with what has waited for it.
    pub async fn received(
        &mut self,
        landed: Landed,
        reader: &Reader,
        letters: &DeadLetters,
    ) -> Result<(), Closing> {
        match landed.outcome? {
            Err(failure) => self.park(reader, &landed.placed, &failure, letters).await?,
            Ok(()) => self.replaced(&landed.placed.entry.record),
        }
        self.launch(reader, letters).await
    }

    /// What was refused before in the place of an artifact is missed no longer.
    fn replaced(&self, artifact: &Record) {
        let mut state = self.shared.state();
        for refused in state.refused.values_mut() {
            refused.is_replaced |=
                refused.run == artifact.run() && Some(&refused.path) == artifact.artifact_path();
        }
    }

    /// Begins with all that has its turn.
    async fn launch(&mut self, reader: &Reader, letters: &DeadLetters) -> Result<(), Closing> {
        while let Some(placed) = self.flights.take() {
            if placed.entry.record.is_artifact() {
                self.send(reader, placed, letters).await?;
            } else {
                self.write_or_park(reader, slice::from_ref(&placed), letters)
                    .await?;
            }
        }
        Ok(())
    }

    /// Waits until no run that some entries are of has an end that waits.
    async fn land_ending(
        &mut self,
        entries: &[Placed],
        reader: &Reader,
        letters: &DeadLetters,
    ) -> Result<(), Closing> {
        let runs = || entries.iter().map(|placed| placed.entry.record.run());
        while runs().any(|run| self.flights.is_ending(run)) {
            self.land(reader, letters).await?;
        }
        Ok(())
    }

    /// Waits until all uploads have ended.
    pub async fn land_all(
        &mut self,
        reader: &Reader,
        letters: &DeadLetters,
    ) -> Result<(), Closing> {
        while self.has_flights() {
            self.land(reader, letters).await?;
        }
        Ok(())
    }

    async fn land(&mut self, reader: &Reader, letters: &DeadLetters) -> Result<(), Closing> {
        match self.next_landed().await {
            Some(landed) => self.received(landed, reader, letters).await,
            None => Err(Closing),
        }
    }

    async fn write_or_park(
        &mut self,
        reader: &Reader,
        group: &[Placed],
        letters: &DeadLetters,
    ) -> Result<(), Closing> {
        let Err(failure) = self.write(reader, group).await? else {
            return Ok(());
        };
        if let [placed] = group {
            return self.park(reader, placed, &failure, letters).await;
        }
        // One of them is at fault: each on its own finds out which.
        for placed in group {
            let one = slice::from_ref(placed);
            if let Err(failure) = self.write(reader, one).await? {
                self.park(reader, placed, &failure, letters).await?;
            }
        }
        Ok(())
    }

    async fn write(
        &mut self,
        reader: &Reader,
        group: &[Placed],
    ) -> Result<Result<(), Failure>, Closing> {
        let records: Vec<&Record> = group.iter().map(|placed| &placed.entry.record).collect();
        let write = || async { Ok(self.store.write(&records).await?) };
        let note = reader.trouble_note();
        self.patience.settle(Some(&note), write).await
    }

    /// Sends an artifact on its way.
    async fn send(
        &mut self,
        reader: &Reader,
        placed: Placed,
        letters: &DeadLetters,
    ) -> Result<(), Closing> {
        let record = &placed.entry.record;
        let store = match self.artifact_store(reader, record.run()).await? {
            Ok(store) => store,
            Err(failure) => return self.park(reader, &placed, &failure, letters).await,
        };
        let staged = match record {
            Record::Artifact { staged, .. } => Some(reader.staged(staged)),
            _ => None,
        };
        let resume = staged.clone();
        let order = Order {
            store,
            staged,
            is_ours: reader.is_alone(),
            resume: resume.unwrap_or_else(|| reader.staged(&format!("place-{}", placed.number))),
            note: reader.trouble_note(),
            heimdall_dir: self.heimdall_dir.clone(),
        };
        let limit = self.stalls_after.filter(|_| self.is_adopting);
        let patience = self.patience.with(Cargo::Artifacts, limit);
        self.flights.start(placed, order, patience, &self.shared);
        Ok(())
    }

    async fn artifact_store(
        &mut self,
        reader: &Reader,
        run: RunId,
    ) -> Result<Result<Arc<dyn ArtifactStore>, Failure>, Closing> {
        if let Some(store) = self.artifacts.get(&run) {
            return Ok(Ok(Arc::clone(store)));
        }
        let (store, access) = (&self.store, &self.access);
        let id = run.to_string();
        let find = || async {
            let uri = store.artifact_uri(&id).await?;
            let found = store
                .artifacts(&uri)
                .map_or_else(|| access.open(&uri), Ok)?;
            Ok(Arc::<dyn ArtifactStore>::from(found))
        };
        let note = reader.trouble_note();
        let found = self.patience.settle(Some(&note), find).await?;
        if let Ok(store) = &found {
            self.artifacts.insert(run, Arc::clone(store));
        }
        Ok(found)
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
        self.shared.update(|state| {
            state.parked += 1;
            if let Some(path) = entry.record.artifact_path()
                && state.refused.len() < MAX_REFUSED
                && !self.is_adopting
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

    pub fn tell_damage(&self, damage: &[String]) {
        for text in damage {
            self.notices.tell(format!("the journal is damaged: {text}"));
        }
    }
}
