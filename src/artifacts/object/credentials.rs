//! The credentials of an S3 store, wherever they come from.

use std::sync::Arc;

use async_trait::async_trait;
use object_store::{
    CredentialProvider,
    aws::{AwsCredential, AwsCredentialProvider},
};

/// No credentials were found where they were looked for.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Missing(#[source] object_store::Error);

/// Credentials that say so when there are none.
#[derive(Debug)]
pub(super) struct Credentials(AwsCredentialProvider);

impl Credentials {
    pub fn wrap(provider: &AwsCredentialProvider) -> AwsCredentialProvider {
        Arc::new(Self(Arc::clone(provider)))
    }
}

#[async_trait]
impl CredentialProvider for Credentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let found = self.0.get_credential().await;
        found.map_err(|error| object_store::Error::Generic {
            store: "S3",
            source: Box::new(Missing(error)),
        })
    }
}
