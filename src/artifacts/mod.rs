//! Where the files of a run go: the seam between the tracker and local disk (object stores come beside it).

mod local;
pub mod proxy;

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use async_trait::async_trait;

use crate::{config::ArtifactUri, error::Error, record::ArtifactPath, store::StoreError};

/// A store of artifacts below one URI.
#[async_trait]
pub trait ArtifactStore: fmt::Debug + Send + Sync {
    /// Puts the staged file, `size` bytes long, at `path`, replacing what is there at once and whole.
    /// Putting it a second time, also when the staged file has gone since, changes nothing.
    async fn put(&self, staged: &Path, path: &ArtifactPath, size: u64)
    -> Result<(), ArtifactError>;
}

/// The store that an artifact URI names.
///
/// # Errors
/// [`ArtifactError::Unsupported`] for schemes this version has no store for.
pub fn open(uri: &str) -> Result<Box<dyn ArtifactStore>, ArtifactError> {
    match ArtifactUri::parse(uri) {
        Ok(ArtifactUri::Local(root)) => Ok(Box::new(local::LocalArtifacts::new(root))),
        Err(error) => Err(ArtifactError::Unsupported(Box::new(error))),
    }
}

/// What an artifact store can answer but success.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// No store for that URI.
    #[error(transparent)]
    Unsupported(Box<Error>),
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
    /// The tracking server, which keeps the artifacts, does not take it.
    #[error("artifact {artifact:?} cannot be uploaded: {source}")]
    Server {
        /// Where it was to go, below the run.
        artifact: String,
        /// What the server says.
        source: Box<StoreError>,
    },
}

impl ArtifactError {
    /// True where trying again later can help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unsupported(_) | Self::StagedLost { .. } => false,
            Self::Server { source, .. } => source.is_transient(),
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
