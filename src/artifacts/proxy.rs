//! Artifacts that a tracking server keeps for its clients (`mlflow-artifacts:`).

use std::{
    fs::File,
    ops::Range,
    sync::{Arc, atomic::AtomicU64},
};

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream::BoxStream};

use super::{ArtifactError, ArtifactStore, Content, FileInfo, FileState, Upload, gone, staged};
use crate::{record::ArtifactPath, store::StoreError};

/// A name in a folder of the server's, and its length; a folder has none.
pub type Listed = (String, Option<u64>);

/// Bytes that a server sends, as they come.
pub type Sent = BoxStream<'static, Result<bytes::Bytes, StoreError>>;

/// What keeps files by their paths at a tracking server.
#[async_trait]
pub trait ArtifactServer: std::fmt::Debug + Send + Sync {
    /// Puts a file of that size at a path, replacing what is there; `sent` counts what has been taken of it.
    async fn put(
        &self,
        path: &str,
        file: File,
        size: u64,
        sent: &AtomicU64,
    ) -> Result<(), StoreError>;

    /// The names in a folder; none where there is no such folder.
    async fn list(&self, path: &str) -> Result<Vec<Listed>, StoreError>;

    /// The bytes of a file, of all of it or of a range; [`StoreError::NotFound`] where it is none.
    async fn get(&self, path: &str, range: Option<Range<u64>>) -> Result<Sent, StoreError>;

    /// Deletes a file; one that is not there is no error.
    async fn delete(&self, path: &str) -> Result<(), StoreError>;
}

/// The folder of the server's below which a run's artifacts lie.
#[derive(Debug)]
pub struct ProxyArtifacts {
    server: Arc<dyn ArtifactServer>,
    root: String,
}

impl ProxyArtifacts {
    /// A folder by its path at the server.
    pub fn new(server: Arc<dyn ArtifactServer>, root: String) -> Self {
        let root = root.trim_matches('/').to_owned();
        Self { server, root }
    }

    fn at(&self, path: &ArtifactPath) -> String {
        match (self.root.as_str(), path.as_str()) {
            ("", path) => path.to_owned(),
            (root, "") => root.to_owned(),
            (root, path) => format!("{root}/{path}"),
        }
    }

    fn failed(&self, path: &ArtifactPath, source: StoreError) -> ArtifactError {
        let artifact = path.as_str().to_owned();
        match source {
            StoreError::NotFound { .. } => ArtifactError::NotFound {
                artifact,
                store: self.uri(),
            },
            source => ArtifactError::Server {
                artifact,
                source: Box::new(source),
            },
        }
    }
}

#[async_trait]
impl ArtifactStore for ProxyArtifacts {
    fn uri(&self) -> String {
        format!("mlflow-artifacts:/{}", self.root)
    }

    async fn put(&self, upload: Upload<'_>) -> Result<(), ArtifactError> {
        let Some(file) = staged(upload.file, upload.path, upload.size)? else {
            return gone(self, &upload).await;
        };
        let target = self.at(upload.path);
        let put = self
            .server
            .put(&target, file, upload.size, upload.sent)
            .await;
        put.map_err(|source| self.failed(upload.path, source))
    }

    async fn list(&self, folder: &ArtifactPath) -> Result<Vec<FileInfo>, ArtifactError> {
        let listed = self.server.list(&self.at(folder)).await;
        let listed = listed.map_err(|source| self.failed(folder, source))?;
        let mut infos = Vec::with_capacity(listed.len());
        for (name, size) in listed {
            // One part of a path: what has more leads elsewhere.
            let path = (!name.contains('/') && !name.is_empty()).then(|| folder.join(&name));
            let Some(Ok(path)) = path else {
                let store = self.uri();
                return Err(ArtifactError::BadName { name, store });
            };
            infos.push(FileInfo { path, size });
        }
        infos.sort_by(|a, b| a.path.as_str().cmp(b.path.as_str()));
        Ok(infos)
    }

    async fn head(&self, path: &ArtifactPath) -> Result<FileState, ArtifactError> {
        let (folder, _) = path.as_str().rsplit_once('/').unwrap_or_default();
        let folder = ArtifactPath::parse(folder).unwrap_or_else(|_| ArtifactPath::root());
        let found = self.list(&folder).await?;
        let size = found
            .iter()
            .find(|info| info.path == *path)
            .and_then(|info| info.size);
        match size {
            Some(size) => Ok(FileState {
                size,
                version: None,
                modified: None,
            }),
            None => Err(ArtifactError::NotFound {
                artifact: path.as_str().to_owned(),
                store: self.uri(),
            }),
        }
    }

    async fn read(
        &self,
        path: &ArtifactPath,
        range: Option<Range<u64>>,
        _version: Option<&str>,
    ) -> Result<Content, ArtifactError> {
        let sent = self.server.get(&self.at(path), range).await;
        let sent = sent.map_err(|source| self.failed(path, source))?;
        let artifact = path.as_str().to_owned();
        let content = sent.map_err(move |source| ArtifactError::Server {
            artifact: artifact.clone(),
            source: Box::new(source),
        });
        Ok(content.boxed())
    }

    async fn delete(&self, path: &ArtifactPath) -> Result<(), ArtifactError> {
        let deleted = self.server.delete(&self.at(path)).await;
        deleted.map_err(|source| self.failed(path, source))
    }
}
