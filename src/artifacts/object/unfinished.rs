//! Uploads in parts that were begun at an S3 store and never finished: a process that died for good has left them, and
//! they are invisible but cost money.
//!
//! `object_store` has no call that lists them, so the two requests (`ListMultipartUploads`, `ListParts`) are signed
//! with its signer and sent here.

use std::{error::Error as _, time::Duration};

use futures_util::{StreamExt, TryStreamExt, future, stream};
use object_store::{
    ClientOptions, Error,
    aws::AmazonS3,
    client::{HttpClient, HttpConnector, HttpError, HttpRequest, HttpRequestBody},
    path::Path as Key,
    signer::{Method, SignedUrlOptions, Signer},
};
use reqwest::header::HeaderMap;
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    connector::Connector, failure::ObjectFailure, failure::Refusal, store::ObjectArtifacts,
};
use crate::{
    artifacts::{error::ArtifactError, store::Unfinished},
    mlflow::artifact_path::ArtifactPath,
};

/// Time that a signature is valid: long enough for one request.
const VALID: Duration = Duration::from_secs(300);
/// Uploads whose parts are listed at a time.
const TOGETHER: usize = 8;
/// Most attempts at a request.
const TRIES: u32 = 4;
/// Pause before the second attempt; each further pause is twice as long.
const PAUSE: Duration = Duration::from_millis(200);

/// Sends an S3 store the requests that `object_store` has no calls for.
#[derive(Debug)]
pub(crate) struct Listing {
    store: AmazonS3,
    client: HttpClient,
    /// Headers that are sent with every request, and so signed.
    headers: HeaderMap,
    /// True for a store other than AWS, which may interpret prefixes in its own way.
    is_beside_aws: bool,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "PascalCase")]
struct Uploads {
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_key_marker: String,
    #[serde(default)]
    next_upload_id_marker: String,
    #[serde(default, rename = "Upload")]
    uploads: Vec<Begun>,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "PascalCase")]
struct Begun {
    key: String,
    upload_id: String,
    #[serde(default)]
    initiated: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Parts {
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_part_number_marker: String,
    #[serde(default, rename = "Part")]
    parts: Vec<Part>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Part {
    #[serde(default)]
    size: u64,
}

impl Listing {
    pub(crate) fn new(
        store: &AmazonS3,
        connector: &Connector,
        headers: HeaderMap,
        is_beside_aws: bool,
    ) -> object_store::Result<Self> {
        Ok(Self {
            store: store.clone(),
            client: connector.connect(&ClientOptions::new())?,
            headers,
            is_beside_aws,
        })
    }

    /// Sends a request about the bucket, or about an object in it, and returns the answer.
    async fn ask<T: DeserializeOwned>(
        &self,
        key: &Key,
        query: &[(&str, &str)],
    ) -> object_store::Result<T> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Generic {
            store: "S3",
            source,
        };
        let mut pause = PAUSE;
        for tried in 1.. {
            let mut options = SignedUrlOptions::new().with_query(query.iter().copied());
            options.signed_headers = self.headers.clone();
            let url = self
                .store
                .signed_url_opts(Method::GET, key, VALID, &options)
                .await?;
            let mut request = HttpRequest::new(HttpRequestBody::empty());
            *request.uri_mut() = url
                .as_str()
                .parse()
                .map_err(|error| failed(Box::new(error)))?;
            *request.headers_mut() = self.headers.clone();
            let answer = self.client.execute(request).await;
            let reason = match answer {
                Ok(answer) if answer.status().is_success() => {
                    let body = answer.into_body().bytes().await;
                    let body = body.map_err(|error| failed(without_url(error)))?;
                    let text = String::from_utf8_lossy(&body);
                    return quick_xml::de::from_str(&text).map_err(|error| {
                        failed(format!("its list of uploads cannot be read: {error}").into())
                    });
                }
                // The client has turned such answers into errors, unless they have no body.
                Ok(answer) if answer.status().is_client_error() => {
                    return Err(failed(answer.status().to_string().into()));
                }
                Ok(answer) => failed(answer.status().to_string().into()),
                Err(error) => {
                    let refused = error.source().is_some_and(|source| source.is::<Refusal>());
                    let error = failed(without_url(error));
                    if refused {
                        return Err(error);
                    }
                    error
                }
            };
            if tried >= TRIES {
                return Err(reason);
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Err(failed("it was not asked".into()))
    }

    async fn uploads(&self, prefix: &str) -> object_store::Result<Vec<Begun>> {
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
            let page: Uploads = self.ask(&Key::default(), &query).await?;
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
    async fn size(&self, key: &Key, id: &str) -> object_store::Result<u64> {
        let mut bytes = 0;
        let mut marker = String::new();
        loop {
            let mut query = vec![("uploadId", id)];
            if !marker.is_empty() {
                query.push(("part-number-marker", &marker));
            }
            let page: Parts = self.ask(key, &query).await?;
            bytes += page.parts.iter().map(|part| part.size).sum::<u64>();
            if !page.is_truncated || page.next_part_number_marker == marker {
                return Ok(bytes);
            }
            marker = page.next_part_number_marker;
        }
    }
}

impl ObjectArtifacts {
    pub(crate) async fn uploads_not_finished(&self) -> Result<Vec<Unfinished>, ArtifactError> {
        let Some(listing) = &self.listing else {
            return Ok(Vec::new());
        };
        let root = ArtifactPath::root();
        let prefix = match self.prefix.as_str() {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        let failed = |error| self.failed(&root, error);
        let mut begun = listing.uploads(&prefix).await.map_err(failed)?;
        // MinIO treats a prefix as a whole key: <https://github.com/minio/minio/issues/20989>.
        if begun.is_empty() && !prefix.is_empty() && listing.is_beside_aws {
            begun = listing.uploads("").await.map_err(failed)?;
            begun.retain(|upload| upload.key.starts_with(&prefix));
        }
        let found = stream::iter(begun)
            .map(|begun| self.described(listing, begun))
            .buffered(TOGETHER)
            .try_filter_map(future::ok);
        found.try_collect().await
    }

    /// Describes an upload and how much of it has arrived; returns `None` for an upload of no artifact, or one that has
    /// ended meanwhile.
    async fn described(
        &self,
        listing: &Listing,
        begun: Begun,
    ) -> Result<Option<Unfinished>, ArtifactError> {
        // A key that no artifact can have is not of an artifact.
        let Ok(key) = Key::parse(&begun.key) else {
            return Ok(None);
        };
        let Ok(Some(path)) = self.below(&key) else {
            return Ok(None);
        };
        let bytes = match listing.size(&key, &begun.upload_id).await {
            Ok(bytes) => bytes,
            Err(error) => match self.part_failed(&path, error) {
                ArtifactError::Object { source, .. }
                    if matches!(*source, ObjectFailure::PartsGone(_)) =>
                {
                    return Ok(None);
                }
                error => return Err(error),
            },
        };
        Ok(Some(Unfinished {
            path,
            id: begun.upload_id,
            bytes,
            begun: milliseconds(&begun.initiated),
        }))
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
        let page: Uploads = quick_xml::de::from_str(
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
        let none: Uploads = quick_xml::de::from_str("<ListMultipartUploadsResult/>").unwrap();
        assert_eq!(none, Uploads::default());
    }

    #[test]
    fn sizes_of_parts_are_read() {
        let page: Parts = quick_xml::de::from_str(
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
