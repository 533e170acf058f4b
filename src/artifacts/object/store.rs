//! The store in a bucket of S3, Google or Azure.

use std::{fs::File, ops::Range, sync::Arc};

use super::{
    adapting::Manner,
    azure,
    clients::ObjectClients,
    failure::{ObjectFailure, is_missing},
    gcs, s3,
};
use crate::{
    artifacts::{
        buffers::Buffers,
        checksum::Checksum,
        error::{ArtifactError, damaged},
        store::{
            ArtifactStore, Content, FileInfo, FileState, UnfinishedUpload, Upload, check_delivered,
            open_staged, sort_by_path,
        },
    },
    config::{
        s3::S3Config,
        uri::{Cloud, ObjectUri},
    },
    mlflow::{artifact_path::ArtifactPath, invalid::Invalid},
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, future};
use object_store::{
    Attribute, Attributes, GetOptions, GetRange, GetResult, ObjectStore, ObjectStoreExt,
    PutOptions, PutPayload,
    path::{Error as PathError, Path as Key},
};

/// Files up to this length are sent in one request.
const MAX_SINGLE_REQUEST: u64 = 16 << 20;

/// The objects of a bucket whose keys begin with a prefix.
#[derive(Debug)]
pub(crate) struct ObjectArtifacts {
    pub(crate) clients: ObjectClients,
    pub(crate) prefix: String,
    pub(crate) uri: String,
}

impl ObjectArtifacts {
    /// Opens the store of a URI. Sends no request yet.
    ///
    /// # Errors
    /// [`Invalid::Setting`] for invalid values in the settings or the environment.
    pub(crate) fn open(uri: &ObjectUri, s3: &S3Config, manner: &Manner) -> Result<Self, Invalid> {
        let clients = match uri.cloud {
            Cloud::S3 => s3::connect(uri, s3, manner)?,
            Cloud::Google => gcs::connect(uri)?,
            Cloud::Azure => azure::connect(uri)?,
        };
        Ok(Self {
            clients,
            prefix: uri.prefix.clone(),
            uri: uri.as_str().to_owned(),
        })
    }

    pub(crate) fn key(&self, path: &ArtifactPath) -> Result<Key, ArtifactError> {
        let key = match (self.prefix.as_str(), path.as_str()) {
            ("", path) => path.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, path) => format!("{prefix}/{path}"),
        };
        Key::parse(key).map_err(|error| self.failed(path, error.into()))
    }

    /// Returns the path of an object in the list of a folder; `None` for the mark of that folder.
    fn listed(
        &self,
        folder: &ArtifactPath,
        key: &Key,
    ) -> Result<Option<ArtifactPath>, ArtifactError> {
        let path = self.below(key)?;
        match path {
            Some(path) if path == *folder => Ok(None),
            Some(path) if !path.is_within(folder) => Err(ArtifactError::BadName {
                name: path.as_str().to_owned(),
                store: self.uri.clone(),
            }),
            path => Ok(path),
        }
    }

    /// Returns the path of an object below the prefix; `None` for the prefix itself.
    pub(crate) fn below(&self, key: &Key) -> Result<Option<ArtifactPath>, ArtifactError> {
        let name = key.as_ref();
        let below = match self.prefix.as_str() {
            "" => Some(name),
            prefix => name
                .strip_prefix(prefix)
                .and_then(|rest| rest.strip_prefix('/')),
        };
        match below.map(ArtifactPath::parse) {
            Some(Ok(path)) if path.as_str().is_empty() => Ok(None),
            Some(Ok(path)) => Ok(Some(path)),
            _ => Err(ArtifactError::BadName {
                name: name.to_owned(),
                store: self.uri.clone(),
            }),
        }
    }

    pub(crate) fn failed(&self, path: &ArtifactPath, error: object_store::Error) -> ArtifactError {
        if is_missing(&error) {
            return ArtifactError::NotFound {
                artifact: path.as_str().to_owned(),
                store: self.uri.clone(),
            };
        }
        match error {
            // The key comes from a list: none of our own paths is invalid.
            object_store::Error::InvalidPath {
                source: PathError::EmptySegment { path } | PathError::BadSegment { path, .. },
            } => ArtifactError::BadName {
                name: path,
                store: self.uri.clone(),
            },
            error => self.not_done(path, error.into()),
        }
    }

    pub(crate) fn not_done(&self, path: &ArtifactPath, why: ObjectFailure) -> ArtifactError {
        ArtifactError::Object {
            artifact: path.as_str().to_owned(),
            store: self.uri.clone(),
            source: Box::new(why),
        }
    }

    pub(crate) async fn get(
        &self,
        path: &ArtifactPath,
        options: GetOptions,
    ) -> Result<GetResult, ArtifactError> {
        let found = self
            .clients
            .reading
            .get_opts(&self.key(path)?, options)
            .await;
        found.map_err(|error| match error {
            object_store::Error::Precondition { .. } => damaged(
                self.uri(),
                path,
                "it was replaced while it was read".to_owned(),
            ),
            error => self.failed(path, error),
        })
    }

    pub(crate) fn attributes(&self, path: &ArtifactPath) -> Attributes {
        let guessed = || mime_guess::from_path(path.as_str()).first_raw();
        let content_type = self.clients.content_type.as_deref().or_else(guessed);
        let mut attributes = Attributes::new();
        if let Some(content_type) = content_type {
            attributes.insert(Attribute::ContentType, content_type.to_owned().into());
        }
        attributes
    }

    async fn put_whole(&self, upload: Upload<'_>, file: File) -> Result<(), ArtifactError> {
        let content = read(upload, file, 0..upload.size, &Buffers::default()).await?;
        let options = PutOptions {
            attributes: self.attributes(upload.path),
            ..PutOptions::default()
        };
        let key = self.key(upload.path)?;
        let put = self
            .clients
            .creating
            .put_opts(&key, PutPayload::from_bytes(content), options);
        put.await.map_err(|error| self.failed(upload.path, error))?;
        upload.count(upload.size);
        Ok(())
    }
}

