//! The requests to an S3 store that list unfinished uploads and their parts.
//!
//! `object_store` has no call that lists them, so the two requests (`ListMultipartUploads`, `ListParts`) are signed
//! with its signer and sent here.

use std::{error::Error as _, time::Duration};

use object_store::{
    ClientOptions, Error,
    aws::AmazonS3,
    client::{HttpClient, HttpConnector, HttpError, HttpRequest, HttpRequestBody},
    path::Path as Key,
    signer::{Method, SignedUrlOptions, Signer},
};
use reqwest::header::HeaderMap;
use serde::{Deserialize, de::DeserializeOwned};

use super::{connector::Connector, failure::Refusal};
use crate::net::retry::{Backoff, retry_transient};

/// Time that a signature is valid: long enough for one request.
const SIGNATURE_LIFETIME: Duration = Duration::from_secs(300);
/// Most attempts at a query.
const ATTEMPTS: u32 = 4;
/// Pause before the second attempt; each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Sends an S3 store the requests that `object_store` has no calls for.
#[derive(Debug)]
pub(crate) struct UploadLister {
    store: AmazonS3,
    client: HttpClient,
    /// Headers that are sent with every request, and so signed.
    headers: HeaderMap,
    /// True for a store other than AWS, which may interpret prefixes in its own way.
    pub(super) has_custom_endpoint: bool,
}

/// The error of one attempt at a query.
enum QueryError {
    /// The next attempt may succeed.
    Transient(Error),
    Final(Error),
}

impl From<Error> for QueryError {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "PascalCase")]
struct ListMultipartUploadsResult {
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_key_marker: String,
    #[serde(default)]
    next_upload_id_marker: String,
    #[serde(default, rename = "Upload")]
    uploads: Vec<ListedUpload>,
}

/// An upload in the store's list.
#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListedUpload {
    pub(super) key: String,
    pub(super) upload_id: String,
    #[serde(default)]
    initiated: String,
}

