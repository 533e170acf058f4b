//! The place of a file until its download is whole: beside its target, under a name of its own. The place of a long
//! file also has a note, behind the file's last byte, of the ranges that have arrived.
//!
//! The place is locked: processes and threads that fetch the same file at the same time have a place each. The next
//! download takes over a place that a kill has left. Where the file system has no locks, each place is for one download
//! only.

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
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    mlflow::artifact_path::ArtifactPath,
    os::{copy_file, file_lock::FileLock},
};

/// Number of places that are searched for the rest of a killed download.
const PLACES: usize = 16;

/// Longest time that the end of a failed download waits for writes in progress.
const WRITES_TIMEOUT_MS: u64 = 1000;

/// Flag to not follow a link in the place of our own file, because a link could lead anywhere.
pub(crate) const NOFOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits() as i32;

/// The version of a file that the store has. It is the first line of a note; a line for each fetched range follows.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RemoteVersion {
    /// Length of the file in bytes.
    pub size: u64,
    /// Version of the file, as the store names it.
    pub version: String,
    /// Boot id of the machine at the time of the ranges, where only the note says that they are whole: in a power loss,
    /// the bytes that were not on the disk yet are lost.
    pub boot: Option<String>,
}

impl RemoteVersion {
    /// Describes a version; `is_compared` is true where its ranges are compared with a checksum.
    pub(crate) fn new(size: u64, version: &str, is_compared: bool) -> Self {
        let boot = || fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            size,
            version: version.to_owned(),
            boot: (!is_compared).then(boot),
        }
    }
}

/// The file into which one download writes, until it is renamed to its target.
#[derive(Debug)]
pub(crate) struct PartFile {
    path: PathBuf,
    file: Arc<File>,
    /// The lock; `None` where the file system has no locks.
    lock: Option<FileLock>,
    /// Offset of the next line of the note.
    end: AtomicU64,
    /// True where the file stays when this value is dropped: a later download can continue it, or it is at its target.
    stays: AtomicBool,
    /// Other places with content, from a killed download or from one that is still running.
    others: Vec<PathBuf>,
}

impl PartFile {
    /// Takes the first place in a folder that no other download has.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn take(folder: &Path, path: &ArtifactPath) -> io::Result<Self> {
        let place = |number| match number {
            0 => folder.join(name_of(path, "")),
            number => folder.join(name_of(path, &format!("-{number}"))),
        };
        // Places with something to continue are tried first.
        let (mut left, free): (Vec<_>, Vec<_>) = (0..PLACES)
            .map(place)
            .partition(|place| fs::symlink_metadata(place).is_ok());
        let more = (PLACES..).map(place);
        for place in left.iter().cloned().chain(free).chain(more) {
            let (place, file, lock) = match lock(&place) {
                Ok(Lock::Taken(lock)) => (place, Arc::clone(lock.file()), Some(lock)),
                Ok(Lock::OfAnother) => continue,
                Ok(Lock::Unknown) => {
                    let name = name_of(path, &format!("-{:08x}", rand::random::<u32>()));
                    let place = folder.join(name);
                    let mut options = OpenOptions::new();
                    let file = options
                        .read(true)
                        .write(true)
                        .create_new(true)
                        .open(&place)?;
                    (place, Arc::new(file), None)
                }
                // Another user has left this place.
                Err(error) if is_foreign(&error, &place) => continue,
                Err(error) => return Err(error),
            };
            let stays = file.metadata()?.len() > 0;
            left.retain(|other| *other != place);
            return Ok(Self {
                stays: AtomicBool::new(stays),
                path: place,
                file,
                lock,
                end: AtomicU64::new(0),
                others: left,
            });
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Returns the path of the arriving file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the arriving file: its bytes, and the note behind them.
    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Empties and returns the file, for a download that cannot be continued later.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn restart(&self) -> io::Result<&Arc<File>> {
        self.stays.store(false, Ordering::Relaxed);
        if self.file.metadata()?.len() > 0 {
            self.file.set_len(0)?;
        }
        Ok(&self.file)
    }

    /// Returns the file, and the ranges that it has already.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn resume(&self, remote: &RemoteVersion) -> io::Result<(&Arc<File>, BTreeSet<u64>)> {
        let done = match self.done(remote)? {
            Some(done) => done,
            None => {
                self.restart()?.set_len(remote.size)?;
                self.end.store(remote.size, Ordering::Relaxed);
                self.note(&serde_json::to_string(remote)?)?;
                BTreeSet::new()
            }
        };
        self.stays.store(self.lock.is_some(), Ordering::Relaxed);
        Ok((&self.file, done))
    }

