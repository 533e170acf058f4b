//! Artifacts that a tracking server keeps for its clients (`mlflow-artifacts:`).

use std::{io, path::Path, sync::Arc};

use async_trait::async_trait;

use super::{ArtifactError, ArtifactStore};
use crate::{record::ArtifactPath, store::StoreError};

/// What takes a file to a path of the server's.
#[async_trait]
pub trait Upload: std::fmt::Debug + Send + Sync {
    /// Puts a file of that size at a path, replacing what is there.
    async fn upload(
        &self,
        path: &str,
        content: tokio::fs::File,
        size: u64,
    ) -> Result<(), StoreError>;
}

/// The folder of the server's below which a run's artifacts lie.
#[derive(Debug)]
pub struct ProxyArtifacts {
    server: Arc<dyn Upload>,
    root: String,
}

impl ProxyArtifacts {
    /// A folder by its path at the server.
    pub fn new(server: Arc<dyn Upload>, root: String) -> Self {
        Self { server, root }
    }
}

#[async_trait]
impl ArtifactStore for ProxyArtifacts {
    async fn put(
        &self,
        staged: &Path,
        path: &ArtifactPath,
        size: u64,
    ) -> Result<(), ArtifactError> {
        let failed = |source: io::Error| ArtifactError::Io {
            artifact: path.as_str().to_owned(),
            target: staged.to_owned(),
            source,
        };
        let lost = || ArtifactError::StagedLost {
            staged: staged.to_owned(),
            artifact: path.as_str().to_owned(),
        };
        let content = match tokio::fs::File::open(staged).await {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(lost()),
            Err(error) => return Err(failed(error)),
        };
        if content.metadata().await.map_err(failed)?.len() != size {
            return Err(lost());
        }
        let target = format!("{}/{}", self.root.trim_end_matches('/'), path.as_str());
        let uploaded = self.server.upload(&target, content, size).await;
        uploaded.map_err(|source| ArtifactError::Server {
            artifact: path.as_str().to_owned(),
            source: Box::new(source),
        })
    }
}
