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
use futures_util::{StreamExt, stream};
use reqwest::{
    Body, Method, StatusCode, Url,
    header::{CONTENT_LENGTH, RANGE},
};
use serde::Deserialize;

use super::{
    client::{Client, Failure, InternalError, describe},
    parts::PIECE,
};
use crate::{
    artifacts::{
        pieces,
        proxy::{ArtifactServer, Listed, Sent},
    },
    store::{Cause, StoreError},
};

#[derive(Deserialize)]
struct Listing {
    #[serde(default)]
    files: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    path: String,
    #[serde(default)]
    is_dir: bool,
    #[serde(default)]
    file_size: Option<Size>,
}

/// A whole number, which protobuf's JSON writes as a text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    Number(u64),
    Text(String),
}

/// Longest that a download may take.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

fn silence(patience: Duration) -> Cause {
    let seconds = patience.as_secs_f64();
    format!("nothing has come for {seconds} s (MLFLOW_HTTP_REQUEST_TIMEOUT)").into()
}

/// Bytes of the longest name that a disk can have.
const LONGEST_NAME: usize = 255;

/// MLflow's server has no better word than 500 for a name that its disk cannot have, and has none later. A file goes
/// through its disk under the last name of its path, wherever it is kept; those of folders may be kept elsewhere.
fn named_too_long(path: &str, failure: Failure) -> Failure {
    match failure {
        Failure::Store(StoreError::Unavailable {
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
            Failure::Store(StoreError::Refused {
                destination,
                source: reason.into(),
            })
        }
        failure => failure,
    }
}

impl Client {
    /// The address of a path below one of the proxy's services.
    pub(super) fn artifact_url(&self, service: &str, path: &str) -> Result<Url, Failure> {
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
    ) -> Result<(), Failure> {
        if self.put_in_parts(path, &file, size, sent).await? {
            return Ok(());
        }
        let request = self
            .authorised(Method::PUT, self.artifact_url("artifacts", path)?)
            .timeout(self.patience(size))
            .header(CONTENT_LENGTH, size)
            .body(Body::wrap_stream(pieces(file, 0..size, PIECE)));
        let put = self.send::<serde::de::IgnoredAny>(request).await;
        put.map_err(|failure| named_too_long(path, failure))?;
        sent.fetch_add(size, Ordering::Relaxed);
        Ok(())
    }

    async fn listed(&self, path: &str) -> Result<Listing, Failure> {
        let mut url = self.url("api/2.0/mlflow-artifacts/artifacts")?;
        url.query_pairs_mut().append_pair("path", path);
        self.send_patiently(self.authorised(Method::GET, url)).await
    }

    async fn file(&self, path: &str, range: Option<Range<u64>>) -> Result<Sent, Failure> {
        let mut request = self.authorised(Method::GET, self.artifact_url("artifacts", path)?);
        if let Some(range) = &range {
            let last = range.end.saturating_sub(1);
            request = request.header(RANGE, format!("bytes={}-{last}", range.start));
        }
        // Only silence ends it: a file takes as long as it takes.
        let patience = self.patience(0);
        let begun = tokio::time::timeout(patience, self.begun(request.timeout(LONGEST))).await;
        let response = begun.unwrap_or_else(|_| Err(self.unavailable(silence(patience))))?;
        // A server that sends all of the file whatever it is asked for is cut here.
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
                match tokio::time::timeout(patience, response.chunk()).await {
                    Ok(Ok(chunk)) => Ok(chunk.map(|chunk| (chunk, response))),
                    Ok(Err(error)) => Err(failed(describe(error.without_url().into()))),
                    Err(_) => Err(failed(silence(patience))),
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

#[async_trait]
impl ArtifactServer for Client {
    async fn put(
        &self,
        path: &str,
        file: File,
        size: u64,
        sent: &AtomicU64,
    ) -> Result<(), StoreError> {
        let put = self.put_file(path, Arc::new(file), size, sent).await;
        put.map_err(|failure| self.error(failure))
    }

    async fn list(&self, path: &str) -> Result<Vec<Listed>, StoreError> {
        let listing = match self.listed(path).await {
            Ok(listing) => listing,
            Err(failure) if failure.is("RESOURCE_DOES_NOT_EXIST") => return Ok(Vec::new()),
            Err(failure) => return Err(self.error(failure)),
        };
        let listed = listing.files.into_iter().map(|entry| {
            let size = match entry.file_size {
                Some(Size::Number(size)) => Some(size),
                Some(Size::Text(text)) => text.parse().ok(),
                None => None,
            };
            let size = (!entry.is_dir).then_some(size.unwrap_or(0));
            (entry.path, size)
        });
        Ok(listed.collect())
    }

    async fn get(&self, path: &str, range: Option<Range<u64>>) -> Result<Sent, StoreError> {
        let sent = self.file(path, range).await;
        sent.map_err(|failure| self.error(failure))
    }

    async fn delete(&self, path: &str) -> Result<(), StoreError> {
        let url = self
            .artifact_url("artifacts", path)
            .map_err(|failure| self.error(failure))?;
        let deleted = self
            .send_patiently::<serde::de::IgnoredAny>(self.authorised(Method::DELETE, url))
            .await;
        match deleted.map_err(|failure| self.error(failure)) {
            Err(StoreError::NotFound { .. }) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
