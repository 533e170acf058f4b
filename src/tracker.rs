//! The operations a user knows. They check, and hand over to the journal; questions wait for an answer.

pub mod artifacts;
mod models;
mod observation;
mod opening;
mod questions;

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{
    config::{Destination, Mode, Ranks, Settled},
    context::{NOTE_TAG, PARENT_RUN_TAG, RUN_NAME_TAG, RunContext},
    delivery::{
        self, Cargo, Delivery, Status,
        background::{Background, KeepWaiting},
        notices::Notices,
    },
    error::{Error, Result},
    journal::{
        JournalError, Room,
        frame::{Draft, MetricsDraft},
    },
    process,
    record::{self, Key, MAX_PARAM_VALUE_LENGTH, MAX_TAG_VALUE_LENGTH, Record, RunStart, cut},
    registry::ModelRegistry,
    run::{self, DatasetInput, MetricPoint, NewRun, RunId, RunInfo, RunStatus, now_ms},
    store::{Experiment, StoreError, TrackingStore, deferred::DeferredStore},
};

pub use artifacts::file_path;
pub use models::RegistrySearch;
use observation::Observation;
pub use questions::Search;

/// Tags of every run, unless the caller sets others.
const DEFAULT_TAGS: [(&str, &str); 3] = [
    ("phase", "training"),
    ("service", "training"),
    ("model", "LocalizationNet"),
];

/// Tag of a rank that records into the run of rank 0, before the rank.
const RANK_TAG: &str = "heimdall.rank.";
/// Points of one record, and params or tags: far below what a frame of the journal takes.
const METRICS_OF_A_RECORD: usize = 10_000;
const TEXTS_OF_A_RECORD: usize = 500;

/// Trackers of this process, so that its exit can end their runs.
static SESSIONS: Mutex<Vec<Weak<Session>>> = Mutex::new(Vec::new());
/// Trackers that were dropped while a run was active: the run ends with the process.
static LEFT_OPEN: Mutex<Vec<Arc<Session>>> = Mutex::new(Vec::new());

