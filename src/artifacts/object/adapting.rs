//! An S3 store that is opened anew when an answer says how: in the region of the bucket, or without checksums that the
//! store does not know. boto3 finds the region in the same way.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, LazyLock, Mutex, PoisonError, RwLock},
};

use async_trait::async_trait;

use super::{failure::ObjectFailure, store::ObjectArtifacts};
use crate::{
    artifacts::{
        checksum::Checksum,
        error::ArtifactError,
        store::{ArtifactStore, Content, FileInfo, FileState, UnfinishedUpload, Upload},
    },
    config::{s3::S3Config, uri::ObjectUri},
    mlflow::{artifact_path::ArtifactPath, invalid::Invalid},
};

/// The way in which a bucket is to be addressed, as far as its answers have told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manner {
    /// Region of the bucket.
    pub region: Option<String>,
    /// True where the store refuses requests with checksums.
    pub is_without_checksums: bool,
}

/// What this process has learnt of each bucket, by its URI's bucket and the endpoint of the settings.
static LEARNT: LazyLock<Mutex<HashMap<String, Manner>>> = LazyLock::new(Mutex::default);

/// A store of S3 that follows what the answers say about the region and the checksums.
#[derive(Debug)]
pub(crate) struct AdaptingArtifacts {
    place: ObjectUri,
    settings: S3Config,
    current: RwLock<(Manner, Arc<ObjectArtifacts>)>,
}

impl AdaptingArtifacts {
    /// Opens the store of a URI. Sends no request yet.
    ///
    /// # Errors
    /// [`Invalid::Setting`] for invalid values in the settings or the environment.
    pub(crate) fn open(place: &ObjectUri, settings: &S3Config) -> Result<Self, Invalid> {
        let learnt = LEARNT.lock().unwrap_or_else(PoisonError::into_inner);
        let manner = learnt
            .get(&bucket(place, settings))
            .cloned()
            .unwrap_or_default();
        drop(learnt);
        let store = ObjectArtifacts::open(place, settings, &manner)?;
        Ok(Self {
            place: place.clone(),
            settings: settings.clone(),
            current: RwLock::new((manner, Arc::new(store))),
        })
    }

    fn current(&self) -> (Manner, Arc<ObjectArtifacts>) {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Makes a request, and makes it once more in another manner where the answer names one.
    async fn adapted<T, F>(
        &self,
        request: impl Fn(Arc<ObjectArtifacts>) -> F,
    ) -> Result<T, ArtifactError>
    where
        F: Future<Output = Result<T, ArtifactError>>,
    {
        let (manner, store) = self.current();
        let answer = request(store).await;
        let Err(ArtifactError::Object { source, .. }) = &answer else {
            return answer;
        };
        let opened = changed(&manner, source).and_then(|other| {
            let opened = ObjectArtifacts::open(&self.place, &self.settings, &other).ok()?;
            Some((other, Arc::new(opened)))
        });
        let Some((other, opened)) = opened else {
            return answer;
        };
        let answer = request(Arc::clone(&opened)).await;
        // A store that names a region means it; checksums may have been blameless.
        if answer.is_ok() || other.region != manner.region {
            self.learn(other, opened);
        }
        answer
    }

    fn learn(&self, manner: Manner, store: Arc<ObjectArtifacts>) {
        let mut learnt = LEARNT.lock().unwrap_or_else(PoisonError::into_inner);
        learnt.insert(bucket(&self.place, &self.settings), manner.clone());
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = (manner, store);
    }
}

fn bucket(place: &ObjectUri, settings: &S3Config) -> String {
    let endpoint = settings.endpoint_url.as_deref().unwrap_or_default();
    format!("{endpoint} {}", place.bucket)
}

/// Returns the manner that a refusal asks for; none where it asks for nothing new.
fn changed(manner: &Manner, refusal: &ObjectFailure) -> Option<Manner> {
    let mut other = manner.clone();
    if let Some(region) = refusal.region() {
        other.region = Some(region.to_owned());
    } else if refusal.is_of_checksums() {
        other.is_without_checksums = true;
    }
    (other != *manner).then_some(other)
}

#[async_trait]
impl ArtifactStore for AdaptingArtifacts {
    fn uri(&self) -> String {
        self.current().1.uri()
    }

    async fn put(&self, upload: Upload<'_>) -> Result<(), ArtifactError> {
        self.adapted(|store| async move {
            upload.begin_anew();
            store.put(upload).await
        })
        .await
    }

    async fn list(&self, folder: &ArtifactPath) -> Result<Vec<FileInfo>, ArtifactError> {
        self.adapted(|store| async move { store.list(folder).await })
            .await
    }

    async fn files(&self, folder: &ArtifactPath) -> Result<Vec<FileInfo>, ArtifactError> {
        self.adapted(|store| async move { store.files(folder).await })
            .await
    }

    async fn head(&self, path: &ArtifactPath) -> Result<FileState, ArtifactError> {
        self.adapted(|store| async move { store.head(path).await })
            .await
    }

    async fn checksum(
        &self,
        path: &ArtifactPath,
        version: Option<&str>,
    ) -> Result<Option<Checksum>, ArtifactError> {
        self.adapted(|store| async move { store.checksum(path, version).await })
            .await
    }

    async fn read(
        &self,
        path: &ArtifactPath,
        range: Option<Range<u64>>,
        version: Option<&str>,
    ) -> Result<Content, ArtifactError> {
        self.adapted(|store| {
            let range = range.clone();
            async move { store.read(path, range, version).await }
        })
        .await
    }

    async fn delete(&self, path: &ArtifactPath) -> Result<(), ArtifactError> {
        self.adapted(|store| async move { store.delete(path).await })
            .await
    }

    async fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>, ArtifactError> {
        self.adapted(|store| async move { store.unfinished_uploads().await })
            .await
    }

    async fn abort_upload(&self, upload: &UnfinishedUpload) -> Result<(), ArtifactError> {
        self.adapted(|store| async move { store.abort_upload(upload).await })
            .await
    }
}
