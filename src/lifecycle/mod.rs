//! The end of what nobody needs any more: artifacts of deleted runs, uploads that never finished, folders that belong
//! to no run, and runs that no rule keeps.
//!
//! A collection first makes a plan, which is all that a dry run does, and then carries it out, item by item, each
//! checked once more. What it promises: nothing goes that a registered version or a logged model points to, nothing
//! outside of the artifact location of an experiment, nothing of a run that a journal of this machine has records of.
//! What can be told is told: everything that looked like garbage and stays is in the report with the reason.

mod place;
mod rules;
mod uploads;

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future, stream};

pub use rules::{KeepBest, Retention, What};

use crate::{
    artifacts::{Access, ArtifactError, ArtifactStore, Unfinished, Usage},
    config::{Destination, FreshSchema, S3Config},
    delivery::background::{Background, KeepWaiting},
    error::{Error, Result},
    journal::{reader, recovery},
    record::ArtifactPath,
    registry::ModelRegistry,
    run::{LifecycleStage, RunInfo, ViewType, now_ms},
    store::{
        self, Experiment, RunRow, StoreError, TrackingStore,
        rest::RUN_ID_TAG,
        search::{Filter, RunQuery},
    },
};
use place::{Place, is_folder_of_run, is_led_elsewhere, is_run_id};
use rules::{Guard, has_ended, is_older, shown, unkept};

/// Folders that are measured, and items that are deleted, at a time.
const TOGETHER: usize = 8;
/// What versions point to is asked again when the last answer is older than this.
const FRESH: Duration = Duration::from_secs(2);

/// What a collection is to look for, and whether it is to delete that.
#[derive(Clone, Debug)]
pub struct Order {
    /// The store of the runs.
    pub tracking: Destination,
    /// The tracking server that keeps the artifacts of a database's experiments (`mlflow-artifacts:`).
    pub artifact_server: Option<Destination>,
    /// Where models are registered, if elsewhere.
    pub registry: Option<Destination>,
    /// Settings for S3 artifacts.
    pub s3: S3Config,
    /// Folder of the journals.
    pub heimdall_dir: PathBuf,
    /// Names of experiments, active or deleted; all of the store where there are none.
    pub experiments: Vec<String>,
    /// How long ago a run must have been deleted.
    pub older_than: Duration,
    /// How long ago an upload must have been begun.
    pub uploads_older_than: Duration,
    /// Whether folders go that belong to no run.
    pub orphans: bool,
    /// Which runs of the experiments are kept; all where there are no rules.
    pub retention: Option<Retention>,
    /// Whether deleted runs are removed from the database for good.
    pub purge: bool,
    /// Whether what is found is deleted.
    pub delete: bool,
}

/// Why something goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its run is deleted.
    DeletedRun,
    /// No rule keeps its run.
    Unkept,
    /// An upload that was not finished.
    Upload,
    /// It belongs to no run of the store.
    Orphan,
}

impl Kind {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DeletedRun => "deleted run",
            Self::Unkept => "unkept run",
            Self::Upload => "unfinished upload",
            Self::Orphan => "orphan",
        }
    }
}

/// Something that goes, or has gone.
#[derive(Clone, Debug)]
pub struct Item {
    /// Why it goes.
    pub kind: Kind,
    /// Name of the experiment.
    pub experiment: String,
    /// The run it is of, or seems to be of.
    pub run_id: Option<String>,
    /// Where it is.
    pub uri: String,
    /// Files that go.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Why, in words.
    pub reason: String,
    /// Whether the run itself goes: for a deleted one for good, for another one to the deleted.
    pub purges: bool,
    /// Whether it has gone.
    pub deleted: bool,
    /// Why it has not, though it was to.
    pub error: Option<String>,
    location: String,
    upload: Option<Unfinished>,
    /// Further ids by which the run is known.
    aliases: Vec<String>,
}

