//! Where a file lies until its download is whole: beside its target, under a name of its own, with a note of what has
//! arrived.
//!
//! The note is locked: processes and threads that fetch the same file at a time have a place each. What a kill has
//! left is taken over by whoever comes next.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{process, record::ArtifactPath};

/// Places that are looked through for what a kill has left.
const PLACES: usize = 16;

/// A link in the place of a file of ours is not followed: it could lead anywhere.
const NOFOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits() as i32;

/// First line of a note: of what the ranges are that follow, a line for each.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Begun {
    /// Length of the file in bytes.
    pub size: u64,
    /// Of the file, as the store names it.
    pub version: String,
}

/// The place of one file.
#[derive(Debug)]
pub(super) struct Landing {
    part: PathBuf,
    note: PathBuf,
    /// The note, locked for as long as this is open.
    noted: File,
    /// Other places with something in them, of a kill or of somebody who is at it.
    others: Vec<PathBuf>,
}

impl Landing {
    /// The first place in a folder that nobody else has.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn take(folder: &Path, path: &ArtifactPath) -> io::Result<Self> {
        let name = format!(
            ".heimdall-{:08x}",
            crc32fast::hash(path.as_str().as_bytes())
        );
        let place = |number: usize| match number {
            0 => folder.join(&name),
            number => folder.join(format!("{name}-{number}")),
        };
        // Something to go on with first.
        let (left, free): (Vec<_>, Vec<_>) = (0..PLACES)
            .map(place)
            .partition(|place| fs::metadata(note_of(place)).is_ok_and(|note| note.len() > 0));
        let more = (PLACES..).map(place);
        for place in left.iter().cloned().chain(free).chain(more) {
            let noted = match lock(&note_of(&place)) {
                Ok(Some(noted)) => noted,
                Ok(None) => continue,
                // What another user has left.
                Err(error) if is_foreign(&error, &note_of(&place)) => continue,
                Err(error) => return Err(error),
            };
            process::keep_from_forks(&noted);
            let (part, note) = (place.with_extension("part"), note_of(&place));
            let others = left.into_iter().filter(|other| *other != place).collect();
            return Ok(Self {
                part,
                note,
                noted,
                others,
            });
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Where the bytes go.
    pub fn part(&self) -> &Path {
        &self.part
    }

    /// A new part.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(&self) -> io::Result<File> {
        match fs::remove_file(&self.part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create_new(true)
            .open(&self.part)
    }

    /// The part, and the ranges of the file that it has already.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn go_on(&self, begun: &Begun) -> io::Result<(File, BTreeSet<u64>)> {
        let is_whole = fs::symlink_metadata(&self.part)
            .is_ok_and(|metadata| metadata.is_file() && metadata.len() == begun.size);
        if let Some(done) = is_whole.then(|| self.done(begun)).flatten() {
            let mut options = OpenOptions::new();
            let part = options
                .read(true)
                .write(true)
                .custom_flags(NOFOLLOW)
                .open(&self.part)?;
            return Ok((part, done));
        }
        // Before there is a part that an older note could be of.
        self.noted.set_len(0)?;
        let part = self.create()?;
        part.set_len(begun.size)?;
        let line = serde_json::to_string(begun)?;
        (&self.noted).write_all(format!("{line}\n").as_bytes())?;
        Ok((part, BTreeSet::new()))
    }

    /// What an interrupted download of the same file has noted.
    fn done(&self, begun: &Begun) -> Option<BTreeSet<u64>> {
        let text = fs::read_to_string(&self.note).ok()?;
        let end = text.rfind('\n')? + 1;
        // What follows the last line's end was torn, and would be the beginning of the next line.
        self.noted.set_len(end as u64).ok()?;
        let mut lines = text[..end].lines();
        let found: Begun = serde_json::from_str(lines.next()?).ok()?;
        (found == *begun).then(|| lines.filter_map(|line| line.parse().ok()).collect())
    }

    /// Notes that a range has arrived. One that a full disk does not take is a range that is fetched again.
    pub fn add(&self, range: u64) {
        let _ = (&self.noted).write_all(format!("{range}\n").as_bytes());
    }

    /// What has arrived is of no use.
    pub fn clear(&self) {
        let _ = (fs::remove_file(&self.part), self.noted.set_len(0));
    }

