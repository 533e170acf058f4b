//! Uploads in parts that were begun at a store and never finished: a process that died for good has left them, and they
//! are invisible but cost money.

use futures_util::{StreamExt, TryStreamExt, future, stream};
use object_store::path::Path as Key;

use super::{
    failure::ObjectFailure,
    store::ObjectArtifacts,
    upload_list::{ListedUpload, UploadLister},
};
use crate::{
    artifacts::{error::ArtifactError, store::UnfinishedUpload},
    mlflow::artifact_path::ArtifactPath,
};

/// Uploads whose parts are listed at a time.
const TOGETHER: usize = 8;

impl ObjectArtifacts {
    pub(super) async fn list_unfinished_uploads(
        &self,
    ) -> Result<Vec<UnfinishedUpload>, ArtifactError> {
        let Some(lister) = &self.clients.upload_lister else {
            return Ok(Vec::new());
        };
        let root = ArtifactPath::root();
        let prefix = match self.prefix.as_str() {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        let failed = |error| self.failed(&root, error);
        let mut listed = lister.uploads(&prefix).await.map_err(failed)?;
        // MinIO treats a prefix as a whole key: <https://github.com/minio/minio/issues/20989>.
        if listed.is_empty() && !prefix.is_empty() && lister.has_custom_endpoint {
            listed = lister.uploads("").await.map_err(failed)?;
            listed.retain(|upload| upload.key.starts_with(&prefix));
        }
        let found = stream::iter(listed)
            .map(|upload| self.described(lister, upload))
            .buffered(TOGETHER)
            .try_filter_map(future::ok);
        found.try_collect().await
    }

    /// Describes an upload and how much of it has arrived; returns `None` for an upload of no artifact, or one that has
    /// ended meanwhile.
    async fn described(
        &self,
        lister: &UploadLister,
        listed: ListedUpload,
    ) -> Result<Option<UnfinishedUpload>, ArtifactError> {
        // A key that no artifact can have is not of an artifact.
        let Ok(key) = Key::parse(&listed.key) else {
            return Ok(None);
        };
        let Ok(Some(path)) = self.below(&key) else {
            return Ok(None);
        };
        let bytes = match lister.size(&key, &listed.upload_id).await {
            Ok(bytes) => bytes,
            Err(error) => match self.part_failed(&path, error) {
                ArtifactError::Object { source, .. }
                    if matches!(*source, ObjectFailure::UploadGone(_)) =>
                {
                    return Ok(None);
                }
                error => return Err(error),
            },
        };
        Ok(Some(UnfinishedUpload {
            path,
            bytes,
            begun: listed.initiated_ms(),
            id: listed.upload_id,
        }))
    }
}
