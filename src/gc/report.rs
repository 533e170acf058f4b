//! Configuration and report of a collection.

use std::{path::PathBuf, time::Duration};

use super::rules::Retention;
use crate::{
    artifacts::store::UnfinishedUpload,
    config::{s3::S3Config, uri::Destination},
};

/// Configuration of a collection: the garbage to look for, and whether to delete it.
#[derive(Clone, Debug)]
pub struct CollectConfig {
    /// The store of the runs.
    pub tracking: Destination,
    /// The tracking server that keeps the artifacts of a database's experiments (`mlflow-artifacts:`).
    pub artifact_server: Option<Destination>,
    /// The model registry, if it is another store.
    pub registry: Option<Destination>,
    /// Settings for S3 artifacts.
    pub s3: S3Config,
    /// Folder of the journals.
    pub heimdall_dir: PathBuf,
    /// Names of experiments, active or deleted; if empty, all experiments of the store.
    pub experiments: Vec<String>,
    /// Shortest time since a run was deleted.
    pub older_than: Duration,
    /// Shortest time since an upload was begun.
    pub uploads_older_than: Duration,
    /// True where folders that belong to no run are deleted.
    pub orphans: bool,
    /// Rules by which runs of the experiments are kept; without rules, all are kept.
    pub retention: Option<Retention>,
    /// True where deleted runs are removed from the database for good.
    pub purge: bool,
    /// True where the garbage is deleted; false for a dry run.
    pub delete: bool,
}

/// Kind of garbage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Files of a deleted run.
    DeletedRun,
    /// A run that no rule keeps.
    Unkept,
    /// An unfinished upload.
    Upload,
    /// A folder that belongs to no run of the store.
    Orphan,
}

impl Kind {
    /// Returns the word for the kind.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DeletedRun => "deleted run",
            Self::Unkept => "unkept run",
            Self::Upload => "unfinished upload",
            Self::Orphan => "orphan",
        }
    }
}

/// An item that is to be deleted, or has been.
#[derive(Clone, Debug)]
pub struct GarbageItem {
    /// Kind of the item.
    pub kind: Kind,
    /// Name of the experiment.
    pub experiment: String,
    /// Id of the run that the item belongs to, or seems to belong to.
    pub run_id: Option<String>,
    /// URI of the item.
    pub uri: String,
    /// Number of files to delete.
    pub files: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// Reason for the deletion, in words.
    pub reason: String,
    /// True where the run itself is deleted: a deleted run is removed for good, any other run is marked as deleted.
    pub purges: bool,
    /// True where the item has been deleted.
    pub deleted: bool,
    /// Error that prevented the deletion.
    pub error: Option<String>,
    pub(crate) location: String,
    pub(crate) upload: Option<UnfinishedUpload>,
    /// Further ids by which the run is known.
    pub(crate) aliases: Vec<String>,
}

impl GarbageItem {
    pub(crate) fn run_ids(&self) -> impl Iterator<Item = &str> + Clone {
        let aliases = self.aliases.iter().map(String::as_str);
        self.run_id.as_deref().into_iter().chain(aliases)
    }
}

/// An item that looked like garbage and stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SparedItem {
    /// Kind of garbage that it looked like.
    pub kind: Kind,
    /// Name of the experiment.
    pub experiment: String,
    /// Id of the run that the item belongs to, or seems to belong to.
    pub run_id: Option<String>,
    /// URI of the item.
    pub uri: String,
    /// Reason for which the item stays.
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

/// Findings of a collection.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) items: Vec<GarbageItem>,
    pub(crate) spared: Vec<SparedItem>,
    pub(crate) failures: Vec<(String, String)>,
}

/// Findings and results of a collection.
#[derive(Clone, Debug, Default)]
pub struct GarbageReport {
    /// Items to delete, or already deleted.
    pub items: Vec<GarbageItem>,
    /// Items that stay although they looked like garbage.
    pub spared: Vec<SparedItem>,
    /// Places that could not be searched, each with the reason.
    pub failures: Vec<(String, String)>,
}
