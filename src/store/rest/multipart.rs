//! Uploads of long files directly to the store behind the server: for each part the server returns a presigned URL of
//! the store, as it does for stock MLflow's client.
//!
//! Anybody that has such a URL may write, so no URL gets into an error. The credentials of the server are sent to the
//! server only.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    fs::File,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest::{
    Body, Method, StatusCode,
    header::{CONTENT_LENGTH, ETAG},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{
    client::{Client, InternalError, RequestError, describe, retry_after, with_json},
    presigned_url::{
        MultipartUploadCredential, PresignedUrl, presigned_urls, without_presigned_urls,
    },
};
use crate::{
    artifacts::{
        buffers::pieces,
        object::connector::http_client,
        parts::{FileStamp, PartLayout, send_parts},
    },
    config::server::PartsAccess,
    store::error::{Cause, StoreError},
};

/// Number of bytes of a part that are in memory at a time, before the connection takes them.
pub(crate) const PIECE: u64 = 1 << 20;
/// Number of parts that are sent at a time, of all files together.
const TOGETHER: usize = 8;
/// Size of the largest part that S3 takes.
const MAX_PART_SIZE: u64 = 5 << 30;
/// Longest time for the answer of a server to the query for its features.
const INFO_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for which an upload can be continued: MLflow's URLs are valid for an hour, and new URLs may lead to another
/// upload.
const URL_LIFETIME: Duration = Duration::from_secs(3600);
/// Number of failed direct uploads of a file after which the file is sent through the server, which may succeed where
/// the direct upload fails.
const MAX_FAILED_UPLOADS: u32 = 2;
const ADVICE: &str = "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD=false has files go through the server";

/// The uploads in parts of one server.
#[derive(Debug)]
pub(crate) struct MultipartUploads {
    access: PartsAccess,
    room: Semaphore,
    /// Uploads that the store cannot continue at present, by the paths of their files. They are never written to a
    /// disk, as they have presigned URLs.
    interrupted: Mutex<HashMap<String, PresignedUpload>>,
    /// Number of failed uploads of a file, by the path of the file.
    failed_uploads: Mutex<HashMap<String, u32>>,
}

impl MultipartUploads {
    pub(crate) fn new(access: PartsAccess) -> Self {
        Self {
            access,
            room: Semaphore::new(TOGETHER),
            interrupted: Mutex::default(),
            failed_uploads: Mutex::default(),
        }
    }

    fn failed_uploads(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        self.failed_uploads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn interrupted(&self) -> MutexGuard<'_, HashMap<String, PresignedUpload>> {
        self.interrupted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// An upload to presigned URLs, with the parts that were sent.
struct PresignedUpload {
    file: FileStamp,
    begun: Instant,
    id: String,
    layout: PartLayout,
    /// The URLs of all parts, in their order.
    urls: Vec<PresignedUrl>,
    /// ETags of the parts that were sent, by number from 0.
    etags: BTreeMap<u64, String>,
    /// True where the store no longer knows the upload, or its URLs are no longer valid.
    is_over: AtomicBool,
}

impl PresignedUpload {
    fn missing_parts(&self) -> Vec<u64> {
        let all = 0..self.layout.count();
        all.filter(|part| !self.etags.contains_key(part)).collect()
    }

    /// Returns true where the upload can be continued. Its completion needs no URL.
    fn can_continue(&self) -> bool {
        let is_whole = self.etags.len() == self.urls.len();
        !self.is_over.load(Ordering::Relaxed) && (is_whole || self.begun.elapsed() < URL_LIFETIME)
    }
}

impl fmt::Debug for PresignedUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresignedUpload")
    }
}

#[derive(Deserialize)]
struct ServerInfo {
    #[serde(default)]
    multipart_uploads_enabled: bool,
}

/// The server's answer to the creation of an upload. It has no `Debug`, as it has presigned URLs.
#[derive(Deserialize)]
struct CreatedUpload {
    upload_id: Option<String>,
    #[serde(default)]
    credentials: Vec<MultipartUploadCredential>,
}

impl Client {
    /// Returns true where a file of this length is sent in parts, by the setting of the user, else of the server.
    async fn sends_in_parts(&self, size: u64) -> bool {
        let access = &self.multipart().access;
        if size == 0 || size < access.from {
            return false;
        }
        match access.enabled {
            Some(enabled) => enabled,
            None => self
                .info()
                .await
                .is_ok_and(|info| info.multipart_uploads_enabled),
        }
    }

    async fn info(&self) -> Result<ServerInfo, RequestError> {
        let request = self.authorised(Method::GET, self.url("api/3.0/mlflow/server-info")?);
        self.send(request.timeout(INFO_TIMEOUT)).await
    }

