//! The store in a bucket of S3, Google or Azure.

use std::{fs::File, ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, future};
use object_store::{
    Attribute, Attributes, BackoffConfig, ClientOptions, GetOptions, GetRange, GetResult,
    ObjectStore, ObjectStoreExt, PutOptions, PutPayload, RetryConfig,
    aws::AmazonS3Builder,
    azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder,
    multipart::MultipartStore,
    path::{Error as PathError, Path as Key},
};
use reqwest::header::HeaderMap;

use super::{
    connector::Connector,
    credentials::Credentials,
    failure::{ObjectFailure, missing},
    s3::{alike, headers, s3_builder, with_checksums_that_add_up},
    unfinished::Listing,
};
use crate::{
    artifacts::{
        buffers::Buffers,
        checksum::Checksum,
        error::{ArtifactError, damaged},
        store::{ArtifactStore, Content, FileInfo, FileState, Unfinished, Upload, gone, staged},
    },
    config::{
        s3::{S3Access, S3Config},
        uri::{Cloud, ObjectUri},
    },
    mlflow::{artifact_path::ArtifactPath, invalid::Invalid},
};

/// Files up to this length are sent in one request.
const WHOLE: u64 = 16 << 20;

/// A store with both ways of writing to it.
pub(crate) trait Objects: ObjectStore + MultipartStore {}
impl<T: ObjectStore + MultipartStore> Objects for T {}

/// Access for uploads in parts whose checksums add up to that of the whole file.
#[derive(Debug)]
pub(crate) struct FullObjectCrc64 {
    /// The store with the headers for new objects.
    pub(crate) creating: Arc<dyn Objects>,
    pub(crate) parts: Arc<dyn Objects>,
    /// Key under which the process remembers that a store does not know such checksums.
    pub(crate) place: String,
}

/// The objects of a bucket whose keys begin with a prefix.
#[derive(Debug)]
pub(crate) struct ObjectArtifacts {
    pub(crate) store: Arc<dyn Objects>,
    /// The same store, which also requests checksums: a user with write access only may not be allowed to see them.
    reading: Arc<dyn Objects>,
    /// The same store with the headers for new objects.
    pub(crate) creating: Arc<dyn Objects>,
    pub(crate) full_object: Option<FullObjectCrc64>,
    pub(crate) prefix: String,
    pub(crate) uri: String,
    content_type: Option<String>,
    /// False where an upload in parts cannot set the content type (Azure).
    pub(crate) types_of_parts: bool,
    /// Access to the list of unfinished uploads, where the store has one.
    pub(crate) listing: Option<Listing>,
}

