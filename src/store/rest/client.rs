//! Requests to a tracking server, and the errors in its answers.

use std::{fs, time::Duration};

use reqwest::{
    Identity, Method, RequestBuilder, Response, StatusCode, Url,
    header::{CONTENT_TYPE, HeaderMap, LOCATION, RETRY_AFTER},
    redirect,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::multipart::MultipartUploads;
use crate::{
    config::{credential_files, server::ServerAccess, uri::ServerUri},
    net::{retry::retry, secret::Secret, tls},
    store::error::{Cause, StoreError},
};

/// Longest time to establish a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer that is read: a page of a search is a few megabytes.
const MAX_ANSWER: usize = 256 << 20;
/// Least bytes per second; the time limit of a long body is computed from this rate.
const SLOWEST: u64 = 16 << 10;
/// Longest pause that the client accepts from an answer, in seconds.
const MAX_RETRY_AFTER: u64 = 3600;

/// The error of a request.
#[derive(Debug)]
pub(crate) enum RequestError {
    /// MLflow has refused the request with one of its error codes.
    Api {
        /// Code, for example `RESOURCE_DOES_NOT_EXIST`.
        code: String,
        /// Message of the server.
        message: String,
    },
    /// Any other error.
    Store(StoreError),
}

impl RequestError {
    pub(crate) fn is(&self, expected: &str) -> bool {
        matches!(self, Self::Api { code, .. } if code == expected)
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.is("RESOURCE_DOES_NOT_EXIST")
            || matches!(self, Self::Store(StoreError::NotFound { .. }))
    }
}

#[derive(Deserialize)]
struct ApiError {
    error_code: String,
    #[serde(default)]
    message: String,
}

#[derive(Debug)]
enum Auth {
    None,
    Basic(Secret, Secret),
    Bearer(Secret),
}

/// A client of one server.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    auth: Auth,
    max_retries: u32,
    backoff: Duration,
    timeout: Duration,
    multipart: MultipartUploads,
}

/// An unexpected failure inside the server.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct InternalError(String);

