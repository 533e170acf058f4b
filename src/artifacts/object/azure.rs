//! The client of a container of Azure Blob Storage.

use object_store::azure::MicrosoftAzureBuilder;

use super::{
    clients::{ObjectClients, not_built, retries},
    connector::Connector,
};
use crate::{config::uri::ObjectUri, mlflow::invalid::Invalid};

/// Builds the client by the settings of the environment. Sends no request yet.
pub(crate) fn connect(uri: &ObjectUri) -> Result<ObjectClients, Invalid> {
    let connector = Connector::new(false, None).map_err(|reason| not_built(uri, reason))?;
    let client = MicrosoftAzureBuilder::from_env()
        .with_account(uri.account.as_deref().unwrap_or_default())
        .with_container_name(&uri.bucket)
        .with_retry(retries())
        .with_http_connector(connector)
        .build()
        .map_err(|error| not_built(uri, error))?;
    Ok(ObjectClients {
        // `object_store` cannot set a content type for an upload in parts.
        types_of_parts: false,
        ..ObjectClients::same(client)
    })
}
