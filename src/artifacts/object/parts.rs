//! Uploads in parts, which go on where they were interrupted.
//!
//! What has been sent is noted beside the staged file, a line for each part. A process that comes later goes on with
//! the same upload at the store and sends what is missing.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Write,
    ops::Range,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use futures_util::{StreamExt, stream};
use object_store::{
    Attributes, PutMultipartOptions, PutPayload, multipart::PartId, path::Path as Key,
};
use serde::{Deserialize, Serialize};

use super::{ObjectArtifacts, ObjectFailure, read};
use crate::{
    artifacts::{ArtifactError, Upload, buffers::Buffers, damaged, has},
    record::ArtifactPath,
};

/// Length of a part; longer where the store would count too many.
const PART: u64 = 8 << 20;
/// As many parts as S3 takes of a file.
const MAX_PARTS: u64 = 10_000;
/// Bytes that are on their way at a time.
const IN_FLIGHT: u64 = 32 << 20;

/// First line of a note.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Begun {
    /// The object's key in its bucket.
    key: String,
    size: u64,
    part: u64,
    upload: String,
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

    fn remove(self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
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
        if let Some(note) = Note::found(path.as_deref(), &key, upload.size) {
            match self.go_on(upload, &file, &key, note).await {
                Err(ArtifactError::Object { source, .. })
                    if matches!(*source, ObjectFailure::PartsGone(_)) =>
                {
                    // Completed before a kill that came before the note of it, or swept away.
                    if has(self, &upload).await? {
                        remove(path.as_deref());
                        return Ok(());
                    }
                    remove(path.as_deref());
                }
                settled => return settled,
            }
        }
        let options = PutMultipartOptions {
            attributes: match self.types_of_parts {
                true => self.attributes(upload.path),
                false => Attributes::new(),
            },
            ..PutMultipartOptions::default()
        };
        let begun = self.creating.create_multipart_opts(&key, options).await;
        let id = begun.map_err(|error| self.failed(upload.path, error))?;
        let begun = Begun {
            key: key.as_ref().to_owned(),
            size: upload.size,
            part: PART.max(upload.size.div_ceil(MAX_PARTS)),
            upload: id,
        };
        self.go_on(upload, &file, &key, Note::begin(path.as_deref(), begun))
            .await
    }

    /// Sends the parts that are missing, and makes one file of all.
    async fn go_on(
        &self,
        upload: Upload<'_>,
        file: &File,
        key: &Key,
        mut note: Note,
    ) -> Result<(), ArtifactError> {
        let ranges = note.ranges();
        let id = note.begun.upload.clone();
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
                let (range, id, stop, buffers) = (ranges[part].clone(), &id, &stop, &buffers);
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
                    let payload = PutPayload::from_bytes(content);
                    let sent = self.store.put_part(key, id, part, payload).await;
                    let sent = sent.map_err(|error| self.part_failed(upload.path, error))?;
                    upload.count(length);
                    Ok(Some((part, sent)))
                }
            })
            .buffer_unordered(together);
        let mut failure: Option<ArtifactError> = None;
        while let Some(sent) = parts.next().await {
            match sent {
                Ok(Some((part, sent))) => note.add(part, sent),
                Ok(None) => {}
                // Those on their way arrive: they are not sent again.
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    failure.get_or_insert(error);
                }
            }
        }
        drop(parts);
        if let Some(error) = failure {
            if !error.is_transient() {
                let _ = self.store.abort_multipart(key, &id).await;
                note.remove();
            }
            return Err(error);
        }
        let all: Vec<PartId> = note.sent.values().cloned().collect();
        let completed = self.store.complete_multipart(key, &id, all).await;
        completed.map_err(|error| self.part_failed(upload.path, error))?;
        if !has(self, &upload).await? {
            note.remove();
            let reason = format!("it has not the {} bytes that were sent", upload.size);
            return Err(damaged(self, upload.path, reason));
        }
        note.remove();
        Ok(())
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

fn remove(path: Option<&Path>) {
    if let Some(path) = path {
        let _ = fs::remove_file(path);
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
