//! Opens the store that an artifact URI names.

use std::path::PathBuf;

use super::{
    error::ArtifactError, local, object::adapting::AdaptingArtifacts, store::ArtifactStore,
};
use crate::{
    config::{s3::S3Config, uri::ArtifactUri},
    mlflow::invalid::Invalid,
};

/// Settings for the access to artifact stores.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    /// Settings of S3 stores.
    pub s3: S3Config,
    /// Folder in which relative paths begin; empty for the working directory of the moment.
    pub working_dir: PathBuf,
}

impl Access {
    /// Opens the store that an artifact URI names.
    ///
    /// # Errors
    /// [`ArtifactError::Unsupported`] for unknown schemes, and for stores that cannot be used as configured.
    pub(crate) fn open(&self, uri: &str) -> Result<Box<dyn ArtifactStore>, ArtifactError> {
        match ArtifactUri::parse_in(uri, &self.working_dir)? {
            ArtifactUri::Local(root) => Ok(Box::new(local::LocalArtifacts::new(root))),
            ArtifactUri::Object(place) => {
                let store = AdaptingArtifacts::open(&place, &self.s3)?;
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