impl ObjectArtifacts {
    /// Opens the store of a URI. Sends no request yet.
    ///
    /// # Errors
    /// [`Invalid::Setting`] for invalid values in the settings or the environment.
    pub(crate) fn open(place: &ObjectUri, s3: &S3Config) -> Result<Self, Invalid> {
        let refuse = |reason: String| Invalid::setting("artifact URI", place.as_str(), reason);
        let not_built = |error: object_store::Error| refuse(error.to_string());
        let (mut content_type, mut listing, mut full_object) = (None, None, None);
        type Stores = [Arc<dyn Objects>; 3];
        let [store, reading, creating]: Stores = match place.cloud {
            Cloud::S3 => {
                let access = S3Access::new(s3)?;
                let connector = Connector::new(access.insecure_tls, access.ca_bundle.as_deref());
                let connector = connector.map_err(refuse)?;
                let all = headers(
                    access
                        .bucket_owner
                        .iter()
                        .map(|owner| ("x-amz-expected-bucket-owner", owner.as_str())),
                )
                .map_err(refuse)?;
                let build = |headers: HeaderMap| {
                    s3_builder(place, &access, &connector)
                        .with_client_options(ClientOptions::new().with_default_headers(headers))
                };
                let store = build(all.clone()).build().map_err(not_built)?;
                let credentials = Credentials::wrap(store.credentials());
                let with_credentials = |builder: AmazonS3Builder| {
                    builder.with_credentials(Arc::clone(&credentials)).build()
                };
                let store = with_credentials(build(all.clone())).map_err(not_built)?;
                let mut of_new = headers(
                    access
                        .upload_headers
                        .iter()
                        .map(|(name, value)| (name.as_str(), value.as_str())),
                )
                .map_err(refuse)?;
                of_new.extend(all.clone());
                let sum = |headers: &HeaderMap| {
                    let builder = build(headers.clone());
                    with_credentials(with_checksums_that_add_up(builder, access.insecure_tls))
                };
                let endpoint = access.endpoint_url.as_deref().unwrap_or_default();
                full_object = Some(FullObjectCrc64 {
                    creating: Arc::new(sum(&of_new).map_err(not_built)?),
                    parts: Arc::new(sum(&all).map_err(not_built)?),
                    place: format!("{endpoint} {}", place.bucket),
                });
                let creating = with_credentials(build(of_new)).map_err(not_built)?;
                let mut of_reads = all.clone();
                of_reads.extend(
                    headers([("x-amz-checksum-mode", "ENABLED")].into_iter()).map_err(refuse)?,
                );
                let reading = with_credentials(build(of_reads)).map_err(not_built)?;
                content_type = access.content_type;
                let is_beside_aws = access.endpoint_url.is_some();
                let asking = Listing::new(&store, &connector, all, is_beside_aws);
                listing = Some(asking.map_err(not_built)?);
                [Arc::new(store), Arc::new(reading), Arc::new(creating)]
            }
            Cloud::Google => {
                let store = GoogleCloudStorageBuilder::from_env()
                    .with_bucket_name(&place.bucket)
                    .with_retry(retries())
                    .with_http_connector(Connector::new(false, None).map_err(refuse)?)
                    .build()
                    .map_err(not_built)?;
                alike(store)
            }
            Cloud::Azure => {
                let store = MicrosoftAzureBuilder::from_env()
                    .with_account(place.account.as_deref().unwrap_or_default())
                    .with_container_name(&place.bucket)
                    .with_retry(retries())
                    .with_http_connector(Connector::new(false, None).map_err(refuse)?)
                    .build()
                    .map_err(not_built)?;
                alike(store)
            }
        };
        Ok(Self {
            store,
            reading,
            creating,
            full_object,
            prefix: place.prefix.clone(),
            uri: place.as_str().to_owned(),
            content_type,
            types_of_parts: place.cloud != Cloud::Azure,
            listing,
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
        if missing(&error) {
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
        let found = self.reading.get_opts(&self.key(path)?, options).await;
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
        let content_type = self.content_type.as_deref().or_else(guessed);
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
        let Some(file) = staged(upload.file, upload.path, upload.size)? else {
            return gone(self, &upload).await;
        };
        match upload.size {
            ..=WHOLE => self.put_whole(upload, file).await,
            _ => self.put_in_parts(upload, file).await,
        }
    }

    async fn list(&self, folder: &ArtifactPath) -> Result<Vec<FileInfo>, ArtifactError> {
        let key = self.key(folder)?;
        let found = self.store.list_with_delimiter(Some(&key)).await;
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
        infos.sort_by(|a, b| a.path.as_str().cmp(b.path.as_str()));
        Ok(infos)
    }

    async fn files(&self, folder: &ArtifactPath) -> Result<Vec<FileInfo>, ArtifactError> {
        let key = self.key(folder)?;
        let objects = self.store.list(Some(&key));
        let infos = objects
            .map_err(|error| self.failed(folder, error))
            .try_filter_map(|object| {
                let path = self.listed(folder, &object.location);
                let size = Some(object.size);
                future::ready(path.map(|path| path.map(|path| FileInfo { path, size })))
            })
            .try_collect::<Vec<_>>();
        let mut infos = infos.await?;
        infos.sort_by(|a, b| a.path.as_str().cmp(b.path.as_str()));
        Ok(infos)
    }

    async fn head(&self, path: &ArtifactPath) -> Result<FileState, ArtifactError> {
        let meta = self.store.head(&self.key(path)?).await;
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
                let (store, artifact) = (self.uri.clone(), path.as_str().to_owned());
                let damaged = |reason| ArtifactError::Damaged {
                    artifact,
                    store,
                    reason,
                };
                Ok(checksum.compared(content, damaged).boxed())
            }
            None => Ok(content.boxed()),
        }
    }

    async fn delete(&self, path: &ArtifactPath) -> Result<(), ArtifactError> {
        match self.store.delete(&self.key(path)?).await {
            Err(error) if missing(&error) => Ok(()),
            deleted => deleted.map_err(|error| self.failed(path, error)),
        }
    }

    async fn unfinished(&self) -> Result<Vec<Unfinished>, ArtifactError> {
        self.uploads_not_finished().await
    }

    async fn give_up(&self, upload: &Unfinished) -> Result<(), ArtifactError> {
        let key = self.key(&upload.path)?;
        match self.store.abort_multipart(&key, &upload.id).await {
            Err(error) if missing(&error) => Ok(()),
            given_up => match given_up.map_err(|error| self.part_failed(&upload.path, error)) {
                Err(ArtifactError::Object { source, .. })
                    if matches!(*source, ObjectFailure::PartsGone(_)) =>
                {
                    Ok(())
                }
                given_up => given_up,
            },
        }
    }
}

/// Returns the settings for immediate retries: a request is tried again a few times. If that is not enough, the courier
/// retries and tells the user.
pub(crate) fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            ..BackoffConfig::default()
        },
        max_retries: 3,
        retry_timeout: Duration::from_secs(10),
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
