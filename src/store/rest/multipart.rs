//! Uploads of long files directly to the store behind the server: for each part the server returns an address of the
//! store, as it does for stock MLflow's client.
//!
//! The addresses are signed, so anybody that has an address may write: no address gets into an error. The credentials
//! of the server are sent to the server only.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    fs::File,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use futures_util::{StreamExt, stream};
use reqwest::{
    Body, Method, StatusCode,
    header::{CONTENT_LENGTH, ETAG},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{
    client::{Client, Failure, InternalError, describe, retry_after, with_json},
    signed_address::{Credential, Place, places, without_addresses},
};
use crate::{
    artifacts::{
        buffers::pieces,
        object::{connector::http_client, multipart::MAX_PARTS},
    },
    config::server::PartsAccess,
    store::error::{Cause, StoreError},
};

/// Number of bytes of a part that are in memory at a time, before the connection takes them.
pub(crate) const PIECE: u64 = 1 << 20;
/// Number of parts that are sent at a time, of all files together.
const TOGETHER: usize = 8;
/// Length of the longest part that S3 takes.
const MAX_LENGTH: u64 = 5 << 30;
/// Longest time for the answer of a server to the query for its features.
const INFO_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for which an upload can be continued: MLflow's addresses are valid for an hour, and new addresses may lead
/// to another upload.
const HOLDS: Duration = Duration::from_secs(3600);
/// Number of failed direct uploads of a file after which the file is sent through the server, which may succeed where
/// the direct upload fails.
const MAX_FAILED_UPLOADS: u32 = 2;
const ADVICE: &str = "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD=false has files go through the server";

/// The state of uploads in parts.
#[derive(Debug)]
pub(crate) struct Parts {
    access: PartsAccess,
    room: Semaphore,
    /// Uploads that the store cannot continue at present, by the paths of their files. They are never written to a
    /// disk, as they have signed addresses.
    unfinished: Mutex<HashMap<String, Unfinished>>,
    /// Number of failed uploads of a file, by the path of the file.
    failed_uploads: Mutex<HashMap<String, u32>>,
}

impl Parts {
    pub(crate) fn new(access: PartsAccess) -> Self {
        Self {
            access,
            room: Semaphore::new(TOGETHER),
            unfinished: Mutex::default(),
            failed_uploads: Mutex::default(),
        }
    }

    fn failed_uploads(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        self.failed_uploads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn unfinished(&self) -> MutexGuard<'_, HashMap<String, Unfinished>> {
        self.unfinished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// An upload that has begun, with the parts that have arrived.
struct Unfinished {
    of: Version,
    begun: Instant,
    id: String,
    /// Length of a part.
    length: u64,
    places: Vec<Place>,
    /// ETags of the parts that have arrived, by number.
    arrived: Mutex<BTreeMap<u64, String>>,
    /// True where the store no longer knows the upload, or its addresses are no longer valid.
    is_over: AtomicBool,
}

impl Unfinished {
    fn arrived(&self) -> MutexGuard<'_, BTreeMap<u64, String>> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns true where the upload can be continued. Its completion needs no address.
    fn holds(&self) -> bool {
        let is_whole = self.arrived().len() == self.places.len();
        !self.is_over.load(Ordering::Relaxed) && (is_whole || self.begun.elapsed() < HOLDS)
    }

    fn range(&self, number: u64) -> Range<u64> {
        let start = (number - 1) * self.length;
        start..self.of.size.min(start + self.length)
    }

    fn length_of(&self, number: u64) -> u64 {
        let range = self.range(number);
        range.end - range.start
    }
}

impl fmt::Debug for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unfinished")
    }
}

/// Size and time of a file, by which a change since the first part is noticed.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version {
    size: u64,
    modified: Option<SystemTime>,
}

impl Version {
    fn now(file: &File, size: u64) -> Self {
        let modified = file.metadata().and_then(|metadata| metadata.modified());
        Self {
            size,
            modified: modified.ok(),
        }
    }
}

#[derive(Deserialize)]
struct ServerInfo {
    #[serde(default)]
    multipart_uploads_enabled: bool,
}

/// An upload that the server has begun. It has no `Debug`, as it has signed addresses.
#[derive(Deserialize)]
struct Begun {
    upload_id: Option<String>,
    #[serde(default)]
    credentials: Vec<Credential>,
}