#[async_trait]
impl ArtifactStore for ObjectArtifacts {
    fn uri(&self) -> String {
        self.uri.clone()
    }

    async fn put(&self, upload: Upload<'_>) -> Result<(), ArtifactError> {
        let Some(file) = open_staged(upload.file, upload.path, upload.size)? else {
            return check_delivered(self, &upload).await;
        };
        match upload.size {
            ..=MAX_SINGLE_REQUEST => self.put_whole(upload, file).await,
            _ => self.put_in_parts(upload, file).await,
        }
    }

    async fn list(&self, folder: &ArtifactPath) -> Result<Vec<FileInfo>, ArtifactError> {
        let key = self.key(folder)?;
        let found = self.clients.store.list_with_delimiter(Some(&key)).await;
        let found = found.map_err(|error| self.failed(folder, error))?;
        let mut infos = Vec::new();
        for below in &found.common_prefixes {
            if let Some(path) = self.listed(folder, below)? {
                infos.push(FileInfo { path, size: None });
            }
        }
        for object in &found.objects {
            if let Some(path) = self.listed(folder, &object.location)? {
                let size = Some(object.size);
                infos.push(FileInfo { path, size });
            }
        }
        sort_by_path(&mut infos);
        Ok(infos)
    }

    async fn files(&self, folder: &ArtifactPath) -> Result<Vec<FileInfo>, ArtifactError> {
        let key = self.key(folder)?;
        let objects = self.clients.store.list(Some(&key));
        let infos = objects
            .map_err(|error| self.failed(folder, error))
            .try_filter_map(|object| {
                let path = self.listed(folder, &object.location);
                let size = Some(object.size);
                future::ready(path.map(|path| path.map(|path| FileInfo { path, size })))
            })
            .try_collect::<Vec<_>>();
        let mut infos = infos.await?;
        sort_by_path(&mut infos);
        Ok(infos)
    }

    async fn head(&self, path: &ArtifactPath) -> Result<FileState, ArtifactError> {
        let meta = self.clients.store.head(&self.key(path)?).await;
        let meta = meta.map_err(|error| self.failed(path, error))?;
        Ok(FileState {
            size: meta.size,
            version: meta.e_tag,
            modified: Some(meta.last_modified.timestamp_millis()),
        })
    }

    async fn checksum(
        &self,
        path: &ArtifactPath,
        version: Option<&str>,
    ) -> Result<Option<Checksum>, ArtifactError> {
        let options = GetOptions {
            head: true,
            if_match: version.map(str::to_owned),
            ..GetOptions::default()
        };
        let found = self.get(path, options).await?;
        Ok(found.extensions.get::<Checksum>().cloned())
    }

    async fn read(
        &self,
        path: &ArtifactPath,
        range: Option<Range<u64>>,
        version: Option<&str>,
    ) -> Result<Content, ArtifactError> {
        let is_whole = range.is_none();
        let options = GetOptions {
            range: range.map(GetRange::Bounded),
            if_match: version.map(str::to_owned),
            ..GetOptions::default()
        };
        let found = self.get(path, options).await?;
        let checksum = found.extensions.get::<Checksum>().filter(|_| is_whole);
        let checksum = checksum.cloned();
        let (store, artifact) = (self.uri.clone(), path.as_str().to_owned());
        let content = found
            .into_stream()
            .map_err(move |error| ArtifactError::Object {
                artifact: artifact.clone(),
                store: store.clone(),
                source: Box::new(error.into()),
            });
        match checksum {
            Some(checksum) => {
                let (store, path) = (self.uri.clone(), path.clone());
                let damaged = move |reason| damaged(store, &path, reason);
                Ok(checksum.compared(content, damaged).boxed())
            }
            None => Ok(content.boxed()),
        }
    }

    async fn delete(&self, path: &ArtifactPath) -> Result<(), ArtifactError> {
        match self.clients.store.delete(&self.key(path)?).await {
            Err(error) if is_missing(&error) => Ok(()),
            deleted => deleted.map_err(|error| self.failed(path, error)),
        }
    }

    async fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>, ArtifactError> {
        self.list_unfinished_uploads().await
    }

    async fn abort_upload(&self, upload: &UnfinishedUpload) -> Result<(), ArtifactError> {
        let key = self.key(&upload.path)?;
        match self.clients.store.abort_multipart(&key, &upload.id).await {
            Err(error) if is_missing(&error) => Ok(()),
            aborted => match aborted.map_err(|error| self.part_failed(&upload.path, error)) {
                Err(ArtifactError::Object { source, .. })
                    if matches!(*source, ObjectFailure::UploadGone(_)) =>
                {
                    Ok(())
                }
                aborted => aborted,
            },
        }
    }
}

/// Reads a part of the file of an upload.
pub(crate) async fn read(
    upload: Upload<'_>,
    file: File,
    range: Range<u64>,
    buffers: &Buffers,
) -> Result<Bytes, ArtifactError> {
    let read = buffers.read(Arc::new(file), range).await;
    read.map_err(|source| ArtifactError::Io {
        artifact: upload.path.as_str().to_owned(),
        target: upload.file.to_owned(),
        source,
    })
}
