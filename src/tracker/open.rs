//! How a tracker comes about: at the start, whether its stores are there or not, and in a fork.

use std::{
    sync::{Arc, Mutex, OnceLock, atomic::AtomicBool},
    time::Duration,
};

use super::session::{ActiveRun, LEFT_OPEN, SESSIONS, Session, lock};
use crate::{
    artifacts::open,
    config::{
        options::{Mode, Ranks},
        s3::S3Access,
        tracker::{Settled, TrackerConfig},
        uri::{ArtifactUri, Cloud, Destination},
    },
    delivery::{
        handle::Delivery,
        notices::Notices,
        runtime::{Background, KeepWaiting},
    },
    environment::run_tags::RunContext,
    error::{Error, Result},
    journal::{config::JournalConfig, record::Record},
    os::fork,
    store::{
        deferred::DeferredStore,
        error::StoreError,
        registry::ModelRegistry,
        tracking::{Experiment, TrackingStore},
    },
};

/// Longest wait for a database file to have its tables.
const LOCAL_PATIENCE: Duration = Duration::from_secs(120);

impl Tracker {
    /// Opens the stores, finds or creates the experiment and begins a journal. Waits on the stores, but not longer
    /// than the configuration says: a store that cannot be reached is one that is reached later.
    ///
    /// # Errors
    /// [`Error::Configuration`], [`Error::Invalid`] or [`Error::Store`] for what the user can put right; nothing is
    /// recorded then.
    pub fn open(
        config: &TrackerConfig,
        context: RunContext,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<Self> {
        let settled = config.settle()?;
        let mut is_unverified = false;
        if let Some(ArtifactUri::Object(place)) = &settled.artifacts {
            // What cannot work is said now, not in the background.
            settled.access().open(place.as_str())?;
            is_unverified = place.cloud == Cloud::S3 && S3Access::ignores_tls();
        }
        let parts = Parts::new(settled, Vec::new())?;
        if is_unverified {
            parts.notices.tell(
                "certificates of S3 stores are not verified, as MLFLOW_S3_IGNORE_TLS is true: whoever is between this \
                 machine and the store can read and change what is sent. AWS_CA_BUNDLE names certificates to trust"
                    .to_owned(),
            );
        }
        let mut unreachable = None;
        if parts.settled.options.mode == Mode::Online && !parts.settled.is_silent() {
            match parts.reach(keep_waiting)? {
                Ok(experiment) => {
                    let _ = parts.experiment.set(experiment);
                }
                Err(error @ StoreError::Unavailable { .. }) => unreachable = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        let tracker = parts.into_tracker(context);
        if let (Some(error), Some(delivery)) = (unreachable, &tracker.session.delivery) {
            delivery.tell_outage(&error.to_string());
        }
        Ok(tracker)
    }

    /// This tracker in a fork of the process that opened it: a journal and a delivery of its own, for the same
    /// runs, which remain the parent's to end. Waits for nothing.
    ///
    /// # Errors
    /// [`Error::Configuration`] when the system gives no thread.
    pub fn in_fork(&self) -> Result<Self> {
        // A thread of the parent's that held the lock does not exist here to release it.
        let active: Vec<ActiveRun> = self
            .session
            .active
            .try_lock()
            .map(|active| active.iter().map(ActiveRun::attached).collect())
            .unwrap_or_default();
        let attached: Vec<Record> = active
            .iter()
            .map(|run| Record::RunAttached { run: run.id })
            .collect();
        let parts = Parts::new(self.settled.clone(), active)?;
        if let Some(experiment) = self.experiment.get() {
            let _ = parts.experiment.set(experiment.clone());
        }
        let tracker = parts.into_tracker(self.context.clone());
        if !attached.is_empty() {
            tracker.session.accept_all(attached)?;
        }
        Ok(tracker)
    }
}

/// A tracker in the making.
struct Parts {
    settled: Settled,
    experiment: OnceLock<Experiment>,
    store: Arc<DeferredStore>,
    registry: Arc<DeferredStore>,
    background: Arc<Background>,
    notices: Arc<Notices>,
    active: Vec<ActiveRun>,
}

impl Parts {
    fn new(settled: Settled, active: Vec<ActiveRun>) -> Result<Self> {
        fork::watch();
        let store = Arc::new(settled.store(&settled.tracking));
        let registry = match settled.registry == settled.tracking {
            true => Arc::clone(&store),
            false => Arc::new(settled.store(&settled.registry)),
        };
        Ok(Self {
            settled,
            experiment: OnceLock::new(),
            store,
            registry,
            background: Arc::new(Background::start()?),
            notices: Arc::new(Notices::default()),
            active,
        })
    }

    /// Opens the stores, waiting as long as the configuration says, and finds or creates the experiment.
    fn reach(
        &self,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<std::result::Result<Experiment, StoreError>> {
        let (store, registry) = (Arc::clone(&self.store), Arc::clone(&self.registry));
        let (name, location) = (
            self.settled.experiment_name.clone(),
            self.settled.artifact_location(),
        );
        let patience = match &self.settled.tracking {
            // A file is there; only what an mlflow beside us makes of a fresh one takes its time.
            Destination::Sqlite(_) => LOCAL_PATIENCE.max(self.settled.options.connect_timeout),
            _ => self.settled.options.connect_timeout,
        };
        let destination = self.settled.tracking.uri();
        let reached = async move {
            let experiment = store
                .get_or_create_experiment(&name, location.as_deref())
                .await?;
            match registry.reach().await {
                Err(StoreError::Unavailable { .. }) | Ok(()) => Ok(experiment),
                Err(error) => Err(error),
            }
        };
        let in_time = async move {
            // On its own, so that what takes longer is not begun again: tables that are being made, above all.
            let reached = tokio::time::timeout(patience, tokio::spawn(reached)).await;
            let reason = match reached {
                Ok(Ok(reached)) => return reached,
                Ok(Err(failed)) => failed.to_string(),
                Err(_) => format!("no answer within {} s", patience.as_secs_f64()),
            };
            Err(StoreError::Unavailable {
                destination,
                source: reason.into(),
                retry_after: None,
            })
        };
        self.background.wait(in_time, keep_waiting)
    }

    fn into_tracker(self, context: RunContext) -> Tracker {
        let settled = self.settled;
        let options = &settled.options;
        let delivery = (!settled.is_silent()).then(|| {
            let stores: Vec<Arc<dyn TrackingStore>> = match options.mode {
                Mode::Offline => Vec::new(),
                Mode::Online => {
                    let mirrors = settled.mirrors.iter();
                    std::iter::once(Arc::clone(&self.store) as Arc<dyn TrackingStore>)
                        .chain(mirrors.map(|mirror| Arc::new(settled.store(mirror)) as _))
                        .collect()
                }
            };
            let mirrors = settled.mirrors.iter().map(Destination::uri);
            let config = JournalConfig {
                heimdall_dir: settled.heimdall_dir.clone(),
                destinations: std::iter::once(settled.tracking.uri())
                    .chain(mirrors)
                    .collect(),
                disk_limit: options.journal_limit,
                memory_limit: options.memory_limit,
                durability: options.durability,
            };
            let notices = Arc::clone(&self.notices);
            Delivery::start(config, stores, &settled.access(), &self.background, notices)
        });
        let session = Arc::new(Session {
            delivery,
            active: Mutex::new(self.active),
            starting: Mutex::default(),
            started: Mutex::default(),
            is_terminated: AtomicBool::new(false),
        });
        let mut sessions = lock(&SESSIONS);
        sessions.retain(|session| session.strong_count() > 0);
        sessions.push(Arc::downgrade(&session));
        drop(sessions);
        Tracker {
            experiment: self.experiment,
            context,
            store: self.store,
            registry: self.registry,
            background: self.background,
            notices: self.notices,
            session,
            pid: std::process::id(),
            generation: fork::generation(),
            settled,
        }
    }
}

impl Settled {
    fn store(&self, destination: &Destination) -> DeferredStore {
        let is_offline = self.options.mode == Mode::Offline;
        DeferredStore::new(destination.clone(), self.fresh_schema.clone(), is_offline)
    }

    pub(crate) fn access(&self) -> open::Access {
        open::Access {
            s3: self.s3.clone(),
        }
    }

    pub(crate) fn artifact_location(&self) -> Option<String> {
        self.artifacts.as_ref().map(|uri| uri.location())
    }

    /// Whether this is a rank that records nothing.
    pub(crate) fn is_silent(&self) -> bool {
        self.options.rank > 0 && self.options.ranks == Ranks::Zero
    }
}

/// Records runs of one experiment.
#[derive(Debug)]
pub struct Tracker {
    pub(crate) settled: Settled,
    /// Known once the store has been reached.
    pub(crate) experiment: OnceLock<Experiment>,
    pub(crate) context: RunContext,
    pub(crate) store: Arc<DeferredStore>,
    pub(crate) registry: Arc<dyn ModelRegistry>,
    pub(crate) background: Arc<Background>,
    pub(crate) notices: Arc<Notices>,
    pub(crate) session: Arc<Session>,
    pid: u32,
    generation: u32,
}

impl Tracker {
    /// Whether this process is a fork of the one that opened it.
    pub fn is_forked(&self) -> bool {
        self.generation != fork::generation()
    }

    /// Sentences that the user should see, once.
    pub fn notices(&self) -> Vec<String> {
        self.notices.take()
    }

    /// Whether there are some. Costs one load.
    pub fn has_notices(&self) -> bool {
        self.notices.are_waiting()
    }

    /// Where runs are recorded.
    pub fn destination(&self) -> &Destination {
        &self.settled.tracking
    }

    /// Where models are registered.
    pub fn registry_destination(&self) -> &Destination {
        &self.settled.registry
    }

    /// Name of the experiment.
    pub fn experiment_name(&self) -> &str {
        &self.settled.experiment_name
    }

    /// The worker thread does not survive a fork, and two processes must not write one journal.
    pub(crate) fn check_process(&self) -> Result<()> {
        if self.is_forked() {
            return Err(Error::Forked {
                owner: self.pid,
                current: std::process::id(),
            });
        }
        Ok(())
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        if !self.is_forked() && self.active_run().is_some() {
            lock(&LEFT_OPEN).push(Arc::clone(&self.session));
        }
    }
}