thread_local! {
    /// Where a call's frame is made, so that making one allocates nothing.
    static DRAFT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What outlives the tracker object while a run is active.
#[derive(Debug)]
struct Session {
    /// None on a rank that records nothing.
    delivery: Option<Delivery>,
    /// The active runs, the innermost last. Never held while a store is waited for.
    active: Mutex<Vec<ActiveRun>>,
    /// Held while a run starts, which may wait for the store, so that two threads do not start one each.
    starting: Mutex<()>,
    /// Runs that were started here: whether they exist need not be asked.
    started: Mutex<HashSet<RunId>>,
    /// The process is about to die of SIGTERM, and its runs have ended.
    is_terminated: AtomicBool,
}

#[derive(Debug)]
struct ActiveRun {
    id: RunId,
    /// Params logged so far, to refuse a change before it is written.
    params: HashMap<Key, String>,
    /// The run as it was when it was resumed.
    before: Option<Arc<RunInfo>>,
    /// Whether this process ends it. A fork, or another rank, leaves that to the one that has started it.
    is_owned: bool,
    observation: Observation,
}

impl ActiveRun {
    /// This run in a process that has not started it.
    fn attached(&self) -> Self {
        Self {
            id: self.id,
            params: self.params.clone(),
            before: self.before.clone(),
            is_owned: false,
            observation: Observation::default(),
        }
    }

    /// Those of some params that the run does not have yet.
    fn new_params(&self, params: Vec<(String, String)>) -> Result<Vec<(Key, String)>> {
        let mut new: Vec<(Key, String)> = Vec::with_capacity(params.len());
        let mut seen: HashMap<Key, usize> = HashMap::new();
        for (key, value) in params {
            let value = record::text("param", &key, value)?;
            let key = Key::parse("param key", &key)?;
            let value = cut(value, MAX_PARAM_VALUE_LENGTH);
            let old = match self.params.get(&key) {
                None => seen.get(&key).map(|place| &new[*place].1),
                old => old,
            };
            match old {
                Some(old) if *old == value => {}
                Some(old) => {
                    return Err(Error::invalid(
                        "param",
                        key.as_str(),
                        format!(
                            "it is {old:?} and cannot become {value:?}: params of a run do not change"
                        ),
                    ));
                }
                None => {
                    seen.insert(key.clone(), new.len());
                    new.push((key, value));
                }
            }
        }
        Ok(new)
    }
}

/// Records runs of one experiment.
#[derive(Debug)]
pub struct Tracker {
    settled: Settled,
    /// Known once the store has been reached.
    experiment: OnceLock<Experiment>,
    context: RunContext,
    store: Arc<DeferredStore>,
    registry: Arc<dyn ModelRegistry>,
    background: Arc<Background>,
    notices: Arc<Notices>,
    session: Arc<Session>,
    pid: u32,
    generation: u32,
}

impl Tracker {
    /// Whether this process is a fork of the one that opened it.
    pub fn is_forked(&self) -> bool {
        self.generation != process::generation()
    }

    /// Starts a run and makes it the active one. Waits on the store only where that chooses the ids of runs,
    /// and where a parent is named that was not started here.
    ///
    /// # Errors
    /// [`Error::RunActive`] while another run is and this one is not nested, [`Error::Invalid`] for a name, tag
    /// or parent MLflow would refuse, [`Error::Store`] for a parent that does not exist.
    pub fn start_run(&self, new: &NewRun, keep_waiting: KeepWaiting<'_>) -> Result<RunId> {
        self.check_process()?;
        let _starting = lock(&self.session.starting);
        let innermost = self.may_start(new.nested)?;
        let name = name_of(new)?;
        let mut all: BTreeMap<String, String> = DEFAULT_TAGS
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        all.extend(
            self.context
                .tags(&name)
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value)),
        );
        all.extend(described(new)?);
        all.insert(RUN_NAME_TAG.to_owned(), name.clone());
        // Checked before the store is asked for the parent.
        tag_values("tag key", all.clone())?;
        if let Some(parent) = self.parent(new, innermost, keep_waiting)? {
            all.insert(PARENT_RUN_TAG.to_owned(), parent.to_string());
        }
        let tags = tag_values("tag key", all)?;
        let mut start = RunStart {
            run: RunId::random(),
            experiment: self.settled.experiment_name.clone(),
            artifact_location: self.settled.artifact_location(),
            name,
            user: self.context.user.clone(),
            start_time: now_ms(),
        };
        let mut ours = None;
        if let Destination::Server(_) = self.settled.tracking
            && let Some(delivery) = &self.session.delivery
            && self.store.is_open()
            && !delivery.is_troubled()
        {
            // A process that dies in between leaves a run that is found by our id.
            delivery.accept_beyond_limits(Record::RunCreating { run: start.run })?;
            ours = Some(start.run);
            let (store, begun, with) = (Arc::clone(&self.store), start.clone(), tags.clone());
            let created = async move { store.create_run(&begun, &with).await };
            match self.ask(created, keep_waiting) {
                Ok(created) => start.run = created.unwrap_or(start.run),
                // The run has an id of ours then, and is created as soon as the server can.
                Err(Error::Store(error)) if error.is_transient() => {
                    delivery.tell_outage(&error.to_string());
                }
                // The creation goes on alone; whoever finds the journal finds the run.
                Err(Error::Interrupted) => return Err(Error::Interrupted),
                Err(error) => {
                    delivery.accept_beyond_limits(Record::RunNamed { run: start.run })?;
                    return Err(error);
                }
            }
        }
        let id = start.run;
        let mut records = vec![
            Record::RunStarted(start),
            Record::Tags {
                run: id,
                values: tags,
            },
        ];
        records.extend(
            ours.filter(|ours| *ours != id)
                .map(|run| Record::RunNamed { run }),
        );
        if let Some(delivery) = &self.session.delivery {
            // The store may have it already.
            delivery.accept_all_beyond_limits(records)?;
        }
        lock(&self.session.started).insert(id);
        let observation = self.observe_start(id);
        lock(&self.session.active).push(ActiveRun {
            id,
            params: HashMap::new(),
            before: None,
            is_owned: true,
            observation,
        });
        Ok(id)
    }

    /// Makes a run that another process has started, and will end, the active one. On a rank of a distributed
    /// training it gets a tag that says so.
    ///
    /// # Errors
    /// Those of [`Tracker::start_run`].
    pub fn attach_run(&self, run: RunId, nested: bool) -> Result<()> {
        self.check_process()?;
        let _starting = lock(&self.session.starting);
        self.may_start(nested)?;
        let rank = self.settled.options.rank;
        let mut records = vec![Record::RunAttached { run }];
        if rank > 0 {
            let host = &self.context.hostname;
            let value = format!("{host}:{}", std::process::id());
            let tag = (format!("{RANK_TAG}{rank}"), value);
            let values = tag_values("tag key", [tag])?;
            records.push(Record::Tags { run, values });
        }
        self.session.accept_all(records)?;
        lock(&self.session.active).push(ActiveRun {
            id: run,
            params: HashMap::new(),
            before: None,
            is_owned: false,
            observation: Observation::default(),
        });
        Ok(())
    }

    /// Whether this is a rank that records nothing.
    pub fn is_silent(&self) -> bool {
        self.settled.is_silent()
    }

    /// Whether this is the rank 0 whose runs the other ranks record into.
    pub fn leads(&self) -> bool {
        let options = &self.settled.options;
        options.rank == 0 && options.ranks == Ranks::All
    }

    /// Whether this is a rank that records into the run of rank 0.
    pub fn attaches(&self) -> bool {
        let options = &self.settled.options;
        options.rank > 0 && options.ranks == Ranks::All
    }

    /// Goes on with a run that has ended, by its id or as the latest of its name in the experiment, and makes
    /// it the active one. A name and tags that `new` has are set. Waits on the store.
    ///
    /// # Errors
    /// Those of [`Tracker::start_run`]; [`Error::Store`] when there is no such run or it is deleted.
    pub fn resume_run(
        &self,
        run: &str,
        new: &NewRun,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<RunId> {
        self.check_process()?;
        let _starting = lock(&self.session.starting);
        self.may_start(new.nested)?;
        if new.parent.is_some() {
            return Err(Error::invalid(
                "parent run",
                new.parent.as_deref().unwrap_or_default(),
                "a run that goes on keeps the parent it has",
            ));
        }
        let mut tags = described(new)?;
        if new.name.as_ref().is_some_and(|name| !name.is_empty()) {
            tags.push((RUN_NAME_TAG.to_owned(), name_of(new)?));
        }
        let tags = tag_values("tag key", tags)?;
        self.settle(keep_waiting)?;
        let found = self.find_run(run, keep_waiting)?;
        let id: RunId = found.run_id.parse()?;
        if found.lifecycle_stage == "deleted" {
            let run_id = found.run_id;
            return Err(StoreError::RunDeleted { run_id }.into());
        }
        if lock(&self.session.active).iter().any(|run| run.id == id) {
            return Err(Error::RunActive {
                active: id.to_string(),
                action: "resume()",
            });
        }
        let first_step = self.next_system_step(id, keep_waiting)?;
        let mut records = vec![Record::RunResumed { run: id }];
        if !tags.is_empty() {
            records.push(Record::Tags {
                run: id,
                values: tags,
            });
        }
        self.session.accept_all(records)?;
        // A param whose key is none can be given no other value here.
        let params = found
            .params
            .iter()
            .filter_map(|(key, value)| Some((Key::parse("param key", key).ok()?, value.clone())))
            .collect();
        lock(&self.session.started).insert(id);
        let observation = self.observe_resumed(id, first_step);
        lock(&self.session.active).push(ActiveRun {
            id,
            params,
            before: Some(Arc::new(found)),
            is_owned: true,
            observation,
        });
        Ok(id)
    }

    /// The innermost active run, next to which another one may start.
    fn may_start(&self, nested: bool) -> Result<Option<RunId>> {
        match self.active_run() {
            Some(active) if !nested => Err(Error::RunActive {
                active: active.to_string(),
                action: "start_run(), or start this one with nested=True",
            }),
            innermost => Ok(innermost),
        }
    }

    /// The run that a new one is nested in.
    fn parent(
        &self,
        new: &NewRun,
        innermost: Option<RunId>,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<Option<RunId>> {
        let Some(parent) = &new.parent else {
            return Ok(innermost);
        };
        let id: RunId = parent.parse()?;
        if innermost.is_some_and(|innermost| innermost != id) {
            return Err(Error::invalid(
                "parent run",
                parent,
                "another run is active, and a nested run belongs to the innermost active one: end that first",
            ));
        }
        if lock(&self.session.started).contains(&id) {
            return Ok(Some(id));
        }
        let (store, run_id) = (Arc::clone(&self.store), parent.clone());
        let found: RunInfo = self.ask(async move { store.run(&run_id).await }, keep_waiting)?;
        if found.lifecycle_stage == "deleted" {
            let run_id = found.run_id;
            return Err(StoreError::RunDeleted { run_id }.into());
        }
        Ok(Some(id))
    }

    /// Ends the innermost active run; without one it does nothing. Waits for what is still being found of its
    /// environment, where that is recorded.
    ///
    /// # Errors
    /// Those of the journal.
    pub fn end_run(&self, status: RunStatus) -> Result<Option<RunId>> {
        self.check_process()?;
        self.session.end_run(status, Duration::MAX)
    }

    /// Id of the innermost active run.
    pub fn active_run(&self) -> Option<RunId> {
        lock(&self.session.active).last().map(|run| run.id)
    }

    /// The innermost active run as it was when it was resumed, if it was.
    pub fn resumed_from(&self) -> Option<Arc<RunInfo>> {
        lock(&self.session.active).last()?.before.clone()
    }

    /// Ids of all active runs, the innermost last.
    pub fn active_runs(&self) -> Vec<RunId> {
        lock(&self.session.active)
            .iter()
            .map(|run| run.id)
            .collect()
    }

    /// Logs params of the active run: all of them or, on an error, none.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`]; [`Error::Invalid`] for a key MLflow would refuse or a param of this run
    /// that has another value.
    pub fn log_params(&self, params: Vec<(String, String)>) -> Result<()> {
        self.log_batch("log_params", Vec::new(), params, Vec::new())
    }

    /// Logs metrics of the active run, timed now unless a time is given: all of them or, on an error, none.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`]; [`Error::Invalid`] for a time before 1970.
    pub fn log_metrics(
        &self,
        values: Vec<(Key, f64)>,
        step: i64,
        timestamp: Option<i64>,
    ) -> Result<()> {
        self.check_process()?;
        let run = self.active("log_metrics")?;
        let Some((key, _)) = values.first() else {
            return Ok(());
        };
        let timestamp = match timestamp {
            Some(timestamp) => record::timestamp(key.as_str(), timestamp)?,
            None => now_ms(),
        };
        self.session.accept(Record::Metrics {
            run,
            step,
            timestamp,
            values,
        })
    }

    /// Logs `count` metrics of the active run, which `fill` pushes, without an allocation: what training loops
    /// call most. `fill` must not come back here.
    ///
    /// # Errors
    /// Those of [`Tracker::log_metrics`] and of `fill`; nothing is logged then.
    pub fn log_metrics_from<E: From<Error>>(
        &self,
        count: usize,
        step: i64,
        timestamp: Option<i64>,
        fill: impl FnOnce(&mut MetricsDraft<'_>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        self.check_process()?;
        let run = self.active("log_metrics")?;
        let at = now_ms();
        let timestamp = match timestamp {
            Some(timestamp) => record::timestamp("", timestamp)?,
            None => at,
        };
        DRAFT.with_borrow_mut(|buffer| {
            let mut metrics = Draft::new(buffer).metrics(at, run, step, timestamp, count);
            fill(&mut metrics)?;
            let mut draft = metrics
                .finish()
                .map_err(|reason| Error::from(JournalError::Encode(reason)))?;
            if count > 0
                && let Some(delivery) = &self.session.delivery
            {
                delivery.accept_draft(&mut draft)?;
            }
            Ok(())
        })
    }

    /// Sets tags of the active run: all of them or, on an error, none.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`]; [`Error::Invalid`] for a key or value MLflow would refuse.
    pub fn set_tags(&self, tags: Vec<(String, String)>) -> Result<()> {
        self.log_batch("set_tags", Vec::new(), Vec::new(), tags)
    }

    /// Removes a tag of the active run; a tag that is not there is no error.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`]; [`Error::Invalid`] for a key that no tag can have.
    pub fn delete_tag(&self, key: &str) -> Result<()> {
        self.check_process()?;
        let run = self.active("delete_tag")?;
        let key = Key::parse("tag key", key)?;
        self.session.accept(Record::TagDeleted { run, key })
    }

    /// Logs points, params and tags of the active run: all of them or, on an error, none. `action` is what the
    /// caller calls it.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`]; [`Error::Invalid`] for a key, time or value MLflow would refuse, and a param of
    /// this run that has another value.
    pub fn log_batch(
        &self,
        action: &'static str,
        mut points: Vec<(Key, MetricPoint)>,
        params: Vec<(String, String)>,
        tags: Vec<(String, String)>,
    ) -> Result<()> {
        self.check_process()?;
        let mut active = lock(&self.session.active);
        let active = active.last_mut().ok_or(Error::NoActiveRun { action })?;
        let run = active.id;
        for (key, point) in &points {
            record::timestamp(key.as_str(), point.timestamp)?;
        }
        let params = active.new_params(params)?;
        let tags = tag_values("tag key", tags)?;
        let mut records = Vec::new();
        // Points of one moment are one record; their order among each other means nothing to a store.
        points.sort_by_key(|(_, point)| (point.step, point.timestamp));
        for moment in
            points.chunk_by(|(_, a), (_, b)| (a.step, a.timestamp) == (b.step, b.timestamp))
        {
            let (step, timestamp) = (moment[0].1.step, moment[0].1.timestamp);
            records.extend(moment.chunks(METRICS_OF_A_RECORD).map(|points| {
                Record::Metrics {
                    run,
                    step,
                    timestamp,
                    values: points
                        .iter()
                        .map(|(key, point)| (key.clone(), point.value))
                        .collect(),
                }
            }));
        }
        records.extend(
            params
                .chunks(TEXTS_OF_A_RECORD)
                .map(|values| Record::Params {
                    run,
                    values: values.to_vec(),
                }),
        );
        records.extend(tags.chunks(TEXTS_OF_A_RECORD).map(|values| Record::Tags {
            run,
            values: values.to_vec(),
        }));
        if records.is_empty() {
            return Ok(());
        }
        self.session.accept_all(records)?;
        active.params.extend(params);
        Ok(())
    }

    /// Logs that the active run was given a dataset.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`]; [`Error::Invalid`] for what [`record::dataset`] refuses.
    pub fn log_input(&self, dataset: DatasetInput) -> Result<()> {
        self.check_process()?;
        let run = self.active("log_input")?;
        let dataset = Box::new(record::dataset(dataset)?);
        self.session.accept(Record::Input { run, dataset })
    }

    /// Waits until everything recorded so far is delivered.
    ///
    /// # Errors
    /// [`Error::Undelivered`] after `timeout`, [`Error::Interrupted`].
    pub fn flush(&self, timeout: Option<Duration>, keep_waiting: KeepWaiting<'_>) -> Result<()> {
        self.check_process()?;
        match &self.session.delivery {
            Some(delivery) => delivery.flush(timeout, keep_waiting),
            None => Ok(()),
        }
    }

    /// Waits, before a question to the store, until every record so far is delivered; artifacts may still be on their
    /// way.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the store has taken nothing for as long as a start waits for it,
    /// [`Error::Interrupted`].
    fn settle(&self, keep_waiting: KeepWaiting<'_>) -> Result<()> {
        self.settled_by(Delivery::flush_records, keep_waiting)
    }

    /// Waits, before a question about artifacts, until they have arrived as well.
    ///
    /// # Errors
    /// Those of [`Tracker::settle`], also where it is the artifact store that takes nothing.
    fn settle_artifacts(&self, keep_waiting: KeepWaiting<'_>) -> Result<()> {
        self.settled_by(Delivery::flush, keep_waiting)
    }

    fn settled_by(
        &self,
        flush: impl Fn(&Delivery, Option<Duration>, KeepWaiting<'_>) -> Result<()>,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<()> {
        self.check_process()?;
        let Some(delivery) = self.session.delivery.as_ref() else {
            return Ok(());
        };
        if self.settled.options.mode == Mode::Offline {
            // The question itself says that nothing is asked.
            return Ok(());
        }
        let patience = self.settled.options.connect_timeout;
        loop {
            match flush(delivery, Some(patience), keep_waiting) {
                Err(Error::Undelivered { .. }) => {
                    if let Some((cargo, reason)) = delivery.troubled_for(patience) {
                        let uri = self.settled.tracking.uri();
                        return Err(Error::Store(StoreError::Unavailable {
                            destination: match cargo {
                                Cargo::Records => uri,
                                Cargo::Artifacts => format!("the artifact store of {uri}"),
                            },
                            source: reason.into(),
                            retry_after: None,
                        }));
                    }
                }
                settled => return settled,
            }
        }
    }

    /// How delivery stands; none on a rank that records nothing.
    pub fn status(&self) -> Option<Status> {
        self.session.delivery.as_ref().map(Delivery::status)
    }

    /// That the journal has room for a run to begin.
    ///
    /// # Errors
    /// [`JournalError::NoRoom`].
    pub fn has_room(&self) -> Result<()> {
        match &self.session.delivery {
            Some(delivery) => Ok(delivery.journal().check_room()?),
            None => Ok(()),
        }
    }

    /// Waits until the journal has room for more; false when `keep_waiting` says to stop.
    pub fn wait_for_room(&self, room: Room, keep_waiting: KeepWaiting<'_>) -> bool {
        match &self.session.delivery {
            Some(delivery) => delivery.wait_for_room(room, keep_waiting),
            None => true,
        }
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

    /// Id of the experiment. Waits on the store where it has not been reached yet.
    ///
    /// # Errors
    /// [`Error::Store`] when the store cannot be reached or the experiment is deleted.
    pub fn experiment_id(&self, keep_waiting: KeepWaiting<'_>) -> Result<String> {
        if let Some(experiment) = self.experiment.get() {
            return Ok(experiment.id.clone());
        }
        let (store, name) = (
            Arc::clone(&self.store),
            self.settled.experiment_name.clone(),
        );
        let location = self.settled.artifact_location();
        let asked = async move {
            store
                .get_or_create_experiment(&name, location.as_deref())
                .await
        };
        let experiment = self.ask(asked, keep_waiting)?;
        Ok(self.experiment.get_or_init(|| experiment).id.clone())
    }

    /// Runs a question to the store and waits for its answer.
    fn ask<T: Send + 'static>(
        &self,
        question: impl Future<Output = Result<T, StoreError>> + Send + 'static,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<T> {
        Ok(self.background.wait(question, keep_waiting)??)
    }

    fn active(&self, action: &'static str) -> Result<RunId> {
        self.active_run().ok_or(Error::NoActiveRun { action })
    }

    /// The worker thread does not survive a fork, and two processes must not write one journal.
    fn check_process(&self) -> Result<()> {
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

impl Session {
    /// Ends the innermost active run; its id, if there was one. `patience` is for what is still being found of it.
    fn end_run(&self, status: RunStatus, patience: Duration) -> Result<Option<RunId>> {
        let mut active = lock(&self.active);
        // What is popped before that is not among those that a SIGTERM has ended.
        let is_terminated = self.is_terminated.load(Ordering::Acquire);
        let Some(run) = active.pop() else {
            return Ok(None);
        };
        drop(active);
        let end_time = now_ms();
        // Nothing of the run comes behind its end.
        run.observation.end(patience);
        if run.is_owned && !is_terminated {
            self.end(run.id, status, end_time)?;
        }
        Ok(Some(run.id))
    }

    fn end(&self, run: RunId, status: RunStatus, end_time: i64) -> Result<()> {
        match &self.delivery {
            Some(delivery) => delivery.accept_beyond_limits(Record::RunEnded {
                run,
                status,
                end_time,
            }),
            None => Ok(()),
        }
    }

    fn accept(&self, record: Record) -> Result<()> {
        match &self.delivery {
            Some(delivery) => delivery.accept(record),
            None => Ok(()),
        }
    }

    fn accept_all(&self, records: Vec<Record>) -> Result<()> {
        match &self.delivery {
            Some(delivery) => delivery.accept_all(records),
            None => Ok(()),
        }
    }
}

/// Ends, at the exit of the process, the runs that are still active, and waits for what is to be delivered;
/// what is not in time stays in its journal for the next start. Returns what to tell the user.
pub fn finish(status: RunStatus, timeout: Duration, keep_waiting: KeepWaiting<'_>) -> Vec<String> {
    let sessions: Vec<_> = lock(&SESSIONS)
        .drain(..)
        .filter_map(|session| session.upgrade())
        .collect();
    let mut told = Vec::new();
    for session in &sessions {
        loop {
            match session.end_run(status, timeout) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => told.push(error.to_string()),
            }
        }
    }
    lock(&LEFT_OPEN).clear();
    told.extend(delivery::finish(timeout, keep_waiting));
    told
}

/// Ends, when the process is told to terminate, its runs as KILLED, and waits for what is to be delivered. The
/// training goes on meanwhile: what it records is accepted, and that it ends a run does not make it FINISHED. Returns
/// what to tell the user.
pub fn terminate(grace: Duration) -> Vec<String> {
    let sessions: Vec<_> = lock(&SESSIONS).iter().filter_map(Weak::upgrade).collect();
    let mut told = Vec::new();
    for session in &sessions {
        let active = lock(&session.active);
        if session.is_terminated.swap(true, Ordering::AcqRel) {
            continue;
        }
        let owned = active.iter().filter(|run| run.is_owned);
        let owned: Vec<RunId> = owned.map(|run| run.id).collect();
        drop(active);
        for run in owned {
            if let Err(error) = session.end(run, RunStatus::Killed, now_ms()) {
                told.push(error.to_string());
            }
        }
    }
    told.extend(delivery::finish_while_recording(grace));
    told
}

/// Forgets, in a fork, the trackers of its parent: their threads, journals and runs are the parent's.
pub fn forget_parent() {
    // Not waited for: a thread that held a lock at the fork does not exist here to release it.
    std::mem::forget(
        SESSIONS
            .try_lock()
            .ok()
            .map(|mut sessions| std::mem::take(&mut *sessions)),
    );
    std::mem::forget(
        LEFT_OPEN
            .try_lock()
            .ok()
            .map(|mut sessions| std::mem::take(&mut *sessions)),
    );
    delivery::forget_parent();
}

/// The name that a new run is given, by argument or as a tag; a random one where it is given none.
fn name_of(new: &NewRun) -> Result<String> {
    let name = new.name.as_deref().filter(|name| !name.is_empty());
    let tagged = new
        .tags
        .iter()
        .find(|(key, value)| key == RUN_NAME_TAG && !value.is_empty())
        .map(|(_, value)| value.as_str());
    match (name, tagged) {
        (Some(name), Some(tagged)) if name != tagged => {
            let reason = format!("the run is called {name:?} as well: give one name");
            Err(Error::invalid(RUN_NAME_TAG, tagged, reason))
        }
        (None, None) => Ok(run::random_name()),
        (name, tagged) => record::run_name(name.or(tagged).unwrap_or_default()),
    }
}

/// The tags that a new run is given, its description among them.
fn described(new: &NewRun) -> Result<Vec<(String, String)>> {
    let mut tags = new.tags.clone();
    if let Some(description) = new.description.as_ref().filter(|text| !text.is_empty()) {
        if tags.iter().any(|(key, _)| key == NOTE_TAG) {
            let reason = "the run has a description by argument as well: give one";
            return Err(Error::invalid("tag", NOTE_TAG, reason));
        }
        tags.push((NOTE_TAG.to_owned(), description.clone()));
    }
    Ok(tags)
}

fn tag_values(
    what: &'static str,
    tags: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<(Key, String)>> {
    tags.into_iter()
        .map(|(key, value)| {
            let value = record::text("tag", &key, value)?;
            Ok((Key::parse(what, &key)?, cut(value, MAX_TAG_VALUE_LENGTH)))
        })
        .collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