    /// Returns the ranges that an interrupted download of the same file has noted.
    fn done(&self, remote: &RemoteVersion) -> io::Result<Option<BTreeSet<u64>>> {
        let mut note = self.behind(remote.size)?;
        // A line without an end was torn, and the next line must not be written behind it.
        let end = note.iter().rposition(|byte| *byte == b'\n');
        note.truncate(end.map_or(0, |end| end + 1));
        let text = String::from_utf8(note).unwrap_or_default();
        let mut lines = text.lines();
        let found = lines
            .next()
            .and_then(|line| serde_json::from_str::<RemoteVersion>(line).ok());
        if found.as_ref() != Some(remote) {
            return Ok(None);
        }
        let end = remote.size + text.len() as u64;
        self.file.set_len(end)?;
        self.end.store(end, Ordering::Relaxed);
        Ok(Some(lines.filter_map(|line| line.parse().ok()).collect()))
    }

    /// Returns the bytes behind the first `size` bytes.
    fn behind(&self, size: u64) -> io::Result<Vec<u8>> {
        let length = self.file.metadata()?.len().saturating_sub(size);
        // The bytes may belong to a longer file instead: no note has a line for every 64 KiB.
        let length = length.min((1 << 16) + (size >> 16));
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut bytes, size)?;
        Ok(bytes)
    }

    /// Notes that a range has arrived. If a full disk refuses the line, the range is fetched again.
    pub(crate) fn add(&self, range: u64) {
        let _ = self.note(&range.to_string());
    }

    fn note(&self, line: &str) -> io::Result<()> {
        let line = format!("{line}\n");
        let at = self.end.fetch_add(line.len() as u64, Ordering::Relaxed);
        self.file.write_all_at(line.as_bytes(), at)
    }

    /// Discards the arrived bytes.
    pub(crate) fn discard(self) {
        self.stays.store(false, Ordering::Relaxed);
    }

    /// Moves the whole file of `size` bytes to its target, and removes what other downloads have left of it.
    ///
    /// # Errors
    /// Errors of the file system; a later download can then continue.
    pub(crate) fn publish(self, target: &Path, size: u64) -> io::Result<()> {
        let note = self.behind(size)?;
        if !note.is_empty() {
            self.file.set_len(size)?;
        }
        let placed = copy_file::close_checked(&self.file).and_then(|()| {
            let (ours, there) = (self.file.metadata()?, fs::symlink_metadata(&self.path)?);
            // An artifact may have the same name as this place.
            if (ours.dev(), ours.ino()) != (there.dev(), there.ino()) {
                return Err(io::Error::other(
                    "another file has come to where it has arrived",
                ));
            }
            if ours.len() == size {
                fs::rename(&self.path, target)
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
        });
        if let Err(error) = placed {
            let _ = self.file.write_all_at(&note, size);
            return Err(error);
        }
        self.stays.store(true, Ordering::Relaxed);
        for other in &self.others {
            if let Ok(Lock::Taken(_locked)) = lock(other) {
                let _ = fs::remove_file(other);
            }
        }
        Ok(())
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        // After an error or Ctrl-C, other threads still write for a moment to the locked file: the next download should
        // find it unlocked, so this waits for them.
        for _ in 0..WRITES_TIMEOUT_MS {
            if Arc::strong_count(&self.file) == 1 + usize::from(self.lock.is_some()) {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        if !self.stays.load(Ordering::Relaxed) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Returns the name of our own file that is in transit to a path; `which` distinguishes concurrent files.
pub(crate) fn name_of(path: &ArtifactPath, which: &str) -> String {
    let hash = crc32fast::hash(path.as_str().as_bytes());
    format!(".heimdall-{hash:08x}{which}.part")
}

/// Returns true where `name` is that of our own file that has not arrived completely.
pub(crate) fn is_part(name: &str) -> bool {
    name.starts_with(".heimdall-") && name.ends_with(".part")
}

/// Returns true where a place exists and may not be written to.
fn is_foreign(error: &io::Error, place: &Path) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied && fs::symlink_metadata(place).is_ok()
}

enum Lock {
    Taken(FileLock),
    /// Another download has the place.
    OfAnother,
    /// The file system has no locks.
    Unknown,
}

/// Locks a place that no other download has.
fn lock(place: &Path) -> io::Result<Lock> {
    loop {
        if fs::symlink_metadata(place).is_ok_and(|metadata| !metadata.is_file()) {
            fs::remove_file(place)?;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true);
        let file = options.custom_flags(NOFOLLOW).open(place)?;
        let is_empty = file.metadata()?.len() == 0;
        let lock = match FileLock::take(file) {
            Ok(lock) => lock,
            Err(TryLockError::WouldBlock) => return Ok(Lock::OfAnother),
            Err(TryLockError::Error(_)) => {
                if is_empty {
                    fs::remove_file(place)?;
                }
                return Ok(Lock::Unknown);
            }
        };
        let ours = lock.file().metadata()?;
        // The previous owner of the place may have removed it in between.
        if !fs::symlink_metadata(place).is_ok_and(|there| there.ino() == ours.ino()) {
            continue;
        }
        match ours.nlink() {
            0 | 1 => return Ok(Lock::Taken(lock)),
            // Bytes written to this file would also appear in the copy of its other name.
            _ => fs::remove_file(place)?,
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
        let remote = RemoteVersion::new(20, "1", true);
        let target = dir.path().join("file");
        let take = || PartFile::take(dir.path(), &path).unwrap();
        let done = |part_file: &PartFile| part_file.resume(&remote).unwrap().1;
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
        // A kill tears the last line; the number that it begins with is that of another range.
        let kept = fs::read(&part).unwrap();
        fs::write(&part, &kept[..kept.len() - 2]).unwrap();
        let again = take();
        assert_eq!(again.path(), part);
        assert_eq!(done(&again), BTreeSet::from([1]));
        again.add(3);
        assert_eq!(done(&again), BTreeSet::from([1, 3]));
        drop(again);
        // The rest of a second download is continued as well, once the first has ended.
        let (first, second) = (take(), take());
        done(&second);
        second.add(2);
        first.discard();
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
        let take = || PartFile::take(dir.path(), &path).unwrap();
        let remote = |size, version| RemoteVersion::new(size, version, true);
        for other in [
            remote(20, "2"),
            remote(21, "1"),
            remote(19, "1"),
            remote(0, "1"),
            RemoteVersion::new(20, "1", false),
        ] {
            let part_file = take();
            part_file.resume(&remote(20, "1")).unwrap();
            part_file.file().write_all_at(&[b'\n'; 20], 0).unwrap();
            part_file.add(0);
            assert_eq!(
                part_file.resume(&remote(20, "1")).unwrap().1,
                BTreeSet::from([0])
            );
            let (file, done) = part_file.resume(&other).unwrap();
            assert!(done.is_empty());
            let mut content = vec![1; other.size as usize];
            file.read_exact_at(&mut content, 0).unwrap();
            assert!(content.iter().all(|byte| *byte == 0));
            // The file is whole, and then has no note: there is nothing to continue either.
            assert!(part_file.restart().unwrap().metadata().unwrap().len() == 0);
            assert!(part_file.resume(&other).unwrap().1.is_empty());
            part_file.discard();
            assert!(names(dir.path()).is_empty());
        }
    }

    #[test]
    fn a_link_in_the_place_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = ArtifactPath::parse("file").unwrap();
        let outside = dir.path().join("outside");
        fs::write(&outside, "old").unwrap();
        let place = dir.path().join(name_of(&path, ""));
        std::os::unix::fs::symlink(&outside, &place).unwrap();
        let part_file = PartFile::take(dir.path(), &path).unwrap();
        assert_eq!(part_file.path(), place);
        part_file.resume(&RemoteVersion::new(1, "", true)).unwrap();
        assert_eq!(fs::read_to_string(&outside).unwrap(), "old");
        part_file.discard();
        // The same holds for a file that shares its bytes with another name.
        fs::hard_link(&outside, &place).unwrap();
        let part_file = PartFile::take(dir.path(), &path).unwrap();
        part_file.resume(&RemoteVersion::new(1, "", true)).unwrap();
        assert_eq!(fs::read_to_string(&outside).unwrap(), "old");
    }

    #[test]
    fn what_comes_to_nothing_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let path = ArtifactPath::parse("file").unwrap();
        let take = || PartFile::take(dir.path(), &path).unwrap();
        let remote = RemoteVersion::new(20, "1", false);
        let part_file = take();
        part_file.resume(&remote).unwrap();
        part_file.add(0);
        // A folder is in the way.
        let target = dir.path().join("file");
        fs::create_dir_all(target.join("in it")).unwrap();
        part_file.publish(&target, 20).unwrap_err();
        // The store cannot tell the file's version.
        drop(take());
        let part_file = take();
        assert_eq!(part_file.resume(&remote).unwrap().1, BTreeSet::from([0]));
        // A file that is shorter than it should be has lost bytes.
        part_file.file().set_len(19).unwrap();
        part_file
            .publish(&dir.path().join("short"), 20)
            .unwrap_err();
        assert!(!dir.path().join("short").exists());
    }

    #[test]
    fn what_has_come_to_the_place_of_a_download_is_not_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = ArtifactPath::parse("file").unwrap();
        let part_file = PartFile::take(dir.path(), &path).unwrap();
        part_file
            .resume(&RemoteVersion::new(20, "1", true))
            .unwrap();
        // An artifact has the same name as the place.
        let other = dir.path().join("other");
        fs::write(&other, [7; 20]).unwrap();
        fs::rename(&other, part_file.path()).unwrap();
        let target = dir.path().join("file");
        part_file.publish(&target, 20).unwrap_err();
        assert!(!target.exists());
    }

    #[test]
    fn what_is_still_written_has_its_lock_until_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = ArtifactPath::parse("file").unwrap();
        let part_file = PartFile::take(dir.path(), &path).unwrap();
        part_file
            .resume(&RemoteVersion::new(20, "1", true))
            .unwrap();
        let (place, file) = (part_file.path().to_owned(), Arc::clone(part_file.file()));
        let writer = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            file.write_all_at(&[1; 20], 0).unwrap();
        });
        drop(part_file);
        let again = PartFile::take(dir.path(), &path).unwrap();
        assert_eq!(again.path(), place);
        writer.join().unwrap();
    }
}
