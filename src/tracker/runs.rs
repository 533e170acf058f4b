//! The beginning and the end of runs.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    open::Tracker,
    session::{ActiveRun, lock},
    stores::Stores,
};
use crate::{
    config::uri::Destination,
    delivery::{destination::Traffic, runtime::KeepWaiting},
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
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<RunId> {
        let options = &self.stores.config.options;
        self.wait_to_begin(keep_waiting)?;
        let run = match &new.run_id {
            given if options.attaches() => {
                // Rank 0 starts and ends the run; this rank only records into it.
                let run = match given {
                    Some(run) => run.parse()?,
                    None => (ranks.run_of_rank_zero)()?,
                };
                self.attach_run(run, new.nested)?;
                run
            }
            Some(run) if !options.is_silent() => self.resume(run, new, keep_waiting)?,
            _ => self.start_run(new, keep_waiting)?,
        };
        if options.leads() {
            (ranks.tell_other_ranks)(run)?;
        }
        Ok(run)
    }

    /// Waits until the journal has room for the beginning of a run.
    fn wait_to_begin(&self, keep_waiting: KeepWaiting<'_>) -> Result<()> {
        self.check_process()?;
        let Some(delivery) = &self.session().delivery else {
            return Ok(());
        };
        loop {
            match delivery.journal().check_room() {
                Err(JournalError::NoRoom { room, .. }) => self.wait_for_room(room, keep_waiting)?,
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
    pub fn start_run(&self, new: &NewRun, keep_waiting: KeepWaiting<'_>) -> Result<RunId> {
        self.check_process()?;
        let session = self.session();
        let _starting = lock(&session.starting);
        let innermost = self.may_start(new.nested)?;
        let name = name_of(new)?;
        let mut tags = self.tags_of_start(new, &name)?;
        // The tags are checked before the store is queried for the parent.
        limits::tags(tags.clone())?;
        if let Some(parent) = self.parent(new, innermost, keep_waiting)? {
            tags.insert(PARENT_RUN_TAG.to_owned(), parent.to_string());
        }
        let tags = limits::tags(tags)?;
        let config = &self.stores.config;
        let mut start = RunStart {
            run: RunId::random(),
            experiment: config.experiment_name.clone(),
            artifact_location: config.artifact_location(),
            name: name.clone(),
            user: self.stores.context.user.clone(),
            start_time: now_ms(),
        };
        let ours = start.run;
        let is_named = self.create_at_server(&mut start, &tags, keep_waiting)?;
        let id = start.run;
        let values = tags;
        let mut records = vec![Record::RunStarted(start), Record::Tags { run: id, values }];
        if is_named {
            records.push(Record::RunNamed { run: ours });
        }
        // The store may have the run already.
        session.record(records, Admission::Always)?;
        tracing::info!(
            name: "mlflow_run_started",
            target: "heimdall_tracking.tracker",
            run_id = %id,
            run_name = name,
            experiment = config.experiment_name,
        );
        let observers = self.observe_start(id);
        session.push(ActiveRun::owned(id, observers));
        Ok(id)
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
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<bool> {
        let (stores, session) = (&self.stores, self.session());
        let is_server = matches!(stores.config.tracking, Destination::Server(_));
        let Some(delivery) = session.delivery.as_ref().filter(|_| is_server) else {
            return Ok(false);
        };
        if !stores.store.is_open() || delivery.is_troubled() {
            return Ok(false);
        }
        let ours = start.run;
        // If the process dies in between, the run is found by our id.
        session.record(vec![Record::RunCreating { run: ours }], Admission::Always)?;
        let (begun, with) = (start.clone(), tags.to_vec());
        let create = |stores: Arc<Stores>| async move {
            Ok(stores.tracking().await?.create_run(&begun, &with).await?)
        };
        match self.ask_to_the_end(create, keep_waiting) {
            Ok(created) => start.run = created.unwrap_or(ours),
            // The run then has our own id, and is created as soon as the server answers.
            Err(Error::Store(error)) if error.is_transient() => {
                delivery.tell_outage(&error.to_string());
            }
            // The creation continues on its own; the process that later finds the journal finds the run.
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => {
                session.record(vec![Record::RunNamed { run: ours }], Admission::Always)?;
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
    pub fn attach_run(&self, run: RunId, nested: bool) -> Result<()> {
        self.check_process()?;
        let session = self.session();
        let _starting = lock(&session.starting);
        self.may_start(nested)?;
        let rank = self.stores.config.options.rank;
        let mut records = vec![Record::RunAttached { run }];
        if rank > 0 {
            let host = &self.stores.context.hostname;
            let value = format!("{host}:{}", std::process::id());
            let tag = (format!("{RANK_TAG}{rank}"), value);
            let values = limits::tags([tag])?;
            records.push(Record::Tags { run, values });
        }
        session.record(records, Admission::Always)?;
        session.push(ActiveRun::attached_to(run));
        Ok(())
    }

    /// Resumes a run that has ended, by its id or as the latest of its name in the experiment, and makes it the active
    /// one. Sets the name and tags of `new`. Waits for room in the journal and on the store.
    ///
    /// # Errors
    /// The errors of [`Tracker::start_run`]; [`Error::Store`] when there is no such run or it is deleted.
    pub fn resume_run(
        &self,
        run: &str,
        new: &NewRun,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<RunId> {
        self.wait_to_begin(keep_waiting)?;
        self.resume(run, new, keep_waiting)
    }

    fn resume(&self, run: &str, new: &NewRun, keep_waiting: KeepWaiting<'_>) -> Result<RunId> {
        let session = self.session();
        let _starting = lock(&session.starting);
        self.may_start(new.nested)?;
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
            keep_waiting,
        )?;
        let id: RunId = found.run_id.parse()?;
        refuse_deleted(&found)?;
        if session.active_runs().contains(&id) {
            return Err(Error::RunActive {
                active: id.to_string(),
                action: "resume()",
            });
        }
        let mut records = vec![Record::RunResumed { run: id }];
        if !values.is_empty() {
            records.push(Record::Tags { run: id, values });
        }
        session.record(records, Admission::Bounded)?;
        // A param whose key MLflow forbids cannot be logged again here, so it is left out.
        let params = found.params.iter();
        let params = params
            .filter_map(|(key, value)| Some((Key::parse("param key", key).ok()?, value.clone())));
        session.push(ActiveRun {
            params: params.collect(),
            before: Some(Arc::new(found)),
            ..ActiveRun::owned(id, self.observe_resumed(id, first_step))
        });
        Ok(id)
    }

    /// Checks that another run may start now. Returns the innermost active run.
    fn may_start(&self, nested: bool) -> Result<Option<RunId>> {
        match self.active_run() {
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
        if lock(&self.session().started).contains(&id) {
            return Ok(Some(id));
        }
        let parent = parent.clone();
        let find =
            |stores: Arc<Stores>| async move { Ok(stores.tracking().await?.run(&parent).await?) };
        refuse_deleted(&self.ask(find, keep_waiting)?)?;
        Ok(Some(id))
    }

    /// Ends the innermost active run; without one, does nothing. Waits for the thread that records the run's
    /// environment, where that is enabled.
    ///
    /// # Errors
    /// Errors of the journal.
    pub fn end_run(&self, status: RunStatus) -> Result<Option<RunId>> {
        self.check_process()?;
        self.session().end_run(status, Duration::MAX)
    }

    /// Returns the innermost active run as it was when it was resumed; `None` where it was not resumed.
    pub fn resumed_from(&self) -> Option<Arc<RunInfo>> {
        lock(&self.session().active).last()?.before.clone()
    }
}

fn refuse_deleted(run: &RunInfo) -> Result<()> {
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
