//! Where a file lies until its download is whole: beside its target, under a name of its own. That of a long file has
//! a note of what has arrived behind its last byte.
//!
//! It is locked: processes and threads that fetch the same file at a time have a place each. What a kill has left is
//! taken over by whoever comes next.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
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
    path: PathBuf,
    /// Locked for as long as this is open.
    file: Arc<File>,
    /// Where the next line of the note belongs.
    end: AtomicU64,
    /// Whether it stays when this is dropped: somebody can go on with it, or it is at its target.
    stays: AtomicBool,
    /// Other places with something in them, of a kill or of somebody who is at it.
    others: Vec<PathBuf>,
}

impl Landing {
    /// The first place in a folder that nobody else has.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn take(folder: &Path, path: &ArtifactPath) -> io::Result<Self> {
        let place = |number| folder.join(name_of(path, number));
        // Something to go on with first.
        let (left, free): (Vec<_>, Vec<_>) = (0..PLACES)
            .map(place)
            .partition(|place| fs::symlink_metadata(place).is_ok());
        let more = (PLACES..).map(place);
        for place in left.iter().cloned().chain(free).chain(more) {
            let file = match lock(&place) {
                Ok(Some(file)) => file,
                Ok(None) => continue,
                // What another user has left.
                Err(error) if is_foreign(&error, &place) => continue,
                Err(error) => return Err(error),
            };
            process::keep_from_forks(&file);
            let others = left.into_iter().filter(|other| *other != place).collect();
            return Ok(Self {
                path: place,
                file: Arc::new(file),
                end: AtomicU64::new(0),
                stays: AtomicBool::new(false),
                others,
            });
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What has arrived of the file, and behind it the note.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The file, with nothing in it, for one that nobody can go on with.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn begin(&self) -> io::Result<&Arc<File>> {
        self.stays.store(false, Ordering::Relaxed);
        if self.file.metadata()?.len() > 0 {
            self.file.set_len(0)?;
        }
        Ok(&self.file)
    }

    /// The file, and the ranges that it has already.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn go_on(&self, begun: &Begun) -> io::Result<(&Arc<File>, BTreeSet<u64>)> {
        let done = match self.done(begun)? {
            Some(done) => done,
            None => {
                self.begin()?.set_len(begun.size)?;
                self.end.store(begun.size, Ordering::Relaxed);
                self.note(&serde_json::to_string(begun)?)?;
                BTreeSet::new()
            }
        };
        self.stays.store(true, Ordering::Relaxed);
        Ok((&self.file, done))
    }

    /// What an interrupted download of the same file has noted.
    fn done(&self, begun: &Begun) -> io::Result<Option<BTreeSet<u64>>> {
        let length = self.file.metadata()?.len().saturating_sub(begun.size);
        // What follows may be of a longer file instead: no note has a line for every 64 KiB.
        let length = length.min((1 << 16) + (begun.size >> 16));
        let mut note = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut note, begun.size)?;
        // What follows the last line's end was torn, and would be the beginning of the next line.
        let end = note.iter().rposition(|byte| *byte == b'\n');
        note.truncate(end.map_or(0, |end| end + 1));
        let text = String::from_utf8(note).unwrap_or_default();
        let mut lines = text.lines();
        let found = lines
            .next()
            .and_then(|line| serde_json::from_str::<Begun>(line).ok());
        if found.as_ref() != Some(begun) {
            return Ok(None);
        }
        let end = begun.size + text.len() as u64;
        self.file.set_len(end)?;
        self.end.store(end, Ordering::Relaxed);
        Ok(Some(lines.filter_map(|line| line.parse().ok()).collect()))
    }

    /// Notes that a range has arrived. One that a full disk does not take is a range that is fetched again.
    pub fn add(&self, range: u64) {
        let _ = self.note(&range.to_string());
    }

    fn note(&self, line: &str) -> io::Result<()> {
        let line = format!("{line}\n");
        let at = self.end.fetch_add(line.len() as u64, Ordering::Relaxed);
        self.file.write_all_at(line.as_bytes(), at)
    }

    /// What has arrived is of no use.
    pub fn clear(self) {
        self.stays.store(false, Ordering::Relaxed);
    }

    /// The whole file, of so many bytes, comes to its place; what others have left of it goes.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn publish(self, target: &Path, size: u64) -> io::Result<()> {
        if self.file.metadata()?.len() != size {
            self.file.set_len(size)?;
        }
        fs::rename(&self.path, target)?;
        self.stays.store(true, Ordering::Relaxed);
        for other in &self.others {
            if let Ok(Some(_locked)) = lock(other) {
                let _ = fs::remove_file(other);
            }
        }
        Ok(())
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if !self.stays.load(Ordering::Relaxed) {
            let _ = fs::remove_file(&self.path);
        }
        process::no_longer_kept(&self.file);
    }
}

