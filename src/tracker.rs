//! The operations a user knows. They check, and hand over to the journal; questions wait for an answer.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use crate::{
    config::{Destination, Settled, TrackerConfig},
    context::{RUN_NAME_TAG, RunContext},
    delivery::{
        self, Delivery, Status,
        background::{Background, KeepWaiting},
        notices::Notices,
    },
    error::{Error, Result},
    journal::{JournalError, staging},
    record::{
        self, ArtifactPath, Key, MAX_PARAM_VALUE_LENGTH, MAX_TAG_VALUE_LENGTH, Record, RunStart,
        cut,
    },
    registry::{self, ModelName, ModelRegistry, ModelSource, NewVersion, Stage},
    run::{self, Best, RunId, RunInfo, RunStatus, ViewType, now_ms},
    store::{
        self, Experiment, TrackingStore,
        search::{Filter, OrderBy, RunQuery},
    },
};

/// Tags of every run, unless the caller sets others.
const DEFAULT_TAGS: [(&str, &str); 3] = [
    ("phase", "training"),
    ("service", "training"),
    ("model", "LocalizationNet"),
];

/// Trackers of this process, so that its exit can end their runs.
static SESSIONS: Mutex<Vec<Weak<Session>>> = Mutex::new(Vec::new());
/// Trackers that were dropped while a run was active: the run ends with the process.
static LEFT_OPEN: Mutex<Vec<Arc<Session>>> = Mutex::new(Vec::new());

/// What outlives the tracker object while a run is active.
#[derive(Debug)]
struct Session {
    delivery: Delivery,
    active: Mutex<Option<ActiveRun>>,
}

#[derive(Debug)]
struct ActiveRun {
    id: RunId,
    /// Params logged so far, to refuse a change before it is written.
    params: HashMap<Key, String>,
}

/// Records runs of one experiment at one destination.
#[derive(Debug)]
pub struct Tracker {
    settled: Settled,
    experiment: Experiment,
    context: RunContext,
    store: Arc<dyn TrackingStore>,
    registry: Arc<dyn ModelRegistry>,
    background: Arc<Background>,
    notices: Arc<Notices>,
    session: Arc<Session>,
    pid: u32,
}