impl ListedUpload {
    /// Returns the time at which the upload was begun, in milliseconds since 1970; `None` where the store does not say.
    pub(super) fn initiated_ms(&self) -> Option<i64> {
        milliseconds(&self.initiated)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListPartsResult {
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_part_number_marker: String,
    #[serde(default, rename = "Part")]
    parts: Vec<ListedPart>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListedPart {
    #[serde(default)]
    size: u64,
}

impl UploadLister {
    pub(crate) fn new(
        store: &AmazonS3,
        connector: &Connector,
        headers: HeaderMap,
        has_custom_endpoint: bool,
    ) -> object_store::Result<Self> {
        Ok(Self {
            store: store.clone(),
            client: connector.connect(&ClientOptions::new())?,
            headers,
            has_custom_endpoint,
        })
    }

    /// Sends a query about the bucket, or about an object in it, and repeats it where waiting may help.
    async fn query<T: DeserializeOwned>(
        &self,
        key: &Key,
        query: &[(&str, &str)],
    ) -> object_store::Result<T> {
        let backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let attempt = || self.query_once(key, query);
        let is_transient = |error: &QueryError| matches!(error, QueryError::Transient(_));
        let answer = retry_transient(ATTEMPTS, backoff, attempt, is_transient).await;
        answer.map_err(|error| match error {
            QueryError::Transient(error) | QueryError::Final(error) => error,
        })
    }

    async fn query_once<T: DeserializeOwned>(
        &self,
        key: &Key,
        query: &[(&str, &str)],
    ) -> Result<T, QueryError> {
        let mut options = SignedUrlOptions::new().with_query(query.iter().copied());
        options.signed_headers = self.headers.clone();
        let url = self
            .store
            .signed_url_opts(Method::GET, key, SIGNATURE_LIFETIME, &options)
            .await?;
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = url.as_str().parse().map_err(failed)?;
        *request.headers_mut() = self.headers.clone();
        let response = self.client.execute(request).await.map_err(|error| {
            let is_refused = error.source().is_some_and(|it| it.is::<Refusal>());
            let error = failed(without_url(error));
            if is_refused {
                QueryError::Final(error)
            } else {
                QueryError::Transient(error)
            }
        })?;
        let status = response.status();
        if !status.is_success() {
            let error = failed(status.to_string());
            // The client has turned such answers into errors, unless they have no body.
            return Err(if status.is_client_error() {
                QueryError::Final(error)
            } else {
                QueryError::Transient(error)
            });
        }
        let body = response.into_body().bytes().await;
        let body = body.map_err(|error| failed(without_url(error)))?;
        let text = String::from_utf8_lossy(&body);
        let page = quick_xml::de::from_str(&text);
        let unreadable = |error| failed(format!("its list of uploads cannot be read: {error}"));
        Ok(page.map_err(unreadable)?)
    }

    /// Returns the uploads to keys with this prefix.
    pub(super) async fn uploads(&self, prefix: &str) -> object_store::Result<Vec<ListedUpload>> {
        let mut found = Vec::new();
        let mut markers = (String::new(), String::new());
        loop {
            let mut query = vec![("uploads", ""), ("prefix", prefix)];
            if !markers.0.is_empty() {
                query.push(("key-marker", &markers.0));
            }
            if !markers.1.is_empty() {
                query.push(("upload-id-marker", &markers.1));
            }
            let page: ListMultipartUploadsResult = self.query(&Key::default(), &query).await?;
            found.extend(page.uploads);
            let next = (page.next_key_marker, page.next_upload_id_marker);
            // A store that sends the same page again would otherwise be queried for ever.
            if !page.is_truncated || next == markers {
                return Ok(found);
            }
            markers = next;
        }
    }

    /// Returns the bytes of the parts that have arrived.
    pub(super) async fn size(&self, key: &Key, id: &str) -> object_store::Result<u64> {
        let mut bytes = 0;
        let mut marker = String::new();
        loop {
            let mut query = vec![("uploadId", id)];
            if !marker.is_empty() {
                query.push(("part-number-marker", &marker));
            }
            let page: ListPartsResult = self.query(key, &query).await?;
            bytes += page.parts.iter().map(|part| part.size).sum::<u64>();
            if !page.is_truncated || page.next_part_number_marker == marker {
                return Ok(bytes);
            }
            marker = page.next_part_number_marker;
        }
    }
}

fn failed(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Generic {
        store: "S3",
        source: source.into(),
    }
}

/// Returns refusals of a store unchanged, and errors of the connection in a word: the client's own message contains the
/// URL with the signature.
fn without_url(error: HttpError) -> Box<dyn std::error::Error + Send + Sync> {
    if error.source().is_some_and(|source| source.is::<Refusal>()) {
        Box::new(error)
    } else {
        format!("the connection failed ({:?})", error.kind()).into()
    }
}

/// Parses a time as S3 writes it (`2026-11-25T11:15:50.000Z`) to milliseconds since 1970; returns `None` for anything
/// else. The calendar is that of Howard Hinnant's `days_from_civil`.
fn milliseconds(text: &str) -> Option<i64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let number = |text: &str| -> Option<i64> {
        let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_plain.then(|| text.parse().ok()).flatten()
    };
    let mut date = date.splitn(3, '-').map(number);
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut time = time.splitn(3, ':').map(number);
    let (hours, minutes, seconds) = (time.next()??, time.next()??, time.next()??);
    let is_time = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (1970..10_000).contains(&year)
        && hours < 24
        && minutes < 60
        && seconds < 61;
    let millis = number(
        &format!("{fraction:0<3}")
            .chars()
            .take(3)
            .collect::<String>(),
    )?;
    let shifted = if month > 2 { year } else { year - 1 };
    let (era, of_era) = (shifted.div_euclid(400), shifted.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    is_time.then_some((((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1_000 + millis)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_list_of_uploads_is_read() {
        let page: ListMultipartUploadsResult = quick_xml::de::from_str(
            r#"<?xml version="1.0"?><ListMultipartUploadsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
            <Bucket>b</Bucket><KeyMarker/><IsTruncated>true</IsTruncated><NextKeyMarker>p/a&amp;b é</NextKeyMarker>
            <NextUploadIdMarker>2</NextUploadIdMarker><MaxUploads>1000</MaxUploads>
            <Upload><Key>p/a&amp;b é</Key><UploadId>1</UploadId><Initiator><ID>x</ID></Initiator>
            <Owner><ID>x</ID></Owner><StorageClass>STANDARD</StorageClass>
            <Initiated>2024-02-29T00:00:00.001Z</Initiated></Upload>
            <Upload><Key>p/c</Key><UploadId>2</UploadId></Upload></ListMultipartUploadsResult>"#,
        )
        .unwrap();
        assert!(page.is_truncated);
        assert_eq!(
            (
                page.next_key_marker.as_str(),
                page.next_upload_id_marker.as_str()
            ),
            ("p/a&b é", "2")
        );
        let times: Vec<_> = page
            .uploads
            .iter()
            .map(|it| milliseconds(&it.initiated))
            .collect();
        assert_eq!(times, [Some(1_709_164_800_001), None]);
        let none: ListMultipartUploadsResult =
            quick_xml::de::from_str("<ListMultipartUploadsResult/>").unwrap();
        assert_eq!(none, ListMultipartUploadsResult::default());
    }

    #[test]
    fn sizes_of_parts_are_read() {
        let page: ListPartsResult = quick_xml::de::from_str(
            "<ListPartsResult><IsTruncated>false</IsTruncated><Part><PartNumber>1</PartNumber><Size>8</Size></Part>\
             <Part><PartNumber>2</PartNumber><Size>3</Size></Part></ListPartsResult>",
        )
        .unwrap();
        assert_eq!(page.parts.iter().map(|part| part.size).sum::<u64>(), 11);
    }

    #[test]
    fn times_are_read_and_what_is_none_is_not() {
        assert_eq!(milliseconds("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(
            milliseconds("2000-03-01T12:34:56.7Z"),
            Some(951_914_096_700)
        );
        for wrong in [
            "",
            "Z",
            "1970-01-01",
            "1970-13-01T00:00:00Z",
            "1970-01-01T00:00:00+01:00",
            "1970-1--1T0:0:0Z",
        ] {
            assert_eq!(milliseconds(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_of_times_panic(text in "[0-9TZ:.é-]{0,30}") {
            let _ = milliseconds(&text);
        }
    }
}
