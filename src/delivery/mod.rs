//! Delivery: what is journaled arrives at its destinations, in order, whatever has to be waited out.
//!
//! One worker per destination reads the journal at its own pace and writes to the store. It tries again for as long
//! as it takes where the destination is at fault, parks a record as a [`dead_letter`] where the record is, and
//! moves its position only behind what has been committed. A keeper looks after the journal itself and wakes the
//! workers, so that a logging call wakes nobody.

mod adoption;
pub mod background;
mod courier;
pub mod dead_letter;
mod flights;
pub mod notices;
mod patience;
pub mod retry;
pub mod sync;
mod worker;

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, watch};

use crate::{
    artifacts,
    error::{Error, Result},
    journal::{Appended, Journal, JournalConfig, JournalError, Room, frame::Draft, reader::Reader},
    record::{ArtifactPath, Record},
    run::{RunId, now_ms},
    store::TrackingStore,
};
use adoption::Adoption;
use background::{Background, KeepWaiting};
use notices::Notices;
pub(crate) use patience::Cargo;
use worker::Worker;

const PATIENCE: Duration = Duration::from_millis(50);
/// How often the keeper looks after the journal, and how often while calls come in thick.
const LOOK: Duration = Duration::from_millis(100);
const LOOK_OFTEN: Duration = Duration::from_millis(20);
/// For how long records are gathered that nobody waits for: a transaction costs a store, and the processor that trains
/// beside it, the same for one record as for thousands.
const GATHER: Duration = Duration::from_millis(500);
/// So many records are not waited with.
const ENOUGH: u64 = 10_000;
/// How often journals are looked for whose processes have died since.
const ADOPT: Duration = Duration::from_secs(10);
/// At the exit, a mirror that takes nothing is not waited for longer than this.
const MIRROR_PATIENCE: Duration = Duration::from_secs(2);
/// Before a signal ends the process, there is so much time at least for what was recorded last.
const LAST_MOMENT: Duration = Duration::from_millis(500);

/// Deliveries of this process that have not ended, so that its exit can wait for them.
static LIVE: Mutex<Vec<Weak<Common>>> = Mutex::new(Vec::new());

/// What a delivery's keeper, workers and callers all see.
#[derive(Debug)]
struct Common {
    journal: Arc<Journal>,
    /// Told when there may be something to do.
    wake: Notify,
    closing: AtomicBool,
    deadline: watch::Sender<bool>,
    notices: Arc<Notices>,
    adoption: Adoption,
    /// Number of the last request to look for journals of dead processes.
    adopt: AtomicU64,
    destinations: Vec<Arc<Shared>>,
    /// Destinations that have not delivered all yet.
    behind: AtomicUsize,
    /// Nothing is tried: the journal is all there is.
    is_offline: bool,
    /// The journal is all there is to end a run by.
    leaves_runs: AtomicBool,
    /// The user has been told that calls wait for room.
    room_told: AtomicBool,
    /// The user has been told that the journal's disk takes nothing.
    disk_told: AtomicBool,
}

/// What one destination's worker and the callers both see.
#[derive(Debug)]
struct Shared {
    uri: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// Entries of this journal that are delivered or parked.
    delivered: u64,
    /// Entries of it that are delivered, parked or, artifacts alone, on their way.
    written: u64,
    parked: u64,
    /// Artifacts among them, by their numbers.
    refused: BTreeMap<u64, Refused>,
    /// Number of the last request to look for journals of dead processes that was fulfilled.
    adopted: u64,
    ended: bool,
    /// What keeps records from it, and what keeps artifacts from their store.
    outages: [Outage; 2],
    /// Length of each file that is on its way, and how much of it is sent.
    uploads: Vec<(u64, Arc<AtomicU64>)>,
    /// When the first record was recorded that waits, in milliseconds since 1970.
    oldest: Option<i64>,
}

/// An artifact that its store has refused for good.
#[derive(Clone, Debug)]
pub struct Refused {
    run: RunId,
    path: ArtifactPath,
    /// What the store says.
    pub reason: String,
    /// Whether a later file has come to its place.
    is_replaced: bool,
}

impl Refused {
    /// Where it belongs, below the run's artifact URI.
    pub fn path(&self) -> &str {
        self.path.as_str()
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Self::Refused {
            what: format!("artifact {}", refused.path()),
            reason: refused.reason,
        }
    }
}

