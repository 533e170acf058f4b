//! The HTTP client of an object store: certificates, distinguishable refusals, and comparison of checksums.

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

use super::failure::{ChecksumMismatch, Refusal};
use crate::{artifacts::checksum::Checksum, net::tls};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time after which a silent connection is given up.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest error that is read.
const MAX_ERROR_BODY: usize = 64 << 10;
/// Codes by which stores report a missing object.
const NO_OBJECT: [&str; 2] = ["NoSuchKey", "BlobNotFound"];
/// Codes by which stores say that a request was signed for another region than the bucket's.
const OTHER_REGION: [&str; 5] = [
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
    "Redirect",
    "TemporaryRedirect",
];
/// Headers of the checksum that a store has of the received bytes; requests announce it under the same names.
const CHECKSUMS: [&str; 2] = ["x-amz-checksum-sha256", "x-amz-checksum-crc64nvme"];

/// The body of an error.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ErrorBody {
    code: String,
    #[serde(default)]
    message: String,
    /// Region of the bucket, in answers to requests that were signed for another one.
    region: Option<String>,
}

/// Returns a client for object stores that has not connected yet, or the reason why certificates cannot be read. Gives
/// up a request whose answer has not begun after `read_timeout`.
pub(crate) fn http_client(
    insecure_tls: bool,
    ca_bundle: Option<&Path>,
    read_timeout: Duration,
) -> Result<reqwest::Client, String> {
    tls::install();
    let mut builder = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(read_timeout)
        .tcp_keepalive(IDLE_TIMEOUT / 2)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .http1_only()
        .user_agent(concat!("heimdall-tracking/", env!("CARGO_PKG_VERSION")))
        // A signature is for one host, so redirects are not followed: a store that has moved says so in its error.
        .redirect(reqwest::redirect::Policy::none())
        .tls_danger_accept_invalid_certs(insecure_tls);
    #[cfg(target_os = "linux")]
    {
        builder = builder.tcp_user_timeout(IDLE_TIMEOUT);
    }
    if let Some(path) = ca_bundle {
        let certificates = tls::certificates(path);
        let certificates = certificates.map_err(|error| format!("AWS_CA_BUNDLE {error}"))?;
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|error| error.to_string())
}

/// Hands the same client to all parts that talk to one store.
#[derive(Clone, Debug)]
pub(crate) struct Connector(Service);

impl Connector {
    /// Makes a client that has not connected yet; fails with the reason where certificates cannot be read.
    pub(crate) fn new(insecure_tls: bool, ca_bundle: Option<&Path>) -> Result<Self, String> {
        let client = http_client(insecure_tls, ca_bundle, IDLE_TIMEOUT * 5)?;
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
        if let Some(checksum) = Checksum::from_headers(response.headers()) {
            response.extensions_mut().insert(checksum);
        }
        if let Some((name, sent)) = sent
            && response.status().is_success()
            && let Some((_, found)) = checksum(response.headers(), &[name])
            && found != sent
        {
            let mismatch = ChecksumMismatch { name, sent, found };
            // Bytes that were damaged in transit are sent again.
            return Err(HttpError::new(HttpErrorKind::Interrupted, mismatch));
        }
        let status = response.status();
        let region = response.headers().get("x-amz-bucket-region");
        let region = region.and_then(|region| Some(region.to_str().ok()?.to_owned()));
        // An answer to HEAD has no body to read.
        let is_moved = is_head && region.is_some() && matches!(status.as_u16(), 301 | 307);
        if is_moved || (is_head && matches!(status.as_u16(), 400 | 405 | 501)) {
            let refusal = Refusal {
                status: status.as_u16(),
                code: status.canonical_reason().unwrap_or_default().to_owned(),
                message: "in answer to HEAD".to_owned(),
                says_nothing: true,
                region: region.filter(|_| matches!(status.as_u16(), 301 | 307 | 400)),
                had_checksum: has_sum,
            };
            return Err(HttpError::new(HttpErrorKind::Unknown, refusal));
        }
        // These statuses say less than their codes; the caller understands and retries the others.
        let tells = match status.as_u16() {
            301 | 307 | 400 | 401 | 403 | 404 => true,
            // A store that does not know a checksum will not know it at the next attempt either.
            501 => has_sum,
            _ => false,
        };
        if !tells {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let bytes = body.bytes().await?;
        match error_body(&bytes) {
            Some(error) if parts.status != 404 || !NO_OBJECT.contains(&error.code.as_str()) => {
                let is_of_region = OTHER_REGION.contains(&error.code.as_str());
                let refusal = Refusal {
                    status: parts.status.as_u16(),
                    code: error.code,
                    message: error.message,
                    says_nothing: false,
                    region: error.region.or(region).filter(|_| is_of_region),
                    had_checksum: has_sum,
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

/// Returns the checksum that a request announces or an answer confirms, under one of these names.
fn checksum(headers: &HeaderMap, names: &[&'static str]) -> Option<(&'static str, String)> {
    names.iter().find_map(|name| {
        let value = headers.get(*name)?.to_str().ok()?;
        Some((*name, value.to_owned()))
    })
}

fn error_body(body: &[u8]) -> Option<ErrorBody> {
    let text = std::str::from_utf8(body.get(..body.len().min(MAX_ERROR_BODY))?).ok()?;
    // Azure's answers begin with a byte-order mark.
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
            assert_eq!(error_body(body.as_bytes()).unwrap().code, code);
        }
        for body in ["", "{}", "<html>Forbidden</html>", "<Error>"] {
            assert!(error_body(body.as_bytes()).is_none(), "{body}");
        }
    }
}
