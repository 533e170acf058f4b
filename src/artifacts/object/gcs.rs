//! The client of a bucket of Google Cloud Storage.

use object_store::gcp::GoogleCloudStorageBuilder;

use super::{
    clients::{ObjectClients, not_built, retries},
    connector::Connector,
};
use crate::{config::uri::ObjectUri, mlflow::invalid::Invalid};

/// Builds the client by the settings of the environment. Sends no request yet.
pub(crate) fn connect(uri: &ObjectUri) -> Result<ObjectClients, Invalid> {
    let connector = Connector::new(false, None).map_err(|reason| not_built(uri, reason))?;
    let client = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(&uri.bucket)
        .with_retry(retries())
        .with_http_connector(connector)
        .build();
    client
        .map(ObjectClients::same)
        .map_err(|error| not_built(uri, error))
}
