//! The note of an upload in parts, by which a later process continues the upload: a file beside the staged file, with a
//! line of JSON for the upload and one for each part that was sent.
//!
//! The names of the fields on the disk must not change: a newer release continues the uploads of an older one.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use object_store::{multipart::PartId, path::Path as Key};
use serde::{Deserialize, Serialize};

use crate::artifacts::{
    checksum::Checksum,
    parts::{FileStamp, PartLayout},
};

/// Checksums that the store compares parts with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum PartChecksums {
    /// No checksums, or checksums that say nothing about the whole object.
    #[default]
    #[serde(rename = "ofparts")]
    Separate,
    /// CRC-64/NVME, from which the store computes that of the whole object.
    #[serde(rename = "ofthewhole")]
    FullObject,
}

/// An upload in parts that was begun at the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MultipartUpload {
    /// Key of the object in its bucket.
    pub(super) key: String,
    /// Size of the file in bytes.
    pub(super) size: u64,
    #[serde(rename = "part")]
    pub(super) part_size: u64,
    /// Id of the upload at the store.
    #[serde(rename = "upload")]
    pub(super) id: String,
    #[serde(default, rename = "sums")]
    pub(super) checksums: PartChecksums,
    /// Time of the file's last change, in nanoseconds since 1970: a file that is sent from its own place may have
    /// changed meanwhile.
    #[serde(default)]
    pub(super) modified: i64,
}

impl MultipartUpload {
    pub(super) fn layout(&self) -> PartLayout {
        PartLayout {
            file_size: self.size,
            part_size: self.part_size,
        }
    }
}

/// The store's answer to a part that it has accepted.
#[derive(Deserialize)]
struct AcceptedPart {
    checksum_crc64nvme: Option<String>,
}

/// Returns the CRC-64/NVME with which the store has accepted a part.
pub(super) fn crc64_of(part: &PartId) -> Option<String> {
    let accepted: AcceptedPart = quick_xml::de::from_str(&part.content_id).ok()?;
    accepted.checksum_crc64nvme
}

/// Line of a part that was sent.
#[derive(Debug, Serialize, Deserialize)]
struct UploadedPart {
    #[serde(rename = "part")]
    number: u64,
    id: String,
}

/// The note of an upload, and the file that keeps it.
#[derive(Debug)]
pub(super) struct UploadNote {
    file: Option<File>,
    path: Option<PathBuf>,
    pub(super) upload: MultipartUpload,
    /// The store's ids of the parts that were sent, by number.
    pub(super) parts: BTreeMap<u64, PartId>,
}

impl UploadNote {
    /// Returns the note that an interrupted upload to the same place has left.
    pub(super) fn load(path: Option<&Path>, key: &Key) -> Option<Self> {
        let path = path?;
        let text = fs::read_to_string(path).ok()?;
        let mut lines = text.lines();
        let upload: MultipartUpload = serde_json::from_str(lines.next()?).ok()?;
        if upload.key != key.as_ref() || upload.part_size == 0 {
            return None;
        }
        // A part whose line was torn by a kill is sent again.
        let parts = lines
            .filter_map(|line| serde_json::from_str::<UploadedPart>(line).ok())
            .map(|part| {
                let content_id = part.id;
                (part.number, PartId { content_id })
            })
            .collect();
        let file = OpenOptions::new().append(true).open(path).ok();
        let mut note = Self {
            file,
            path: Some(path.to_owned()),
            upload,
            parts,
        };
        // The text behind a torn line must be a line of its own.
        note.write("");
        Some(note)
    }

