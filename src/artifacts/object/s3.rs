//! The clients of a bucket of S3 or of a compatible store: settings, checksums and headers.

use std::sync::Arc;

use object_store::{
    ClientOptions, StaticCredentialProvider,
    aws::{self, AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredential},
};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use super::{
    adapting::Manner,
    clients::{FullObjectCrc64, ObjectClients, not_built, retries},
    connector::Connector,
    credentials::{CheckedCredentials, ProcessCredentials},
    upload_list::UploadLister,
};
use crate::{
    config::{
        s3::{S3Access, S3Config},
        uri::ObjectUri,
    },
    mlflow::invalid::Invalid,
};

/// Builds the clients by the settings and the environment. Sends no request yet.
pub(crate) fn connect(
    uri: &ObjectUri,
    settings: &S3Config,
    manner: &Manner,
) -> Result<ObjectClients, Invalid> {
    let mut access = S3Access::new(settings)?;
    access.region = manner.region.clone().or(access.region);
    access.has_checksums &= !manner.is_without_checksums;
    let refuse = |reason: String| not_built(uri, reason);
    let connector = Connector::new(access.insecure_tls, access.ca_bundle.as_deref());
    let connector = connector.map_err(refuse)?;
    let owner = access.bucket_owner.iter();
    let every = headers(owner.map(|owner| ("x-amz-expected-bucket-owner", owner.as_str())));
    let every = every.map_err(refuse)?;
    let with_headers = |headers: &HeaderMap| {
        builder(uri, &access, &connector)
            .with_client_options(ClientOptions::new().with_default_headers(headers.clone()))
    };
    let build = |builder: AmazonS3Builder| -> Result<AmazonS3, Invalid> {
        builder.build().map_err(|error| not_built(uri, error))
    };
    // All clients share the credentials that the first one finds.
    let first = build(with_headers(&every))?;
    let credentials = CheckedCredentials::wrap(first.credentials());
    let shared =
        |builder: AmazonS3Builder| build(builder.with_credentials(Arc::clone(&credentials)));
    let store = shared(with_headers(&every))?;

    let arguments = access.upload_headers.iter();
    let new = headers(arguments.map(|(name, value)| (name.as_str(), value.as_str())));
    let mut new = new.map_err(refuse)?;
    new.extend(every.clone());
    let mut read = every.clone();
    if access.validates_answers && access.has_checksums {
        read.insert("x-amz-checksum-mode", HeaderValue::from_static("ENABLED"));
    }
    let with_full_object = |headers: &HeaderMap| {
        shared(with_full_object_crc64(
            with_headers(headers),
            access.insecure_tls,
        ))
    };
    let endpoint = access.endpoint_url.as_deref().unwrap_or_default();
    let mut full_object = None;
    if access.has_checksums {
        full_object = Some(FullObjectCrc64 {
            creating: Arc::new(with_full_object(&new)?),
            parts: Arc::new(with_full_object(&every)?),
            bucket: format!("{endpoint} {}", uri.bucket),
        });
    }
    let has_custom_endpoint = access.endpoint_url.is_some();
    let upload_lister = UploadLister::new(&store, &connector, every, has_custom_endpoint)
        .map_err(|error| not_built(uri, error))?;
    Ok(ObjectClients {
        reading: Arc::new(shared(with_headers(&read))?),
        creating: Arc::new(shared(with_headers(&new))?),
        full_object,
        content_type: access.content_type,
        upload_lister: Some(upload_lister),
        ..ObjectClients::same(store)
    })
}

fn builder(uri: &ObjectUri, access: &S3Access, connector: &Connector) -> AmazonS3Builder {
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(&uri.bucket)
        .with_allow_http(true)
        .with_retry(retries())
        .with_http_connector(connector.clone());
    if access.has_checksums {
        builder = builder.with_checksum_algorithm(aws::Checksum::SHA256);
    }
    if let Some(region) = &access.region {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = &access.endpoint_url {
        let endpoint = endpoint.trim_end_matches('/');
        // S3 stores other than AWS have no host name for each bucket.
        builder = builder
            .with_endpoint(endpoint)
            // Otherwise, AWS_ENDPOINT_URL_S3 would take precedence.
            .with_config(AmazonS3ConfigKey::S3Endpoint, endpoint)
            .with_virtual_hosted_style_request(access.is_virtual_hosted == Some(true));
    }
    if access.endpoint_url.is_none() && access.is_virtual_hosted == Some(false) {
        builder = builder.with_virtual_hosted_style_request(false);
    }
    if let Some(command) = &access.key_process {
        builder = builder.with_credentials(Arc::new(ProcessCredentials::new(command.clone())));
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

/// Adds checksums of the kind CRC-64/NVME, from which a store computes that of the whole object when it joins the
/// parts. Payloads that TLS protects in transit are not hashed for the signature as well; AWS's own clients do the
/// same.
fn with_full_object_crc64(builder: AmazonS3Builder, insecure_tls: bool) -> AmazonS3Builder {
    let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint);
    let is_private = endpoint.is_none_or(|url| url.starts_with("https://")) && !insecure_tls;
    let builder = builder.with_checksum_algorithm(aws::Checksum::CRC64NVME);
    if is_private {
        builder.with_unsigned_payload(true)
    } else {
        builder
    }
}

fn headers<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Result<HeaderMap, String> {
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
