//! The server's proxy of artifacts: `/api/2.0/mlflow-artifacts/`.

use std::{
    fs::File,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use reqwest::{
    Body, Method, StatusCode, Url,
    header::{CONTENT_LENGTH, RANGE},
};
use serde::Deserialize;

use super::{
    client::{Client, InternalError, RequestError, describe},
    multipart::PIECE,
};
use crate::{
    artifacts::{
        buffers::pieces,
        error::ArtifactError,
        store::{
            ArtifactStore, Content, FileInfo, FileState, Upload, check_delivered, open_staged,
            sort_by_path,
        },
    },
    mlflow::artifact_path::ArtifactPath,
    store::error::{Cause, StoreError},
};

#[derive(Deserialize)]
struct ListArtifactsResponse {
    #[serde(default)]
    files: Vec<ListedArtifact>,
}

#[derive(Deserialize)]
struct ListedArtifact {
    path: String,
    #[serde(default)]
    is_dir: bool,
    #[serde(default)]
    file_size: Option<FileSize>,
}

/// A file size. Protobuf's JSON writes whole numbers as texts.
#[derive(Deserialize)]
#[serde(untagged)]
enum FileSize {
    Number(u64),
    Text(String),
}

/// Longest time that a download may take.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 3600);

fn silent_for(timeout: Duration) -> Cause {
    let seconds = timeout.as_secs_f64();
    format!("nothing has come for {seconds} s (MLFLOW_HTTP_REQUEST_TIMEOUT)").into()
}

/// Bytes of the longest name that a disk can have.
const LONGEST_NAME: usize = 255;

/// Converts status 500 for a name that is too long into a refusal. MLflow's server answers 500 for a name that its disk
/// cannot store, on every attempt. A file passes the disk of the server under the last part of its path, whatever store
/// keeps it; the names of its folders need not.
fn named_too_long(path: &str, failure: RequestError) -> RequestError {
    match failure {
        RequestError::Store(StoreError::Unavailable {
            destination,
            source,
            ..
        }) if source.is::<InternalError>()
            && path
                .rsplit('/')
                .next()
                .is_some_and(|name| name.len() > LONGEST_NAME) =>
        {
            let reason = format!("{source}: its name has more than {LONGEST_NAME} bytes");
            RequestError::Store(StoreError::Refused {
                destination,
                source: reason.into(),
            })
        }
        failure => failure,
    }
}

impl Client {
    /// Returns the URL of a path below one of the proxy's services.
    pub(crate) fn artifact_url(&self, service: &str, path: &str) -> Result<Url, RequestError> {
        let mut url = self.url(&format!("api/2.0/mlflow-artifacts/{service}"))?;
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend(path.split('/'));
        }
        Ok(url)
    }

    async fn put_file(
        &self,
        path: &str,
        file: Arc<File>,
        size: u64,
        sent: &AtomicU64,
    ) -> Result<(), RequestError> {
        if self.put_in_parts(path, &file, size, sent).await? {
            return Ok(());
        }
        let request = self
            .authorised(Method::PUT, self.artifact_url("artifacts", path)?)
            .timeout(self.timeout_for(size))
            .header(CONTENT_LENGTH, size)
            .body(Body::wrap_stream(pieces(file, 0..size, PIECE)));
        let put = self.send::<serde::de::IgnoredAny>(request).await;
        put.map_err(|failure| named_too_long(path, failure))?;
        sent.fetch_add(size, Ordering::Relaxed);
        Ok(())
    }

    /// Lists the names in a folder; none where the folder does not exist.
    async fn listed(&self, path: &str) -> Result<Vec<FolderEntry>, RequestError> {
        let mut url = self.url("api/2.0/mlflow-artifacts/artifacts")?;
        url.query_pairs_mut().append_pair("path", path);
        let request = self.authorised(Method::GET, url);
        let listing: ListArtifactsResponse = match self.send_with_retries(request).await {
            Err(failure) if failure.is("RESOURCE_DOES_NOT_EXIST") => return Ok(Vec::new()),
            listing => listing?,
        };
        let listed = listing.files.into_iter().map(|entry| {
            let size = match entry.file_size {
                Some(FileSize::Number(size)) => Some(size),
                Some(FileSize::Text(text)) => text.parse().ok(),
                None => None,
            };
            let size = (!entry.is_dir).then_some(size.unwrap_or(0));
            (entry.path, size)
        });
        Ok(listed.collect())
    }

    /// Deletes a file; a file that does not exist is no error.
    async fn delete_file(&self, path: &str) -> Result<(), RequestError> {
        let url = self.artifact_url("artifacts", path)?;
        let request = self.authorised(Method::DELETE, url);
        match self
            .send_with_retries::<serde::de::IgnoredAny>(request)
            .await
        {
            Err(failure) if !failure.is_not_found() => Err(failure),
            _ => Ok(()),
        }
    }

    async fn file(
        &self,
        path: &str,
        range: Option<Range<u64>>,
    ) -> Result<ResponseBytes, RequestError> {
        let mut request = self.authorised(Method::GET, self.artifact_url("artifacts", path)?);
        if let Some(range) = &range {
            let last = range.end.saturating_sub(1);
            request = request.header(RANGE, format!("bytes={}-{last}", range.start));
        }
        // Only silence ends a download: a long file takes a long time.
        let timeout = self.timeout_for(0);
        let response =
            tokio::time::timeout(timeout, self.execute_ok(request.timeout(DOWNLOAD_TIMEOUT))).await;
        let response = response.unwrap_or_else(|_| Err(self.unavailable(silent_for(timeout))))?;
        // A server that ignores the range sends the whole file: this code cuts the range out.
        let (skip, take) = match range {
            Some(range) if response.status() != StatusCode::PARTIAL_CONTENT => {
                (range.start, range.end - range.start)
            }
            Some(range) => (0, range.end - range.start),
            None => (0, u64::MAX),
        };
        let base = self.base().to_owned();
        let bytes = stream::try_unfold(response, move |mut response| {
            let base = base.clone();
            async move {
                let failed = |source: Cause| StoreError::Unavailable {
                    destination: base,
                    source,
                    retry_after: None,
                };
                match tokio::time::timeout(timeout, response.chunk()).await {
                    Ok(Ok(chunk)) => Ok(chunk.map(|chunk| (chunk, response))),
                    Ok(Err(error)) => Err(failed(describe(error.without_url().into()))),
                    Err(_) => Err(failed(silent_for(timeout))),
                }
            }
        });
        let cut = bytes.scan((skip, take), |(skip, take), chunk| {
            let chunk = chunk.map(|mut chunk| {
                let skipped = (*skip).min(chunk.len() as u64);
                *skip -= skipped;
                chunk = chunk.slice(skipped as usize..);
                let taken = (*take).min(chunk.len() as u64);
                *take -= taken;
                chunk.slice(..taken as usize)
            });
            let is_over =
                *skip == 0 && matches!(&chunk, Ok(chunk) if chunk.is_empty() && *take == 0);
            std::future::ready((!is_over).then_some(chunk))
        });
        Ok(cut.boxed())
    }
}

