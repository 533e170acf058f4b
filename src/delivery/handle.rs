//! The delivery of one tracker: its journal, and the workers that empty it.

use std::{
    ops::Range,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{
    destination::{Cargo, Refused, State, Status},
    exit::LIVE,
    keeper::Common,
    notices::Notices,
    runtime::{Background, KeepWaiting},
    worker::Worker,
};
use crate::{
    artifacts::open,
    error::{Error, Result},
    journal::{
        append::Appended,
        config::JournalConfig,
        error::{JournalError, Room},
        frame::Draft,
        reader::Reader,
        record::Record,
        writer::Journal,
    },
    mlflow::{artifact_path::ArtifactPath, run::RunId},
    os::clock::now_ms,
    store::tracking::TrackingStore,
};

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
        access: &open::Access,
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
    /// [`crate::journal::error::JournalError::Encode`], [`crate::journal::error::JournalError::Sealed`].
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