impl Tracker {
    /// Opens the stores, finds or creates the experiment and begins a journal. Waits on the stores.
    ///
    /// # Errors
    /// [`Error::Configuration`], [`Error::Invalid`], [`Error::Store`] or [`Error::Journal`] for what the
    /// user can put right; nothing is recorded then.
    pub fn open(
        config: &TrackerConfig,
        context: RunContext,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<Self> {
        let settled = config.settle()?;
        let background = Arc::new(Background::start()?);
        let (tracking, registry) = (settled.tracking.clone(), settled.registry.clone());
        let (name, fresh) = (
            settled.experiment_name.clone(),
            settled.fresh_schema.clone(),
        );
        let location = settled.artifacts.as_ref().map(|uri| uri.location());
        let (store, registry, experiment) = background.wait(
            async move {
                let (store, models) = store::open(&tracking, &fresh).await?;
                let registry = if registry == tracking {
                    models
                } else {
                    store::open(&registry, &fresh).await?.1
                };
                let experiment = store
                    .get_or_create_experiment(&name, location.as_deref())
                    .await?;
                Ok::<_, crate::store::StoreError>((store, registry, experiment))
            },
            keep_waiting,
        )??;
        let notices = Arc::new(Notices::default());
        let delivery = Delivery::start(
            &settled.heimdall_dir,
            settled.tracking.uri(),
            Arc::clone(&store),
            &background,
            Arc::clone(&notices),
        )?;
        let session = Arc::new(Session {
            delivery,
            active: Mutex::new(None),
        });
        let mut sessions = lock(&SESSIONS);
        sessions.retain(|session| session.strong_count() > 0);
        sessions.push(Arc::downgrade(&session));
        drop(sessions);
        Ok(Self {
            settled,
            experiment,
            context,
            store,
            registry,
            background,
            notices,
            session,
            pid: std::process::id(),
        })
    }

    /// Starts a run and makes it the active one.
    ///
    /// # Errors
    /// [`Error::RunActive`] while another run is, [`Error::Invalid`] for a name or tag MLflow would refuse.
    pub fn start_run(&self, name: Option<&str>, tags: &[(String, String)]) -> Result<RunId> {
        self.check_process()?;
        let mut active = lock(&self.session.active);
        if let Some(active) = &*active {
            return Err(Error::RunActive {
                active: active.id.to_string(),
            });
        }
        let name = name.filter(|name| !name.is_empty());
        let tagged = tags
            .iter()
            .find(|(key, value)| key == RUN_NAME_TAG && !value.is_empty())
            .map(|(_, value)| value.as_str());
        let name = match (name, tagged) {
            (Some(name), Some(tagged)) if name != tagged => {
                let reason = format!("the run is called {name:?} as well: give one name");
                return Err(Error::invalid(RUN_NAME_TAG, tagged, reason));
            }
            (None, None) => run::random_name(),
            (name, tagged) => record::run_name(name.or(tagged).unwrap_or_default())?,
        };
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
        all.extend(tags.iter().cloned());
        all.insert(RUN_NAME_TAG.to_owned(), name.clone());
        let tags = tag_values("tag key", all)?;
        let id = RunId::random();
        let start = RunStart {
            run: id,
            experiment: self.settled.experiment_name.clone(),
            artifact_location: self.settled.artifacts.as_ref().map(|uri| uri.location()),
            name,
            user: self.context.user.clone(),
            start_time: now_ms(),
        };
        let delivery = &self.session.delivery;
        delivery.accept(Record::RunStarted(start))?;
        delivery.accept(Record::Tags {
            run: id,
            values: tags,
        })?;
        *active = Some(ActiveRun {
            id,
            params: HashMap::new(),
        });
        Ok(id)
    }

    /// Ends the active run; without one it does nothing.
    ///
    /// # Errors
    /// Those of the journal.
    pub fn end_run(&self, status: RunStatus) -> Result<()> {
        self.check_process()?;
        self.session.end_run(status)
    }

    /// Id of the active run.
    pub fn active_run(&self) -> Option<RunId> {
        lock(&self.session.active).as_ref().map(|run| run.id)
    }

    /// Logs params of the active run: all of them or, on an error, none.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`]; [`Error::Invalid`] for a key MLflow would refuse or a param of this run
    /// that has another value.
    pub fn log_params(&self, params: Vec<(String, String)>) -> Result<()> {
        self.check_process()?;
        let mut active = lock(&self.session.active);
        let active = active.as_mut().ok_or(Error::NoActiveRun {
            action: "log_params",
        })?;
        let mut new = Vec::with_capacity(params.len());
        for (key, value) in params {
            let key = Key::parse("param key", &key)?;
            let value = cut(value, MAX_PARAM_VALUE_LENGTH);
            match active.params.get(&key) {
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
                None => new.push((key, value)),
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        self.session.delivery.accept(Record::Params {
            run: active.id,
            values: new.clone(),
        })?;
        active.params.extend(new);
        Ok(())
    }

    /// Logs metrics of the active run, timed now: all of them or, on an error, none.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`]; [`Error::Invalid`] for a key MLflow would refuse.
    pub fn log_metrics(&self, values: Vec<(Key, f64)>, step: i64) -> Result<()> {
        self.check_process()?;
        let run = self.active("log_metrics")?;
        if values.is_empty() {
            return Ok(());
        }
        self.session.delivery.accept(Record::Metrics {
            run,
            step,
            timestamp: now_ms(),
            values,
        })
    }

    /// Logs a file as it is now, below `folder` of the active run's artifacts. Waits on the disk.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`]; [`Error::NoSuchFile`] when it is no file; [`Error::Invalid`] for a bad path.
    pub fn log_artifact(&self, file: &Path, folder: &str) -> Result<()> {
        self.check_process()?;
        let run = self.active("log_artifact")?;
        let folder = ArtifactPath::parse(folder)?;
        if !file.is_file() {
            return Err(Error::NoSuchFile {
                path: file.to_owned(),
                expected: "a file",
            });
        }
        let name = file.file_name().unwrap_or_default();
        self.log_files(
            run,
            vec![(file.to_owned(), folder.join(utf8(name.as_ref())?)?)],
        )
    }

    /// Logs every file below a folder as it is now. Waits on the disk. Links are followed where they stay
    /// in the folder.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`]; [`Error::NoSuchFile`] when it is no folder; [`Error::Invalid`] for a bad path
    /// or a link that leaves the folder.
    pub fn log_artifacts_dir(&self, dir: &Path, folder: &str) -> Result<()> {
        self.check_process()?;
        let run = self.active("log_artifacts_dir")?;
        let folder = ArtifactPath::parse(folder)?;
        if !dir.is_dir() {
            return Err(Error::NoSuchFile {
                path: dir.to_owned(),
                expected: "a folder",
            });
        }
        let failed = |source| JournalError::Stage {
            path: dir.to_owned(),
            source,
        };
        let root = dir.canonicalize().map_err(failed)?;
        let mut files = Vec::new();
        collect(&mut vec![root], &folder, &mut files)?;
        self.log_files(run, files)
    }

    fn log_files(&self, run: RunId, files: Vec<(PathBuf, ArtifactPath)>) -> Result<()> {
        let staging = self.session.delivery.journal().staging();
        let mut records: Vec<(staging::Staged, ArtifactPath)> = Vec::with_capacity(files.len());
        for (file, path) in files {
            match staging.copy(&file) {
                Ok(staged) => records.push((staged, path)),
                Err(source) => {
                    // All of a folder or nothing of it.
                    records
                        .iter()
                        .for_each(|(staged, _)| staging.discard(staged));
                    return Err(JournalError::Stage { path: file, source }.into());
                }
            }
        }
        for (staged, path) in records {
            let record = Record::Artifact {
                run,
                staged: staged.name,
                path,
                size: staged.size,
            };
            self.session.delivery.accept(record)?;
        }
        Ok(())
    }

    /// Registers a version of a model and returns its number. Delivers first, then waits on the registry.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name, URI, description or tag MLflow would refuse; [`Error::Store`] when
    /// the run does not exist or the registry fails; those of [`Tracker::flush`].
    pub fn register_model(
        &self,
        name: &str,
        uri: &str,
        description: &str,
        tags: Vec<(String, String)>,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<i64> {
        self.check_process()?;
        let name: ModelName = name.parse()?;
        let source = ModelSource::parse(uri)?;
        let description = registry::parse_description(description)?;
        let tags = tag_values("model version tag key", tags)?;
        self.flush(None, keep_waiting)?;
        let (source, run_id) = match source {
            ModelSource::Run { run_id, path } => {
                let (store, id) = (Arc::clone(&self.store), run_id.clone());
                let root = self
                    .background
                    .wait(async move { store.artifact_uri(&id).await }, keep_waiting)??;
                let source = match path.as_str() {
                    "" => root,
                    path => format!("{}/{path}", root.trim_end_matches('/')),
                };
                (source, Some(run_id))
            }
            ModelSource::Location(uri) => (uri, None),
        };
        let version = NewVersion {
            name,
            source,
            run_id,
            description,
            tags,
        };
        let registry = Arc::clone(&self.registry);
        Ok(self.background.wait(
            async move { registry.create_version(&version).await },
            keep_waiting,
        )??)
    }

    /// Puts a model version into a stage. Waits on the registry.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an unknown stage or version number; [`Error::Store`] when the version does
    /// not exist.
    pub fn transition_model_stage(
        &self,
        name: &str,
        version: &str,
        stage: &str,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<()> {
        self.check_process()?;
        let (name, stage): (ModelName, Stage) = (name.parse()?, stage.parse()?);
        let version = registry::parse_version(version)?;
        let registry = Arc::clone(&self.registry);
        Ok(self.background.wait(
            async move { registry.set_stage(&name, version, stage).await },
            keep_waiting,
        )??)
    }

    /// A run with its params, latest metrics and tags. Delivers first, then waits on the store.
    ///
    /// # Errors
    /// [`Error::Store`] when there is no such run; those of [`Tracker::flush`].
    pub fn run_info(&self, run_id: &str, keep_waiting: KeepWaiting<'_>) -> Result<RunInfo> {
        self.flush(None, keep_waiting)?;
        let (store, run_id) = (Arc::clone(&self.store), run_id.to_owned());
        Ok(self
            .background
            .wait(async move { store.run(&run_id).await }, keep_waiting)??)
    }

    /// The run of the experiment whose latest value of `metric` is best. Delivers first, then waits on the
    /// store.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a key that no metric can have; those of [`Tracker::flush`].
    pub fn best_run(
        &self,
        metric: &str,
        best: Best,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<Option<RunInfo>> {
        let metric = Key::parse("metric key", metric)?;
        let query = RunQuery {
            experiment_ids: vec![self.experiment.id.clone()],
            filter: Filter::default(),
            order_by: vec![OrderBy::metric(metric.as_str(), best == Best::Min)],
            view: ViewType::ActiveOnly,
            max_results: 1,
            numbers_only: true,
        };
        self.flush(None, keep_waiting)?;
        let store = Arc::clone(&self.store);
        let found = async move { store.search_runs(&query).await };
        let found = self.background.wait(found, keep_waiting)??;
        // A server that knows no run with a number puts one without first.
        let has_number = |run: &RunInfo| {
            let value = run.metrics.get(metric.as_str());
            value.is_some_and(|value| !value.is_nan())
        };
        Ok(found.into_iter().next().filter(has_number))
    }

    /// Waits until everything recorded so far is delivered.
    ///
    /// # Errors
    /// [`Error::Undelivered`] after `timeout`, [`Error::Interrupted`].
    pub fn flush(&self, timeout: Option<Duration>, keep_waiting: KeepWaiting<'_>) -> Result<()> {
        self.check_process()?;
        self.session.delivery.flush(timeout, keep_waiting)
    }

    /// How delivery stands.
    pub fn status(&self) -> Status {
        self.session.delivery.status()
    }

    /// Sentences that the user should see, once.
    pub fn notices(&self) -> Vec<String> {
        self.notices.take()
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

    /// Id of the experiment.
    pub fn experiment_id(&self) -> &str {
        &self.experiment.id
    }

    fn active(&self, action: &'static str) -> Result<RunId> {
        self.active_run().ok_or(Error::NoActiveRun { action })
    }

    /// The worker thread does not survive a fork, and two processes must not write one journal.
    fn check_process(&self) -> Result<()> {
        let current = std::process::id();
        if current == self.pid {
            Ok(())
        } else {
            Err(Error::Forked {
                owner: self.pid,
                current,
            })
        }
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        if self.pid == std::process::id() && self.active_run().is_some() {
            lock(&LEFT_OPEN).push(Arc::clone(&self.session));
        }
    }
}

impl Session {
    fn end_run(&self, status: RunStatus) -> Result<()> {
        let Some(run) = lock(&self.active).take() else {
            return Ok(());
        };
        self.delivery.accept(Record::RunEnded {
            run: run.id,
            status,
            end_time: now_ms(),
        })
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
        told.extend(session.end_run(status).err().map(|error| error.to_string()));
    }
    lock(&LEFT_OPEN).clear();
    told.extend(delivery::finish(timeout, keep_waiting));
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

fn tag_values(
    what: &'static str,
    tags: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<(Key, String)>> {
    tags.into_iter()
        .map(|(key, value)| Ok((Key::parse(what, &key)?, cut(value, MAX_TAG_VALUE_LENGTH))))
        .collect()
}

/// The files below the last of `folders`, in order of their names, and where they go. The others are the
/// folders above it, the one that is logged first.
fn collect(
    folders: &mut Vec<PathBuf>,
    to: &ArtifactPath,
    files: &mut Vec<(PathBuf, ArtifactPath)>,
) -> Result<()> {
    let Some(dir) = folders.last().cloned() else {
        return Ok(());
    };
    let failed = |source| JournalError::Stage {
        path: dir.clone(),
        source,
    };
    let mut children = fs::read_dir(&dir)
        .and_then(|children| children.collect::<Result<Vec<_>, _>>())
        .map_err(failed)?;
    children.sort_by_key(fs::DirEntry::file_name);
    for child in children {
        let path = to.join(utf8(child.file_name().as_ref())?)?;
        let resolved = child.path().canonicalize().map_err(failed)?;
        if !resolved.starts_with(&folders[0]) || folders.contains(&resolved) {
            return Err(Error::invalid(
                "link",
                &child.path().display().to_string(),
                format!(
                    "it leads to {}, outside or above the folder that is logged",
                    resolved.display()
                ),
            ));
        }
        if resolved.is_dir() {
            folders.push(resolved);
            collect(folders, &path, files)?;
            folders.pop();
        } else if resolved.is_file() {
            files.push((resolved, path));
        } else {
            return Err(Error::NoSuchFile {
                path: child.path(),
                expected: "a file",
            });
        }
    }
    Ok(())
}

fn utf8(name: &Path) -> Result<&str> {
    name.to_str().ok_or_else(|| {
        Error::invalid(
            "file name",
            &name.display().to_string(),
            "an artifact's name must be UTF-8",
        )
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
