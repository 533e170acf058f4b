//! Uploads in parts, which continue after an interruption.
//!
//! The sent parts are noted beside the staged file, with a line for each part. A later process continues the same
//! upload at the store and sends the missing parts.
//!
//! If the store supports it, parts have checksums that add up to one of the whole file; otherwise each part has its
//! SHA-256.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File, OpenOptions},
    io::Write,
    ops::Range,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use object_store::{
    Attributes, GetOptions, PutMultipartOptions, PutPayload, multipart::PartId, path::Path as Key,
};
use serde::{Deserialize, Serialize};

use super::{
    failure::ObjectFailure,
    store::{FullObjectCrc64, ObjectArtifacts, Objects, read},
};
use crate::{
    artifacts::{
        buffers::Buffers,
        checksum::Checksum,
        error::{ArtifactError, damaged},
        store::{ArtifactStore, Upload},
    },
    mlflow::artifact_path::ArtifactPath,
};

/// Length of a part; it is longer where a file would have too many parts.
const PART: u64 = 8 << 20;
/// Most parts that S3 accepts of a file.
pub(crate) const MAX_PARTS: u64 = 10_000;
/// Bytes that are in transit at a time.
const IN_FLIGHT: u64 = 32 << 20;

/// Checksums that the store compares parts with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Sums {
    /// No checksums, or checksums that say nothing about the whole file.
    #[default]
    OfParts,
    /// CRC-64/NVME, from which the store computes that of the whole file.
    OfTheWhole,
}

/// First line of a note.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Begun {
    /// Key of the object in its bucket.
    key: String,
    size: u64,
    part: u64,
    upload: String,
    #[serde(default)]
    sums: Sums,
    /// Time of the file's last change, in nanoseconds since 1970: a file that is sent from its own place may have
    /// changed meanwhile.
    #[serde(default)]
    modified: i64,
}

/// Returns the places whose store does not know checksums that add up, for all runs of this process.
fn refused() -> MutexGuard<'static, HashSet<String>> {
    static REFUSED: LazyLock<Mutex<HashSet<String>>> = LazyLock::new(Mutex::default);
    REFUSED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The object found at the place of an upload.
enum Found {
    /// The sent bytes, according to the checksum.
    Same,
    /// Possibly the sent bytes: the length is equal, or the store does not tell.
    Perhaps,
    /// No object.
    Nothing,
    /// Other bytes.
    Other,
}

/// The store's answer to a part that it has accepted.
#[derive(Deserialize)]
struct Taken {
    checksum_crc64nvme: Option<String>,
}

/// Returns the CRC-64/NVME with which the store has accepted a part.
fn sum_of(part: &PartId) -> Option<String> {
    let taken: Taken = quick_xml::de::from_str(&part.content_id).ok()?;
    taken.checksum_crc64nvme
}

/// Line of a part that was sent.
#[derive(Debug, Serialize, Deserialize)]
struct Sent {
    part: usize,
    id: String,
}

/// The note of an upload, and the file to continue it in.
#[derive(Debug)]
struct Note {
    file: Option<File>,
    path: Option<PathBuf>,
    begun: Begun,
    sent: BTreeMap<usize, PartId>,
}

impl Note {
    /// Returns the note that an interrupted upload to the same place has left.
    fn found(path: Option<&Path>, key: &Key) -> Option<Self> {
        let path = path?;
        let text = fs::read_to_string(path).ok()?;
        let mut lines = text.lines();
        let begun: Begun = serde_json::from_str(lines.next()?).ok()?;
        if begun.key != key.as_ref() || begun.part == 0 {
            return None;
        }
        // A part whose line was torn by a kill is sent again.
        let sent = lines
            .filter_map(|line| serde_json::from_str::<Sent>(line).ok())
            .map(|sent| {
                let content_id = sent.id;
                (sent.part, PartId { content_id })
            })
            .collect();
        let file = OpenOptions::new().append(true).open(path).ok();
        let mut note = Self {
            file,
            path: Some(path.to_owned()),
            begun,
            sent,
        };
        // The text behind a torn line must be a line of its own.
        note.write("");
        Some(note)
    }

    /// Returns true where the note is of this file as it is now.
    fn is_of(&self, size: u64, modified: i64) -> bool {
        self.begun.size == size && self.begun.modified == modified
    }