/// A name in a folder of the server, and the length of the file; a folder has none.
type FolderEntry = (String, Option<u64>);

/// Stream of the bytes that a server sends.
type ResponseBytes = BoxStream<'static, Result<Bytes, StoreError>>;

/// The folder of a run's artifacts among the artifacts that a tracking server keeps for its clients
/// (`mlflow-artifacts:`).
#[derive(Debug)]
pub(crate) struct ProxyArtifacts {
    client: Arc<Client>,
    root: String,
}

impl ProxyArtifacts {
    /// Returns the store of a folder, by its path at the server.
    pub(crate) fn new(client: Arc<Client>, root: &str) -> Self {
        let root = root.trim_matches('/').to_owned();
        Self { client, root }
    }

    fn at(&self, path: &ArtifactPath) -> String {
        match (self.root.as_str(), path.as_str()) {
            ("", path) => path.to_owned(),
            (root, "") => root.to_owned(),
            (root, path) => format!("{root}/{path}"),
        }
    }

    /// Deletes files and folders, one after the other.
    async fn delete_each(&self, infos: Vec<FileInfo>) -> Result<(), ArtifactError> {
        for info in infos {
            self.delete(&info.path).await?;
        }
        Ok(())
    }

    fn failed(&self, path: &ArtifactPath, failure: RequestError) -> ArtifactError {
        match self.client.error(failure) {
            StoreError::NotFound { .. } => ArtifactError::NotFound {
                artifact: path.as_str().to_owned(),
                store: self.uri(),
            },
            error => refused(path, error),
        }
    }
}

