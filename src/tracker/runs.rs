//! The beginning and the end of runs.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    active::ActiveRun,
    call::{Call, Caller},
    lock::lock,
    observers::Observers,
    open::Tracker,
    stores::Stores,
};
use crate::{
    config::{options::Mode, uri::Destination},
    delivery::destination::Traffic,
    error::{Error, Result},
    journal::{
        append::Admission,
        error::JournalError,
        record::{Record, RunStart},
    },
    mlflow::{
        key::Key,
        limits,
        run::{self, NOTE_TAG, NewRun, PARENT_RUN_TAG, RUN_NAME_TAG, RunId, RunInfo, RunStatus},
    },
    os::clock::now_ms,
    store::error::StoreError,
};

/// Tag of a rank that records into the run of rank 0; the rank is appended.
const RANK_TAG: &str = "heimdall.rank.";

/// The exchange of run ids between the ranks of a distributed training.
pub struct RankExchange<'a> {
    /// Function that returns the run that rank 0 has started last. Waits for that run.
    pub run_of_rank_zero: &'a (dyn Fn() -> Result<RunId> + Sync),
    /// Function that tells the other ranks which run has started.
    pub tell_other_ranks: &'a (dyn Fn(RunId) -> Result<()> + Sync),
}

/// A new run as an MLflow client describes it.
#[derive(Clone, Debug)]
pub struct ClientRun {
    /// Name of the experiment.
    pub experiment: String,
    /// Name of the run.
    pub name: String,
    /// Name of the user.
    pub user: String,
    /// Start time, in milliseconds since 1970.
    pub start_time: i64,
    /// All tags of the run.
    pub tags: Vec<(String, String)>,
}

impl Tracker {
    /// Begins a run and makes it the active run. That is a new run, the run that `new` names or, on a rank that records
    /// into the run of rank 0, that run. Waits for room in the journal.
    ///
    /// # Errors
    /// The errors of [`Tracker::start_run`], of [`Tracker::resume_run`] and of the exchange.
    pub fn begin_run(
        &self,
        new: &NewRun,
        ranks: &RankExchange<'_>,
        call: &mut Call<'_>,
    ) -> Result<RunId> {
        let options = &self.stores.config.options;
        self.wait_to_begin(call)?;
        let run = match &new.run_id {
            given if options.attaches() => {
                // Rank 0 starts and ends the run; this rank only records into it.
                let run = match given {
                    Some(run) => run.parse()?,
                    None => (ranks.run_of_rank_zero)()?,
                };
                self.attach_run(run, new.nested, &call.caller)?;
                run
            }
            Some(run) if !options.is_silent() => self.resume(run, new, call)?,
            _ => self.start_run(new, call)?,
        };
        if options.leads() {
            (ranks.tell_other_ranks)(run)?;
        }
        self.await_start(run, call)?;
        Ok(run)
    }

    /// Waits until the start of a run is in the store, as other programs read it there. The wait ends after the time
    /// that a start waits for a store; the user is told then.
    fn await_start(&self, run: RunId, call: &mut Call<'_>) -> Result<()> {
        let timeout = self.stores.config.options.connect_timeout;
        self.await_delivery(run, Traffic::Records, timeout, call)
    }

