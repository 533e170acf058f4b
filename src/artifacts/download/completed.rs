//! Files that an interrupted download of a folder has completed, so that the next download need not fetch them.

use std::{
    collections::HashMap,
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::part_file::{self, NOFOLLOW, RemoteVersion};
use crate::mlflow::artifact_path::ArtifactPath;

/// The long files of a folder that are at their targets, with a line for each. Another process that downloads the same
/// folder to the same place at the same time adds lines or removes them; then there is more to fetch.
pub(crate) struct CompletedFiles {
    note: PathBuf,
    found: HashMap<String, CompletedFile>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct CompletedFile {
    #[serde(rename = "begun")]
    remote: RemoteVersion,
    /// Inode number; it and the time of change (in nanoseconds) differ once somebody has changed or replaced the file.
    inode: u64,
    modified: i128,
}

impl CompletedFile {
    fn at(target: &Path, remote: RemoteVersion) -> Option<Self> {
        let there = fs::symlink_metadata(target).ok()?;
        (there.is_file() && there.len() == remote.size).then(|| Self {
            remote,
            inode: there.ino(),
            modified: i128::from(there.mtime()) * 1_000_000_000 + i128::from(there.mtime_nsec()),
        })
    }
}

impl CompletedFiles {
    /// Returns the note that an interrupted download of the folder to the same place has left.
    pub(crate) fn load(root: &Path, folder: &ArtifactPath) -> Self {
        let note = root.join(part_file::name_of(folder, "-done"));
        let mut options = OpenOptions::new();
        let text = options
            .read(true)
            .custom_flags(NOFOLLOW)
            .open(&note)
            .and_then(std::io::read_to_string);
        let found = text
            .unwrap_or_default()
            .lines()
            .filter_map(|line| serde_json::from_str::<HashMap<String, CompletedFile>>(line).ok())
            .flatten()
            .collect();
        Self { note, found }
    }

    /// Returns true where a version of a file is at its target.
    pub(crate) fn has(&self, path: &ArtifactPath, version: &str, target: &Path) -> bool {
        let Some(noted) = self.found.get(path.as_str()) else {
            return false;
        };
        let remote = RemoteVersion::new(noted.remote.size, version, false);
        CompletedFile::at(target, remote).as_ref() == Some(noted)
    }

    /// Notes that a version of a file is at its target. A file without a note is fetched again.
    pub(crate) fn add(&self, path: &ArtifactPath, size: u64, version: &str, target: &Path) {
        let Some(file) = CompletedFile::at(target, RemoteVersion::new(size, version, false)) else {
            return;
        };
        let Ok(line) = serde_json::to_string(&HashMap::from([(path.as_str(), file)])) else {
            return;
        };
        let mut options = OpenOptions::new();
        options.append(true).create(true).custom_flags(NOFOLLOW);
        let note = options.open(&self.note);
        let _ = note.and_then(|mut note| note.write_all(format!("{line}\n").as_bytes()));
    }

    /// Removes the note, because the whole folder has arrived.
    pub(crate) fn remove(self) {
        let _ = fs::remove_file(self.note);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_at_its_target_is_known_until_it_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let folder = ArtifactPath::parse("model").unwrap();
        let [long, other] =
            ["model/long", "model/other"].map(|it| ArtifactPath::parse(it).unwrap());
        let targets = ["long", "other"].map(|it| dir.path().join(it));
        fs::write(&targets[0], "12345").unwrap();
        fs::write(&targets[1], "67890").unwrap();
        let first = CompletedFiles::load(dir.path(), &folder);
        assert!(!first.has(&long, "1", &targets[0]));
        first.add(&long, 5, "1", &targets[0]);
        // One file has another length than the store says, and the other file does not exist.
        first.add(&other, 6, "1", &targets[1]);
        first.add(&other, 5, "1", &dir.path().join("nowhere"));
        // A kill tears the last line.
        let mut note = OpenOptions::new();
        let mut note = note.append(true).open(&first.note).unwrap();
        note.write_all(br#"{"model/other":{"#).unwrap();
        drop(first);
        let next = CompletedFiles::load(dir.path(), &folder);
        assert!(next.has(&long, "1", &targets[0]));
        assert!(!next.has(&long, "2", &targets[0]), "another version");
        assert!(!next.has(&long, "1", &targets[1]), "another place");
        assert!(!next.has(&other, "1", &targets[1]));
        let in_place = OpenOptions::new().write(true).open(&targets[0]).unwrap();
        in_place
            .set_modified(std::time::SystemTime::UNIX_EPOCH)
            .unwrap();
        assert!(!next.has(&long, "1", &targets[0]), "changed since");
        next.remove();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        // A link in the place of the note is not followed.
        let outside = tempfile::NamedTempFile::new().unwrap();
        let next = CompletedFiles::load(dir.path(), &folder);
        std::os::unix::fs::symlink(outside.path(), &next.note).unwrap();
        next.add(&long, 5, "1", &targets[0]);
        assert_eq!(fs::read(outside.path()).unwrap(), b"");
    }
}