    fn begin(path: Option<&Path>, begun: Begun) -> Self {
        let file = path.and_then(|path| {
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(path)
                .ok()
        });
        let mut note = Self {
            file,
            path: path.map(Path::to_owned),
            begun,
            sent: BTreeMap::new(),
        };
        let line = serde_json::to_string(&note.begun).unwrap_or_default();
        note.write(&line);
        note
    }

    fn add(&mut self, part: usize, id: PartId) {
        let sent = Sent {
            part,
            id: id.content_id.clone(),
        };
        let line = serde_json::to_string(&sent).unwrap_or_default();
        self.write(&line);
        self.sent.insert(part, id);
    }

    /// Writes a line. On a disk that refuses it, the upload continues all the same, but cannot be resumed.
    fn write(&mut self, line: &str) {
        if let Some(file) = &mut self.file {
            let _ = file.write_all(format!("{line}\n").as_bytes());
        }
    }

    fn remove(&self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }

    /// Returns the checksum of the whole file; `None` while parts are missing, or where the parts have no checksums
    /// that add up.
    fn sum_of_all(&self) -> Option<Checksum> {
        let ranges = self.ranges();
        let parts = ranges.into_iter().enumerate().map(|(part, range)| {
            let sum = sum_of(self.sent.get(&part)?)?;
            Some((sum, range.end - range.start))
        });
        Checksum::of_parts(parts.collect::<Option<Vec<_>>>()?)
    }

