//! The answers of an artifact store that are not success.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{object::failure::ObjectFailure, store::ArtifactStore};
use crate::mlflow::{artifact_path::ArtifactPath, invalid::Invalid};

/// What an artifact store can answer but success.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// No store for that URI, or none that can be used as it is configured.
    #[error(transparent)]
    Unsupported(#[from] Invalid),
    /// The staged copy is gone, or not what was staged.
    #[error("the staged copy {} of artifact {artifact:?} is gone or damaged", staged.display())]
    StagedLost {
        /// The staged copy.
        staged: PathBuf,
        /// Where it was to go.
        artifact: String,
    },
    /// The file system refuses.
    #[error("artifact {artifact:?} cannot be written to {}: {source}", target.display())]
    Io {
        /// Where it was to go, below the run.
        artifact: String,
        /// The file.
        target: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No such file.
    #[error("artifact {artifact:?} is not in {store}")]
    NotFound {
        /// Its path.
        artifact: String,
        /// The store's URI.
        store: String,
    },
    /// A store names a file as no file may be named: it would be written outside of where it belongs.
    #[error("{store} has a file named {name:?}, which is no path below a folder: it is left there")]
    BadName {
        /// The name.
        name: String,
        /// The store's URI.
        store: String,
    },
    /// A file became another while it was read, or is not what the store says of it.
    #[error("artifact {artifact:?} in {store} is damaged or has changed: {reason}")]
    Damaged {
        /// Its path.
        artifact: String,
        /// The store's URI.
        store: String,
        /// What differs.
        reason: String,
    },
    /// An object store does not take or give it.
    #[error("artifact {artifact:?}, {store}: {source}")]
    Object {
        /// Its path.
        artifact: String,
        /// The store's URI.
        store: String,
        /// What the store says.
        source: Box<ObjectFailure>,
    },
    /// The tracking server, which keeps the artifacts, does not take or give it.
    #[error("artifact {artifact:?} at the tracking server: {source}")]
    Server {
        /// Its path.
        artifact: String,
        /// The server's answer.
        source: Box<dyn std::error::Error + Send + Sync>,
        /// True where trying again later can help.
        is_transient: bool,
        /// Time that the server wants to be left alone for.
        retry_after: Option<Duration>,
    },
}

impl ArtifactError {
    /// True where trying again later can help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unsupported(_)
            | Self::StagedLost { .. }
            | Self::NotFound { .. }
            | Self::BadName { .. }
            | Self::Damaged { .. } => false,
            Self::Server { is_transient, .. } => *is_transient,
            Self::Object { source, .. } => source.is_transient(),
            Self::Io { source, .. } => !matches!(
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

pub(crate) fn damaged(
    store: &dyn ArtifactStore,
    path: &ArtifactPath,
    reason: String,
) -> ArtifactError {
    ArtifactError::Damaged {
        artifact: path.as_str().to_owned(),
        store: store.uri(),
        reason,
    }
}

pub(crate) fn staged_lost(file: &Path, path: &ArtifactPath) -> ArtifactError {
    ArtifactError::StagedLost {
        staged: file.to_owned(),
        artifact: path.as_str().to_owned(),
    }
}
