//! Things that can be recorded, and MLflow's rules for them.
//!
//! A key or a value that has passed these checks is accepted by every MLflow store; anything that breaks a rule is
//! refused before it is written. The rules and limits are those of MLflow's `utils/validation.py`.

use serde::{Deserialize, Serialize};

use crate::mlflow::{
    artifact_path::ArtifactPath,
    key::Key,
    rewind::Rewind,
    run::{DatasetInput, RunId, RunStatus},
};

/// A record and the time at which it was recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Time of the call, in milliseconds since 1970.
    pub at: i64,
    /// The record.
    pub record: Record,
}

/// One item to deliver, as the journal keeps it.
///
/// The order of the variants and of their fields is the journal's format: a new variant goes to the end, and any other
/// change raises [`super::segment::FORMAT_VERSION`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Record {
    /// A run begins.
    RunStarted(RunStart),
    /// Metric values of one step.
    Metrics {
        /// The run.
        run: RunId,
        /// Step (any integer; the epoch, by custom).
        step: i64,
        /// Time of the values, in milliseconds since 1970.
        timestamp: i64,
        /// Keys and values; NaN and infinities are allowed.
        values: Vec<(Key, f64)>,
    },
    /// Params of a run.
    Params {
        /// The run.
        run: RunId,
        /// Keys and values.
        values: Vec<(Key, String)>,
    },
    /// Tags of a run.
    Tags {
        /// The run.
        run: RunId,
        /// Keys and values.
        values: Vec<(Key, String)>,
    },
    /// A file for the run's artifacts.
    Artifact {
        /// The run.
        run: RunId,
        /// Name of the copy in the journal's staging folder.
        staged: String,
        /// Path of the file below the run's artifact URI.
        path: ArtifactPath,
        /// Length of the file in bytes.
        size: u64,
    },
    /// A run ends.
    RunEnded {
        /// The run.
        run: RunId,
        /// Final status of the run.
        status: RunStatus,
        /// Time of the end, in milliseconds since 1970.
        end_time: i64,
    },
    /// A tag of a run is deleted; a tag that does not exist is no error.
    TagDeleted {
        /// The run.
        run: RunId,
        /// Key of the tag.
        key: Key,
    },
    /// A dataset is added to a run's inputs.
    Input {
        /// The run.
        run: RunId,
        /// The dataset.
        dataset: Box<DatasetInput>,
    },
    /// A run that has ended is active again: its status is RUNNING and it has no end time.
    RunResumed {
        /// The run.
        run: RunId,
    },
    /// Records follow of a run that another process has started and will end. This record itself is not delivered.
    RunAttached {
        /// The run.
        run: RunId,
    },
    /// A file for the run's artifacts that could not be copied: it is read at its own place, with the content it has at
    /// that time.
    ArtifactInPlace {
        /// The run.
        run: RunId,
        /// Absolute path of the file itself.
        source: String,
        /// Path of the file below the run's artifact URI.
        path: ArtifactPath,
    },
    /// A small file for the run's artifacts, with its content.
    ArtifactInline {
        /// The run.
        run: RunId,
        /// Content of the file.
        content: Vec<u8>,
        /// Path of the file below the run's artifact URI.
        path: ArtifactPath,
    },
    /// A run is about to be created at a server, which chooses the run's id; `run` is our own id, which the server's
    /// run has as a tag. This record itself is not delivered. If the process dies before [`Record::RunNamed`], the run
    /// is found by that tag.
    RunCreating {
        /// Our own id of the run.
        run: RunId,
    },
    /// The run of a [`Record::RunCreating`] has the server's id now, under which the other records have it.
    RunNamed {
        /// Our own id of the run.
        run: RunId,
    },
    /// The points of a run from a step on that were recorded before are deleted, once.
    RunRewound {
        /// The run.
        run: RunId,
        /// The rewind.
        rewind: Rewind,
    },
    /// A file, or a folder with everything below it, is deleted from the run's artifacts; a missing one is no error.
    ArtifactsDeleted {
        /// The run.
        run: RunId,
        /// Path of the file or folder below the run's artifact URI; the root stands for all artifacts.
        path: ArtifactPath,
    },
}

/// The start of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunStart {
    /// Id of the run, chosen here so that a second delivery finds the run of the first.
    pub run: RunId,
    /// Name of the experiment of the run.
    pub experiment: String,
    /// Artifact location of the experiment, in case the experiment has to be created.
    pub artifact_location: Option<String>,
    /// Name of the run.
    pub name: String,
    /// Name of the user who runs it.
    pub user: String,
    /// Start time, in milliseconds since 1970.
    pub start_time: i64,
}

impl Record {
    /// Returns the run that the record belongs to.
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
            | Self::RunRewound { run, .. }
            | Self::ArtifactsDeleted { run, .. }
            | Self::ArtifactInPlace { run, .. }
            | Self::ArtifactInline { run, .. } => *run,
        }
    }

    /// Returns true for a note about a run's creation, whose id the store may not know.
    pub fn is_about_creation(&self) -> bool {
        matches!(self, Self::RunCreating { .. } | Self::RunNamed { .. })
    }

    /// Returns true for a file and for a deletion of files, which go to the artifact store.
    pub fn is_artifact(&self) -> bool {
        self.artifact_path().is_some()
    }

    /// Returns true for a deletion of files.
    pub fn is_deletion(&self) -> bool {
        matches!(self, Self::ArtifactsDeleted { .. })
    }

    /// Returns the path of a file, or of the files that are deleted, among the artifacts of its run.
    pub fn artifact_path(&self) -> Option<&ArtifactPath> {
        match self {
            Self::Artifact { path, .. }
            | Self::ArtifactInPlace { path, .. }
            | Self::ArtifactInline { path, .. }
            | Self::ArtifactsDeleted { path, .. } => Some(path),
            _ => None,
        }
    }

    /// Describes the record in one line for people, without its values.
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
            Self::ArtifactsDeleted { path, .. } => match path.as_str() {
                "" => "deletion of all artifacts".to_owned(),
                path => format!("deletion of artifact {path}"),
            },
            Self::RunRewound { rewind, .. } => format!("rewind to step {}", rewind.step),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_kind_of_record_comes_behind_the_old_ones() {
        let run = RunId::random();
        let rewind = Rewind {
            id: u64::MAX,
            step: i64::MAX,
            at: i64::MIN,
        };
        let path = ArtifactPath::parse("a/b").expect("a path");
        let kinds = [
            (13, Record::RunNamed { run }),
            (14, Record::RunRewound { run, rewind }),
            (15, Record::ArtifactsDeleted { run, path }),
        ];
        for (kind, record) in kinds {
            let bytes = postcard::to_stdvec(&record).expect("it is encoded");
            assert_eq!(bytes[0], kind, "{record:?}");
            let read: Record = postcard::from_bytes(&bytes).expect("it is decoded");
            assert_eq!(read, record);
        }
    }
}
