//! The clients of one bucket, as the clouds' own files build them.

use std::{sync::Arc, time::Duration};

use object_store::{BackoffConfig, ObjectStore, RetryConfig, multipart::MultipartStore};

use super::upload_list::UploadLister;
use crate::{config::uri::ObjectUri, mlflow::invalid::Invalid};

/// A client with both ways of writing to a store.
pub(crate) trait Objects: ObjectStore + MultipartStore {}
impl<T: ObjectStore + MultipartStore> Objects for T {}

/// The clients of one bucket. They differ in the headers of their requests.
#[derive(Debug)]
pub(crate) struct ObjectClients {
    /// Client for requests without further headers.
    pub(crate) store: Arc<dyn Objects>,
    /// Client that also requests checksums: a user with write access only may not be allowed to see them.
    pub(crate) reading: Arc<dyn Objects>,
    /// Client that sends the headers for new objects.
    pub(crate) creating: Arc<dyn Objects>,
    /// Clients for uploads in parts with a checksum of the whole object, where the store may know them.
    pub(crate) full_object: Option<FullObjectCrc64>,
    /// Content type of every new object; without it, the type follows from the name.
    pub(crate) content_type: Option<String>,
    /// False where an upload in parts cannot set the content type.
    pub(crate) types_of_parts: bool,
    /// Access to the list of unfinished uploads, where the store has one.
    pub(crate) upload_lister: Option<UploadLister>,
}

impl ObjectClients {
    /// Uses one client for all requests.
    pub(crate) fn same<T: Objects>(client: T) -> Self {
        let client: Arc<dyn Objects> = Arc::new(client);
        Self {
            store: Arc::clone(&client),
            reading: Arc::clone(&client),
            creating: client,
            full_object: None,
            content_type: None,
            types_of_parts: true,
            upload_lister: None,
        }
    }
}

/// Clients for uploads in parts whose CRC-64/NVME checksums give that of the whole object.
#[derive(Debug)]
pub(crate) struct FullObjectCrc64 {
    /// Client that sends the headers for new objects.
    pub(crate) creating: Arc<dyn Objects>,
    /// Client that sends parts.
    pub(crate) parts: Arc<dyn Objects>,
    /// Endpoint and bucket, under which the process remembers that a store does not know such checksums.
    pub(crate) bucket: String,
}

/// Returns the error for a bucket whose client cannot be built.
pub(crate) fn not_built(uri: &ObjectUri, reason: impl ToString) -> Invalid {
    Invalid::setting("artifact URI", uri.as_str(), reason.to_string())
}

/// Returns the settings for immediate retries: a request is tried again a few times. If that is not enough, the delivery
/// retries and tells the user.
pub(crate) fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            ..BackoffConfig::default()
        },
        max_retries: 3,
        retry_timeout: Duration::from_secs(10),
    }
}
