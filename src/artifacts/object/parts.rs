//! Uploads in parts, which go on where they were interrupted.
//!
//! What has been sent is noted beside the staged file, a line for each part. A process that comes later goes on with
//! the same upload at the store and sends what is missing.
//!
//! Parts have checksums that add up to one of the whole, where the store knows them; else each has its SHA-256.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Write,
    ops::Range,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use object_store::{
    Attributes, PutMultipartOptions, PutPayload, multipart::PartId, path::Path as Key,
};
use serde::{Deserialize, Serialize};

use super::{ObjectArtifacts, ObjectFailure, Writing, read};
use crate::{
    artifacts::{ArtifactError, ArtifactStore, Checksum, Upload, buffers::Buffers, damaged, has},
    record::ArtifactPath,
};

/// Length of a part; longer where the store would count too many.
const PART: u64 = 8 << 20;
/// As many parts as S3 takes of a file.
const MAX_PARTS: u64 = 10_000;
/// Bytes that are on their way at a time.
const IN_FLIGHT: u64 = 32 << 20;

/// What the store compares each part with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Sums {
    /// Nothing, or what says nothing of the whole.
    #[default]
    OfParts,
    /// CRC-64/NVME: the store makes that of the whole of them.
    OfTheWhole,
}

/// First line of a note.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Begun {
    /// The object's key in its bucket.
    key: String,
    size: u64,
    part: u64,
    upload: String,
    #[serde(default)]
    sums: Sums,
}

/// What a store has said of a part that it took.
#[derive(Deserialize)]
struct Taken {
    checksum_crc64nvme: Option<String>,
}

/// The CRC-64/NVME of a part by which the store has taken it.
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

/// What was noted of an upload, and where more is.
#[derive(Debug)]
struct Note {
    file: Option<File>,
    path: Option<PathBuf>,
    begun: Begun,
    sent: BTreeMap<usize, PartId>,
}

impl Note {
    /// What an interrupted upload has left, if that was one of the same file to the same place.
    fn found(path: Option<&Path>, key: &Key, size: u64) -> Option<Self> {
        let path = path?;
        let text = fs::read_to_string(path).ok()?;
        let mut lines = text.lines();
        let begun: Begun = serde_json::from_str(lines.next()?).ok()?;
        if begun.key != key.as_ref() || begun.size != size || begun.part == 0 {
            return None;
        }
        // A line that a kill has torn is a part that is sent again.
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
        // What follows a torn line is a line of its own.
        note.write("");
        Some(note)
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

    /// On a disk that takes nothing the upload goes on all the same; it only could not be resumed.
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

    /// The checksum of the whole; `None` while parts are missing, or where they have none that add up.
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
    pub(super) async fn put_in_parts(
        &self,
        upload: Upload<'_>,
        file: File,
    ) -> Result<(), ArtifactError> {
        let key = self.key(upload.path)?;
        let path = upload
            .resume
            .map(|place| note_path(place, &self.uri, key.as_ref()));
        let found = Note::found(path.as_deref(), &key, upload.size);
        let mut is_from_before = found.is_some();
        let mut note = match found {
            Some(note) => note,
            None => self.begin(upload, &key, path.as_deref()).await?,
        };
        loop {
            let Err(error) = self.go_on(upload, &file, &key, &mut note).await else {
                note.remove();
                return Ok(());
            };
            match failure(&error) {
                Some(ObjectFailure::PartsGone(_)) if is_from_before => {
                    // Completed before a kill that came before the note of it, or swept away.
                    match self.has_all(&upload, &note).await {
                        Ok(false) => {}
                        Err(error) if error.is_transient() => return Err(error),
                        there => {
                            note.remove();
                            return there.map(|_| ());
                        }
                    }
                }
                Some(ObjectFailure::SumUnknown(_)) => {
                    self.sums_refused.store(true, Ordering::Relaxed);
                    self.give_up_parts(&key, &note).await;
                }
                _ if error.is_transient() => return Err(error),
                _ => {
                    self.give_up_parts(&key, &note).await;
                    note.remove();
                    return Err(error);
                }
            }
            note.remove();
            upload.begin_anew();
            is_from_before = false;
            note = self.begin(upload, &key, path.as_deref()).await?;
        }
    }

    /// Begins an upload at the store.
    async fn begin(
        &self,
        upload: Upload<'_>,
        key: &Key,
        path: Option<&Path>,
    ) -> Result<Note, ArtifactError> {
        let options = PutMultipartOptions {
            attributes: match self.types_of_parts {
                true => self.attributes(upload.path),
                false => Attributes::new(),
            },
            ..PutMultipartOptions::default()
        };
        let create = async |writing: &Writing| {
            let begun = writing
                .creating
                .create_multipart_opts(key, options.clone())
                .await;
            begun.map_err(|error| self.failed(upload.path, error))
        };
        let note = |sums, id| {
            let begun = Begun {
                key: key.as_ref().to_owned(),
                size: upload.size,
                part: PART.max(upload.size.div_ceil(MAX_PARTS)),
                upload: id,
                sums,
            };
            Note::begin(path, begun)
        };
        let is_refused = self.sums_refused.load(Ordering::Relaxed);
        if let Some(summing) = self.summing.as_ref().filter(|_| !is_refused) {
            match create(summing).await {
                Ok(id) => return Ok(note(Sums::OfTheWhole, id)),
                Err(error) if failure(&error).is_some_and(|it| it.not_understood().is_some()) => {}
                Err(error) => return Err(error),
            }
            let id = create(&self.writing).await?;
            self.sums_refused.store(true, Ordering::Relaxed);
            return Ok(note(Sums::OfParts, id));
        }
        Ok(note(Sums::OfParts, create(&self.writing).await?))
    }

    /// Nothing of it is needed any more; what stays all the same, `gc` finds.
    async fn give_up_parts(&self, key: &Key, note: &Note) {
        let _ = self.store.abort_multipart(key, &note.begun.upload).await;
    }

    /// Sends a part, and says by what the store knows it.
    async fn send(
        &self,
        upload: Upload<'_>,
        key: &Key,
        begun: &Begun,
        part: usize,
        content: Bytes,
    ) -> Result<PartId, ArtifactError> {
        let summing = self.summing.as_ref();
        let writing = match begun.sums {
            Sums::OfTheWhole => summing.unwrap_or(&self.writing),
            Sums::OfParts => &self.writing,
        };
        let payload = PutPayload::from_bytes(content);
        let sent = writing
            .parts
            .put_part(key, &begun.upload, part, payload)
            .await
            .map_err(|error| self.part_failed(upload.path, error));
        let refusal = match &sent {
            _ if begun.sums == Sums::OfParts => None,
            Err(error) => failure(error).and_then(ObjectFailure::not_understood),
            // Whoever does not confirm it has not compared it.
            Ok(sent) if sum_of(sent).is_none() => Some("it says nothing of it".to_owned()),
            Ok(_) => None,
        };
        match refusal {
            Some(said) => Err(ArtifactError::Object {
                artifact: upload.path.as_str().to_owned(),
                store: self.uri.clone(),
                source: Box::new(ObjectFailure::SumUnknown(said)),
            }),
            None => sent,
        }
    }

    /// Sends the parts that are missing, and makes one file of all.
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
                // Those on their way arrive: they are not sent again.
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
        let completed = self.store.complete_multipart(key, &begun.upload, all).await;
        completed.map_err(|error| self.part_failed(upload.path, error))?;
        match self.has_all(&upload, note).await? {
            true => Ok(()),
            false => {
                let reason = format!("it has not the {} bytes that were sent", upload.size);
                Err(damaged(self, upload.path, reason))
            }
        }
    }

