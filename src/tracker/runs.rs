//! The beginning and the end of runs.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use super::{
    logging::tag_values,
    observers::Observation,
    open::Tracker,
    session::{ActiveRun, lock},
};
use crate::{
    config::{options::Ranks, uri::Destination},
    delivery::runtime::KeepWaiting,
    environment::run_tags::{NOTE_TAG, PARENT_RUN_TAG, RUN_NAME_TAG},
    error::{Error, Result},
    journal::record::{Record, RunStart},
    mlflow::{
        key::Key,
        limits,
        run::{self, NewRun, RunId, RunInfo, RunStatus},
    },
    os::clock::now_ms,
    store::{error::StoreError, tracking::TrackingStore},
};

/// Tags of every run, unless the caller sets others.
const DEFAULT_TAGS: [(&str, &str); 3] = [
    ("phase", "training"),
    ("service", "training"),
    ("model", "LocalizationNet"),
];

/// Tag of a rank that records into the run of rank 0, before the rank.
const RANK_TAG: &str = "heimdall.rank.";

impl Tracker {
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

    pub(crate) fn active(&self, action: &'static str) -> Result<RunId> {
        self.active_run().ok_or(Error::NoActiveRun { action })
    }
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
        (name, tagged) => Ok(limits::run_name(name.or(tagged).unwrap_or_default())?),
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
