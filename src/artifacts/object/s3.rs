//! Additions that S3 needs beyond the other object stores: its settings, checksums and headers.

use std::sync::Arc;

use object_store::{
    StaticCredentialProvider,
    aws::{self, AmazonS3Builder, AmazonS3ConfigKey, AwsCredential},
};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use super::{
    connector::Connector,
    credentials::Printed,
    store::{Objects, retries},
};
use crate::config::{s3::S3Access, uri::ObjectUri};

pub(crate) fn s3_builder(
    place: &ObjectUri,
    access: &S3Access,
    connector: &Connector,
) -> AmazonS3Builder {
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(&place.bucket)
        .with_allow_http(true)
        .with_checksum_algorithm(aws::Checksum::SHA256)
        .with_retry(retries())
        .with_http_connector(connector.clone());
    if let Some(region) = &access.region {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = &access.endpoint_url {
        // S3 stores other than AWS have no host name for each bucket.
        builder = builder
            .with_endpoint(endpoint.trim_end_matches('/'))
            // Otherwise, AWS_ENDPOINT_URL_S3 would take precedence.
            .with_config(
                AmazonS3ConfigKey::S3Endpoint,
                endpoint.trim_end_matches('/'),
            )
            .with_virtual_hosted_style_request(false);
    }
    if let Some(command) = &access.key_process {
        builder = builder.with_credentials(Arc::new(Printed::by(command.clone())));
    }
    if let Some(keys) = &access.keys {
        // These keys replace the token of the environment as well, because that token belongs to other keys.
        let credential = AwsCredential {
            key_id: keys.access_key_id.reveal().to_owned(),
            secret_key: keys.secret_access_key.reveal().to_owned(),
            token: keys
                .session_token
                .as_ref()
                .map(|token| token.reveal().to_owned()),
        };
        builder = builder.with_credentials(Arc::new(StaticCredentialProvider::new(credential)));
    }
    builder
}

/// Adds checksums of the kind CRC-64/NVME, from which a store computes that of the whole file when the parts are
/// combined. Payloads that TLS protects in transit are not hashed for the signature as well; AWS's own clients do the
/// same.
pub(crate) fn with_checksums_that_add_up(
    builder: AmazonS3Builder,
    insecure_tls: bool,
) -> AmazonS3Builder {
    let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint);
    let is_private = endpoint.is_none_or(|url| url.starts_with("https://")) && !insecure_tls;
    let builder = builder.with_checksum_algorithm(aws::Checksum::CRC64NVME);
    if is_private {
        builder.with_unsigned_payload(true)
    } else {
        builder
    }
}

pub(crate) fn alike<T: Objects>(store: T) -> [Arc<dyn Objects>; 3] {
    let store: Arc<dyn Objects> = Arc::new(store);
    [Arc::clone(&store), Arc::clone(&store), store]
}

pub(crate) fn headers<'a>(
    pairs: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        let header = HeaderName::from_bytes(name.as_bytes())
            .ok()
            .zip(HeaderValue::from_str(value).ok());
        let (name, value) = header.ok_or_else(|| format!("{name} cannot be sent as a header"))?;
        headers.insert(name, value);
    }
    Ok(headers)
}