impl Item {
    fn run_ids(&self) -> impl Iterator<Item = &str> + Clone {
        let aliases = self.aliases.iter().map(String::as_str);
        self.run_id.as_deref().into_iter().chain(aliases)
    }
}

/// Something that looked like garbage and stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spared {
    /// What it would have gone as.
    pub kind: Kind,
    /// Name of the experiment.
    pub experiment: String,
    /// The run it is of, or seems to be of.
    pub run_id: Option<String>,
    /// Where it is.
    pub uri: String,
    /// Why it stays.
    pub reason: String,
}

impl Spared {
    fn of(item: &Item, reason: String) -> Self {
        Self {
            kind: item.kind,
            experiment: item.experiment.clone(),
            run_id: item.run_id.clone(),
            uri: item.uri.clone(),
            reason,
        }
    }
}

/// What a collection has found.
#[derive(Debug, Default)]
struct Found {
    items: Vec<Item>,
    spared: Vec<Spared>,
    failures: Vec<(String, String)>,
}

/// What a collection has found and done.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What goes, or has gone.
    pub items: Vec<Item>,
    /// What stays although it looked like garbage.
    pub spared: Vec<Spared>,
    /// Places that could not be looked into, and why.
    pub failures: Vec<(String, String)>,
}

/// Looks for garbage, and deletes it where the order says so.
///
/// # Errors
/// [`Error::Configuration`] for an order that contradicts itself or cannot be carried out by such a store;
/// [`Error::Invalid`] for a metric that no run has; [`Error::Store`] where the store cannot be asked;
/// [`Error::Interrupted`], after which what is not deleted stays.
pub fn collect(order: &Order, keep_waiting: KeepWaiting<'_>) -> Result<Report> {
    if order.purge && matches!(order.tracking, Destination::Server(_)) {
        return Err(Error::configuration(
            "purge",
            &order.tracking.uri(),
            "a tracking server removes no run for good: leave it out, and collect with it on the server's database, with this address as the artifact server",
        ));
    }
    if order.retention.is_some() && order.experiments.is_empty() {
        return Err(Error::configuration(
            "retention rules",
            "",
            "name the experiments that they are for",
        ));
    }
    // Its runtime, and with it what it is at, ends with this call.
    let background = Background::start()?;
    let order = order.clone();
    background.wait(
        async move { Collection::open(order).await?.run().await },
        keep_waiting,
    )?
}

/// A collection at work.
struct Collection {
    order: Order,
    store: Arc<dyn TrackingStore>,
    artifact_server: Option<Arc<dyn TrackingStore>>,
    registries: Vec<Arc<dyn ModelRegistry>>,
    access: Access,
    /// Ids of the experiments, for stores that are asked about each.
    experiment_ids: Vec<String>,
    guard: Guard,
    guarded_at: Instant,
}

impl Collection {
    async fn open(order: Order) -> Result<Self> {
        let fresh_schema = FreshSchema::default();
        refuse_new(&order.tracking)?;
        let (store, registry) = store::open(&order.tracking, &fresh_schema).await?;
        let mut registries = vec![registry];
        if let Some(elsewhere) = &order.registry
            && elsewhere.uri() != order.tracking.uri()
        {
            refuse_new(elsewhere)?;
            registries.push(store::open(elsewhere, &fresh_schema).await?.1);
        }
        let artifact_server = match &order.artifact_server {
            Some(server @ Destination::Server(_)) => {
                let (server, registry) = store::open(server, &fresh_schema).await?;
                registries.push(registry);
                Some(server)
            }
            Some(other) => {
                return Err(Error::configuration(
                    "artifact server",
                    &other.uri(),
                    "it is the http:// or https:// address of a tracking server",
                ));
            }
            None => None,
        };
        let access = Access {
            s3: order.s3.clone(),
        };
        Ok(Self {
            order,
            store,
            artifact_server,
            registries,
            access,
            experiment_ids: Vec::new(),
            guard: Guard::default(),
            guarded_at: Instant::now(),
        })
    }

