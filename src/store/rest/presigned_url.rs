//! Presigned URLs, by which a server lets us upload the parts of a file to the store behind it.

use std::collections::BTreeMap;

use reqwest::{
    Url,
    header::{CONNECTION, HOST, HeaderMap, HeaderName, TRANSFER_ENCODING, UPGRADE},
};
use serde::Deserialize;

use super::client::RequestError;
use crate::store::error::{Cause, StoreError};

/// Headers that the server must not set on our request to the presigned URL.
const FORBIDDEN_HEADERS: [HeaderName; 4] = [CONNECTION, HOST, TRANSFER_ENCODING, UPGRADE];

/// The server's permission to upload one part, in MLflow's word.
#[derive(Deserialize)]
pub(crate) struct MultipartUploadCredential {
    url: String,
    part_number: u64,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

/// The presigned URL of a part.
pub(crate) struct PresignedUrl {
    /// Number of the part, from 1.
    pub(crate) number: u64,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
}

/// Returns the presigned URLs of the parts, sorted by part number; the error says what is wrong with the server's answer.
pub(crate) fn presigned_urls(
    credentials: Vec<MultipartUploadCredential>,
    count: u64,
) -> Result<Vec<PresignedUrl>, String> {
    if credentials.len() as u64 != count {
        return Err(format!(
            "it has {} addresses for {count} parts",
            credentials.len()
        ));
    }
    let mut urls = BTreeMap::new();
    for credential in credentials {
        let number = credential.part_number;
        if !(1..=count).contains(&number) {
            return Err(format!("it has an address for part {number} of {count}"));
        }
        let url = credential.presigned_url()?;
        if urls.insert(number, url).is_some() {
            return Err(format!("it has two addresses for part {number}"));
        }
    }
    Ok(urls.into_values().collect())
}

impl MultipartUploadCredential {
    fn presigned_url(self) -> Result<PresignedUrl, String> {
        let number = self.part_number;
        let url = Url::parse(&self.url);
        let url = url.map_err(|error| format!("the address of part {number} is none: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") {
            let scheme = url.scheme();
            return Err(format!(
                "the address of part {number} begins with {scheme}:, and must begin with http: or https:"
            ));
        }
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let header = name.parse::<HeaderName>().ok().zip(value.parse().ok());
            match header {
                Some((name, value)) if !FORBIDDEN_HEADERS.contains(&name) => {
                    headers.insert(name, value)
                }
                _ => return Err(format!("header {name:?} cannot be sent with part {number}")),
            };
        }
        Ok(PresignedUrl {
            number,
            url,
            headers,
        })
    }
}

/// Masks presigned URLs in an error: a server may quote the request, which contains them.
pub(crate) fn without_presigned_urls(failure: RequestError) -> RequestError {
    let cut = |cause: Cause| without_queries(&cause.to_string()).into();
    match failure {
        RequestError::Api { code, message } => RequestError::Api {
            code,
            message: without_queries(&message),
        },
        RequestError::Store(StoreError::Unavailable {
            destination,
            source,
            retry_after,
        }) => RequestError::Store(StoreError::Unavailable {
            destination,
            source: cut(source),
            retry_after,
        }),
        RequestError::Store(StoreError::Refused {
            destination,
            source,
        }) => RequestError::Store(StoreError::Refused {
            destination,
            source: cut(source),
        }),
        RequestError::Store(StoreError::Forbidden {
            destination,
            reason,
        }) => RequestError::Store(StoreError::Forbidden {
            destination,
            reason: without_queries(&reason),
        }),
        RequestError::Store(StoreError::Unauthenticated {
            destination,
            reason,
        }) => RequestError::Store(StoreError::Unauthenticated {
            destination,
            reason: without_queries(&reason),
        }),
        failure => failure,
    }
}

/// Masks the query of each address in a text.
fn without_queries(text: &str) -> String {
    let ends_address = |c: char| c.is_whitespace() || matches!(c, '\'' | '"' | '<' | '>');
    text.split_inclusive(ends_address)
        .map(|word| {
            let address = word
                .find("://")
                .and_then(|at| Some(at + word[at..].find('?')?));
            match address {
                Some(at) => {
                    let end = word.rfind(ends_address).unwrap_or(word.len());
                    format!("{}?***{}", &word[..at], &word[end..])
                }
                None => word.to_owned(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(number: u64, url: &str) -> MultipartUploadCredential {
        MultipartUploadCredential {
            url: url.to_owned(),
            part_number: number,
            headers: BTreeMap::new(),
        }
    }

    #[test]
    fn urls_are_one_for_each_part_in_their_order() {
        let found = presigned_urls(
            vec![
                credential(2, "https://s3/a?n=2"),
                credential(1, "http://s3/a?n=1"),
            ],
            2,
        );
        let found: Vec<u64> = found.unwrap().iter().map(|url| url.number).collect();
        assert_eq!(found, [1, 2]);
    }

    #[test]
    fn what_cannot_be_a_presigned_url_is_refused_without_it() {
        let http = "http://s3/a?X-Amz-Signature=hush";
        let with = |name: &str, value: &str| MultipartUploadCredential {
            headers: BTreeMap::from([(name.to_owned(), value.to_owned())]),
            ..credential(1, http)
        };
        for (credentials, count, reason) in [
            (vec![], 1, "0 addresses for 1"),
            (
                vec![credential(1, http), credential(2, http)],
                1,
                "2 addresses",
            ),
            (
                vec![credential(1, http), credential(1, http)],
                2,
                "two addresses for part 1",
            ),
            (vec![credential(0, http)], 1, "part 0 of 1"),
            (vec![credential(2, http)], 1, "part 2 of 1"),
            (
                vec![credential(1, "file:///etc/hush")],
                1,
                "begins with file:",
            ),
            (
                vec![credential(1, "gopher://hush")],
                1,
                "begins with gopher:",
            ),
            (vec![credential(1, "hush")], 1, "is none"),
            (
                vec![with("Transfer-Encoding", "chunked")],
                1,
                "Transfer-Encoding",
            ),
            (vec![with("x\r\ny", "hush")], 1, "cannot be sent"),
            (vec![with("x", "hush\r\n")], 1, "cannot be sent"),
        ] {
            let error = presigned_urls(credentials, count).map(drop).unwrap_err();
            assert!(error.contains(reason), "{error}");
            assert!(!error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn quoted_addresses_lose_their_signatures() {
        for (text, left) in [
            ("no address?", "no address?"),
            (
                "bad [{'url': 'http://s3/a?X-Amz-Signature=hush&b=c', 'n': 1}]",
                "bad [{'url': 'http://s3/a?***', 'n': 1}]",
            ),
            ("http://s3/a?hush", "http://s3/a?***"),
        ] {
            assert_eq!(without_queries(text), left);
        }
    }
}
