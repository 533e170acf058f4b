//! The delivery of one tracker: its journal, and the workers that empty it.

use std::{
    future::Future,
    ops::Range,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    destination::{DestinationState, DestinationStatus, Refused, State, Traffic},
    exit,
    keeper::Common,
    notices::Notices,
    runtime::Runtime,
    worker::Worker,
};
use crate::{
    artifacts::open::Access,
    error::{Error, Result},
    journal::{
        append::{Admission, Appended, Batch, Place},
        config::JournalConfig,
        error::{JournalError, Room},
        reader::Reader,
        writer::Journal,
    },
    mlflow::{artifact_path::ArtifactPath, run::RunId},
    os::{clock::now_ms, sigterm},
    store::deferred::DeferredStore,
};

/// Status of a delivery.
#[derive(Clone, Debug)]
pub struct Status {
    /// The destinations, the primary one first.
    pub destinations: Vec<DestinationStatus>,
    /// Folder of the journal.
    pub journal: PathBuf,
    /// Error of the journal's disk, while the disk accepts nothing.
    pub journal_error: Option<String>,
    /// Records that are in memory only.
    pub in_memory: u64,
    /// True where nothing is sent: records wait for `heimdall sync`.
    pub is_offline: bool,
}

/// A journal and the workers that empty it.
#[derive(Debug)]
pub(crate) struct Delivery {
    common: Arc<Common>,
    pid: u32,
}

/// Entries that the primary destination must have before a wait ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    /// Number of the first entry that need not be delivered.
    target: u64,
    traffic: Traffic,
    /// Number of the search for journals of dead processes that must be fulfilled.
    request: u64,
    begun: Instant,
}

impl Goal {
    fn is_reached(&self, state: &State) -> bool {
        self.arrived(state) >= self.target
    }

    fn arrived(&self, state: &State) -> u64 {
        match self.traffic {
            Traffic::Records => state.written,
            Traffic::Artifacts => state.delivered,
        }
    }
}

impl Delivery {
    /// Begins a journal and starts a worker for each destination on `runtime`, which the workers keep alive until they
    /// end. `stores` are the stores of the configuration's destinations; without stores, nothing is sent.
    pub(crate) fn start(
        config: JournalConfig,
        stores: Vec<Arc<DeferredStore>>,
        access: &Access,
        runtime: &Arc<Runtime>,
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
        exit::add(&common, runtime);
        for (index, store) in stores.into_iter().enumerate() {
            let worker = Worker::new(
                config.heimdall_dir.clone(),
                index,
                store,
                access.clone(),
                Arc::clone(&common),
            );
            let kept = Arc::clone(runtime);
            runtime.spawn(async move {
                worker.run().await;
                drop(kept);
            });
        }
        let (keeper, kept) = (Arc::clone(&common), Arc::clone(runtime));
        runtime.spawn(async move {
            keeper.keep().await;
            drop(kept);
        });
        Self {
            common,
            pid: std::process::id(),
        }
    }

    /// Returns the journal.
    pub(crate) fn journal(&self) -> &Journal {
        &self.common.journal
    }

    fn primary(&self) -> Option<&Arc<DestinationState>> {
        self.common.destinations.first()
    }

    /// Accepts records: they are in the journal when this returns, and will be delivered. Returns the numbers of the
    /// records.
    ///
    /// # Errors
    /// The errors of [`Journal::append`].
    pub(crate) fn accept(&self, batch: Batch<'_>, admission: Admission) -> Result<Range<u64>> {
        let appended = match self.journal().append(batch, admission) {
            Err(JournalError::Frozen) => sigterm::wait_for_death(),
            appended => appended?,
        };
        let Appended { numbers, place } = appended;
        if let Place::Memory(error) = place {
            self.common.tell_disk(format!(
                "tracking is degraded, training is not: the journal in {} cannot be written ({error}). \
                 Records are kept in memory until it can; they are lost if this process dies before",
                self.journal().dir().display()
            ));
        }
        Ok(numbers)
    }

