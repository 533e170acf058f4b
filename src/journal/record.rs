//! What can be recorded, and MLflow's rules for it.
//!
//! A key or a value that has passed through here is one that every MLflow store takes; what breaks a rule
//! is refused before anything is written. The rules and limits are those of MLflow's `utils/validation.py`.

use serde::{Deserialize, Serialize};

use crate::mlflow::{
    artifact_path::ArtifactPath,
    key::Key,
    run::{DatasetInput, RunId, RunStatus},
};

/// A record and when it was recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Milliseconds since 1970.
    pub at: i64,
    /// The record.
    pub record: Record,
}

/// One thing to deliver, as the journal keeps it.
///
/// The order of the variants and of their fields is the journal's format: a new variant goes to the end,
/// any other change raises [`super::segment::FORMAT_VERSION`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Record {
    /// A run begins.
    RunStarted(RunStart),
    /// Values of one step.
    Metrics {
        /// The run.
        run: RunId,
        /// Step (any integer; the epoch, by custom).
        step: i64,
        /// Milliseconds since 1970.
        timestamp: i64,
        /// Key and value; NaN and infinities are allowed.
        values: Vec<(Key, f64)>,
    },
    /// Params of a run.
    Params {
        /// The run.
        run: RunId,
        /// Key and value.
        values: Vec<(Key, String)>,
    },
    /// Tags of a run.
    Tags {
        /// The run.
        run: RunId,
        /// Key and value.
        values: Vec<(Key, String)>,
    },
    /// A file for the run's artifacts.
    Artifact {
        /// The run.
        run: RunId,
        /// Name of the copy in the journal's staging folder.
        staged: String,
        /// Where it goes, below the run's artifact URI.
        path: ArtifactPath,
        /// Its length in bytes.
        size: u64,
    },
    /// A run ends.
    RunEnded {
        /// The run.
        run: RunId,
        /// How.
        status: RunStatus,
        /// Milliseconds since 1970.
        end_time: i64,
    },
    /// A tag of a run is removed; a tag that is not there is no error.
    TagDeleted {
        /// The run.
        run: RunId,
        /// The tag's key.
        key: Key,
    },
    /// A run is given a dataset.
    Input {
        /// The run.
        run: RunId,
        /// The dataset.
        dataset: Box<DatasetInput>,
    },
    /// A run that has ended goes on: RUNNING, without an end time.
    RunResumed {
        /// The run.
        run: RunId,
    },
    /// Records of a run follow that another process has started and will end. Nothing to deliver.
    RunAttached {
        /// The run.
        run: RunId,
    },
    /// A file for the run's artifacts that could not be copied: it is read where it is, as it is then.
    ArtifactInPlace {
        /// The run.
        run: RunId,
        /// The file's own absolute path.
        source: String,
        /// Where it goes, below the run's artifact URI.
        path: ArtifactPath,
    },
    /// A small file for the run's artifacts, with its content.
    ArtifactInline {
        /// The run.
        run: RunId,
        /// Its content.
        content: Vec<u8>,
        /// Where it goes, below the run's artifact URI.
        path: ArtifactPath,
    },
    /// A run is about to be created at a server, which chooses its id; this is ours, which the server's run has as a
    /// tag. Nothing to deliver; where the process dies before [`Record::RunNamed`], the run is found by it.
    RunCreating {
        /// Our id.
        run: RunId,
    },
    /// That run has the server's id now, under which the other records have it.
    RunNamed {
        /// Our id.
        run: RunId,
    },
}

/// The beginning of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunStart {
    /// Its id, chosen here so that a second delivery finds the first.
    pub run: RunId,
    /// Name of the experiment it belongs to.
    pub experiment: String,
    /// Artifact location of that experiment, should it have to be created.
    pub artifact_location: Option<String>,
    /// Name of the run.
    pub name: String,
    /// Who runs it.
    pub user: String,
    /// Milliseconds since 1970.
    pub start_time: i64,
}

impl Record {
    /// The run it belongs to.
    pub fn run(&self) -> RunId {
        match self {
            Self::RunStarted(start) => start.run,
            Self::Metrics { run, .. }
            | Self::Params { run, .. }
            | Self::Tags { run, .. }
            | Self::Artifact { run, .. }
            | Self::RunEnded { run, .. }
            | Self::TagDeleted { run, .. }
            | Self::Input { run, .. }
            | Self::RunResumed { run }
            | Self::RunAttached { run }
            | Self::RunCreating { run }
            | Self::RunNamed { run }
            | Self::ArtifactInPlace { run, .. }
            | Self::ArtifactInline { run, .. } => *run,
        }
    }

    /// True for what is noted of a run's creation, under an id that the store may not know.
    pub fn is_about_creation(&self) -> bool {
        matches!(self, Self::RunCreating { .. } | Self::RunNamed { .. })
    }

    /// True for a file, which goes to the store of artifacts.
    pub fn is_artifact(&self) -> bool {
        self.artifact_path().is_some()
    }

    /// Where a file goes among the artifacts of its run.
    pub fn artifact_path(&self) -> Option<&ArtifactPath> {
        match self {
            Self::Artifact { path, .. }
            | Self::ArtifactInPlace { path, .. }
            | Self::ArtifactInline { path, .. } => Some(path),
            _ => None,
        }
    }

    /// One line for people: what it is, without its values.
    pub fn summary(&self) -> String {
        let keys = |keys: &mut dyn Iterator<Item = &Key>| {
            keys.map(Key::as_str).collect::<Vec<_>>().join(", ")
        };
        match self {
            Self::RunStarted(start) => format!("start of run {:?}", start.name),
            Self::Metrics { step, values, .. } => {
                format!(
                    "metrics {} at step {step}",
                    keys(&mut values.iter().map(|(key, _)| key))
                )
            }
            Self::Params { values, .. } => {
                format!("params {}", keys(&mut values.iter().map(|(key, _)| key)))
            }
            Self::Tags { values, .. } => {
                format!("tags {}", keys(&mut values.iter().map(|(key, _)| key)))
            }
            Self::Artifact { path, .. }
            | Self::ArtifactInPlace { path, .. }
            | Self::ArtifactInline { path, .. } => format!("artifact {}", path.as_str()),
            Self::RunEnded { status, .. } => format!("end of run, {}", status.as_str()),
            Self::TagDeleted { key, .. } => format!("deletion of tag {}", key.as_str()),
            Self::Input { dataset, .. } => format!("dataset {:?}", dataset.name),
            Self::RunResumed { .. } => "resumption of run".to_owned(),
            Self::RunAttached { .. } => "attachment to run".to_owned(),
            Self::RunCreating { .. } => "creation of run".to_owned(),
            Self::RunNamed { .. } => "id of run".to_owned(),
        }
    }
}