    async fn run(mut self) -> Result<Report> {
        let all = self.store.experiments(ViewType::All).await?;
        self.experiment_ids = all.iter().map(|it| it.id.clone()).collect();
        let unknown = |name: &&String| !all.iter().any(|it| it.name == **name);
        if let Some(name) = self.order.experiments.iter().find(unknown) {
            return Err(Error::Store(StoreError::NotFound {
                what: format!("experiment {name:?}"),
                destination: self.order.tracking.uri(),
            }));
        }
        let wanted: Vec<&Experiment> = all
            .iter()
            .filter(|it| {
                self.order.experiments.is_empty() || self.order.experiments.contains(&it.name)
            })
            .collect();
        self.guard = self.guard_now().await?;
        let now = now_ms();
        let mut found = Found::default();
        let mut runs: HashSet<String> = HashSet::new();
        for experiment in &all {
            let is_wanted = wanted.iter().any(|it| it.id == experiment.id);
            // Those of others are asked for as well, as locations may be shared: a folder is nobody's where no
            // experiment has its run.
            let rows = self.store.run_rows(&experiment.id).await?;
            runs.extend(rows.iter().map(|row| row.run.run_id.clone()));
            if is_wanted {
                self.find_deleted(experiment, &rows, now, &mut found).await;
            }
        }
        for experiment in &wanted {
            self.find_unkept(experiment, now, &mut found).await?;
        }
        self.find_beside(&wanted, &runs, now, &mut found).await;
        let mut report = Report {
            items: found.items,
            spared: found.spared,
            failures: found.failures,
        };
        if self.order.delete {
            for items in report.items.chunks_mut(TOGETHER) {
                let outcomes = self.carry_out_all(items).await;
                for (item, outcome) in items.iter_mut().zip(outcomes) {
                    item.deleted = outcome.is_ok();
                    item.error = outcome.err();
                }
            }
        }
        Ok(report)
    }

    /// What must not be touched, as it is now.
    async fn guard_now(&self) -> Result<Guard> {
        let mut guard = Guard::new(journaled(&self.order.heimdall_dir)?);
        for registry in &self.registries {
            for version in registry.version_files().await? {
                guard.add_version(&version);
            }
        }
        for model in self.store.logged_model_files(&self.experiment_ids).await? {
            guard.add_logged_model(&model);
        }
        Ok(guard)
    }

    fn artifacts(&self, uri: &str) -> Result<Box<dyn ArtifactStore>, ArtifactError> {
        let at_server = || self.artifact_server.as_ref()?.artifacts(uri);
        match self.store.artifacts(uri).or_else(at_server) {
            Some(store) => Ok(store),
            None => self.access.open(uri),
        }
    }

    async fn usage(&self, uri: &str) -> Result<Usage, ArtifactError> {
        self.artifacts(uri)?.usage().await
    }

    async fn find_deleted(
        &self,
        experiment: &Experiment,
        rows: &[RunRow],
        now: i64,
        found: &mut Found,
    ) {
        let older_than = self.order.older_than;
        let mut items = Vec::new();
        for row in rows {
            if row.run.lifecycle_stage != LifecycleStage::Deleted.as_str() {
                continue;
            }
            let age = row.deleted_time.map(|at| shown(now.saturating_sub(at)));
            let reason = match &age {
                Some(age) => format!("its run was deleted {age} ago"),
                None => "its run is deleted".to_owned(),
            };
            let item = item_of(&row.run, experiment, Kind::DeletedRun, reason);
            let is_due = older_than.is_zero() || is_older(row.deleted_time, older_than, now);
            match (is_due, age) {
                (true, _) => items.push(Item {
                    purges: self.order.purge,
                    ..item
                }),
                (false, None) => found.spared.push(Spared::of(
                    &item,
                    "the store does not say when its run was deleted".to_owned(),
                )),
                // What is not due yet is no news.
                (false, Some(_)) => {}
            }
        }
        self.measure(items, found).await;
    }