    /// Sends a file in parts; returns false where the file must be sent through the server.
    pub(crate) async fn put_in_parts(
        &self,
        path: &str,
        file: &Arc<File>,
        size: u64,
        sent: &AtomicU64,
    ) -> Result<bool, RequestError> {
        // The server names an upload by a folder and the name of a file in the folder.
        let Some((folder, name)) = path.rsplit_once('/') else {
            return Ok(false);
        };
        let stamp = FileStamp::of(file, size);
        let earlier = self.multipart().interrupted().remove(path);
        let is_new = !matches!(&earlier, Some(it) if it.file == stamp && it.can_continue());
        let mut upload = match earlier {
            Some(earlier) if !is_new => earlier,
            earlier => {
                if let Some(other) = earlier {
                    self.abort_or_keep(path, other).await?;
                }
                let failed_uploads = self.multipart().failed_uploads().get(path).copied();
                if failed_uploads >= Some(MAX_FAILED_UPLOADS) || !self.sends_in_parts(size).await {
                    return Ok(false);
                }
                match self.new_upload(folder, name, stamp).await? {
                    Some(upload) => upload,
                    None => return Ok(false),
                }
            }
        };
        let failure = match self.send_missing_parts(&mut upload, file, sent).await {
            Ok(()) if FileStamp::of(file, size) != stamp => {
                let changed = "the file has changed while it was sent: it is sent anew";
                self.abort_or_keep(path, upload).await?;
                return Err(self.unavailable(changed.into()));
            }
            Ok(()) => match self.complete(folder, name, &upload).await {
                Ok(()) => {
                    self.multipart().failed_uploads().remove(path);
                    return Ok(true);
                }
                Err(failure) => failure,
            },
            Err(failure) => failure,
        };
        if is_away(&failure) && !upload.is_over.load(Ordering::Relaxed) {
            // The parts that have arrived stay in the store for the next attempt.
            self.multipart()
                .interrupted()
                .insert(path.to_owned(), upload);
            return Err(failure);
        }
        let is_refused = matches!(&failure, RequestError::Store(StoreError::Refused { .. }));
        // URLs that were not valid for long enough will not be on the next attempt either.
        let is_slow = is_new && upload.begun.elapsed() >= URL_LIFETIME;
        *self
            .multipart()
            .failed_uploads()
            .entry(path.to_owned())
            .or_default() += 1;
        self.abort_or_keep(path, upload).await?;
        if is_refused || is_slow {
            sent.store(0, Ordering::Relaxed);
            Ok(false)
        } else {
            Err(failure)
        }
    }

    /// Aborts an upload: the user would have to pay for the parts that have arrived. Where the server cannot be
    /// reached, the upload is kept, and aborted on the next attempt.
    async fn abort_or_keep(&self, path: &str, upload: PresignedUpload) -> Result<(), RequestError> {
        let (folder, name) = path.rsplit_once('/').unwrap_or_default();
        match self.abort(folder, name, &upload.id).await {
            Err(failure) if is_away(&failure) => {
                upload.is_over.store(true, Ordering::Relaxed);
                self.multipart()
                    .interrupted()
                    .insert(path.to_owned(), upload);
                Err(failure)
            }
            // The store's own rules delete an upload that could not be aborted.
            _ => Ok(()),
        }
    }

    /// Begins an upload; returns `None` where the server cannot take uploads in parts.
    async fn new_upload(
        &self,
        folder: &str,
        name: &str,
        file: FileStamp,
    ) -> Result<Option<PresignedUpload>, RequestError> {
        let part_size = self.multipart().access.length.min(MAX_PART_SIZE);
        let layout = PartLayout::new(file.size, part_size);
        let count = layout.count();
        let Some(created) = self.create_upload(folder, name, count).await? else {
            return Ok(None);
        };
        // Uploads without an id, as to Azure, share their parts: two processes would mix the parts of their uploads.
        let Some(id) = created.upload_id else {
            return Ok(None);
        };
        match presigned_urls(created.credentials, count) {
            Ok(urls) => Ok(Some(PresignedUpload {
                file,
                begun: Instant::now(),
                id,
                layout,
                urls,
                etags: BTreeMap::new(),
                is_over: AtomicBool::new(false),
            })),
            Err(reason) => {
                let _ = self.abort(folder, name, &id).await;
                Err(self.odd(&reason))
            }
        }
    }

    async fn complete(
        &self,
        folder: &str,
        name: &str,
        upload: &PresignedUpload,
    ) -> Result<(), RequestError> {
        let parts = (0..).zip(&upload.urls).map(|(part, url)| {
            let etag = upload.etags.get(&part);
            json!({"part_number": url.number, "etag": etag, "url": url.url.as_str()})
        });
        let parts: Vec<Value> = parts.collect();
        let body = json!({"path": name, "upload_id": upload.id, "parts": parts});
        // The store joins the parts before it answers.
        let timeout = self.timeout_for(upload.file.size);
        self.end_upload("complete", folder, &body, timeout).await
    }

    async fn abort(&self, folder: &str, name: &str, id: &str) -> Result<(), RequestError> {
        let body = json!({"path": name, "upload_id": id});
        self.end_upload("abort", folder, &body, self.timeout_for(0))
            .await
    }

