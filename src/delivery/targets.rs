//! Targets in the artifact store: uploads and deletions that must not overtake one another.

use std::collections::HashSet;

use crate::{
    journal::record::Record,
    mlflow::{artifact_path::ArtifactPath, run::RunId},
};

/// The target of an upload or of a deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub run: RunId,
    pub path: ArtifactPath,
    pub is_deletion: bool,
}

impl Target {
    /// Returns the target of a record that goes to the artifact store.
    pub(crate) fn of(record: &Record) -> Option<Self> {
        Some(Self {
            run: record.run(),
            path: record.artifact_path()?.clone(),
            is_deletion: record.is_deletion(),
        })
    }

    /// Returns true where this is a deletion that deletes what an earlier upload puts there.
    pub(crate) fn deletes(&self, upload: &Self) -> bool {
        self.is_deletion
            && !upload.is_deletion
            && self.run == upload.run
            && upload.path.is_within(&self.path)
    }

    fn overlaps(&self, run: RunId, path: &ArtifactPath) -> bool {
        self.run == run && (self.path.is_within(path) || path.is_within(&self.path))
    }
}

/// Targets of earlier records, which a later one to an overlapping path has to wait for.
#[derive(Debug, Default)]
pub(crate) struct TakenTargets {
    /// Uploads, of which only those to the same path are in the way of one another.
    uploads: HashSet<(RunId, ArtifactPath)>,
    /// Deletions, which are in the way of everything at, above and below their path.
    deletions: Vec<Target>,
}

impl TakenTargets {
    /// Adds a target. Returns true where no earlier one is in its way.
    pub(crate) fn take(&mut self, target: Target) -> bool {
        let mut deletions = self.deletions.iter();
        let is_behind_deletion = deletions.any(|it| it.overlaps(target.run, &target.path));
        if target.is_deletion {
            let mut uploads = self.uploads.iter();
            let is_behind_upload = uploads.any(|(run, path)| target.overlaps(*run, path));
            self.deletions.push(target);
            !is_behind_deletion && !is_behind_upload
        } else {
            let is_first = self.uploads.insert((target.run, target.path));
            !is_behind_deletion && is_first
        }
    }
}