    async fn find_unkept(
        &self,
        experiment: &Experiment,
        now: i64,
        found: &mut Found,
    ) -> Result<()> {
        let Some(rules) = &self.order.retention else {
            return Ok(());
        };
        let query = RunQuery {
            experiment_ids: vec![experiment.id.clone()],
            filter: Filter::default(),
            order_by: Vec::new(),
            view: ViewType::ActiveOnly,
            max_results: usize::MAX,
            numbers_only: false,
        };
        let runs = self.store.search_runs(&query).await?;
        if let Some(best) = &rules.best
            && !runs.is_empty()
            && !runs
                .iter()
                .any(|run| run.metrics.contains_key(&best.metric))
        {
            return Err(Error::invalid(
                "metric",
                &best.metric,
                format!(
                    "no run of experiment {:?} has it, so that none would be kept for it",
                    experiment.name
                ),
            ));
        }
        let items = unkept(&runs, rules, now).into_iter().map(|(run, reason)| {
            let item = item_of(run, experiment, Kind::Unkept, reason);
            Item {
                purges: rules.what == What::Runs,
                ..item
            }
        });
        self.measure(items.collect(), found).await;
        Ok(())
    }

    /// Sorts runs by whether they may go, and measures those that may.
    async fn measure(&self, items: Vec<Item>, found: &mut Found) {
        let mut due = Vec::new();
        for item in items {
            match self.held(&item) {
                Some(why) => found.spared.push(Spared::of(&item, why)),
                None => due.push(item),
            }
        }
        let measured: Vec<_> = stream::iter(due)
            .map(|item| async move {
                // A run that is marked as deleted keeps its files until it is collected.
                let usage = match item.kind == Kind::Unkept && item.purges {
                    true => Ok(Usage::default()),
                    false => self.usage(&item.uri).await,
                };
                (item, usage)
            })
            .buffered(TOGETHER)
            .collect()
            .await;
        for (mut item, usage) in measured {
            match usage {
                // Nothing is left to do about it.
                Ok(Usage { files: 0, .. }) if !item.purges => {}
                Ok(Usage { files, bytes }) => {
                    (item.files, item.bytes) = (files, bytes);
                    found.items.push(item);
                }
                Err(error) => found.failures.push((item.uri, error.to_string())),
            }
        }
    }

    /// Why nothing may be deleted of a run; `None` where it may.
    fn held(&self, item: &Item) -> Option<String> {
        let held = self.guard.holds(item.run_ids(), &Place::all_of(&item.uri));
        let is_elsewhere = || {
            let run_id = item.run_id.as_deref().unwrap_or_default();
            match () {
                () if !is_folder_of_run(&item.uri, &item.location, run_id) => Some(format!(
                    "it is not the run's own folder below the experiment's artifact location {}",
                    item.location
                )),
                () if is_led_elsewhere(&item.uri, &item.location) => {
                    Some("a link leads out of the experiment's artifact location".to_owned())
                }
                () => None,
            }
        };
        held.or_else(is_elsewhere)
    }

    /// Finds what lies at the artifact locations themselves: uploads that were not finished, folders of no run.
    async fn find_beside(
        &self,
        experiments: &[&Experiment],
        runs: &HashSet<String>,
        now: i64,
        found: &mut Found,
    ) {
        let mut seen = HashSet::new();
        let mut locations = HashSet::new();
        for experiment in experiments {
            let location = experiment.artifact_location.as_str();
            if !locations.insert(Place::all_of(location)) {
                continue;
            }
            let store = match self.artifacts(location) {
                Ok(store) => store,
                Err(error) => {
                    found
                        .failures
                        .push((location.to_owned(), error.to_string()));
                    continue;
                }
            };
            match store.unfinished().await {
                Ok(unfinished) => uploads::sort(
                    unfinished,
                    (&experiment.name, location),
                    &self.guard,
                    (self.order.uploads_older_than, now),
                    &mut seen,
                    found,
                ),
                Err(error) => found
                    .failures
                    .push((location.to_owned(), error.to_string())),
            }
            if let Err(error) = self.find_orphans(experiment, &*store, runs, found).await {
                found
                    .failures
                    .push((location.to_owned(), error.to_string()));
            }
        }
    }

