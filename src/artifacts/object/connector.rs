//! The HTTP client under an object store: certificates, refusals that can be told apart, checksums compared.

use std::{path::Path, time::Duration};

use async_trait::async_trait;
use object_store::{
    ClientOptions,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
        HttpResponseBody, HttpService,
    },
};
use reqwest::{Method, header::HeaderMap};
use serde::Deserialize;

use crate::{artifacts::checksum::Checksum, net::tls};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection whose other end is silent for so long is given up.
const SILENCE: Duration = Duration::from_secs(60);
/// Longest error that is read.
const MAX_ERROR: usize = 64 << 10;
/// What stores call an object that is not there.
const NO_OBJECT: [&str; 2] = ["NoSuchKey", "BlobNotFound"];
/// What a store says of the bytes that it has taken, in the words they were announced in.
const CHECKSUMS: [&str; 2] = ["x-amz-checksum-sha256", "x-amz-checksum-crc64nvme"];

/// A store says no, by one of its codes.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {message}")]
pub(crate) struct Refusal {
    /// The status of its answer.
    pub status: u16,
    /// For example `AccessDenied`.
    pub code: String,
    /// Its sentence.
    pub message: String,
    /// There is no more to it than the status: the reason may be one that passes.
    pub says_nothing: bool,
}

/// A store says that it has other bytes than were sent.
#[derive(Debug, thiserror::Error)]
#[error(
    "the store has {found} where {sent} was sent ({name}): the bytes were damaged on their way or in the store"
)]
pub(crate) struct OtherChecksum {
    name: &'static str,
    sent: String,
    found: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    code: String,
    #[serde(default)]
    message: String,
}

/// A client for stores of objects that has not connected yet; the reason where certificates cannot be read. A request
/// whose answer has not begun after `patience` is given up.
pub(crate) fn http_client(
    insecure_tls: bool,
    ca_bundle: Option<&Path>,
    patience: Duration,
) -> Result<reqwest::Client, String> {
    tls::install();
    let mut builder = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(patience)
        .tcp_keepalive(SILENCE / 2)
        .pool_idle_timeout(SILENCE)
        .http1_only()
        .user_agent(concat!("heimdall-tracking/", env!("CARGO_PKG_VERSION")))
        // A signature is for one host: a store that moves says so in its error.
        .redirect(reqwest::redirect::Policy::none())
        .tls_danger_accept_invalid_certs(insecure_tls);
    #[cfg(target_os = "linux")]
    {
        builder = builder.tcp_user_timeout(SILENCE);
    }
    if let Some(path) = ca_bundle {
        let certificates = tls::certificates(path);
        let certificates = certificates.map_err(|error| format!("AWS_CA_BUNDLE {error}"))?;
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|error| error.to_string())
}

/// Hands the same client to everything that talks to one store.
#[derive(Clone, Debug)]
pub(crate) struct Connector(Service);

impl Connector {
    /// A client that has not connected yet; the reason where certificates cannot be read.
    pub fn new(insecure_tls: bool, ca_bundle: Option<&Path>) -> Result<Self, String> {
        let client = http_client(insecure_tls, ca_bundle, SILENCE * 5)?;
        Ok(Self(Service(client)))
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

#[derive(Clone, Debug)]
struct Service(reqwest::Client);

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let sent = checksum(request.headers(), &CHECKSUMS);
        let has_sum = sent.is_some() || request.headers().contains_key("x-amz-checksum-algorithm");
        let is_head = request.method() == Method::HEAD;
        let mut response = self.0.call(request).await?;
        if let Some(checksum) = Checksum::told(response.headers()) {
            response.extensions_mut().insert(checksum);
        }
        if let Some((name, sent)) = sent
            && response.status().is_success()
            && let Some((_, found)) = checksum(response.headers(), &[name])
            && found != sent
        {
            let lie = OtherChecksum { name, sent, found };
            // What was damaged on its way is sent again.
            return Err(HttpError::new(HttpErrorKind::Interrupted, lie));
        }
        let status = response.status();
        // There is nothing to read in an answer to HEAD.
        if is_head && matches!(status.as_u16(), 400 | 405 | 501) {
            let refusal = Refusal {
                status: status.as_u16(),
                code: status.canonical_reason().unwrap_or_default().to_owned(),
                message: "in answer to HEAD".to_owned(),
                says_nothing: true,
            };
            return Err(HttpError::new(HttpErrorKind::Unknown, refusal));
        }
        // These say more by their code than by their status; the rest is understood and retried by the caller.
        let tells = match status.as_u16() {
            400 | 401 | 403 | 404 => true,
            // What a store has not learned it does not learn meanwhile.
            501 => has_sum,
            _ => false,
        };
        if !tells {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let bytes = body.bytes().await?;
        match answer(&bytes) {
            Some(answer) if parts.status != 404 || !NO_OBJECT.contains(&answer.code.as_str()) => {
                let refusal = Refusal {
                    status: parts.status.as_u16(),
                    code: answer.code,
                    message: answer.message,
                    says_nothing: false,
                };
                Err(HttpError::new(HttpErrorKind::Unknown, refusal))
            }
            _ => Ok(HttpResponse::from_parts(
                parts,
                HttpResponseBody::from(bytes),
            )),
        }
    }
}

/// The checksum that a request announces or an answer confirms, by one of these names.
fn checksum(headers: &HeaderMap, names: &[&'static str]) -> Option<(&'static str, String)> {
    names.iter().find_map(|name| {
        let value = headers.get(*name)?.to_str().ok()?;
        Some((*name, value.to_owned()))
    })
}

fn answer(body: &[u8]) -> Option<Answer> {
    let text = std::str::from_utf8(body.get(..body.len().min(MAX_ERROR))?).ok()?;
    // Azure begins with a byte-order mark.
    quick_xml::de::from_str(text.trim_start_matches('\u{feff}')).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_the_clouds_are_read() {
        for (body, code) in [
            (
                "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>No</Message><Key>k</Key></Error>",
                "AccessDenied",
            ),
            (
                "\u{feff}<?xml version=\"1.0\"?><Error><Code>AuthenticationFailed</Code></Error>",
                "AuthenticationFailed",
            ),
        ] {
            assert_eq!(answer(body.as_bytes()).unwrap().code, code);
        }
        for body in ["", "{}", "<html>Forbidden</html>", "<Error>"] {
            assert!(answer(body.as_bytes()).is_none(), "{body}");
        }
    }
}