impl Client {
    /// Returns a client that has not connected yet.
    ///
    /// # Errors
    /// [`StoreError::Open`] for certificates that cannot be read.
    pub(crate) fn new(uri: &ServerUri, access: &ServerAccess) -> Result<Self, StoreError> {
        tls::install();
        let refuse = |reason: String| StoreError::Open {
            destination: uri.base().to_owned(),
            reason,
        };
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(access.timeout)
            .user_agent(concat!("heimdall-tracking/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::custom(|attempt| {
                // The credentials are sent to the server that the user has named, and to no other.
                let is_same = attempt
                    .previous()
                    .last()
                    .is_some_and(|from| from.origin() == attempt.url().origin());
                if is_same && attempt.previous().len() < 10 {
                    attempt.follow()
                } else {
                    attempt.stop()
                }
            }))
            .tls_danger_accept_invalid_certs(access.insecure_tls);
        if let Some(path) = &access.server_cert {
            builder = builder.tls_certs_only(tls::certificates(path).map_err(refuse)?);
        }
        if let Some(path) = &access.client_cert {
            let shown = path.display();
            let pem = fs::read(path).map_err(|error| refuse(format!("{shown}: {error}")))?;
            let identity = Identity::from_pem(&pem);
            builder = builder.identity(
                identity
                    .map_err(|error| refuse(format!("{shown} has no PEM certificate: {error}")))?,
            );
        }
        let auth = match (uri.user().or(access.user.as_ref()), &access.token) {
            (Some((user, password)), _) => Auth::Basic(user.clone(), password.clone()),
            (None, Some(token)) => Auth::Bearer(token.clone()),
            (None, None) => {
                let host = Url::parse(uri.base()).ok();
                let host = host.as_ref().and_then(Url::host_str);
                let account = host.zip(access.netrc.as_ref());
                match account.and_then(|(host, netrc)| credential_files::of_host(netrc, host)) {
                    Some((user, password)) => Auth::Basic(user, password),
                    None => Auth::None,
                }
            }
        };
        Ok(Self {
            http: builder.build().map_err(|error| refuse(error.to_string()))?,
            base: uri.base().to_owned(),
            auth,
            max_retries: access.max_retries,
            backoff: Duration::try_from_secs_f64(access.backoff_factor).unwrap_or_default(),
            timeout: access.timeout,
            multipart: MultipartUploads::new(access.parts.clone()),
        })
    }

    /// Returns the state of uploads in parts.
    pub(crate) fn multipart(&self) -> &MultipartUploads {
        &self.multipart
    }

    /// Returns the longest time for the answer to a request of this many bytes.
    pub(crate) fn timeout_for(&self, bytes: u64) -> Duration {
        let transfer = Duration::from_secs(bytes / SLOWEST);
        self.timeout.saturating_add(transfer)
    }

    /// Returns the URI of the server, without credentials.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// Sends a body by POST, once: the caller repeats the request.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
    ) -> Result<T, RequestError> {
        self.send(self.posted(path, body)?).await
    }

    /// Sends a body by the given method, once: the caller repeats the request.
    pub(crate) async fn write<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<T, RequestError> {
        self.send(self.with_body(method, path, body)?).await
    }

    /// Sends a query by GET, and repeats it where waiting may help.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, RequestError> {
        self.send_with_retries(self.request(Method::GET, path, query)?)
            .await
    }

    /// Sends a query by POST, and repeats it where waiting may help.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        question: &Value,
    ) -> Result<T, RequestError> {
        self.send_with_retries(self.posted(path, question)?).await
    }

    /// Sends a request that may be sent twice, and repeats it where waiting may help.
    pub(crate) async fn send_with_retries<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
    ) -> Result<T, RequestError> {
        // Only a stream cannot be sent twice, and no query has a stream.
        let again = || {
            let copy = request.try_clone();
            copy.ok_or_else(|| self.unavailable("a stream is not sent twice".into()))
        };
        self.with_retries(|| async { self.send(again()?).await })
            .await
    }

    /// Runs `attempt`, which must change nothing when it runs twice, and repeats it where waiting may help.
    pub(crate) async fn with_retries<T, F: Future<Output = Result<T, RequestError>>>(
        &self,
        attempt: impl Fn() -> F,
    ) -> Result<T, RequestError> {
        let (mut pause, mut left) = (self.backoff, self.max_retries);
        retry(attempt, |failure: &RequestError| match failure {
            RequestError::Store(StoreError::Unavailable { retry_after, .. }) if left > 0 => {
                left -= 1;
                let wait = retry_after.unwrap_or(pause).max(pause);
                pause = pause.saturating_mul(2);
                Some(wait)
            }
            _ => None,
        })
        .await
    }

    fn posted(&self, path: &str, body: &Value) -> Result<RequestBuilder, RequestError> {
        self.with_body(Method::POST, path, body)
    }

    fn with_body(
        &self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<RequestBuilder, RequestError> {
        Ok(with_json(self.request(method, path, &[])?, body))
    }

    /// Returns the URL of a path at the server.
    pub(crate) fn url(&self, path: &str) -> Result<Url, RequestError> {
        let url = format!("{}/{path}", self.base);
        Url::parse(&url).map_err(|error| RequestError::Store(self.open_error(error.to_string())))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<RequestBuilder, RequestError> {
        let mut url = self.url(&format!("api/2.0/mlflow/{path}"))?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(self.authorised(method, url))
    }

    /// Returns a request with the credentials for the server.
    pub(crate) fn authorised(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.http.request(method, url);
        match &self.auth {
            Auth::None => request,
            Auth::Basic(user, password) => {
                request.basic_auth(user.reveal(), Some(password.reveal()))
            }
            Auth::Bearer(token) => request.bearer_auth(token.reveal()),
        }
    }

    /// Sends a request, once, and reads its answer.
    pub(crate) async fn send<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
    ) -> Result<T, RequestError> {
        self.read(self.execute_ok(request).await?).await
    }

    /// Sends a request, once, and returns the answer unread where the status is a success.
    pub(crate) async fn execute_ok(
        &self,
        request: RequestBuilder,
    ) -> Result<Response, RequestError> {
        let response = self.execute(request).await?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(self.refused(response).await)
        }
    }

    /// Sends a request, once, and returns the answer unread, with any status.
    pub(crate) async fn execute(&self, request: RequestBuilder) -> Result<Response, RequestError> {
        // The message of the HTTP client has the URL, whose query may contain data that a user has recorded.
        let failed = |error: reqwest::Error| self.unavailable(error.without_url().into());
        request.send().await.map_err(failed)
    }

    /// Returns the error for an answer that is not a success.
    pub(crate) async fn refused(&self, mut response: Response) -> RequestError {
        let (status, headers) = (response.status(), response.headers().clone());
        match self.body(&mut response).await {
            Ok(body) => self.refusal(status, &headers, &body),
            Err(failure) => failure,
        }
    }

    /// Reads the body of a successful answer.
    pub(crate) async fn read<T: DeserializeOwned>(
        &self,
        mut response: Response,
    ) -> Result<T, RequestError> {
        let body = self.body(&mut response).await?;
        serde_json::from_slice(if body.is_empty() { b"{}" } else { &body })
            .map_err(|error| self.unreadable(&body, &error))
    }

    async fn body(&self, response: &mut Response) -> Result<Vec<u8>, RequestError> {
        let failed = |error: reqwest::Error| self.unavailable(error.without_url().into());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(self.unavailable("its answer is longer than 256 MiB".into()));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    pub(crate) fn unavailable(&self, source: Cause) -> RequestError {
        if crate::store::error::is_certificate_refused(&*source) {
            return RequestError::Store(self.open_error(format!(
                "{}; check MLFLOW_TRACKING_SERVER_CERT_PATH and MLFLOW_TRACKING_CLIENT_CERT_PATH",
                describe(source)
            )));
        }
        RequestError::Store(StoreError::Unavailable {
            destination: self.base.clone(),
            source: describe(source),
            retry_after: None,
        })
    }

    fn open_error(&self, reason: String) -> StoreError {
        StoreError::Open {
            destination: self.base.clone(),
            reason,
        }
    }

    fn no_mlflow(&self, what: &str) -> RequestError {
        RequestError::Store(self.open_error(format!(
            "this is no MLflow tracking server: it answers {what}; check the address and its path, and \
             whether a login page stands before it"
        )))
    }

    /// Returns the error for a successful answer whose body has the wrong form.
    fn unreadable(&self, body: &[u8], error: &serde_json::Error) -> RequestError {
        if is_page(body) {
            return self.no_mlflow("a web page");
        }
        self.unavailable(format!("its answer is cut off or no JSON: {error}").into())
    }

    fn refusal(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> RequestError {
        let said = serde_json::from_slice::<ApiError>(body).ok();
        let message = match &said {
            Some(said) if !said.message.is_empty() => format!("{status}: {}", said.message),
            _ => status.to_string(),
        };
        let destination = self.base.clone();
        if status.is_redirection() {
            let to = headers
                .get(LOCATION)
                .and_then(|to| to.to_str().ok())
                .map_or_else(
                    || "nowhere".to_owned(),
                    crate::net::secret::without_credentials,
                );
            return RequestError::Store(self.open_error(format!(
                "it redirects to {to}, which credentials are not sent to; if that is the server, give its \
                 address"
            )));
        }
        match (status, said) {
            (StatusCode::UNAUTHORIZED, _) => RequestError::Store(StoreError::Unauthenticated {
                destination,
                reason: message,
            }),
            (StatusCode::FORBIDDEN, _) => RequestError::Store(StoreError::Forbidden {
                destination,
                reason: message,
            }),
            (StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT, _) => {
                RequestError::Store(StoreError::Unavailable {
                    destination,
                    source: message.into(),
                    retry_after: retry_after(headers),
                })
            }
            (status, _) if status.is_server_error() => {
                RequestError::Store(StoreError::Unavailable {
                    destination,
                    source: match status {
                        StatusCode::INTERNAL_SERVER_ERROR => InternalError(message).into(),
                        _ => message.into(),
                    },
                    retry_after: retry_after(headers),
                })
            }
            (_, Some(said)) => RequestError::Api {
                code: said.error_code,
                message: said.message,
            },
            (StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED, None) => {
                self.no_mlflow(&status.to_string())
            }
            (_, None) => RequestError::Store(StoreError::Refused {
                destination,
                source: message.into(),
            }),
        }
    }

    /// Converts a failure into an error of the store; used where the caller expects no particular code of MLflow.
    pub(crate) fn error(&self, failure: RequestError) -> StoreError {
        match failure {
            RequestError::Store(error) => error,
            RequestError::Api { code, message } => match code.as_str() {
                "RESOURCE_DOES_NOT_EXIST" => StoreError::NotFound {
                    what: message,
                    destination: self.base.clone(),
                },
                "RESOURCE_ALREADY_EXISTS" | "ALREADY_EXISTS" => StoreError::AlreadyExists {
                    what: message,
                    destination: self.base.clone(),
                },
                "PERMISSION_DENIED" => StoreError::Forbidden {
                    destination: self.base.clone(),
                    reason: message,
                },
                "UNAUTHENTICATED" => StoreError::Unauthenticated {
                    destination: self.base.clone(),
                    reason: message,
                },
                "TEMPORARILY_UNAVAILABLE" | "REQUEST_LIMIT_EXCEEDED" | "INTERNAL_ERROR" => {
                    StoreError::Unavailable {
                        destination: self.base.clone(),
                        source: message.into(),
                        retry_after: None,
                    }
                }
                _ => StoreError::Refused {
                    destination: self.base.clone(),
                    source: message.into(),
                },
            },
        }
    }
}

/// Joins an error and its causes in one sentence: the outermost error of the HTTP client says little.
pub(crate) fn describe(error: Cause) -> Cause {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text.into()
}

/// Adds a body of JSON to a request.
pub(crate) fn with_json(request: RequestBuilder, body: &Value) -> RequestBuilder {
    request
        .header(CONTENT_TYPE, "application/json")
        .body(body.to_string())
}

fn is_page(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"<")
}

/// Returns the time of `Retry-After` in seconds, the form that servers use; a date is ignored, and the usual back-off
/// applies.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds.min(MAX_RETRY_AFTER)))
}
