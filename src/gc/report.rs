//! What a collection is asked to do, and what it reports.

use std::{path::PathBuf, time::Duration};

use super::rules::Retention;
use crate::{
    artifacts::store::Unfinished,
    config::{s3::S3Config, uri::Destination},
};

/// What a collection is to look for, and whether it is to delete that.
#[derive(Clone, Debug)]
pub struct CollectConfig {
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
pub struct GarbageItem {
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
    pub(crate) location: String,
    pub(crate) upload: Option<Unfinished>,
    /// Further ids by which the run is known.
    pub(crate) aliases: Vec<String>,
}

impl GarbageItem {
    pub(crate) fn run_ids(&self) -> impl Iterator<Item = &str> + Clone {
        let aliases = self.aliases.iter().map(String::as_str);
        self.run_id.as_deref().into_iter().chain(aliases)
    }
}

/// Something that looked like garbage and stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SparedItem {
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

impl SparedItem {
    pub(crate) fn of(item: &GarbageItem, reason: String) -> Self {
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
pub(crate) struct Findings {
    pub(crate) items: Vec<GarbageItem>,
    pub(crate) spared: Vec<SparedItem>,
    pub(crate) failures: Vec<(String, String)>,
}

/// What a collection has found and done.
#[derive(Clone, Debug, Default)]
pub struct GarbageReport {
    /// What goes, or has gone.
    pub items: Vec<GarbageItem>,
    /// What stays although it looked like garbage.
    pub spared: Vec<SparedItem>,
    /// Places that could not be looked into, and why.
    pub failures: Vec<(String, String)>,
}