/// The name of a file of ours that is on its way to a path; `number` tells those apart that are at a time.
pub(super) fn name_of(path: &ArtifactPath, number: usize) -> String {
    let hash = crc32fast::hash(path.as_str().as_bytes());
    match number {
        0 => format!(".heimdall-{hash:08x}.part"),
        number => format!(".heimdall-{hash:08x}-{number}.part"),
    }
}

/// Whether a place that is there may not be written to.
fn is_foreign(error: &io::Error, place: &Path) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied && fs::symlink_metadata(place).is_ok()
}

/// A place that nobody else has; `None` where somebody has it.
fn lock(place: &Path) -> io::Result<Option<File>> {
    loop {
        if fs::symlink_metadata(place).is_ok_and(|metadata| !metadata.is_file()) {
            fs::remove_file(place)?;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true);
        let file = options.custom_flags(NOFOLLOW).open(place)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            // A file system without locks has room for one at a time.
            Err(TryLockError::Error(_)) => return Ok(Some(file)),
        }
        // Whoever had it may have removed it in between.
        let inode = file.metadata()?.ino();
        if fs::symlink_metadata(place).is_ok_and(|there| there.ino() == inode) {
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
        let target = dir.path().join("file");
        let take = || Landing::take(dir.path(), &path).unwrap();
        let done = |landing: &Landing| landing.go_on(&begun).unwrap().1;
        let (first, second) = (take(), take());
        assert_ne!(first.path(), second.path());
        assert!(done(&first).is_empty());
        assert!(done(&second).is_empty());
        first.add(1);
        first.add(12);
        second.file().write_all_at(&[7; 20], 0).unwrap();
        second.add(1);
        second.publish(&target, 20).unwrap();
        assert_eq!(fs::read(&target).unwrap(), [7; 20]);
        let part = first.path().to_owned();
        drop(first);
        // A kill tears the last line; the number that it begins with is another's.
        let kept = fs::read(&part).unwrap();
        fs::write(&part, &kept[..kept.len() - 2]).unwrap();
        let again = take();
        assert_eq!(again.path(), part);
        assert_eq!(done(&again), BTreeSet::from([1]));
        again.add(3);
        assert_eq!(done(&again), BTreeSet::from([1, 3]));
        drop(again);
        // What is left of a second one is gone on with as well, when the first has ended.
        let (first, second) = (take(), take());
        done(&second);
        second.add(2);
        first.clear();
        drop(second);
        let again = take();
        assert_eq!(done(&again), BTreeSet::from([2]));
        let killed = take();
        done(&killed);
        drop((again, killed));
        let again = take();
        done(&again);
        again.publish(&target, 20).unwrap();
        assert_eq!(names(dir.path()), ["file"]);
    }

    #[test]
    fn what_is_of_another_version_is_not_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let path = ArtifactPath::parse("file").unwrap();
        let take = || Landing::take(dir.path(), &path).unwrap();
        let begun = |size, version: &str| Begun {
            size,
            version: version.to_owned(),
        };
        for other in [
            begun(20, "2"),
            begun(21, "1"),
            begun(19, "1"),
            begun(0, "1"),
        ] {
            let landing = take();
            landing.go_on(&begun(20, "1")).unwrap();
            landing.file().write_all_at(&[b'\n'; 20], 0).unwrap();
            landing.add(0);
            assert_eq!(
                landing.go_on(&begun(20, "1")).unwrap().1,
                BTreeSet::from([0])
            );
            let (file, done) = landing.go_on(&other).unwrap();
            assert!(done.is_empty());
            let mut content = vec![1; other.size as usize];
            file.read_exact_at(&mut content, 0).unwrap();
            assert!(content.iter().all(|byte| *byte == 0));
            // Whole, and then without a note: nothing to go on with either.
            assert!(landing.begin().unwrap().metadata().unwrap().len() == 0);
            assert!(landing.go_on(&other).unwrap().1.is_empty());
            landing.clear();
            assert!(names(dir.path()).is_empty());
        }
    }

    #[test]
    fn a_link_in_the_place_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = ArtifactPath::parse("file").unwrap();
        let outside = dir.path().join("outside");
        fs::write(&outside, "old").unwrap();
        let place = dir.path().join(name_of(&path, 0));
        std::os::unix::fs::symlink(&outside, &place).unwrap();
        let landing = Landing::take(dir.path(), &path).unwrap();
        assert_eq!(landing.path(), place);
        let version = String::new();
        landing.go_on(&Begun { size: 1, version }).unwrap();
        assert_eq!(fs::read_to_string(&outside).unwrap(), "old");
    }
}