/// A destination, or its artifact store, takes nothing.
#[derive(Clone, Debug, Default)]
struct Outage {
    error: Option<String>,
    /// In milliseconds since 1970.
    since: Option<i64>,
    /// The user has been told.
    told: bool,
}

impl State {
    fn outage(&self, cargo: Cargo) -> &Outage {
        &self.outages[cargo as usize]
    }

    fn outage_mut(&mut self, cargo: Cargo) -> &mut Outage {
        &mut self.outages[cargo as usize]
    }

    fn last_error(&self) -> Option<String> {
        self.outages.iter().find_map(|outage| outage.error.clone())
    }

    /// Bytes of the files that are on their way, and those of them that are sent.
    fn uploads(&self) -> (u64, u64) {
        let sent = |(size, sent): &(u64, Arc<AtomicU64>)| sent.load(Ordering::Relaxed).min(*size);
        let all = self.uploads.iter().map(|(size, _)| size).sum();
        (all, self.uploads.iter().map(sent).sum())
    }

    fn since(&self) -> Option<i64> {
        self.outages.iter().filter_map(|outage| outage.since).min()
    }
}

impl Shared {
    fn new(uri: String) -> Self {
        Self {
            uri,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    /// True the first time in an outage.
    fn tell_outage(&self, cargo: Cargo) -> bool {
        !std::mem::replace(&mut self.state().outage_mut(cargo).told, true)
    }

    /// True when the user has been told of an outage, which is over.
    fn outage_over(&self, cargo: Cargo) -> bool {
        std::mem::take(&mut self.state().outage_mut(cargo).told)
    }

    /// Waits until `done`; false when `until` has passed.
    fn wait_for(
        &self,
        until: Option<Instant>,
        keep_waiting: KeepWaiting<'_>,
        done: impl Fn(&State) -> bool,
    ) -> Result<bool> {
        let mut state = self.state();
        while !done(&state) {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
            let patience = left.map_or(PATIENCE, |left| left.min(PATIENCE));
            state = self
                .changed
                .wait_timeout(state, patience)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            if !done(&state) {
                // The caller's own code may run in there; it must not find the state locked.
                drop(state);
                if !keep_waiting() {
                    return Err(Error::Interrupted);
                }
                state = self.state();
            }
        }
        Ok(true)
    }

    fn status(&self, appended: u64, oldest: impl FnOnce() -> Option<i64>) -> DestinationStatus {
        let state = self.state().clone();
        let pending = appended.saturating_sub(state.delivered);
        let oldest = match pending {
            0 => None,
            _ => state.oldest.or_else(oldest),
        };
        let (uploading, uploaded) = state.uploads();
        DestinationStatus {
            uri: self.uri.clone(),
            pending,
            parked: state.parked,
            last_error: state.last_error(),
            since: state.since(),
            uploading,
            uploaded,
            oldest,
        }
    }
}

impl Common {
    fn new(
        journal: Arc<Journal>,
        config: &JournalConfig,
        notices: Arc<Notices>,
        is_offline: bool,
    ) -> Self {
        let uris = config.destinations.clone();
        Self {
            journal,
            wake: Notify::new(),
            closing: AtomicBool::new(false),
            deadline: watch::Sender::new(false),
            notices,
            adoption: Adoption::new(config.heimdall_dir.clone(), uris.clone()),
            // The start is a request.
            adopt: AtomicU64::new(1),
            behind: AtomicUsize::new(uris.len()),
            destinations: uris
                .into_iter()
                .map(|uri| Arc::new(Shared::new(uri)))
                .collect(),
            is_offline,
            leaves_runs: AtomicBool::new(false),
            room_told: AtomicBool::new(false),
            disk_told: AtomicBool::new(false),
        }
    }

    /// Tells the user, once until it is over, that the journal's disk takes nothing.
    fn tell_disk(&self, text: String) {
        if !self.disk_told.swap(true, Ordering::AcqRel) {
            self.notices.tell(text);
        }
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.wake.notify_waiters();
    }

    /// Asks for a look for journals of dead processes, and wakes the workers.
    fn request_adoption(&self) -> u64 {
        let request = self.adopt.fetch_add(1, Ordering::AcqRel) + 1;
        self.wake.notify_waiters();
        request
    }

    fn pending(&self) -> u64 {
        let appended = self.journal.appended();
        let pending = |shared: &Arc<Shared>| appended.saturating_sub(shared.state().delivered);
        self.destinations.iter().map(pending).max().unwrap_or(0)
    }

    /// Looks after the journal and wakes the workers until all have ended.
    async fn keep(&self) {
        // Records that the workers have been woken for, and that there were when last looked.
        let (mut woken_for, mut seen) = (0, 0);
        let (mut woken, mut adopted) = (Instant::now(), Instant::now());
        loop {
            if let Some(told) = self.journal.maintain() {
                self.disk_told
                    .store(self.journal.trouble().is_some(), Ordering::Release);
                self.notices.tell(told);
            }
            let appended = self.journal.appended();
            let is_due = woken.elapsed() >= GATHER || appended - woken_for >= ENOUGH;
            if appended != woken_for && is_due {
                woken_for = appended;
                woken = Instant::now();
                self.wake.notify_waiters();
            }
            let comes_thick = appended - std::mem::replace(&mut seen, appended) >= ENOUGH / 10;
            if adopted.elapsed() >= ADOPT && !self.is_offline {
                adopted = Instant::now();
                self.request_adoption();
            }
            let has_ended = match self.is_offline {
                true => self.is_closing(),
                false => self.behind.load(Ordering::Acquire) == 0,
            };
            if has_ended || *self.deadline.borrow() {
                break;
            }
            tokio::time::sleep(if comes_thick { LOOK_OFTEN } else { LOOK }).await;
        }
    }
}

/// How a destination stands.
#[derive(Clone, Debug)]
pub struct DestinationStatus {
    /// Its URI, without credentials.
    pub uri: String,
    /// Records that wait in the journal.
    pub pending: u64,
    /// Records that were refused for good and parked as dead letters.
    pub parked: u64,
    /// What it answers, while it takes nothing.
    pub last_error: Option<String>,
    /// Since when it takes nothing, in milliseconds since 1970.
    pub since: Option<i64>,
    /// Bytes of the files that are on their way.
    pub uploading: u64,
    /// Bytes of them that are sent.
    pub uploaded: u64,
    /// When the first record was recorded that waits, in milliseconds since 1970.
    pub oldest: Option<i64>,
}

/// How delivery stands.
#[derive(Clone, Debug)]
pub struct Status {
    /// The destinations, the primary one first.
    pub destinations: Vec<DestinationStatus>,
    /// Folder of the journal.
    pub journal: PathBuf,
    /// What the journal's disk answers, while it takes nothing.
    pub journal_error: Option<String>,
    /// Records that are in memory only.
    pub in_memory: u64,
    /// Nothing is tried: records wait for `heimdall sync`.
    pub is_offline: bool,
}

/// A journal and the workers that empty it.
#[derive(Debug)]
pub struct Delivery {
    common: Arc<Common>,
    pid: u32,
}

impl Delivery {
    /// Begins a journal and starts a worker for each destination on `background`, which they keep alive until
    /// they end. `stores` are those of the configuration's destinations; without any, nothing is tried.
    pub fn start(
        config: JournalConfig,
        stores: Vec<Arc<dyn TrackingStore>>,
        access: &artifacts::Access,
        background: &Arc<Background>,
        notices: Arc<Notices>,
    ) -> Self {
        let journal = Arc::new(Journal::create(config.clone()));
        let trouble = journal.trouble();
        let common = Arc::new(Common::new(journal, &config, notices, stores.is_empty()));
        if let Some(error) = trouble {
            common.tell_disk(format!(
                "tracking is degraded, training is not: the journal cannot be kept in {} ({error}); set \
                 HEIMDALL_DIR to a folder that can be written. Records are kept in memory until then; they are \
                 lost if this process dies before they are delivered",
                config.heimdall_dir.display()
            ));
        }
        let mut live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(|delivery| delivery.strong_count() > 0);
        live.push(Arc::downgrade(&common));
        drop(live);
        for (destination, store) in stores.into_iter().enumerate() {
            let worker = Worker::new(
                config.heimdall_dir.clone(),
                destination,
                store,
                access.clone(),
                Arc::clone(&common),
            );
            let kept = Arc::clone(background);
            background.spawn(async move {
                worker.run().await;
                drop(kept);
            });
        }
        let (keeper, kept) = (Arc::clone(&common), Arc::clone(background));
        background.spawn(async move {
            keeper.keep().await;
            drop(kept);
        });
        Self {
            common,
            pid: std::process::id(),
        }
    }

    /// Its journal.
    pub fn journal(&self) -> &Journal {
        &self.common.journal
    }

    /// Accepts a record: it is in the journal when this returns, and will be delivered.
    ///
    /// # Errors
    /// Those of [`Journal::append`].
    pub fn accept(&self, record: Record) -> Result<()> {
        self.accepted(self.journal().append(record))
    }

    /// Accepts records that belong together: all of them or, on an error, none.
    ///
    /// # Errors
    /// Those of [`Journal::append_all`].
    pub fn accept_all(&self, records: Vec<Record>) -> Result<()> {
        self.accepted(self.journal().append_all(records))
    }

    /// Accepts a frame.
    ///
    /// # Errors
    /// Those of [`Journal::append_draft`].
    pub fn accept_draft(&self, draft: &mut Draft<'_>) -> Result<()> {
        self.accepted(self.journal().append_draft(draft))
    }

    /// Accepts a record that must not wait for room: what it is about has been accepted before.
    ///
    /// # Errors
    /// [`crate::journal::JournalError::Encode`], [`crate::journal::JournalError::Sealed`].
    pub fn accept_beyond_limits(&self, record: Record) -> Result<()> {
        self.accepted(self.journal().append_beyond_limits(record))
    }

    /// Accepts records that belong together and must not wait for room.
    ///
    /// # Errors
    /// [`JournalError::Encode`], [`JournalError::Sealed`].
    pub fn accept_all_beyond_limits(&self, records: Vec<Record>) -> Result<()> {
        self.accepted(self.journal().append_all_beyond_limits(records))
    }

    /// Waits until the journal has room for more; false when `keep_waiting` says to stop.
    pub fn wait_for_room(&self, room: Room, keep_waiting: KeepWaiting<'_>) -> bool {
        if !self.common.room_told.swap(true, Ordering::AcqRel) {
            self.common.notices.tell(format!(
                "the journal in {} is as large as it may get (HEIMDALL_JOURNAL_LIMIT): calls wait until what it holds \
                 is delivered",
                self.journal().dir().display()
            ));
        }
        self.journal().wait_for_room(room, keep_waiting)
    }

    /// Tells the user, once in an outage, that the primary destination takes nothing.
    pub fn tell_outage(&self, reason: &str) {
        if let Some(primary) = self.common.destinations.first()
            && primary.tell_outage(Cargo::Records)
        {
            primary.update(|state| {
                let outage = state.outage_mut(Cargo::Records);
                outage.error = Some(reason.to_owned());
                outage.since.get_or_insert_with(now_ms);
            });
            self.common.notices.tell(format!(
                "tracking is degraded, training is not: {reason}. What is recorded is kept in {} and delivered as soon \
                 as it can be",
                self.journal().dir().display()
            ));
        }
    }

    fn accepted(&self, appended: std::result::Result<Appended, JournalError>) -> Result<()> {
        if let Err(JournalError::Frozen) = appended {
            loop {
                std::thread::park();
            }
        }
        if let Appended::InMemory(error) = appended? {
            self.common.tell_disk(format!(
                "tracking is degraded, training is not: the journal in {} cannot be written ({error}). \
                 Records are kept in memory until it can; they are lost if this process dies before",
                self.journal().dir().display()
            ));
        }
        Ok(())
    }

    /// Waits until the primary destination has everything accepted so far, and everything dead processes had left.
    ///
    /// # Errors
    /// [`Error::Undelivered`] after `timeout`, [`Error::Interrupted`] when `keep_waiting` says so.
    pub fn flush(&self, timeout: Option<Duration>, keep_waiting: KeepWaiting<'_>) -> Result<()> {
        let target = self.journal().appended();
        self.wait(target, |state| state.delivered, timeout, keep_waiting)
    }

    /// The same for records alone: artifacts may still be on their way.
    ///
    /// # Errors
    /// Those of [`Delivery::flush`].
    pub fn flush_records(
        &self,
        timeout: Option<Duration>,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<()> {
        let target = self.journal().appended();
        self.wait(target, |state| state.written, timeout, keep_waiting)
    }

    /// Waits until the artifacts of these numbers have arrived, and returns which of them were refused.
    ///
    /// # Errors
    /// Those of [`Delivery::flush`].
    pub fn wait_for_artifacts(
        &self,
        numbers: &Range<u64>,
        timeout: Option<Duration>,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<Vec<Refused>> {
        self.wait(numbers.end, |state| state.delivered, timeout, keep_waiting)?;
        let Some(primary) = self.common.destinations.first() else {
            return Ok(Vec::new());
        };
        let state = primary.state();
        Ok(state
            .refused
            .range(numbers.clone())
            .map(|(_, it)| it.clone())
            .collect())
    }

    /// An artifact of a run, below a folder or that itself, which was refused and is not there.
    pub fn refused_below(&self, run: RunId, folder: &ArtifactPath) -> Option<Refused> {
        let state = self.common.destinations.first()?.state();
        let mut refused = state.refused.values();
        refused
            .find(|it| !it.is_replaced && it.run == run && it.path.is_within(folder))
            .cloned()
    }

    /// Whether everything up to a number has arrived at the primary destination or was refused.
    pub fn has_delivered(&self, number: u64) -> bool {
        let primary = self.common.destinations.first();
        primary.is_some_and(|primary| primary.state().delivered >= number)
    }

    fn wait(
        &self,
        target: u64,
        reached: fn(&State) -> u64,
        timeout: Option<Duration>,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<()> {
        let Some(primary) = self.common.destinations.first() else {
            return Ok(());
        };
        let begun = Instant::now();
        let undelivered = |state: &State, reason: &str| Error::Undelivered {
            pending: target.saturating_sub(reached(state)),
            waited_s: begun.elapsed().as_secs_f64(),
            reason: state.last_error().unwrap_or_else(|| reason.to_owned()),
            journal: self.journal().dir(),
        };
        if self.common.is_offline {
            if target == 0 {
                return Ok(());
            }
            let state = primary.state().clone();
            return Err(undelivered(
                &state,
                "this tracker is offline: `heimdall sync` delivers",
            ));
        }
        let request = self.common.request_adoption();
        // A time beyond what the clock can count is no limit.
        let until = timeout.and_then(|timeout| begun.checked_add(timeout));
        let is_there = |state: &State| reached(state) >= target && state.adopted >= request;
        primary.wait_for(until, keep_waiting, |state| state.ended || is_there(state))?;
        let state = primary.state().clone();
        // There may have been no time to look for what dead processes have left; that is none of these records.
        if reached(&state) >= target {
            return Ok(());
        }
        Err(undelivered(&state, "the store has not answered"))
    }

    /// Whether the primary destination has taken nothing when it was last tried.
    pub fn is_troubled(&self) -> bool {
        let primary = self.common.destinations.first();
        primary.is_some_and(|primary| primary.state().outage(Cargo::Records).error.is_some())
    }

    /// What the primary destination has taken nothing of for as long as this, the longest first, and why.
    pub(crate) fn troubled_for(&self, time: Duration) -> Option<(Cargo, String)> {
        let state = self.common.destinations.first()?.state();
        let (since, cargo) = [Cargo::Records, Cargo::Artifacts]
            .into_iter()
            .filter_map(|cargo| Some((state.outage(cargo).since?, cargo)))
            .min_by_key(|(since, _)| *since)?;
        let waited = (now_ms() - since).max(0).unsigned_abs();
        let why = state.outage(cargo).error.clone().unwrap_or_default();
        (u128::from(waited) >= time.as_millis()).then_some((cargo, why))
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        let end = self.journal().end();
        Status {
            destinations: self
                .common
                .destinations
                .iter()
                .enumerate()
                .map(|(place, shared)| {
                    shared.status(end.appended, || Reader::oldest(&self.common.journal, place))
                })
                .collect(),
            journal: self.journal().dir(),
            journal_error: self.journal().trouble(),
            in_memory: end.in_memory,
            is_offline: self.common.is_offline,
        }
    }
}

impl Drop for Delivery {
    /// Lets the workers finish alone. A fork has no workers, only a copy of their state.
    fn drop(&mut self) {
        if self.pid == std::process::id() {
            self.common.close();
        }
    }
}

/// Forgets, in a fork, the deliveries of its parent: they are the parent's.
pub(crate) fn forget_parent() {
    if let Ok(mut live) = LIVE.try_lock() {
        std::mem::forget(std::mem::take(&mut *live));
    }
}

/// Records of this process that wait for the destination that is furthest behind.
pub fn pending() -> u64 {
    live()
        .iter()
        .filter(|it| !it.is_offline)
        .map(|it| it.pending())
        .sum()
}

/// Bytes of this process' files that are on their way to their primary destinations, and those of them that are sent.
pub fn uploads() -> (u64, u64) {
    let live = live();
    let states = live.iter().filter_map(|it| it.destinations.first());
    let sizes = states.map(|shared| shared.state().uploads());
    sizes.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
}

/// Waits, before a signal ends the process, until what it has recorded is delivered. Calls that record something are
/// accepted meanwhile; at last no more of them return, and what is left goes out. Returns what to tell the user.
pub fn finish_while_recording(grace: Duration) -> Vec<String> {
    let live = live();
    let begun = Instant::now();
    let until = begun.checked_add(grace);
    for delivery in live.iter().filter(|delivery| !delivery.is_offline) {
        let target = delivery.journal.appended();
        delivery.wake.notify_waiters();
        for (place, shared) in delivery.destinations.iter().enumerate() {
            let over = |state: &State| {
                state.ended || state.delivered >= target || is_hopeless(place, state, begun)
            };
            let _ = shared.wait_for(until, &mut || true, over);
        }
    }
    for delivery in &live {
        delivery.journal.freeze();
    }
    let left = grace.saturating_sub(begun.elapsed());
    finish(left.max(LAST_MOMENT.min(grace)), &mut || true)
}

/// The deliveries of this process that have not ended.
fn live() -> Vec<Arc<Common>> {
    let live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
    live.iter().filter_map(Weak::upgrade).collect()
}

/// Whether an exit waits in vain: a mirror that is down for a day must not hold it up; its part is in the journal.
fn is_hopeless(place: usize, state: &State, begun: Instant) -> bool {
    place > 0 && state.since().is_some() && begun.elapsed() >= MIRROR_PATIENCE
}

fn left_behind(uri: &str, journal: &Path, in_memory: u64) -> String {
    let kept = format!(
        "not everything is delivered to {uri}; the rest stays in {} and goes out with the next start or with \
         `heimdall sync`",
        journal.display()
    );
    match in_memory {
        0 => kept,
        lost => format!("{kept}, but for {lost} records that the disk has not taken"),
    }
}

/// Waits, at the end of the process, for all deliveries of it; what is not delivered in time stays in its
/// journal for the next start. Returns what to tell the user.
pub fn finish(timeout: Duration, keep_waiting: KeepWaiting<'_>) -> Vec<String> {
    let live = live();
    let begun = Instant::now();
    let until = begun.checked_add(timeout);
    for delivery in &live {
        delivery.request_adoption();
        delivery.close();
    }
    let mut told = Vec::new();
    let mut is_interrupted = false;
    for delivery in &live {
        let dir = delivery.journal.dir();
        if delivery.is_offline {
            let kept = delivery.journal.appended();
            if kept > 0 {
                told.push(format!(
                    "{kept} records are kept in {}: `heimdall sync` delivers them",
                    dir.display()
                ));
            }
            delivery.deadline.send_replace(true);
            continue;
        }
        for (place, shared) in delivery.destinations.iter().enumerate() {
            let over = |state: &State| state.ended || is_hopeless(place, state, begun);
            let stop = is_interrupted.then(Instant::now).or(until);
            let waited = shared.wait_for(stop, keep_waiting, over);
            is_interrupted |= matches!(waited, Err(Error::Interrupted));
            let appended = delivery.journal.appended();
            let state = shared.state();
            // Without a moment to wait a worker has not ended, even where nothing is left.
            if !state.ended && state.delivered < appended {
                let in_memory = delivery.journal.end().in_memory;
                told.push(left_behind(&shared.uri, &dir, in_memory));
            }
        }
        delivery.deadline.send_replace(true);
        told.extend(delivery.notices.take());
    }
    LIVE.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .retain(|kept| {
            !live
                .iter()
                .any(|it| std::ptr::eq(kept.as_ptr(), Arc::as_ptr(it)))
        });
    told
}

#[cfg(test)]
mod tests;