    /// Begins the note of an upload; without a path, it is kept in memory only.
    pub(super) fn create(path: Option<&Path>, upload: MultipartUpload) -> Self {
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
            upload,
            parts: BTreeMap::new(),
        };
        let line = serde_json::to_string(&note.upload).unwrap_or_default();
        note.write(&line);
        note
    }

    /// Returns true where the note is of this file as it is now.
    pub(super) fn is_of(&self, file: FileStamp) -> bool {
        self.upload.size == file.size && self.upload.modified == file.modified
    }

    /// Adds a part that was sent.
    pub(super) fn add(&mut self, number: u64, id: PartId) {
        let part = UploadedPart {
            number,
            id: id.content_id.clone(),
        };
        let line = serde_json::to_string(&part).unwrap_or_default();
        self.write(&line);
        self.parts.insert(number, id);
    }

    /// Writes a line. On a disk that refuses it, the upload continues all the same, but cannot be resumed.
    fn write(&mut self, line: &str) {
        if let Some(file) = &mut self.file {
            let _ = file.write_all(format!("{line}\n").as_bytes());
        }
    }

    /// Removes the note from the disk.
    pub(super) fn remove(&self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }

    /// Returns the numbers of the parts that were not sent.
    pub(super) fn missing_parts(&self) -> Vec<u64> {
        let all = 0..self.upload.layout().count();
        all.filter(|part| !self.parts.contains_key(part)).collect()
    }

    /// Returns the number of bytes in the parts that were sent.
    pub(super) fn sent_bytes(&self) -> u64 {
        let layout = self.upload.layout();
        let parts = self.parts.keys().filter(|part| **part < layout.count());
        parts.map(|part| layout.size_of(*part)).sum()
    }

    /// Returns the checksum of the whole file; `None` while parts are missing, or where the checksums of the parts do
    /// not give it.
    pub(super) fn full_object_checksum(&self) -> Option<Checksum> {
        let layout = self.upload.layout();
        let parts = (0..layout.count()).map(|part| {
            let checksum = crc64_of(self.parts.get(&part)?)?;
            Some((checksum, layout.size_of(part)))
        });
        Checksum::of_parts(parts.collect::<Option<Vec<_>>>()?)
    }
}

/// Returns the path of a note. Each place that a staged file goes to has its own note.
pub(super) fn note_path(prefix: &Path, store: &str, key: &str) -> PathBuf {
    let hash = crc32fast::hash(format!("{store}\n{key}").as_bytes());
    let mut name = prefix.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{hash:08x}.parts"));
    prefix.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload() -> MultipartUpload {
        MultipartUpload {
            key: "p/a".into(),
            size: 20,
            part_size: 8,
            id: "u".into(),
            checksums: PartChecksums::FullObject,
            modified: 7,
        }
    }

    #[test]
    fn the_fields_on_the_disk_keep_their_names() {
        let line = serde_json::to_string(&upload()).unwrap();
        let expected =
            r#"{"key":"p/a","size":20,"part":8,"upload":"u","sums":"ofthewhole","modified":7}"#;
        assert_eq!(line, expected);
        let old = r#"{"key":"p/a","size":20,"part":8,"upload":"u","sums":"ofparts"}"#;
        let old: MultipartUpload = serde_json::from_str(old).unwrap();
        assert_eq!((old.checksums, old.modified), (PartChecksums::Separate, 0));
    }

    #[test]
    fn a_note_that_was_torn_tells_of_the_parts_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.parts");
        let mut note = UploadNote::create(Some(&path), upload());
        assert_eq!(note.missing_parts(), [0, 1, 2]);
        for part in [2, 0] {
            let content_id = format!("tag{part}");
            note.add(part, PartId { content_id });
        }
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("{\"part\":1,\"id\":\"ta");
        fs::write(&path, text).unwrap();
        let key = Key::parse("p/a").unwrap();
        let mut found = UploadNote::load(Some(&path), &key).unwrap();
        assert_eq!(found.parts.keys().copied().collect::<Vec<_>>(), [0, 2]);
        assert_eq!((found.missing_parts(), found.sent_bytes()), (vec![1], 12));
        found.add(
            1,
            PartId {
                content_id: "t".into(),
            },
        );
        let found = UploadNote::load(Some(&path), &key).unwrap();
        assert_eq!((found.parts.len(), &found.upload), (3, &upload()));
        assert!(UploadNote::load(Some(&path), &Key::parse("p/b").unwrap()).is_none());
        let is_of = [(20, 7), (21, 7), (20, 8)];
        let is_of = is_of.map(|(size, modified)| found.is_of(FileStamp { size, modified }));
        assert_eq!(is_of, [true, false, false]);
        found.remove();
        assert!(!path.exists());
    }
}