    /// The whole file comes to its place; what others have left of it goes.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn publish(&self, target: &Path) -> io::Result<()> {
        fs::rename(&self.part, target)?;
        for other in &self.others {
            if let Ok(Some(_noted)) = lock(&note_of(other)) {
                remove(&other.with_extension("part"), &note_of(other));
            }
        }
        self.noted.set_len(0)
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        process::no_longer_kept(&self.noted);
        // Whoever comes later has nothing to go on with.
        if self.noted.metadata().is_ok_and(|noted| noted.len() == 0) {
            remove(&self.part, &self.note);
        }
    }
}

fn remove(part: &Path, note: &Path) {
    let _ = (fs::remove_file(part), fs::remove_file(note));
}

fn note_of(place: &Path) -> PathBuf {
    place.with_extension("note")
}

/// Whether a note that is there may not be written to.
fn is_foreign(error: &io::Error, note: &Path) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied && fs::symlink_metadata(note).is_ok()
}

/// A note of nobody else's; `None` where somebody has it.
fn lock(note: &Path) -> io::Result<Option<File>> {
    loop {
        if fs::symlink_metadata(note).is_ok_and(|metadata| !metadata.is_file()) {
            fs::remove_file(note)?;
        }
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true);
        let file = options.custom_flags(NOFOLLOW).open(note)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            // A file system without locks has room for one at a time.
            Err(TryLockError::Error(_)) => return Ok(Some(file)),
        }
        // Whoever had it may have removed it in between.
        let inode = file.metadata()?.ino();
        if fs::symlink_metadata(note).is_ok_and(|there| there.ino() == inode) {
            return Ok(Some(file));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<std::ffi::OsString> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn everybody_has_a_place_and_takes_over_what_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = ArtifactPath::parse("a/file").unwrap();
        let begun = Begun {
            size: 20,
            version: "1".to_owned(),
        };
        let take = || Landing::take(dir.path(), &path).unwrap();
        let (first, second) = (take(), take());
        assert_ne!(first.part(), second.part());
        assert!(first.go_on(&begun).unwrap().1.is_empty());
        assert!(second.go_on(&begun).unwrap().1.is_empty());
        first.add(1);
        first.add(12);
        second.publish(&dir.path().join("file")).unwrap();
        let (note, part) = (first.note.clone(), first.part().to_owned());
        drop((first, second));
        // A kill tears the last line; the number that it begins with is another's.
        let text = fs::read_to_string(&note).unwrap();
        fs::write(&note, &text[..text.len() - 2]).unwrap();
        let again = take();
        assert_eq!(again.part(), part);
        assert_eq!(again.go_on(&begun).unwrap().1, BTreeSet::from([1]));
        again.add(3);
        assert_eq!(again.go_on(&begun).unwrap().1, BTreeSet::from([1, 3]));
        drop(again);
        // What is left of a second one is gone on with as well, when the first has ended.
        let (first, second) = (take(), take());
        second.go_on(&begun).unwrap();
        second.add(2);
        first.clear();
        drop((first, second));
        let again = take();
        assert_eq!(again.go_on(&begun).unwrap().1, BTreeSet::from([2]));
        let killed = take();
        killed.go_on(&begun).unwrap();
        drop((again, killed));
        let again = take();
        again.go_on(&begun).unwrap();
        again.publish(&dir.path().join("file")).unwrap();
        drop(again);
        assert_eq!(names(dir.path()), ["file"]);
        let again = take();
        let other = Begun { size: 21, ..begun };
        assert!(again.go_on(&other).unwrap().1.is_empty());
        again.clear();
        drop(again);
        assert_eq!(names(dir.path()), ["file"]);
    }

    #[test]
    fn a_link_in_the_place_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = ArtifactPath::parse("file").unwrap();
        let outside = dir.path().join("outside");
        fs::write(&outside, "old").unwrap();
        let (part, note) = {
            let landing = Landing::take(dir.path(), &path).unwrap();
            (landing.part.clone(), landing.note.clone())
        };
        for link in [&part, &note] {
            std::os::unix::fs::symlink(&outside, link).unwrap();
        }
        let landing = Landing::take(dir.path(), &path).unwrap();
        let version = String::new();
        landing.go_on(&Begun { size: 1, version }).unwrap();
        assert_eq!(fs::read_to_string(&outside).unwrap(), "old");
    }
}