    /// Waits until the end of a run is in the store, for at most `HEIMDALL_END_TIMEOUT`. Uploads of the run that take
    /// longer continue.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn await_end(&self, run: RunId, call: &mut Call<'_>) -> Result<()> {
        let timeout = self.stores.config.options.end_timeout;
        self.await_delivery(run, Traffic::Artifacts, timeout, call)
    }

    /// Waits for the delivery of everything recorded so far for a run, but for no longer than `timeout`, and not at all
    /// at a store that is known to be away.
    fn await_delivery(
        &self,
        run: RunId,
        traffic: Traffic,
        timeout: Duration,
        call: &mut Call<'_>,
    ) -> Result<()> {
        let Some(delivery) = self.recorder().delivery.as_ref() else {
            return Ok(());
        };
        let common = delivery.shared();
        if self.stores.config.options.mode == Mode::Offline || common.is_away(traffic) {
            return Ok(());
        }
        let goal = match traffic {
            Traffic::Records => common.goal_of_run(run),
            // Files may take as long as their store is away; the user knows by then.
            Traffic::Artifacts => common.goal_of_run(run).while_there(),
        };
        let deadline = Instant::now().checked_add(timeout);
        let arrived = common.wait_for(goal);
        self.runtime
            .wait_until(deadline, arrived, call.keep_waiting)?;
        if traffic == Traffic::Records && common.check(goal).is_err() {
            let uri = self.stores.config.tracking.uri();
            let waited = timeout.as_secs_f64();
            delivery.tell_outage(&format!("{uri} has not taken the run within {waited} s"));
        }
        Ok(())
    }

    /// Waits until the journal has room for the beginning of a run.
    fn wait_to_begin(&self, call: &mut Call<'_>) -> Result<()> {
        self.check_process()?;
        let Some(delivery) = &self.recorder().delivery else {
            return Ok(());
        };
        loop {
            match delivery.journal().check_room() {
                Err(JournalError::NoRoom { room, .. }) => {
                    self.wait_for_room(room, call.keep_waiting)?
                }
                checked => return Ok(checked?),
            }
        }
    }

    /// Starts a run and makes it the active one. Waits on the store only where the store chooses the ids of runs, and
    /// where the named parent was not started here.
    ///
    /// # Errors
    /// [`Error::RunActive`] while another run is active and this one is not nested, [`Error::Invalid`] for a name, tag
    /// or parent that MLflow would refuse, [`Error::Store`] for a parent that does not exist.
    pub fn start_run(&self, new: &NewRun, call: &mut Call<'_>) -> Result<RunId> {
        self.check_process()?;
        let recorder = self.recorder();
        let _starting = lock(&recorder.starting);
        let innermost = self.may_start(new.nested, &call.caller)?;
        let name = name_of(new)?;
        let mut tags = self.tags_of_start(new, &name)?;
        // The tags are checked before the store is queried for the parent.
        limits::tags(tags.clone())?;
        if let Some(parent) = self.parent(new, innermost, call)? {
            tags.insert(PARENT_RUN_TAG.to_owned(), parent.to_string());
        }
        let tags = limits::tags(tags)?;
        let config = &self.stores.config;
        let start = RunStart {
            run: RunId::random(),
            experiment: config.experiment_name.clone(),
            artifact_location: config.artifact_location.clone(),
            name,
            user: self.stores.context.user.clone(),
            start_time: now_ms(),
        };
        let id = self.record_start(start, tags, call)?;
        let observers = self.observe_start(id);
        recorder.push(ActiveRun::owned(id, innermost, observers));
        Ok(id)
    }

    /// Records the start of a run. Returns the id of the run, which a server may choose.
    fn record_start(
        &self,
        mut start: RunStart,
        tags: Vec<(Key, String)>,
        call: &mut Call<'_>,
    ) -> Result<RunId> {
        let ours = start.run;
        let (name, experiment) = (start.name.clone(), start.experiment.clone());
        let is_named = self.create_at_server(&mut start, &tags, call)?;
        let id = start.run;
        let values = tags;
        let mut records = vec![Record::RunStarted(start), Record::Tags { run: id, values }];
        if is_named {
            records.push(Record::RunNamed { run: ours });
        }
        // The store may have the run already.
        self.recorder().record(records, Admission::Always)?;
        tracing::info!(
            name: "mlflow_run_started",
            target: "heimdall_tracking.tracker",
            run_id = %id,
            run_name = name,
            experiment,
        );
        Ok(id)
    }

    /// Creates a run as an MLflow client describes it, with its tags alone, and leaves the active run as it is. Waits
    /// until the store has the run, as [`Tracker::begin_run`] does.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name or a tag that MLflow would refuse.
    pub fn create_run(&self, new: ClientRun, call: &mut Call<'_>) -> Result<RunId> {
        self.wait_to_begin(call)?;
        let tags = limits::tags(new.tags)?;
        let start = RunStart {
            run: RunId::random(),
            experiment: new.experiment,
            artifact_location: None,
            name: limits::run_name(&new.name)?,
            user: new.user,
            start_time: new.start_time,
        };
        let id = self.record_start(start, tags, call)?;
        lock(&self.recorder().started).insert(id);
        self.await_start(id, call)?;
        Ok(id)
    }

    /// Makes a run the active run of the caller; the run is nested in the one that was active. The run itself is not
    /// changed.
    ///
    /// # Errors
    /// Errors of the journal.
    pub fn enter_run(&self, run: RunId, caller: &Caller) -> Result<()> {
        self.check_process()?;
        let recorder = self.recorder();
        recorder.attach(run)?;
        let parent = lock(&recorder.active).own_of(caller);
        if !lock(&recorder.active).has(run) {
            recorder.push(ActiveRun::owned(run, parent, Observers::default()));
        }
        Ok(())
    }

    /// Takes a run from the active runs. The run itself is not changed: whoever takes it ends it.
    pub fn leave_run(&self, run: RunId) {
        let taken = lock(&self.recorder().active).take(run);
        if let Some(run) = taken {
            run.observers.end(Duration::MAX);
        }
    }

    /// Records the status of a run as an MLflow client sets it, and waits until the store has it, as
    /// [`Tracker::await_end`] does. As in MLflow, an active run stays active: only an end of the active run ends that.
    ///
    /// # Errors
    /// Errors of the journal.
    pub fn set_run_status(
        &self,
        run: RunId,
        status: RunStatus,
        end_time: Option<i64>,
        call: &mut Call<'_>,
    ) -> Result<()> {
        self.check_process()?;
        let recorder = self.recorder();
        recorder.attach(run)?;
        if status == RunStatus::Running {
            recorder.record(vec![Record::RunResumed { run }], Admission::Always)?;
            return self.await_start(run, call);
        }
        let end_time = end_time.unwrap_or_else(now_ms);
        recorder.record_end(run, status, end_time)?;
        self.await_end(run, call)
    }

    /// Returns true where this tracker has started or resumed a run, or has it as an active run.
    pub fn has_run(&self, run: RunId) -> bool {
        let recorder = self.recorder();
        lock(&recorder.started).contains(&run) || lock(&recorder.active).has(run)
    }

    /// Forgets a run that a client has deleted: the next record of the run is checked again.
    pub fn forget_run(&self, run: RunId) {
        let recorder = self.recorder();
        lock(&recorder.started).remove(&run);
        lock(&recorder.others).remove(&run);
    }

    /// Returns the tags of a new run: the tags of the tracker, of its context, and of the run itself.
    fn tags_of_start(&self, new: &NewRun, name: &str) -> Result<BTreeMap<String, String>> {
        let stores = &self.stores;
        let mut tags: BTreeMap<String, String> =
            stores.config.default_tags.iter().cloned().collect();
        let context = stores.context.tags(name).into_iter();
        tags.extend(context.map(|(key, value)| (key.to_owned(), value)));
        tags.extend(described(new)?);
        tags.insert(RUN_NAME_TAG.to_owned(), name.to_owned());
        Ok(tags)
    }

    /// Creates a run at a server that answers, because servers choose the ids of runs, and puts the id into `start`.
    /// Returns true where the server has chosen another id than ours.
    fn create_at_server(
        &self,
        start: &mut RunStart,
        tags: &[(Key, String)],
        call: &mut Call<'_>,
    ) -> Result<bool> {
        let (stores, recorder) = (&self.stores, self.recorder());
        let is_server = matches!(stores.config.tracking, Destination::Server(_));
        let Some(delivery) = recorder.delivery.as_ref().filter(|_| is_server) else {
            return Ok(false);
        };
        if !stores.store.is_open() || delivery.has_outage() {
            return Ok(false);
        }
        let ours = start.run;
        // If the process dies in between, the run is found by our id.
        recorder.record(vec![Record::RunCreating { run: ours }], Admission::Always)?;
        let (begun, with) = (start.clone(), tags.to_vec());
        let create = |stores: Arc<Stores>| async move {
            Ok(stores.tracking().await?.create_run(&begun, &with).await?)
        };
        match self.ask_to_the_end(create, call.keep_waiting) {
            Ok(created) => start.run = created.unwrap_or(ours),
            // The run then has our own id, and is created as soon as the server answers.
            Err(Error::Store(error)) if error.is_transient() => {
                delivery.tell_outage(&error.to_string());
            }
            // The creation continues on its own; the process that later finds the journal finds the run.
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => {
                recorder.record(vec![Record::RunNamed { run: ours }], Admission::Always)?;
                return Err(error);
            }
        }
        Ok(start.run != ours)
    }

    /// Makes a run active that another process has started and will end. On a rank of a distributed training, the run
    /// gets a tag for the rank.
    ///
    /// # Errors
    /// The errors of [`Tracker::start_run`].
    pub fn attach_run(&self, run: RunId, nested: bool, caller: &Caller) -> Result<()> {
        self.check_process()?;
        let recorder = self.recorder();
        let _starting = lock(&recorder.starting);
        let innermost = self.may_start(nested, caller)?;
        let rank = self.stores.config.options.rank;
        let mut records = vec![Record::RunAttached { run }];
        if rank > 0 {
            let host = &self.stores.context.hostname;
            let value = format!("{host}:{}", std::process::id());
            let tag = (format!("{RANK_TAG}{rank}"), value);
            let values = limits::tags([tag])?;
            records.push(Record::Tags { run, values });
        }
        recorder.record(records, Admission::Always)?;
        recorder.push(ActiveRun::attached_to(run, innermost));
        Ok(())
    }

    /// Resumes a run that has ended, by its id or as the latest of its name in the experiment, and makes it the active
    /// one. Sets the name and tags of `new`. Waits for room in the journal and on the store.
    ///
    /// # Errors
    /// The errors of [`Tracker::start_run`]; [`Error::Store`] when there is no such run or it is deleted.
    pub fn resume_run(&self, run: &str, new: &NewRun, call: &mut Call<'_>) -> Result<RunId> {
        self.wait_to_begin(call)?;
        let run = self.resume(run, new, call)?;
        self.await_start(run, call)?;
        Ok(run)
    }

    fn resume(&self, run: &str, new: &NewRun, call: &mut Call<'_>) -> Result<RunId> {
        let recorder = self.recorder();
        let _starting = lock(&recorder.starting);
        // Whether the active run is the one to rewind is known once the run is found.
        if new.from_step.is_none() {
            self.may_start(new.nested, &call.caller)?;
        }
        if let Some(parent) = &new.parent {
            let reason = "a run that goes on keeps the parent it has";
            return Err(Error::invalid("parent run", parent, reason));
        }
        let mut tags = described(new)?;
        if new.name.as_ref().is_some_and(|name| !name.is_empty()) {
            tags.push((RUN_NAME_TAG.to_owned(), name_of(new)?));
        }
        let values = limits::tags(tags)?;
        let wanted = run.to_owned();
        let (found, first_step) = self.ask(
            |stores| async move {
                stores.deliver_first(Traffic::Records).await?;
                let found = stores.find_run(&wanted).await?;
                let first_step = stores.next_system_step(&found.run_id).await;
                Ok((found, first_step))
            },
            call.keep_waiting,
        )?;
        let id: RunId = found.run_id.parse()?;
        refuse_deleted(&found)?;
        let rewind = self.rewind_of(id, new);
        if new.from_step.is_some() && self.is_active_run_of(&call.caller, id) {
            recorder.record(rewind.into_iter().collect(), Admission::Bounded)?;
            return Ok(id);
        }
        let innermost = self.may_start(new.nested, &call.caller)?;
        if lock(&recorder.active).has(id) {
            return Err(Error::RunActive {
                active: id.to_string(),
                action: "resume()",
            });
        }
        let mut records = vec![Record::RunResumed { run: id }];
        records.extend(rewind);
        if !values.is_empty() {
            records.push(Record::Tags { run: id, values });
        }
        recorder.record(records, Admission::Bounded)?;
        // A param whose key MLflow forbids cannot be logged again here, so it is left out.
        let params = found.params.iter();
        let params = params
            .filter_map(|(key, value)| Some((Key::parse("param key", key).ok()?, value.clone())));
        recorder.push(ActiveRun {
            params: params.collect(),
            before: Some(Arc::new(found)),
            ..ActiveRun::owned(id, innermost, self.observe_resumed(id, first_step))
        });
        Ok(id)
    }

    /// Checks that another run may start now. Returns the innermost active run.
    fn may_start(&self, nested: bool, caller: &Caller) -> Result<Option<RunId>> {
        match lock(&self.recorder().active).of(caller) {
            Some(active) if !nested => Err(Error::RunActive {
                active: active.to_string(),
                action: "start_run(), or start this one with nested=True",
            }),
            innermost => Ok(innermost),
        }
    }

    /// Returns the parent of a new nested run.
    fn parent(
        &self,
        new: &NewRun,
        innermost: Option<RunId>,
        call: &mut Call<'_>,
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
        if lock(&self.recorder().started).contains(&id) {
            return Ok(Some(id));
        }
        let parent = parent.clone();
        let find =
            |stores: Arc<Stores>| async move { Ok(stores.tracking().await?.run(&parent).await?) };
        refuse_deleted(&self.ask(find, call.keep_waiting)?)?;
        Ok(Some(id))
    }

    /// Ends an active run and the runs that are nested in it; does nothing where the run is not active. Returns true
    /// where it was. Waits for the thread that records the run's environment, where that is enabled.
    ///
    /// # Errors
    /// Errors of the journal.
    pub fn end_run(&self, run: RunId, status: RunStatus) -> Result<bool> {
        self.check_process()?;
        self.recorder().end_run(run, status, Duration::MAX)
    }

    /// Returns an active run as it was when it was resumed; `None` where it was not resumed.
    pub fn resumed_from(&self, run: RunId) -> Option<Arc<RunInfo>> {
        lock(&self.recorder().active).get(run)?.before.clone()
    }
}

pub(super) fn refuse_deleted(run: &RunInfo) -> Result<()> {
    if run.lifecycle_stage == "deleted" {
        let run_id = run.run_id.clone();
        return Err(StoreError::RunDeleted { run_id }.into());
    }
    Ok(())
}

/// Returns the name of a new run, from the argument or a tag; a random name where neither is given.
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
        (name, tagged) => Ok(limits::run_name(name.or(tagged).unwrap_or_default())?),
    }
}

/// Returns the given tags of a new run, including its description.
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
