//! Reading a journal back: for the worker that delivers it while it is written, and after its process died.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{Entry, JournalError, Manifest, Position, Progress, replace, root, segment, staging};

/// Name of the lock file.
pub const LOCK: &str = "lock";
/// Name of the manifest.
pub const MANIFEST: &str = "manifest.json";
const POSITION: &str = "position.json";

/// Entries behind a reader's position.
#[derive(Debug, Default)]
pub struct Batch {
    /// The entries, in order.
    pub entries: Vec<Entry>,
    /// What was damaged and passed over, in words; empty where all was intact.
    pub damage: Vec<String>,
}

/// Reads a journal from its saved position on.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    /// Delivered so far, as on disk.
    saved: Progress,
    /// Behind what [`Reader::read`] has handed out.
    ahead: Position,
}

impl Reader {
    /// A reader of the journal in `dir`, at its saved position.
    pub fn open(dir: &Path) -> Self {
        // An unreadable position only means that records are delivered again, which changes nothing.
        let saved: Progress = fs::read(dir.join(POSITION))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or(Progress::START);
        Self {
            dir: dir.to_owned(),
            ahead: saved.position,
            saved,
        }
    }

    /// The journal's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Progress as of the last [`Reader::advance`].
    pub fn progress(&self) -> &Progress {
        &self.saved
    }

    /// A staged file's path; whatever a record says, it lies in the staging folder.
    pub fn staged(&self, name: &str) -> PathBuf {
        staging::folder(&self.dir).join(Path::new(name).file_name().unwrap_or_default())
    }

    /// Entries before `end` that have not been handed out; empty when there are none. Waits on the disk.
    ///
    /// # Errors
    /// [`JournalError::Io`] when a segment cannot be read.
    pub fn read(&mut self, end: Position) -> Result<Batch, JournalError> {
        let mut batch = Batch::default();
        while batch.entries.is_empty() && self.ahead < end {
            let path = segment::path(&self.dir, self.ahead.segment);
            let is_last = self.ahead.segment == end.segment;
            let length = match fs::metadata(&path) {
                Ok(metadata) if is_last => end.offset.min(metadata.len()),
                Ok(metadata) => metadata.len(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
                Err(source) => return Err(JournalError::Io { path, source }),
            };
            if self.ahead.offset < length {
                match segment::read(&path, self.ahead.offset, length) {
                    Ok(chunk) => {
                        if chunk.skipped > 0 {
                            batch.damage.push(format!(
                                "{} bytes of {} are damaged and were passed over",
                                chunk.skipped,
                                path.display()
                            ));
                        }
                        batch.entries = chunk.entries;
                        self.ahead.offset = chunk.offset;
                    }
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                        batch
                            .damage
                            .push(format!("{} was passed over: {error}", path.display()));
                        self.ahead.offset = length;
                    }
                    Err(source) => return Err(JournalError::Io { path, source }),
                }
            } else if is_last {
                self.ahead = end;
            } else {
                self.ahead = Position {
                    segment: self.ahead.segment + 1,
                    offset: segment::HEADER_LEN,
                };
            }
        }
        Ok(batch)
    }

    /// Saves that all that was handed out, `entries` last, is delivered, and removes what it took.
    ///
    /// # Errors
    /// [`JournalError::Io`] when the position cannot be saved.
    pub fn advance(&mut self, entries: &[Entry]) -> Result<(), JournalError> {
        let first_kept = self.saved.position.segment;
        for entry in entries {
            self.saved.observe(entry);
        }
        self.saved.position = self.ahead;
        let json = serde_json::to_vec(&self.saved)
            .map_err(|error| JournalError::Encode(error.to_string()))?;
        replace(&self.dir.join(POSITION), &json)?;
        for number in first_kept..self.ahead.segment {
            let _ = fs::remove_file(segment::path(&self.dir, number));
        }
        for entry in entries {
            if let crate::record::Record::Artifact { staged, .. } = &entry.record {
                let _ = fs::remove_file(self.staged(staged));
            }
        }
        Ok(())
    }

    /// Removes the journal: all is delivered.
    pub fn remove(&self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A journal whose process is gone, locked by this one.
#[derive(Debug)]
pub struct Abandoned {
    /// What it is for.
    pub manifest: Manifest,
    /// Its reader.
    pub reader: Reader,
    /// Where it ends.
    pub end: Position,
    _lock: File,
}

/// The journals below `heimdall_dir` whose processes are gone, oldest first.
pub fn abandoned(heimdall_dir: &Path) -> Vec<Abandoned> {
    let Ok(folders) = fs::read_dir(root(heimdall_dir)) else {
        return Vec::new();
    };
    let mut dirs: Vec<PathBuf> = folders
        .filter_map(|folder| Some(folder.ok()?.path()))
        .filter(|dir| {
            !dir.file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
        })
        .collect();
    dirs.sort();
    dirs.iter().filter_map(|dir| take(dir)).collect()
}

fn take(dir: &Path) -> Option<Abandoned> {
    let lock = File::open(dir.join(LOCK)).ok()?;
    lock.try_lock().ok()?;
    // Another process may have delivered and removed it between the listing and the lock.
    let manifest = serde_json::from_slice(&fs::read(dir.join(MANIFEST)).ok()?).ok()?;
    let last = fs::read_dir(dir)
        .ok()?
        .filter_map(|file| segment::number(&file.ok()?.path()))
        .max();
    let end = last.map_or(Position::START, |segment| Position {
        segment,
        offset: fs::metadata(segment::path(dir, segment)).map_or(0, |metadata| metadata.len()),
    });
    Some(Abandoned {
        manifest,
        reader: Reader::open(dir),
        end,
        _lock: lock,
    })
}