    async fn find_orphans(
        &self,
        experiment: &Experiment,
        store: &dyn ArtifactStore,
        runs: &HashSet<String>,
        found: &mut Found,
    ) -> Result<()> {
        let mut items = Vec::new();
        for folder in store.list(&ArtifactPath::root()).await? {
            let run_id = folder.path.as_str();
            if folder.size.is_some() || !is_run_id(run_id) || runs.contains(run_id) {
                continue;
            }
            // What has more than artifacts is a run of MLflow's file store.
            let children = store.list(&folder.path).await?;
            if !matches!(children.as_slice(), [child]
                if child.size.is_none() && child.path.as_str() == format!("{run_id}/artifacts"))
            {
                continue;
            }
            // One that was created since, or in another workspace.
            if !self.is_unknown(run_id).await? {
                continue;
            }
            let location = experiment.artifact_location.trim_end_matches('/');
            let run = RunInfo {
                run_id: run_id.to_owned(),
                artifact_uri: format!("{location}/{run_id}/artifacts"),
                ..RunInfo::default()
            };
            let reason = "the store has no such run".to_owned();
            items.push(item_of(&run, experiment, Kind::Orphan, reason));
        }
        let before = found.items.len();
        self.measure(items, found).await;
        if !self.order.orphans {
            // Another store may have the same location: that is for people to know.
            let kept = found.items.split_off(before);
            found.spared.extend(kept.iter().map(|item| {
                let reason = format!(
                    "{}; it may be another store's with the same location ({} files, {} bytes): orphans go only when \
                     they are asked for",
                    item.reason, item.files, item.bytes
                );
                Spared::of(item, reason)
            }));
        }
        Ok(())
    }

