//! The tracker and its construction: at the start, with stores that can be reached or not, and in a fork.

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    active::ActiveRuns,
    call::Caller,
    lock::lock,
    notes::Notes,
    recorder::{self, Recorder},
    stores::Stores,
};
use crate::{
    artifacts::open::Access,
    config::{
        options::Mode,
        s3::S3Access,
        tracker::{TrackerConfig, ValidConfig},
        uri::{ArtifactUri, Cloud, Destination},
    },
    delivery::{
        handle::{Delivery, Status},
        notices::Notices,
        runtime::{KeepWaiting, Runtime},
    },
    environment::run_tags::RunContext,
    error::{Error, Result},
    journal::{append::Admission, config::JournalConfig, error::Room, record::Record},
    mlflow::run::RunId,
    os::fork,
    store::{deferred::DeferredStore, error::StoreError, tracking::Experiment},
};

/// Longest wait until a database file has its tables.
const DATABASE_CREATION_TIMEOUT: Duration = Duration::from_secs(120);

/// Records runs of one experiment.
#[derive(Debug)]
pub struct Tracker {
    pub(crate) stores: Arc<Stores>,
    pub(crate) runtime: Arc<Runtime>,
    pid: u32,
    generation: u32,
}

impl Tracker {
    /// Opens the stores, finds or creates the experiment and begins a journal. Waits on the stores, but no longer than
    /// the configuration allows: a store that cannot be reached now is reached later.
    ///
    /// # Errors
    /// [`Error::Invalid`] or [`Error::Store`] for problems that the user can fix; nothing is recorded then.
    pub fn open(
        config: &TrackerConfig,
        context: RunContext,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<Self> {
        let config = config.validate()?;
        let builder = TrackerBuilder::new(config, context)?;
        builder.check_artifacts()?;
        builder.tell_silence();
        let mut unreachable = None;
        if builder.config.options.mode == Mode::Online && !builder.config.options.is_silent() {
            match builder.reach(keep_waiting)? {
                Ok(experiment) => {
                    let _ = builder.experiment.set(experiment);
                }
                Err(error @ StoreError::Unavailable { .. }) => unreachable = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        let tracker = builder.into_tracker(ActiveRuns::default());
        if let (Some(error), Some(delivery)) = (unreachable, &tracker.recorder().delivery) {
            delivery.tell_outage(&error.to_string());
        }
        Ok(tracker)
    }

    /// Returns this tracker in a fork of the process that opened it. It has a journal and a delivery of its own, for
    /// the same runs; ending them remains the task of the parent. Waits for nothing.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the system gives no thread.
    pub fn in_fork(&self) -> Result<Self> {
        // A thread of the parent that held the lock does not exist here to release it.
        let active = self.recorder().active.try_lock();
        let active = active.map_or_else(|_| ActiveRuns::default(), |active| active.attached());
        let attached = active.ids().into_iter();
        let attached: Vec<Record> = attached.map(|run| Record::RunAttached { run }).collect();
        let stores = &self.stores;
        let builder = TrackerBuilder::new(stores.config.clone(), stores.context.clone())?;
        if let Some(experiment) = stores.experiment.get() {
            let _ = builder.experiment.set(experiment.clone());
        }
        let tracker = builder.into_tracker(active);
        if !attached.is_empty() {
            tracker.recorder().record(attached, Admission::Bounded)?;
        }
        Ok(tracker)
    }

    /// Returns true where this process is a fork of the one that opened the tracker.
    pub fn is_forked(&self) -> bool {
        self.generation != fork::generation()
    }

    /// Checks that this process has opened the tracker: the delivery thread does not survive a fork, and two processes
    /// must not write one journal.
    pub(crate) fn check_process(&self) -> Result<()> {
        if self.is_forked() {
            return Err(Error::Forked {
                owner: self.pid,
                current: std::process::id(),
            });
        }
        Ok(())
    }

    pub(crate) fn recorder(&self) -> &Arc<Recorder> {
        &self.stores.recorder
    }

    /// Runs a query and waits for the answer. If the caller stops waiting, the query is dropped.
    ///
    /// # Errors
    /// The errors of the query; [`Error::Interrupted`].
    pub fn ask<T, F>(
        &self,
        question: impl FnOnce(Arc<Stores>) -> F,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        self.check_process()?;
        let question = question(Arc::clone(&self.stores));
        let answer = self.runtime.wait_until(None, question, keep_waiting)?;
        answer.ok_or(Error::WorkerStopped)?
    }

    /// Runs a query as [`Tracker::ask`] does. If the caller stops waiting, the query continues on its own.
    ///
    /// # Errors
    /// The errors of [`Tracker::ask`].
    pub(crate) fn ask_to_the_end<T, F>(
        &self,
        question: impl FnOnce(Arc<Stores>) -> F,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let question = question(Arc::clone(&self.stores));
        self.runtime.wait(question, keep_waiting)?
    }

    /// Waits until everything recorded so far is delivered.
    ///
    /// # Errors
    /// [`Error::Undelivered`] after `timeout`, [`Error::Interrupted`].
    pub fn flush(&self, timeout: Option<Duration>, keep_waiting: KeepWaiting<'_>) -> Result<()> {
        self.check_process()?;
        let Some(delivery) = &self.recorder().delivery else {
            return Ok(());
        };
        let target = delivery.journal().appended();
        self.wait_for_entries(delivery, target, timeout, keep_waiting)
    }

    /// Waits until the entries before number `target` are delivered.
    pub(crate) fn wait_for_entries(
        &self,
        delivery: &Delivery,
        target: u64,
        timeout: Option<Duration>,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<()> {
        let delivery = delivery.shared();
        let goal = delivery.goal(target);
        // A time beyond the range of the clock is no limit.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let reached = delivery.wait_for(goal);
        self.runtime.wait_until(deadline, reached, keep_waiting)?;
        delivery.check(goal)
    }

    /// Waits until the journal has room.
    ///
    /// # Errors
    /// [`Error::Interrupted`] where the caller stops waiting.
    pub fn wait_for_room(&self, room: Room, keep_waiting: KeepWaiting<'_>) -> Result<()> {
        match &self.recorder().delivery {
            Some(delivery) => self
                .runtime
                .wait(delivery.wait_for_room(room), keep_waiting),
            None => Ok(()),
        }
    }

    /// Returns the status of the delivery; `None` on a rank that records nothing.
    pub fn status(&self) -> Option<Status> {
        self.recorder().delivery.as_ref().map(Delivery::status)
    }

    /// Takes the messages that the user must see.
    pub fn notices(&self) -> Vec<String> {
        self.stores.notices.take()
    }

    /// Returns true where such messages wait. Costs one load.
    pub fn has_notices(&self) -> bool {
        self.stores.notices.are_waiting()
    }

    /// Returns the store that runs are recorded in.
    pub fn destination(&self) -> &Destination {
        &self.stores.config.tracking
    }

    /// Returns the store that models are registered in.
    pub fn registry_destination(&self) -> &Destination {
        &self.stores.config.registry
    }

    /// Returns the rank of this process in a distributed training; 0 outside of one.
    pub fn rank(&self) -> u32 {
        self.stores.config.options.rank
    }

    /// Returns the name of the experiment.
    pub fn experiment_name(&self) -> &str {
        &self.stores.config.experiment_name
    }

    /// Returns the id of the innermost active run of a caller. `caller` is asked only where several runs are active.
    pub fn active_run(&self, caller: impl FnOnce() -> Caller) -> Option<RunId> {
        self.recorder().active_run(caller)
    }

    /// Returns the ids of the active runs of a caller, the innermost last.
    pub fn active_runs(&self, caller: &Caller) -> Vec<RunId> {
        lock(&self.recorder().active).path_of(caller)
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        if !self.is_forked() && !lock(&self.recorder().active).ids().is_empty() {
            recorder::leave_open(self.recorder());
        }
    }
}

/// A tracker under construction.
struct TrackerBuilder {
    config: ValidConfig,
    context: RunContext,
    experiment: OnceLock<Experiment>,
    store: Arc<DeferredStore>,
    registry: Arc<DeferredStore>,
    runtime: Arc<Runtime>,
    notices: Arc<Notices>,
}

impl TrackerBuilder {
    fn new(config: ValidConfig, context: RunContext) -> Result<Self> {
        fork::watch();
        let store = Arc::new(config.store(&config.tracking));
        let registry = if config.registry == config.tracking {
            Arc::clone(&store)
        } else {
            Arc::new(config.store(&config.registry))
        };
        Ok(Self {
            config,
            context,
            experiment: OnceLock::new(),
            store,
            registry,
            runtime: Arc::new(Runtime::start()?),
            notices: Arc::new(Notices::default()),
        })
    }

    /// Tells, once in a process, that this rank records nothing.
    fn tell_silence(&self) {
        static TOLD: AtomicBool = AtomicBool::new(false);
        let options = &self.config.options;
        if options.is_silent() && !TOLD.swap(true, Ordering::Relaxed) {
            self.notices.tell(format!(
                "this process is rank {} of a training of several processes and records nothing: rank 0 records. \
                 ranks=\"all\" records into the run of rank 0, ranks=\"each\" (or HEIMDALL_RANKS=each) into a run for \
                 each process",
                options.rank
            ));
        }
    }

    /// Checks the artifact store now, so that a setting that cannot work is an error before a run starts.
    fn check_artifacts(&self) -> Result<()> {
        let Some(ArtifactUri::Object(place)) = &self.config.artifacts else {
            return Ok(());
        };
        self.config.access().open(place.as_str())?;
        if place.cloud == Cloud::S3 && S3Access::ignores_tls() {
            self.notices.tell(
                "certificates of S3 stores are not verified, as MLFLOW_S3_IGNORE_TLS is true: whoever is between this \
                 machine and the store can read and change what is sent. AWS_CA_BUNDLE names certificates to trust"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// Opens the stores, waits no longer than the configuration allows, and finds or creates the experiment.
    fn reach(
        &self,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<std::result::Result<Experiment, StoreError>> {
        let (store, registry) = (Arc::clone(&self.store), Arc::clone(&self.registry));
        let (name, location) = (
            self.config.experiment_name.clone(),
            self.config.artifact_location.clone(),
        );
        let timeout = match &self.config.tracking {
            // A file exists already; only an mlflow process that is just creating a database needs time.
            Destination::Sqlite(_) => {
                DATABASE_CREATION_TIMEOUT.max(self.config.options.connect_timeout)
            }
            _ => self.config.options.connect_timeout,
        };
        let destination = self.config.tracking.uri();
        let reached = async move {
            let tracking = store.tracking().await?;
            let experiment = tracking
                .get_or_create_experiment(&name, location.as_deref())
                .await?;
            match registry.registry().await {
                Err(StoreError::Unavailable { .. }) | Ok(_) => Ok(experiment),
                Err(error) => Err(error),
            }
        };
        let in_time = async move {
            // This runs as a separate task, so that slow work is not started again, such as the creation of tables.
            let reached = tokio::time::timeout(timeout, tokio::spawn(reached)).await;
            let reason = match reached {
                Ok(Ok(reached)) => return reached,
                Ok(Err(failed)) => failed.to_string(),
                Err(_) => format!("no answer within {} s", timeout.as_secs_f64()),
            };
            Err(StoreError::Unavailable {
                destination,
                source: reason.into(),
                retry_after: None,
            })
        };
        self.runtime.wait(in_time, keep_waiting)
    }

    /// Begins the journal and the delivery, unless this rank records nothing.
    fn start_delivery(&self) -> Option<Delivery> {
        let (config, options) = (&self.config, &self.config.options);
        if options.is_silent() {
            return None;
        }
        let stores = match options.mode {
            Mode::Offline => Vec::new(),
            Mode::Online => {
                let mirrors = config.mirrors.iter();
                std::iter::once(Arc::clone(&self.store))
                    .chain(mirrors.map(|mirror| Arc::new(config.store(mirror))))
                    .collect()
            }
        };
        let mirrors = config.mirrors.iter().map(Destination::uri);
        let journal = JournalConfig {
            heimdall_dir: config.heimdall_dir.clone(),
            destinations: std::iter::once(config.tracking.uri())
                .chain(mirrors)
                .collect(),
            disk_limit: options.journal_limit,
            memory_limit: options.memory_limit,
            durability: options.durability,
            working_dir: config.working_dir.clone(),
        };
        let (access, notices) = (config.access(), Arc::clone(&self.notices));
        Some(Delivery::start(
            journal,
            stores,
            &access,
            &self.runtime,
            notices,
        ))
    }

    fn into_tracker(self, active: ActiveRuns) -> Tracker {
        let recorder = Arc::new(Recorder {
            delivery: self.start_delivery(),
            active: Mutex::new(active),
            starting: Mutex::default(),
            started: Mutex::default(),
            others: Mutex::default(),
            is_terminated: AtomicBool::new(false),
            notes: Notes::default(),
        });
        recorder::register(&recorder);
        Tracker {
            stores: Arc::new(Stores {
                config: self.config,
                context: self.context,
                experiment: self.experiment,
                store: self.store,
                registry: self.registry,
                notices: self.notices,
                recorder,
            }),
            runtime: self.runtime,
            pid: std::process::id(),
            generation: fork::generation(),
        }
    }
}

impl ValidConfig {
    /// Returns the settings for the access to artifact stores.
    pub(crate) fn access(&self) -> Access {
        Access {
            s3: self.s3.clone(),
            working_dir: self.working_dir.clone(),
        }
    }

    fn store(&self, destination: &Destination) -> DeferredStore {
        let is_offline = self.options.mode == Mode::Offline;
        DeferredStore::new(destination.clone(), self.fresh_schema.clone(), is_offline)
    }
}