impl Client {
    /// Returns true where a file of this length is sent in parts, by the setting of the user, else of the server.
    async fn sends_in_parts(&self, size: u64) -> bool {
        let access = &self.parts().access;
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

    async fn info(&self) -> Result<ServerInfo, Failure> {
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
    ) -> Result<bool, Failure> {
        // The server names an upload by a folder and the name of a file in the folder.
        let Some((folder, name)) = path.rsplit_once('/') else {
            return Ok(false);
        };
        let of = Version::now(file, size);
        let kept = self.parts().unfinished().remove(path);
        let is_new = !matches!(&kept, Some(kept) if kept.of == of && kept.holds());
        let upload = match kept {
            Some(kept) if !is_new => kept,
            kept => {
                if let Some(other) = kept {
                    self.end(path, other).await?;
                }
                let failed_uploads = self.parts().failed_uploads().get(path).copied();
                if failed_uploads >= Some(MAX_FAILED_UPLOADS) || !self.sends_in_parts(size).await {
                    return Ok(false);
                }
                match self.new_upload(folder, name, of).await? {
                    Some(begun) => begun,
                    None => return Ok(false),
                }
            }
        };
        let failure = match self.send_parts(&upload, file, sent).await {
            Ok(()) if Version::now(file, size) != of => {
                let changed = "the file has changed while it was sent: it is sent anew";
                self.end(path, upload).await?;
                return Err(self.unavailable(changed.into()));
            }
            Ok(()) => match self.complete(folder, name, &upload).await {
                Ok(()) => {
                    self.parts().failed_uploads().remove(path);
                    return Ok(true);
                }
                Err(failure) => failure,
            },
            Err(failure) => failure,
        };
        if is_away(&failure) && !upload.is_over.load(Ordering::Relaxed) {
            // The parts that have arrived stay in the store for the next attempt.
            self.parts().unfinished().insert(path.to_owned(), upload);
            return Err(failure);
        }
        let is_refused = matches!(&failure, Failure::Store(StoreError::Refused { .. }));
        // Addresses that were not valid for long enough will not be on the next attempt either.
        let is_slow = is_new && upload.begun.elapsed() >= HOLDS;
        *self
            .parts()
            .failed_uploads()
            .entry(path.to_owned())
            .or_default() += 1;
        self.end(path, upload).await?;
        if is_refused || is_slow {
            sent.store(0, Ordering::Relaxed);
            Ok(false)
        } else {
            Err(failure)
        }
    }

    /// Aborts an upload: the user would have to pay for the parts that have arrived. Where the server cannot be
    /// reached, the upload is kept, and aborted on the next attempt.
    async fn end(&self, path: &str, upload: Unfinished) -> Result<(), Failure> {
        let (folder, name) = path.rsplit_once('/').unwrap_or_default();
        match self.abort(folder, name, &upload.id).await {
            Err(failure) if is_away(&failure) => {
                upload.is_over.store(true, Ordering::Relaxed);
                self.parts().unfinished().insert(path.to_owned(), upload);
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
        of: Version,
    ) -> Result<Option<Unfinished>, Failure> {
        let length = self.parts().access.length.min(MAX_LENGTH);
        let length = length.max(of.size.div_ceil(MAX_PARTS));
        let count = of.size.div_ceil(length);
        let Some(begun) = self.begin(folder, name, count).await? else {
            return Ok(None);
        };
        // Uploads without an id, as to Azure, share their parts: two processes would mix the parts of their uploads.
        let Some(id) = begun.upload_id else {
            return Ok(None);
        };
        match places(begun.credentials, count) {
            Ok(places) => Ok(Some(Unfinished {
                of,
                begun: Instant::now(),
                id,
                length,
                places,
                arrived: Mutex::default(),
                is_over: AtomicBool::new(false),
            })),
            Err(reason) => {
                let _ = self.abort(folder, name, &id).await;
                Err(self.odd(&reason))
            }
        }
    }

    async fn complete(&self, folder: &str, name: &str, upload: &Unfinished) -> Result<(), Failure> {
        let parts: Vec<Value> = {
            let arrived = upload.arrived();
            let places = upload.places.iter();
            places
                .map(|place| {
                    let etag = arrived.get(&place.number);
                    json!({"part_number": place.number, "etag": etag, "url": place.url.as_str()})
                })
                .collect()
        };
        let body = json!({"path": name, "upload_id": upload.id, "parts": parts});
        // The store joins the parts before it answers.
        let patience = self.patience(upload.of.size);
        self.of_upload("complete", folder, &body, patience).await
    }

    async fn abort(&self, folder: &str, name: &str, id: &str) -> Result<(), Failure> {
        let body = json!({"path": name, "upload_id": id});
        self.of_upload("abort", folder, &body, self.patience(0))
            .await
    }

    async fn begin(&self, folder: &str, name: &str, count: u64) -> Result<Option<Begun>, Failure> {
        let url = self.artifact_url("mpu/create", folder)?;
        let body = json!({"path": name, "num_parts": count});
        let request = with_json(self.authorised(Method::POST, url), &body);
        let response = self.answer(request).await?;
        match response.status() {
            // The store takes no parts, or the server is older than uploads in parts. A server that may not sign
            // addresses, as with the credentials of a Google machine, answers 500 only.
            StatusCode::NOT_IMPLEMENTED
            | StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::INTERNAL_SERVER_ERROR => Ok(None),
            status if status.is_success() => {
                let begun = self.read(response).await;
                begun.map(Some).map_err(without_addresses)
            }
            _ => Err(self.refused(response).await),
        }
    }

    /// Ends an upload: `way` is `complete` or `abort`.
    async fn of_upload(
        &self,
        way: &str,
        folder: &str,
        body: &Value,
        patience: Duration,
    ) -> Result<(), Failure> {
        let url = self.artifact_url(&format!("mpu/{way}"), folder)?;
        let request = with_json(self.authorised(Method::POST, url), body).timeout(patience);
        let ended = self.send_patiently::<serde::de::IgnoredAny>(request).await;
        ended.map(drop).map_err(without_addresses)
    }

    /// Sends the parts that have not arrived.
    async fn send_parts(
        &self,
        upload: &Unfinished,
        file: &Arc<File>,
        sent: &AtomicU64,
    ) -> Result<(), Failure> {
        let access = &self.parts().access;
        let patience = self.patience(upload.length);
        let http = http_client(access.insecure_tls, access.ca_bundle.as_deref(), patience);
        let http = http.map_err(|reason| {
            Failure::Store(StoreError::Open {
                destination: self.base().to_owned(),
                reason,
            })
        })?;
        let http = &http;
        let arrived: BTreeSet<u64> = upload.arrived().keys().copied().collect();
        let there = arrived.iter().map(|number| upload.length_of(*number));
        sent.fetch_add(there.sum(), Ordering::Relaxed);
        let missing = (0..upload.places.len())
            .filter(|index| !arrived.contains(&upload.places[*index].number));
        // No part is begun after one has failed; parts that are being sent may still arrive.
        let is_away = &AtomicBool::new(false);
        let sent_all: Vec<Result<(), Failure>> = stream::iter(missing)
            .map(|index| async move {
                let place = &upload.places[index];
                let range = upload.range(place.number);
                let _room = self.parts().room.acquire().await;
                if is_away.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let put = || put_part(http, place, file, range.clone(), &upload.is_over);
                let etag = self.patiently(put).await.inspect_err(|_| {
                    is_away.store(true, Ordering::Relaxed);
                })?;
                upload.arrived().insert(place.number, etag);
                sent.fetch_add(upload.length_of(place.number), Ordering::Relaxed);
                Ok(())
            })
            .buffer_unordered(TOGETHER)
            .collect()
            .await;
        sent_all.into_iter().collect()
    }

    /// Returns the error for an answer that cannot be used.
    fn odd(&self, reason: &str) -> Failure {
        Failure::Store(StoreError::Refused {
            destination: self.base().to_owned(),
            source: format!("its answer to an upload in parts cannot be used: {reason}; {ADVICE}")
                .into(),
        })
    }
}

/// Returns true where the server or the store is unavailable for a while, and has not failed with an internal error.
fn is_away(failure: &Failure) -> bool {
    matches!(failure, Failure::Store(StoreError::Unavailable { source, .. }) if !source.is::<InternalError>())
}

/// Sends a part, once, and returns its ETag. Sets `is_over` where the upload cannot be continued.
async fn put_part(
    http: &reqwest::Client,
    place: &Place,
    file: &Arc<File>,
    range: Range<u64>,
    is_over: &AtomicBool,
) -> Result<String, Failure> {
    let destination = place.url.origin().ascii_serialization();
    let unavailable = |cause: Cause, retry_after| {
        Failure::Store(StoreError::Unavailable {
            destination: destination.clone(),
            source: format!("{cause} (part {} of a file; {ADVICE})", place.number).into(),
            retry_after,
        })
    };
    let mut headers = place.headers.clone();
    headers.insert(CONTENT_LENGTH, (range.end - range.start).into());
    let request = http
        .put(place.url.clone())
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
            Err(Failure::Store(StoreError::Refused {
                destination: destination.clone(),
                source: format!("{status} (part {} of a file; {ADVICE})", place.number).into(),
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