    /// Tells the user, once, that calls wait for room in the journal. Returns a future that ends when there is room.
    pub(crate) fn room(&self, room: Room) -> impl Future<Output = ()> + Send + 'static {
        self.common.tell_room();
        let journal = Arc::clone(&self.common.journal);
        async move { journal.wait_for_room(room).await }
    }

    /// Tells the user, once per outage, that the primary destination accepts nothing.
    pub(crate) fn tell_outage(&self, reason: &str) {
        if let Some(primary) = self.primary()
            && primary.tell_outage(Traffic::Records)
        {
            primary.note_outage(Traffic::Records, reason.to_owned());
            self.common.notices.tell(format!(
                "tracking is degraded, training is not: {reason}. What is recorded is kept in {} and delivered as soon \
                 as it can be",
                self.journal().dir().display()
            ));
        }
    }

    /// Returns the goal that everything recorded so far is delivered: only records, or artifacts as well. The journals
    /// of dead processes are delivered first.
    pub(crate) fn goal_of(&self, traffic: Traffic) -> Goal {
        Goal {
            traffic,
            ..self.goal(self.journal().appended())
        }
    }

    /// Returns the goal that the entries before number `target` are delivered, artifacts as well.
    pub(crate) fn goal(&self, target: u64) -> Goal {
        Goal {
            target,
            traffic: Traffic::Artifacts,
            request: self.common.request_adoption(),
            begun: Instant::now(),
        }
    }

    /// Returns a future that ends when the goal is reached. It ends as well when the worker ends.
    pub(crate) fn reached(&self, goal: Goal) -> impl Future<Output = ()> + Send + 'static {
        let primary = self.primary().filter(|_| !self.common.is_offline).cloned();
        let is_there = move |state: &State| goal.is_reached(state) && state.adopted >= goal.request;
        async move {
            if let Some(primary) = primary {
                primary
                    .wait_until(|state| state.ended || is_there(state))
                    .await;
            }
        }
    }

    /// Checks that a goal is reached.
    ///
    /// # Errors
    /// [`Error::Undelivered`] where the goal is not reached.
    pub(crate) fn check(&self, goal: Goal) -> Result<()> {
        let Some(primary) = self.primary() else {
            return Ok(());
        };
        let state = primary.state().clone();
        // There may have been no time to search for journals of dead processes; they have none of these records.
        if goal.is_reached(&state) {
            return Ok(());
        }
        let reason = if self.common.is_offline {
            "this tracker is offline: `heimdall sync` delivers"
        } else {
            "the store has not answered"
        };
        Err(Error::Undelivered {
            pending: goal.target.saturating_sub(goal.arrived(&state)),
            waited_s: goal.begun.elapsed().as_secs_f64(),
            reason: state.last_error().unwrap_or_else(|| reason.to_owned()),
            journal: self.journal().dir(),
        })
    }

    /// Returns the refused artifacts among the entries of these numbers.
    pub(crate) fn refused_among(&self, numbers: &Range<u64>) -> Vec<Refused> {
        let Some(primary) = self.primary() else {
            return Vec::new();
        };
        let state = primary.state();
        let refused = state.refused.range(numbers.clone());
        refused.map(|(_, it)| it.clone()).collect()
    }

    /// Returns an artifact of a run, at `folder` or below it, that was refused and is not in the store.
    pub(crate) fn refused_below(&self, run: RunId, folder: &ArtifactPath) -> Option<Refused> {
        let state = self.primary()?.state();
        let mut refused = state.refused.values();
        refused
            .find(|it| !it.is_replaced && it.run == run && it.path.is_within(folder))
            .cloned()
    }

    /// Returns true where all entries before a number have arrived at the primary destination or were refused.
    pub(crate) fn has_delivered(&self, number: u64) -> bool {
        let delivered = |primary: &Arc<DestinationState>| primary.state().delivered >= number;
        self.primary().is_some_and(delivered)
    }

    /// Returns true where the primary destination accepted nothing at the last attempt.
    pub(crate) fn is_troubled(&self) -> bool {
        let troubled = |primary: &Arc<DestinationState>| {
            primary.state().outage(Traffic::Records).error.is_some()
        };
        self.primary().is_some_and(troubled)
    }

    /// Returns the oldest outage of the primary destination that has lasted for `time`, and its error.
    pub(crate) fn troubled_for(&self, time: Duration) -> Option<(Traffic, String)> {
        let state = self.primary()?.state();
        let (since, traffic) = [Traffic::Records, Traffic::Artifacts]
            .into_iter()
            .filter_map(|traffic| Some((state.outage(traffic).since?, traffic)))
            .min_by_key(|(since, _)| *since)?;
        let waited = (now_ms() - since).max(0).unsigned_abs();
        let error = state.outage(traffic).error.clone().unwrap_or_default();
        (u128::from(waited) >= time.as_millis()).then_some((traffic, error))
    }

    /// Returns the status. Waits on the disk.
    pub(crate) fn status(&self) -> Status {
        let end = self.journal().end();
        let destinations = self.common.destinations.iter().enumerate();
        Status {
            destinations: destinations
                .map(|(index, destination)| {
                    destination.status(end.appended, || Reader::oldest(&self.common.journal, index))
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
    /// Lets the workers finish on their own. A fork has no workers, only a copy of their state.
    fn drop(&mut self) {
        if self.pid == std::process::id() {
            self.common.shutdown.close();
        }
    }
}