fn refused(path: &ArtifactPath, error: StoreError) -> ArtifactError {
    ArtifactError::Server {
        artifact: path.as_str().to_owned(),
        is_transient: error.is_transient(),
        retry_after: error.retry_after(),
        source: error.into(),
    }
}

#[async_trait]
impl ArtifactStore for ProxyArtifacts {
    fn uri(&self) -> String {
        format!("mlflow-artifacts:/{}", self.root)
    }

    async fn put(&self, upload: Upload<'_>) -> Result<(), ArtifactError> {
        let Some(file) = open_staged(upload.file, upload.path, upload.size)? else {
            return check_delivered(self, &upload).await;
        };
        let target = self.at(upload.path);
        let put = self
            .client
            .put_file(&target, Arc::new(file), upload.size, upload.sent)
            .await;
        put.map_err(|failure| self.failed(upload.path, failure))
    }

    async fn list(&self, folder: &ArtifactPath) -> Result<Vec<FileInfo>, ArtifactError> {
        let listed = self.client.listed(&self.at(folder)).await;
        let listed = listed.map_err(|failure| self.failed(folder, failure))?;
        let mut infos = Vec::with_capacity(listed.len());
        for (name, size) in listed {
            // A name must be one part of a path: with a slash it would lead to another folder.
            let path = (!name.contains('/') && !name.is_empty()).then(|| folder.join(&name));
            let Some(Ok(path)) = path else {
                let store = self.uri();
                return Err(ArtifactError::BadName { name, store });
            };
            infos.push(FileInfo { path, size });
        }
        sort_by_path(&mut infos);
        Ok(infos)
    }

    async fn head(&self, path: &ArtifactPath) -> Result<FileState, ArtifactError> {
        let found = self.list(&path.folder()).await?;
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
        let sent = self.client.file(&self.at(path), range).await;
        let sent = sent.map_err(|failure| self.failed(path, failure))?;
        let path = path.clone();
        Ok(sent.map_err(move |error| refused(&path, error)).boxed())
    }

    async fn delete(&self, path: &ArtifactPath) -> Result<(), ArtifactError> {
        let deleted = self.client.delete_file(&self.at(path)).await;
        deleted.map_err(|failure| self.failed(path, failure))
    }

    async fn delete_tree(&self, path: &ArtifactPath) -> Result<(), ArtifactError> {
        if *path == ArtifactPath::root() {
            return self.delete_each(self.list(path).await?).await;
        }
        let siblings = self.list(&path.folder()).await?;
        let Some(found) = siblings.iter().find(|info| info.path == *path) else {
            return Ok(());
        };
        // Servers before MLflow 3.17 delete in object stores whatever has a key that begins with the path.
        let begins_alike =
            |info: &FileInfo| info != found && info.path.as_str().starts_with(path.as_str());
        match siblings.iter().find(|info| begins_alike(info)) {
            None => self.delete(path).await,
            Some(_) if found.size.is_none() => self.delete_each(self.files(path).await?).await,
            Some(other) => {
                let reason = format!(
                    "servers before MLflow 3.17 would delete {:?} as well, whose name begins alike",
                    other.path.as_str()
                );
                Err(ArtifactError::Server {
                    artifact: path.as_str().to_owned(),
                    source: reason.into(),
                    is_transient: false,
                    retry_after: None,
                })
            }
        }
    }
}