    /// Whether the store has a file of that length at the place; an error where it has other bytes than were sent.
    async fn has_all(&self, upload: &Upload<'_>, note: &Note) -> Result<bool, ArtifactError> {
        if !has(self, upload).await? {
            return Ok(false);
        }
        let Some(sent) = note.sum_of_all() else {
            return Ok(true);
        };
        match self.checksum(upload.path, None).await {
            Ok(stored) => match stored.and_then(|stored| sent.contradicts(&stored)) {
                Some(reason) => Err(damaged(self, upload.path, reason)),
                None => Ok(true),
            },
            // Whoever only writes may not be allowed to ask for it.
            Err(error) if !error.is_transient() => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// In an upload in parts, what is not there is the upload.
    pub(super) fn part_failed(
        &self,
        path: &ArtifactPath,
        error: object_store::Error,
    ) -> ArtifactError {
        let source = match super::missing(&error) {
            true => ObjectFailure::PartsGone(error.to_string()),
            false => ObjectFailure::from(error),
        };
        ArtifactError::Object {
            artifact: path.as_str().to_owned(),
            store: self.uri.clone(),
            source: Box::new(source),
        }
    }
}

fn failure(error: &ArtifactError) -> Option<&ObjectFailure> {
    match error {
        ArtifactError::Object { source, .. } => Some(source),
        _ => None,
    }
}

/// Each place that a staged file goes to has a note of its own.
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
        let mut found = Note::found(Some(&path), &key, 20).unwrap();
        assert_eq!(found.sent.keys().copied().collect::<Vec<_>>(), [0, 2]);
        found.add(
            1,
            PartId {
                content_id: "t".into(),
            },
        );
        let found = Note::found(Some(&path), &key, 20).unwrap();
        assert_eq!((found.sent.len(), &found.begun), (3, &begun()));
        assert!(Note::found(Some(&path), &key, 21).is_none());
        assert!(Note::found(Some(&path), &Key::parse("p/b").unwrap(), 20).is_none());
        found.remove();
        assert!(!path.exists());
    }
}
