//! Opens the store that an artifact URI names.

use super::{error::ArtifactError, local, object::store, store::ArtifactStore};
use crate::{
    config::{s3::S3Config, uri::ArtifactUri},
    mlflow::invalid::Invalid,
};

/// Settings for the access to artifact stores.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    /// Settings of S3 stores.
    pub s3: S3Config,
}

impl Access {
    /// Opens the store that an artifact URI names.
    ///
    /// # Errors
    /// [`ArtifactError::Unsupported`] for unknown schemes, and for stores that cannot be used as configured.
    pub(crate) fn open(&self, uri: &str) -> Result<Box<dyn ArtifactStore>, ArtifactError> {
        match ArtifactUri::parse(uri)? {
            ArtifactUri::Local(root) => Ok(Box::new(local::LocalArtifacts::new(root))),
            ArtifactUri::Object(place) => {
                let store = store::ObjectArtifacts::open(&place, &self.s3)?;
                Ok(Box::new(store))
            }
            ArtifactUri::Server(uri) => Err(Invalid::setting(
                "artifact URI",
                &uri,
                "only the tracking server that keeps it can be asked for it: record into that server",
            )
            .into()),
        }
    }
}