    /// Creates an upload; returns `None` where the server cannot take uploads in parts.
    async fn create_upload(
        &self,
        folder: &str,
        name: &str,
        count: u64,
    ) -> Result<Option<CreatedUpload>, RequestError> {
        let url = self.artifact_url("mpu/create", folder)?;
        let body = json!({"path": name, "num_parts": count});
        let request = with_json(self.authorised(Method::POST, url), &body);
        let response = self.execute(request).await?;
        match response.status() {
            // The store takes no parts, or the server is older than uploads in parts. A server that may not sign
            // addresses, as with the credentials of a Google machine, answers 500 only.
            StatusCode::NOT_IMPLEMENTED
            | StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::INTERNAL_SERVER_ERROR => Ok(None),
            status if status.is_success() => {
                let created = self.read(response).await;
                created.map(Some).map_err(without_presigned_urls)
            }
            _ => Err(self.refused(response).await),
        }
    }

    /// Ends an upload: `action` is `complete` or `abort`.
    async fn end_upload(
        &self,
        action: &str,
        folder: &str,
        body: &Value,
        timeout: Duration,
    ) -> Result<(), RequestError> {
        let url = self.artifact_url(&format!("mpu/{action}"), folder)?;
        let request = with_json(self.authorised(Method::POST, url), body).timeout(timeout);
        let ended = self
            .send_with_retries::<serde::de::IgnoredAny>(request)
            .await;
        ended.map(drop).map_err(without_presigned_urls)
    }

    /// Sends the missing parts.
    async fn send_missing_parts(
        &self,
        upload: &mut PresignedUpload,
        file: &Arc<File>,
        sent: &AtomicU64,
    ) -> Result<(), RequestError> {
        let (missing, layout) = (upload.missing_parts(), upload.layout);
        let access = &self.multipart().access;
        let timeout = self.timeout_for(layout.part_size);
        let http = http_client(access.insecure_tls, access.ca_bundle.as_deref(), timeout);
        let http = &http.map_err(|reason| {
            RequestError::Store(StoreError::Open {
                destination: self.base().to_owned(),
                reason,
            })
        })?;
        let there = upload.etags.keys().map(|part| layout.size_of(*part));
        sent.fetch_add(there.sum(), Ordering::Relaxed);
        let (urls, is_over, etags) = (&upload.urls, &upload.is_over, &mut upload.etags);
        let send = |part: u64| async move {
            let url = &urls[part as usize];
            let put = || put_part(http, url, file, layout.range(part), is_over);
            let etag = self.with_retries(put).await?;
            sent.fetch_add(layout.size_of(part), Ordering::Relaxed);
            Ok::<_, RequestError>(etag)
        };
        let add = |part, etag| {
            etags.insert(part, etag);
        };
        send_parts(missing, TOGETHER, &self.multipart().room, send, add).await
    }

    /// Returns the error for an answer that cannot be used.
    fn odd(&self, reason: &str) -> RequestError {
        RequestError::Store(StoreError::Refused {
            destination: self.base().to_owned(),
            source: format!("its answer to an upload in parts cannot be used: {reason}; {ADVICE}")
                .into(),
        })
    }
}

/// Returns true where the server or the store is unavailable for a while, and has not failed with an internal error.
fn is_away(failure: &RequestError) -> bool {
    matches!(failure, RequestError::Store(StoreError::Unavailable { source, .. }) if !source.is::<InternalError>())
}

/// Sends a part, once, and returns its ETag. Sets `is_over` where the upload cannot be continued.
async fn put_part(
    http: &reqwest::Client,
    url: &PresignedUrl,
    file: &Arc<File>,
    range: Range<u64>,
    is_over: &AtomicBool,
) -> Result<String, RequestError> {
    let destination = url.url.origin().ascii_serialization();
    let unavailable = |cause: Cause, retry_after| {
        RequestError::Store(StoreError::Unavailable {
            destination: destination.clone(),
            source: format!("{cause} (part {} of a file; {ADVICE})", url.number).into(),
            retry_after,
        })
    };
    let mut headers = url.headers.clone();
    headers.insert(CONTENT_LENGTH, (range.end - range.start).into());
    let request = http
        .put(url.url.clone())
        .headers(headers)
        .body(Body::wrap_stream(pieces(Arc::clone(file), range, PIECE)));
    let response = request.send().await;
    let response =
        response.map_err(|error| unavailable(describe(error.without_url().into()), None))?;
    match response.status() {
        status if status.is_success() => {
            let etag = response.headers().get(ETAG);
            let etag = etag.and_then(|etag| etag.to_str().ok());
            Ok(etag.unwrap_or_default().to_owned())
        }
        // These statuses do not pass by themselves, and another address would get the same one.
        status
            if status.is_redirection()
                || matches!(status.as_u16(), 405 | 411 | 413 | 414 | 431 | 501) =>
        {
            Err(RequestError::Store(StoreError::Refused {
                destination: destination.clone(),
                source: format!("{status} (part {} of a file; {ADVICE})", url.number).into(),
            }))
        }
        // With other statuses the address is no longer valid or the upload has been deleted; a new upload helps.
        status => {
            let passes = matches!(status.as_u16(), 408 | 425 | 429) || status.is_server_error();
            is_over.fetch_or(!passes, Ordering::Relaxed);
            let retry_after = retry_after(response.headers());
            Err(unavailable(status.to_string().into(), retry_after))
        }
    }
}
