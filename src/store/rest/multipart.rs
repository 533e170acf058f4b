//! Long files go past the server: for each part it hands out an address of the store behind it, as it does for stock
//! MLflow's client.
//!
//! The addresses are signed, so whoever has one may write: none reaches an error. The server's own credentials go to the
//! server alone.

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
    artifacts::{buffers::pieces, object::connector::http_client},
    config::server::PartsAccess,
    store::error::{Cause, StoreError},
};

/// Bytes of a part that are in memory at a time, before the connection has them.
pub(crate) const PIECE: u64 = 1 << 20;
/// Parts on their way at a time, of all files together.
const TOGETHER: usize = 8;
/// As many parts as S3 takes of a file.
const MAX_PARTS: u64 = 10_000;
/// Longest part that S3 takes.
const MAX_LENGTH: u64 = 5 << 30;
/// How long a server may take to say what it can.
const INFO_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an upload is gone on with: MLflow's addresses hold an hour, and new ones may lead elsewhere.
const HOLDS: Duration = Duration::from_secs(3600);
/// Uploads of a file that came to nothing until it goes through the server, which may do what the way past it cannot.
const IN_VAIN: u32 = 2;
const ADVICE: &str = "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD=false has files go through the server";

/// How files are sent in parts.
#[derive(Debug)]
pub(crate) struct Parts {
    access: PartsAccess,
    room: Semaphore,
    /// Uploads that the store cannot go on with at present, by their files' paths. Never on a disk: see above.
    unfinished: Mutex<HashMap<String, Unfinished>>,
    /// How many uploads of a file came to nothing, by its path.
    in_vain: Mutex<HashMap<String, u32>>,
}

impl Parts {
    pub fn new(access: PartsAccess) -> Self {
        Self {
            access,
            room: Semaphore::new(TOGETHER),
            unfinished: Mutex::default(),
            in_vain: Mutex::default(),
        }
    }

    fn in_vain(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        self.in_vain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unfinished(&self) -> MutexGuard<'_, HashMap<String, Unfinished>> {
        self.unfinished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// An upload that has begun, and what of it has arrived.
struct Unfinished {
    of: Version,
    begun: Instant,
    id: String,
    /// Length of a part.
    length: u64,
    places: Vec<Place>,
    /// ETags of parts, by their numbers.
    arrived: Mutex<BTreeMap<u64, String>>,
    /// The store knows it no more, or its addresses do not hold any longer.
    is_over: AtomicBool,
}

impl Unfinished {
    fn arrived(&self) -> MutexGuard<'_, BTreeMap<u64, String>> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it can be gone on with. To complete it needs no address.
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

/// What tells whether a file is still the one of which parts have been sent.
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

/// An upload that the server has begun. Nothing of it can be printed.
#[derive(Deserialize)]
struct Begun {
    upload_id: Option<String>,
    #[serde(default)]
    credentials: Vec<Credential>,
}

impl Client {
    /// Whether a file of that length goes in parts, as far as the user, else the server, says it.
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

    /// Sends a file in parts; false where it is to go through the server.
    pub(crate) async fn put_in_parts(
        &self,
        path: &str,
        file: &Arc<File>,
        size: u64,
        sent: &AtomicU64,
    ) -> Result<bool, Failure> {
        // The server names uploads by a folder and a name in it.
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
                let in_vain = self.parts().in_vain().get(path).copied();
                if in_vain >= Some(IN_VAIN) || !self.sends_in_parts(size).await {
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
                    self.parts().in_vain().remove(path);
                    return Ok(true);
                }
                Err(failure) => failure,
            },
            Err(failure) => failure,
        };
        if is_away(&failure) && !upload.is_over.load(Ordering::Relaxed) {
            // What has arrived stays there for the next attempt.
            self.parts().unfinished().insert(path.to_owned(), upload);
            return Err(failure);
        }
        let is_refused = matches!(&failure, Failure::Store(StoreError::Refused { .. }));
        // Addresses that do not hold as long as it takes will not next time either.
        let is_slow = is_new && upload.begun.elapsed() >= HOLDS;
        *self.parts().in_vain().entry(path.to_owned()).or_default() += 1;
        self.end(path, upload).await?;
        match is_refused || is_slow {
            true => {
                sent.store(0, Ordering::Relaxed);
                Ok(false)
            }
            false => Err(failure),
        }
    }

    /// Has the store forget an upload: what has arrived would be paid for. It is kept until somebody can be told.
    async fn end(&self, path: &str, upload: Unfinished) -> Result<(), Failure> {
        let (folder, name) = path.rsplit_once('/').unwrap_or_default();
        match self.abort(folder, name, &upload.id).await {
            Err(failure) if is_away(&failure) => {
                upload.is_over.store(true, Ordering::Relaxed);
                self.parts().unfinished().insert(path.to_owned(), upload);
                Err(failure)
            }
            // The store's own rules sweep it away.
            _ => Ok(()),
        }
    }

    /// Begins an upload; `None` where the server says that it cannot have it so.
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
        // Uploads without an id, as to Azure, have their parts in common: two processes would mix theirs.
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
        // The store puts the parts together before it answers.
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
            // A store that takes no parts, or a server from before there were any. One that may not sign addresses,
            // as with the credentials of a machine of Google's, says no more than that it has failed.
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

    /// Ends an upload by one of the two ways that there are.
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
        // Those that are on their way when one fails may arrive.
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

    /// An answer that nothing can be done with.
    fn odd(&self, reason: &str) -> Failure {
        Failure::Store(StoreError::Refused {
            destination: self.base().to_owned(),
            source: format!("its answer to an upload in parts cannot be used: {reason}; {ADVICE}")
                .into(),
        })
    }
}

/// Whether somebody is away for a while, rather than at a loss.
fn is_away(failure: &Failure) -> bool {
    matches!(failure, Failure::Store(StoreError::Unavailable { source, .. }) if !source.is::<InternalError>())
}

/// Puts a part, once, and returns its ETag. Says whether the upload `is_over`.
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
        // These do not pass by themselves, and no other address would be treated otherwise.
        status
            if status.is_redirection()
                || matches!(status.as_u16(), 405 | 411 | 413 | 414 | 431 | 501) =>
        {
            Err(Failure::Store(StoreError::Refused {
                destination: destination.clone(),
                source: format!("{status} (part {} of a file; {ADVICE})", place.number).into(),
            }))
        }
        // An address holds for some time, and an upload until somebody sweeps it away: there are new ones then.
        status => {
            let passes = matches!(status.as_u16(), 408 | 425 | 429) || status.is_server_error();
            is_over.fetch_or(!passes, Ordering::Relaxed);
            let retry_after = retry_after(response.headers());
            Err(unavailable(status.to_string().into(), retry_after))
        }
    }
}