    fn ranges(&self) -> Vec<Range<u64>> {
        let (size, part) = (self.begun.size, self.begun.part);
        (0..size.div_ceil(part))
            .map(|number| number * part..size.min((number + 1) * part))
            .collect()
    }
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
            .map(|place| note_path(place, &self.uri, key.as_ref()));
        let modified = modified(&file);
        let found = match Note::found(path.as_deref(), &key) {
            Some(other) if !other.is_of(upload.size, modified) => {
                let _ = self.store.abort_multipart(&key, &other.begun.upload).await;
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
                parts_sent = note.sent.len(),
                parts = note.ranges().len(),
            );
        }
        let mut note = match found {
            Some(note) => note,
            None => Note::begin(
                path.as_deref(),
                self.begin(upload, &key, modified, true).await?,
            ),
        };
        loop {
            let Err(error) = self.go_on(upload, &file, &key, &mut note).await else {
                note.remove();
                return Ok(());
            };
            let begins_anew = match failure(&error) {
                // The upload was completed just before a kill and not noted, or the store has removed it.
                Some(ObjectFailure::PartsGone(_)) if is_from_before => {
                    let has_all = note.sent.len() == note.ranges().len();
                    if has_all && matches!(self.find(&upload, &note, None).await?, Found::Same) {
                        note.remove();
                        return Ok(());
                    }
                    true
                }
                Some(ObjectFailure::SumUnknown) => {
                    self.remember_refusal();
                    true
                }
                _ if error.is_transient() => return Err(error),
                _ => false,
            };
            note.remove();
            // If parts remain all the same, `gc` finds them.
            let _ = self.store.abort_multipart(&key, &note.begun.upload).await;
            if !begins_anew {
                return Err(error);
            }
            upload.begin_anew();
            is_from_before = false;
            let begun = self.begin(upload, &key, modified, false).await?;
            note = Note::begin(path.as_deref(), begun);
        }
    }

    /// Begins an upload at the store, with checksums that add up where that is allowed and the store knows them.
    async fn begin(
        &self,
        upload: Upload<'_>,
        key: &Key,
        modified: i64,
        may_sum: bool,
    ) -> Result<Begun, ArtifactError> {
        let options = PutMultipartOptions {
            attributes: if self.types_of_parts {
                self.attributes(upload.path)
            } else {
                Attributes::new()
            },
            ..PutMultipartOptions::default()
        };
        let create = async |creating: &dyn Objects| {
            let begun = creating.create_multipart_opts(key, options.clone()).await;
            begun.map_err(|error| self.failed(upload.path, error))
        };
        let knows =
            |full_object: &&FullObjectCrc64| may_sum && !refused().contains(&full_object.place);
        let full_object = self.full_object.as_ref().filter(knows);
        let summed = match full_object {
            None => None,
            Some(full_object) => match create(&*full_object.creating).await {
                Ok(id) => Some(id),
                // Some buckets forbid unsigned payloads.
                Err(error) if is_not_understood(&error) || is_forbidden(&error) => None,
                Err(error) => return Err(error),
            },
        };
        let (sums, id) = match summed {
            Some(id) => (Sums::OfTheWhole, id),
            None => {
                let id = create(&*self.creating).await?;
                if full_object.is_some() {
                    self.remember_refusal();
                }
                (Sums::OfParts, id)
            }
        };
        Ok(Begun {
            key: key.as_ref().to_owned(),
            size: upload.size,
            part: PART.max(upload.size.div_ceil(MAX_PARTS)),
            upload: id,
            sums,
            modified,
        })
    }

    fn remember_refusal(&self) {
        if let Some(full_object) = &self.full_object {
            refused().insert(full_object.place.clone());
        }
    }

    /// Sends a part, and returns the store's id of it.
    async fn send(
        &self,
        upload: Upload<'_>,
        key: &Key,
        begun: &Begun,
        part: usize,
        content: Bytes,
    ) -> Result<PartId, ArtifactError> {
        let full_object = self.full_object.as_ref();
        let full_object = full_object.filter(|_| begun.sums == Sums::OfTheWhole);
        let store = full_object.map_or(&self.store, |full_object| &full_object.parts);
        let payload = PutPayload::from_bytes(content);
        let sent = store.put_part(key, &begun.upload, part, payload).await;
        let sent = sent.map_err(|error| self.part_failed(upload.path, error));
        let is_unknown = match &sent {
            Err(error) => is_not_understood(error),
            // A store that does not confirm the checksum has not compared it.
            Ok(sent) => sum_of(sent).is_none(),
        };
        if full_object.is_some() && is_unknown {
            Err(self.not_done(upload.path, ObjectFailure::SumUnknown))
        } else {
            sent
        }
    }

    /// Sends the missing parts, and makes one file of all parts.
    async fn go_on(
        &self,
        upload: Upload<'_>,
        file: &File,
        key: &Key,
        note: &mut Note,
    ) -> Result<(), ArtifactError> {
        let ranges = note.ranges();
        let begun = note.begun.clone();
        let missing: Vec<usize> = (0..ranges.len())
            .filter(|part| !note.sent.contains_key(part))
            .collect();
        let there: u64 = note
            .sent
            .keys()
            .filter_map(|part| ranges.get(*part))
            .map(|range| range.end - range.start)
            .sum();
        upload.count(there);
        let together = (IN_FLIGHT / note.begun.part).max(1) as usize;
        let (stop, buffers) = (AtomicBool::new(false), Buffers::default());
        let mut parts = stream::iter(missing)
            .map(|part| {
                let (range, begun, stop, buffers) = (ranges[part].clone(), &begun, &stop, &buffers);
                async move {
                    if stop.load(Ordering::Relaxed) {
                        return Ok(None);
                    }
                    let length = range.end - range.start;
                    let opened = file.try_clone().map_err(|source| ArtifactError::Io {
                        artifact: upload.path.as_str().to_owned(),
                        target: upload.file.to_owned(),
                        source,
                    })?;
                    let content = read(upload, opened, range, buffers).await?;
                    let sent = self.send(upload, key, begun, part, content).await?;
                    upload.count(length);
                    Ok(Some((part, sent)))
                }
            })
            .buffer_unordered(together);
        let mut failed: Option<ArtifactError> = None;
        while let Some(sent) = parts.next().await {
            match sent {
                Ok(Some((part, sent))) => note.add(part, sent),
                Ok(None) => {}
                // Parts in transit still arrive and are noted, so they are not sent again.
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    failed.get_or_insert(error);
                }
            }
        }
        drop(parts);
        if let Some(error) = failed {
            return Err(error);
        }
        let all: Vec<PartId> = note.sent.values().cloned().collect();
        let adds_up = begun.sums == Sums::OfTheWhole;
        let completed = self.store.complete_multipart(key, &begun.upload, all).await;
        let completed = match completed.map_err(|error| self.part_failed(upload.path, error)) {
            Err(error) if adds_up && is_not_understood(&error) => {
                return Err(self.not_done(upload.path, ObjectFailure::SumUnknown));
            }
            completed => completed?,
        };
        match self.find(&upload, note, completed.e_tag).await? {
            // The store has confirmed that it made a file of the parts. It does not matter here if the file has changed
            // since or is not visible yet.
            Found::Same | Found::Perhaps | Found::Nothing => Ok(()),
            // The bytes are damaged, or the store adds checksums in another way: an upload without checksums is right
            // in both cases.
            Found::Other if adds_up => Err(self.not_done(upload.path, ObjectFailure::SumUnknown)),
            Found::Other => {
                let reason = format!("it has not the {} bytes that were sent", upload.size);
                Err(damaged(self.uri(), upload.path, reason))
            }
        }
    }

    /// Returns the object at the place of an upload, of that version if one is given.
    async fn find(
        &self,
        upload: &Upload<'_>,
        note: &Note,
        version: Option<String>,
    ) -> Result<Found, ArtifactError> {
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
                Err(error) if tells_nothing(&error) => return Ok(Found::Perhaps),
                Err(ArtifactError::NotFound { .. }) => return Ok(Found::Nothing),
                Err(error) => return Err(error),
            },
            Err(ArtifactError::NotFound { .. }) => return Ok(Found::Nothing),
            // Somebody has put another object there since.
            Err(ArtifactError::Damaged { .. }) => return Ok(Found::Perhaps),
            Err(error) => return Err(error),
        };
        let agrees = note
            .sum_of_all()
            .zip(stored)
            .and_then(|(sent, stored)| sent.agrees(&stored));
        Ok(match agrees {
            _ if size != upload.size => Found::Other,
            Some(true) => Found::Same,
            Some(false) => Found::Other,
            None => Found::Perhaps,
        })
    }

    /// Returns the error for a part. If the store reports a missing object in an upload in parts, the upload is
    /// missing.
    pub(crate) fn part_failed(
        &self,
        path: &ArtifactPath,
        error: object_store::Error,
    ) -> ArtifactError {
        let source = if super::failure::missing(&error) {
            ObjectFailure::PartsGone(error.to_string())
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
    matches!(failure(error), Some(ObjectFailure::Forbidden(_)))
}

/// Returns the time of a file's last change, in nanoseconds since 1970; 0 where the disk does not say.
fn modified(file: &File) -> i64 {
    file.metadata().map_or(0, |it| {
        it.mtime()
            .wrapping_mul(1_000_000_000)
            .wrapping_add(it.mtime_nsec())
    })
}

/// Returns the path of a note. Each place that a staged file goes to has its own note.
fn note_path(place: &Path, store: &str, key: &str) -> PathBuf {
    let hash = crc32fast::hash(format!("{store}\n{key}").as_bytes());
    let mut name = place.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{hash:08x}.parts"));
    place.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun() -> Begun {
        Begun {
            key: "p/a".into(),
            size: 20,
            part: 8,
            upload: "u".into(),
            sums: Sums::OfTheWhole,
            modified: 7,
        }
    }

    #[test]
    fn a_note_that_was_torn_tells_of_the_parts_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.parts");
        let mut note = Note::begin(Some(&path), begun());
        assert_eq!(note.ranges(), [0..8, 8..16, 16..20]);
        for part in [2, 0] {
            let content_id = format!("tag{part}");
            note.add(part, PartId { content_id });
        }
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("{\"part\":1,\"id\":\"ta");
        fs::write(&path, text).unwrap();
        let key = Key::parse("p/a").unwrap();
        let mut found = Note::found(Some(&path), &key).unwrap();
        assert_eq!(found.sent.keys().copied().collect::<Vec<_>>(), [0, 2]);
        found.add(
            1,
            PartId {
                content_id: "t".into(),
            },
        );
        let found = Note::found(Some(&path), &key).unwrap();
        assert_eq!((found.sent.len(), &found.begun), (3, &begun()));
        assert!(Note::found(Some(&path), &Key::parse("p/b").unwrap()).is_none());
        let is_of = [(20, 7), (21, 7), (20, 8)].map(|(size, modified)| found.is_of(size, modified));
        assert_eq!(is_of, [true, false, false]);
        found.remove();
        assert!(!path.exists());
    }
}
