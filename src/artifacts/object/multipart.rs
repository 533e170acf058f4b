//! Uploads in parts, which continue after an interruption.
//!
//! The sent parts are noted beside the staged file. A later process continues the same upload at the store and sends the
//! missing parts.
//!
//! If the store supports it, the checksums of the parts give that of the whole object; otherwise each part has its
//! SHA-256.

use std::{
    collections::HashSet,
    fs::File,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use object_store::{
    Attributes, GetOptions, PutMultipartOptions, PutPayload, multipart::PartId, path::Path as Key,
};
use tokio::sync::Semaphore;

use super::{
    clients::{FullObjectCrc64, Objects},
    failure::ObjectFailure,
    store::{ObjectArtifacts, read},
    upload_note::{MultipartUpload, PartChecksums, UploadNote, crc64_of, note_path},
};
use crate::{
    artifacts::{
        buffers::Buffers,
        checksum::Checksum,
        error::{ArtifactError, damaged},
        parts::{FileStamp, PartLayout, send_parts},
        store::{ArtifactStore, Upload},
    },
    mlflow::artifact_path::ArtifactPath,
};

/// Size of a part; it is larger where a file would have too many parts.
const PART_SIZE: u64 = 8 << 20;
/// Bytes that are in transit at a time.
const IN_FLIGHT: u64 = 32 << 20;

/// Returns the buckets whose store does not know checksums of whole objects, for all runs of this process.
fn without_full_object_crc64() -> MutexGuard<'static, HashSet<String>> {
    static BUCKETS: LazyLock<Mutex<HashSet<String>>> = LazyLock::new(Mutex::default);
    BUCKETS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The object at the place of an upload.
enum StoredObject {
    /// The sent bytes, according to the checksum.
    Same,
    /// Possibly the sent bytes: the length is equal, or the store does not tell.
    Unknown,
    /// No object.
    Missing,
    /// Other bytes.
    Different,
}

impl ObjectArtifacts {
    pub(crate) async fn put_in_parts(
        &self,
        upload: Upload<'_>,
        file: File,
    ) -> Result<(), ArtifactError> {
        let key = self.key(upload.path)?;
        let path = upload
            .resume
            .map(|prefix| note_path(prefix, &self.uri, key.as_ref()));
        let stamp = FileStamp::of(&file, upload.size);
        let found = match UploadNote::load(path.as_deref(), &key) {
            Some(other) if !other.is_of(stamp) => {
                self.abort(&key, &other).await;
                None
            }
            found => found,
        };
        let mut is_from_before = found.is_some();
        if let Some(note) = &found {
            tracing::debug!(
                name: "upload_resumed",
                target: "heimdall_tracking.artifacts",
                path = upload.path.as_str(),
                parts_sent = note.parts.len(),
                parts = note.upload.layout().count(),
            );
        }
        let mut note = match found {
            Some(note) => note,
            None => UploadNote::create(
                path.as_deref(),
                self.begin(upload, &key, stamp, true).await?,
            ),
        };
        loop {
            let Err(error) = self.finish_upload(upload, &file, &key, &mut note).await else {
                note.remove();
                return Ok(());
            };
            let begins_anew = match failure(&error) {
                // The upload was completed just before a kill and not noted, or the store has removed it.
                Some(ObjectFailure::UploadGone(_)) if is_from_before => {
                    let has_all = note.missing_parts().is_empty();
                    if has_all
                        && matches!(
                            self.find_object(&upload, &note, None).await?,
                            StoredObject::Same
                        )
                    {
                        note.remove();
                        return Ok(());
                    }
                    true
                }
                Some(ObjectFailure::ChecksumUnsupported) => {
                    self.remember_unsupported();
                    true
                }
                _ if error.is_transient() => return Err(error),
                _ => false,
            };
            note.remove();
            self.abort(&key, &note).await;
            if !begins_anew {
                return Err(error);
            }
            upload.begin_anew();
            is_from_before = false;
            let begun = self.begin(upload, &key, stamp, false).await?;
            note = UploadNote::create(path.as_deref(), begun);
        }
    }

    /// Aborts a noted upload. If its parts remain all the same, `gc` finds them.
    async fn abort(&self, key: &Key, note: &UploadNote) {
        let aborted = self.clients.store.abort_multipart(key, &note.upload.id);
        let _ = aborted.await;
    }

    /// Begins an upload at the store. Its checksums give that of the whole object where `may_be_full_object` is true and
    /// the store knows them.
    async fn begin(
        &self,
        upload: Upload<'_>,
        key: &Key,
        stamp: FileStamp,
        may_be_full_object: bool,
    ) -> Result<MultipartUpload, ArtifactError> {
        let options = PutMultipartOptions {
            attributes: if self.clients.types_of_parts {
                self.attributes(upload.path)
            } else {
                Attributes::new()
            },
            ..PutMultipartOptions::default()
        };
        let create = async |client: &dyn Objects| {
            let id = client.create_multipart_opts(key, options.clone()).await;
            id.map_err(|error| self.failed(upload.path, error))
        };
        let is_possible = |full_object: &&FullObjectCrc64| {
            may_be_full_object && !without_full_object_crc64().contains(&full_object.bucket)
        };
        let full_object = self.clients.full_object.as_ref().filter(is_possible);
        let full_object_id = match full_object {
            None => None,
            Some(full_object) => match create(&*full_object.creating).await {
                Ok(id) => Some(id),
                // Some buckets forbid unsigned payloads.
                Err(error) if is_not_understood(&error) || is_forbidden(&error) => None,
                Err(error) => return Err(error),
            },
        };
        let (checksums, id) = match full_object_id {
            Some(id) => (PartChecksums::FullObject, id),
            None => {
                let id = create(&*self.clients.creating).await?;
                if full_object.is_some() {
                    self.remember_unsupported();
                }
                (PartChecksums::Separate, id)
            }
        };
        Ok(MultipartUpload {
            key: key.as_ref().to_owned(),
            size: stamp.size,
            part_size: PartLayout::new(stamp.size, PART_SIZE).part_size,
            id,
            checksums,
            modified: stamp.modified,
        })
    }

    fn remember_unsupported(&self) {
        if let Some(full_object) = &self.clients.full_object {
            without_full_object_crc64().insert(full_object.bucket.clone());
        }
    }

    /// Sends a part, and returns the store's id of it.
    async fn send_part(
        &self,
        upload: Upload<'_>,
        key: &Key,
        multipart: &MultipartUpload,
        part: u64,
        content: Bytes,
    ) -> Result<PartId, ArtifactError> {
        let full_object = self.clients.full_object.as_ref();
        let full_object = full_object.filter(|_| multipart.checksums == PartChecksums::FullObject);
        let store = full_object.map_or(&self.clients.store, |full_object| &full_object.parts);
        let payload = PutPayload::from_bytes(content);
        let sent = store
            .put_part(key, &multipart.id, part as usize, payload)
            .await;
        let sent = sent.map_err(|error| self.part_failed(upload.path, error));
        let is_unknown = match &sent {
            Err(error) => is_not_understood(error),
            // A store that does not confirm the checksum has not compared it.
            Ok(sent) => crc64_of(sent).is_none(),
        };
        if full_object.is_some() && is_unknown {
            Err(self.not_done(upload.path, ObjectFailure::ChecksumUnsupported))
        } else {
            sent
        }
    }

    /// Sends the missing parts, and makes one object of all parts.
    async fn finish_upload(
        &self,
        upload: Upload<'_>,
        file: &File,
        key: &Key,
        note: &mut UploadNote,
    ) -> Result<(), ArtifactError> {
        let multipart = &note.upload.clone();
        let layout = multipart.layout();
        upload.count(note.sent_bytes());
        let together = (IN_FLIGHT / layout.part_size).max(1) as usize;
        let (room, buffers) = (Semaphore::new(together), &Buffers::default());
        let send = |part| async move {
            let opened = file.try_clone().map_err(|source| ArtifactError::Io {
                artifact: upload.path.as_str().to_owned(),
                target: upload.file.to_owned(),
                source,
            })?;
            let content = read(upload, opened, layout.range(part), buffers).await?;
            let sent = self
                .send_part(upload, key, multipart, part, content)
                .await?;
            upload.count(layout.size_of(part));
            Ok::<_, ArtifactError>(sent)
        };
        let missing = note.missing_parts();
        let noted = |part, sent| note.add(part, sent);
        send_parts(missing, together, &room, send, noted).await?;

        let all: Vec<PartId> = note.parts.values().cloned().collect();
        let is_full_object = multipart.checksums == PartChecksums::FullObject;
        let completed = self
            .clients
            .store
            .complete_multipart(key, &multipart.id, all);
        let completed = completed.await;
        let completed = match completed.map_err(|error| self.part_failed(upload.path, error)) {
            Err(error) if is_full_object && is_not_understood(&error) => {
                return Err(self.not_done(upload.path, ObjectFailure::ChecksumUnsupported));
            }
            completed => completed?,
        };
        match self.find_object(&upload, note, completed.e_tag).await? {
            // The store has confirmed that it made an object of the parts. It does not matter here if the object has
            // changed since or is not visible yet.
            StoredObject::Same | StoredObject::Unknown | StoredObject::Missing => Ok(()),
            // The bytes are damaged, or the store adds checksums in another way: an upload without checksums is right
            // in both cases.
            StoredObject::Different if is_full_object => {
                Err(self.not_done(upload.path, ObjectFailure::ChecksumUnsupported))
            }
            StoredObject::Different => {
                let reason = format!("it has not the {} bytes that were sent", upload.size);
                Err(damaged(self.uri(), upload.path, reason))
            }
        }
    }

    /// Returns the object at the place of an upload, of that version if one is given.
    async fn find_object(
        &self,
        upload: &Upload<'_>,
        note: &UploadNote,
        version: Option<String>,
    ) -> Result<StoredObject, ArtifactError> {
        let options = GetOptions {
            head: true,
            if_match: version,
            ..GetOptions::default()
        };
        let (size, stored) = match self.get(upload.path, options).await {
            Ok(found) => {
                let stored = found.extensions.get::<Checksum>().cloned();
                (found.meta.size, stored)
            }
            // A user with write access only may not be allowed to see checksums, or anything else.
            Err(error) if tells_nothing(&error) => match self.head(upload.path).await {
                Ok(state) => (state.size, None),
                Err(error) if tells_nothing(&error) => return Ok(StoredObject::Unknown),
                Err(ArtifactError::NotFound { .. }) => return Ok(StoredObject::Missing),
                Err(error) => return Err(error),
            },
            Err(ArtifactError::NotFound { .. }) => return Ok(StoredObject::Missing),
            // Somebody has put another object there since.
            Err(ArtifactError::Damaged { .. }) => return Ok(StoredObject::Unknown),
            Err(error) => return Err(error),
        };
        let agrees = note
            .full_object_checksum()
            .zip(stored)
            .and_then(|(sent, stored)| sent.agrees(&stored));
        Ok(match agrees {
            _ if size != upload.size => StoredObject::Different,
            Some(true) => StoredObject::Same,
            Some(false) => StoredObject::Different,
            None => StoredObject::Unknown,
        })
    }

    /// Returns the error for a part. If the store reports a missing object in an upload in parts, the upload is
    /// missing.
    pub(crate) fn part_failed(
        &self,
        path: &ArtifactPath,
        error: object_store::Error,
    ) -> ArtifactError {
        let source = if super::failure::is_missing(&error) {
            ObjectFailure::UploadGone(error.to_string())
        } else {
            ObjectFailure::from(error)
        };
        self.not_done(path, source)
    }
}

fn failure(error: &ArtifactError) -> Option<&ObjectFailure> {
    match error {
        ArtifactError::Object { source, .. } => Some(source),
        _ => None,
    }
}

fn is_not_understood(error: &ArtifactError) -> bool {
    failure(error).is_some_and(ObjectFailure::is_not_understood)
}

/// Returns true where a store does not describe the object, and will not later.
fn tells_nothing(error: &ArtifactError) -> bool {
    is_forbidden(error) || is_not_understood(error)
}

fn is_forbidden(error: &ArtifactError) -> bool {
    matches!(
        failure(error),
        Some(ObjectFailure::Forbidden(_) | ObjectFailure::Unexplained(_))
    )
}