    async fn is_unknown(&self, run_id: &str) -> Result<bool, StoreError> {
        match self.store.run(run_id).await {
            Ok(_) => Ok(false),
            Err(StoreError::NotFound { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Deletes some items side by side, those that still may go. The reason for each that has not gone.
    async fn carry_out_all(&mut self, items: &[Item]) -> Vec<Result<(), String>> {
        if self.guarded_at.elapsed() > FRESH {
            match self.guard_now().await {
                Ok(guard) => self.guard = guard,
                Err(error) => return items.iter().map(|_| Err(error.to_string())).collect(),
            }
            self.guarded_at = Instant::now();
        }
        let works: Vec<_> = items.iter().map(|item| self.carry_out(item)).collect();
        future::join_all(works).await
    }

    async fn carry_out(&self, item: &Item) -> Result<(), String> {
        let said = |error: StoreError| error.to_string();
        if let Some(upload) = &item.upload {
            if let Some(why) = self.guard.holds(item.run_ids(), &Place::all_of(&item.uri)) {
                return Err(why);
            }
            let store = self.artifacts(&item.location);
            let given_up = store.map_err(|e| e.to_string())?.give_up(upload).await;
            return given_up.map_err(|error| error.to_string());
        }
        if let Some(why) = self.held(item) {
            return Err(why);
        }
        let run_id = item.run_id.as_deref().unwrap_or_default();
        let stays_as_it_was = match item.kind {
            Kind::DeletedRun => {
                let run = self.store.run(run_id).await.map_err(said)?;
                run.lifecycle_stage == LifecycleStage::Deleted.as_str()
            }
            Kind::Unkept => {
                let run = self.store.run(run_id).await.map_err(said)?;
                run.lifecycle_stage == LifecycleStage::Active.as_str() && has_ended(&run)
            }
            Kind::Orphan => self.is_unknown(run_id).await.map_err(said)?,
            Kind::Upload => true,
        };
        if !stays_as_it_was {
            return Err("it has changed since it was found".to_owned());
        }
        if item.kind == Kind::Unkept && item.purges {
            let deleted = self.store.set_run_stage(run_id, LifecycleStage::Deleted);
            return deleted.await.map_err(said);
        }
        let store = self
            .artifacts(&item.uri)
            .map_err(|error| error.to_string())?;
        store.clear().await.map_err(|error| error.to_string())?;
        // The rows last: as long as they are there, what is left of the files is found.
        if item.purges && !self.store.purge_run(run_id).await.map_err(said)? {
            return Err("it has changed since it was found".to_owned());
        }
        Ok(())
    }
}

/// A collection makes no database.
fn refuse_new(destination: &Destination) -> Result<()> {
    match destination {
        Destination::Sqlite(path) if !path.exists() => Err(Error::configuration(
            "tracking URI",
            &destination.uri(),
            "there is no such database",
        )),
        _ => Ok(()),
    }
}

fn item_of(run: &RunInfo, experiment: &Experiment, kind: Kind, reason: String) -> Item {
    Item {
        kind,
        experiment: experiment.name.clone(),
        run_id: Some(run.run_id.clone()),
        uri: run.artifact_uri.clone(),
        files: 0,
        bytes: 0,
        reason,
        purges: false,
        deleted: false,
        error: None,
        location: experiment.artifact_location.clone(),
        upload: None,
        aliases: run.tags.get(RUN_ID_TAG).cloned().into_iter().collect(),
    }
}

/// Runs that the journals below a folder have records of or hold open, and whether the journal's process lives. Waits
/// on the disk.
///
/// # Errors
/// [`Error::Configuration`] where one cannot be read: it may be of any run.
fn journaled(heimdall_dir: &Path) -> Result<BTreeMap<String, bool>> {
    let unreadable = |dir: &Path, reason: String| {
        Error::configuration(
            "journal",
            &dir.display().to_string(),
            format!(
                "it may have records of any run, and cannot be read ({reason}): deliver it with `heimdall sync`, or \
                 move it away"
            ),
        )
    };
    let mut runs = BTreeMap::new();
    let dirs = recovery::folders(heimdall_dir);
    for dir in dirs.map_err(|error| unreadable(heimdall_dir, error.to_string()))? {
        match runs_of_steadily(&dir) {
            Ok(found) => {
                let is_alive = recovery::is_alive(&dir);
                for run in found {
                    *runs.entry(run).or_default() |= is_alive;
                }
            }
            // Delivered meanwhile.
            Err(_) if recovery::is_none(&dir) => {}
            Err(reason) => return Err(unreadable(&dir, reason)),
        }
    }
    Ok(runs)
}

/// As below; looks again for a while, as whoever delivers a journal removes what another reads.
fn runs_of_steadily(dir: &Path) -> Result<Vec<String>, String> {
    const LOOKS: usize = 20;
    const PAUSE: Duration = Duration::from_millis(50);

    for number in 0..LOOKS {
        let seen = runs_of(dir);
        // Whoever delivered it may just have ended.
        if seen.is_ok() || (number > 0 && !recovery::is_alive(dir)) {
            return seen;
        }
        std::thread::sleep(PAUSE);
    }
    runs_of(dir)
}

/// Runs that a journal has records of or holds open; the reason where it cannot be read.
fn runs_of(dir: &Path) -> Result<Vec<String>, String> {
    let manifest = recovery::manifest(dir).ok_or("its manifest.json is damaged or forbidden")?;
    let mut runs = Vec::new();
    for destination in 0..manifest.destinations.len() {
        runs.extend(reader::saved(dir, destination).open_runs.into_keys());
        let mut damage = Vec::new();
        let looked = reader::peek(dir, destination, |batch| {
            damage.extend(batch.damage.first().cloned());
            let entries = batch.entries.iter();
            runs.extend(entries.map(|placed| placed.entry.record.run().to_string()));
        });
        looked.map_err(|error| error.to_string())?;
        if let Some(damage) = damage.into_iter().next() {
            return Err(damage);
        }
    }
    Ok(runs)
}
