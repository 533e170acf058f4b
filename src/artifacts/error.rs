//! Errors of artifact stores.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::object::failure::ObjectFailure;
use crate::mlflow::{artifact_path::ArtifactPath, invalid::Invalid};

/// A failure of an artifact store.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// No store is known for the URI, or it cannot be used as configured.
    #[error(transparent)]
    Unsupported(#[from] Invalid),
    /// The staged copy is gone or has changed.
    #[error("the staged copy {} of artifact {artifact:?} is gone or damaged", staged.display())]
    StagedLost {
        /// The staged copy.
        staged: PathBuf,
        /// Path that the artifact was to get.
        artifact: String,
    },
    /// The file system reports an error.
    #[error("artifact {artifact:?} cannot be written to {}: {source}", target.display())]
    Io {
        /// Path that the artifact was to get, below the run.
        artifact: String,
        /// The file.
        target: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The file system deletes nothing.
    #[error("artifact {artifact:?} cannot be deleted from {}: {source}", target.display())]
    Deletion {
        /// Path of the artifact.
        artifact: String,
        /// The file or folder.
        target: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The store has no such file.
    #[error("artifact {artifact:?} is not in {store}")]
    NotFound {
        /// Path of the artifact.
        artifact: String,
        /// URI of the store.
        store: String,
    },
    /// A store gives a file a name that is not allowed: it would be written outside of its folder.
    #[error("{store} has a file named {name:?}, which is no path below a folder: it is left there")]
    BadName {
        /// The name.
        name: String,
        /// URI of the store.
        store: String,
    },
    /// A file changed while it was read, or differs from the store's description of it.
    #[error("artifact {artifact:?} in {store} is damaged or has changed: {reason}")]
    Damaged {
        /// Path of the artifact.
        artifact: String,
        /// URI of the store.
        store: String,
        /// Description of the difference.
        reason: String,
    },
    /// An object store refuses to store or to return the file.
    #[error("artifact {artifact:?}, {store}: {source}")]
    Object {
        /// Path of the artifact.
        artifact: String,
        /// URI of the store.
        store: String,
        /// The store's answer.
        source: Box<ObjectFailure>,
    },
    /// The tracking server, which keeps the artifacts, refuses to store or to return the file.
    #[error("artifact {artifact:?} at the tracking server: {source}")]
    Server {
        /// Path of the artifact.
        artifact: String,
        /// The server's answer.
        source: Box<dyn std::error::Error + Send + Sync>,
        /// True where trying again later can help.
        is_transient: bool,
        /// Time that the server asks to wait before the next attempt.
        retry_after: Option<Duration>,
    },
}

impl ArtifactError {
    /// Returns true where trying again later can help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unsupported(_)
            | Self::StagedLost { .. }
            | Self::NotFound { .. }
            | Self::BadName { .. }
            | Self::Damaged { .. } => false,
            Self::Server { is_transient, .. } => *is_transient,
            Self::Object { source, .. } => source.is_transient(),
            Self::Io { source, .. } | Self::Deletion { source, .. } => !matches!(
                source.kind(),
                io::ErrorKind::PermissionDenied
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::IsADirectory
                    | io::ErrorKind::InvalidInput
                    | io::ErrorKind::InvalidFilename
                    | io::ErrorKind::AlreadyExists
            ),
        }
    }
}

pub(crate) fn damaged(store: String, path: &ArtifactPath, reason: String) -> ArtifactError {
    ArtifactError::Damaged {
        artifact: path.as_str().to_owned(),
        store,
        reason,
    }
}

pub(crate) fn staged_lost(file: &Path, path: &ArtifactPath) -> ArtifactError {
    ArtifactError::StagedLost {
        staged: file.to_owned(),
        artifact: path.as_str().to_owned(),
    }
}
