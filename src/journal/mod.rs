//! The journal: what the tracker has promised to deliver, on local disk.
//!
//! A record that [`Journal::append`] has taken survives the end of the process at any later instruction,
//! because its bytes are with the kernel; surviving a power cut is not promised. A record leaves the journal
//! only after the delivery worker has seen the store commit it and has saved a position behind it.
//!
//! One folder per tracker, below `$HEIMDALL_DIR/journal`:
//!
//! ```text
//! 1795450774263-4711-9f3a/
//!   lock              held while the process lives
//!   manifest.json     where the records go (no credentials), who wrote them
//!   00000001.segment  frames (see [`frame`]); a delivered segment is removed
//!   position.json     delivered up to here, and which runs were open there
//!   staging/          copies of the files to upload
//! ```

pub mod frame;
pub mod recovery;
pub mod segment;
pub mod staging;

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::{record::Record, run::now_ms};
use segment::Tail;
use staging::Staging;

/// Version of the frames' content; a reader takes no other.
pub const FORMAT_VERSION: u32 = 1;
/// Records kept in memory while the disk takes none.
const MEMORY_LIMIT: usize = 1_000_000;

/// What can go wrong with the journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The journal's folder cannot be made or locked.
    #[error("the journal cannot be kept in {}: {source}; set HEIMDALL_DIR to a folder that can be written", dir.display())]
    Create {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file to upload cannot be copied into the journal.
    #[error("{} cannot be copied into the journal: {source}", path.display())]
    Stage {
        /// The file to upload.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A part of the journal cannot be read or replaced.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its tracker is closed.
    #[error("this tracker is closed: create a new one")]
    Sealed,
    /// The record itself cannot be kept.
    #[error("the record cannot be journaled: {0}")]
    Encode(String),
    /// The disk has taken nothing for so long that memory is full as well.
    #[error("the journal in {} has not been writable for {MEMORY_LIMIT} records: free the disk; this record is lost", dir.display())]
    Full {
        /// The folder.
        dir: PathBuf,
    },
}

/// A record and when it was recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Milliseconds since 1970.
    pub at: i64,
    /// The record.
    pub record: Record,
}

/// A place between two entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// Number of the segment.
    pub segment: u64,
    /// Byte in the segment.
    pub offset: u64,
}

impl Position {
    /// The place before every entry.
    pub const START: Self = Self {
        segment: 1,
        offset: segment::HEADER_LEN,
    };
}

/// How far a journal is delivered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Everything before it has been committed by the destination.
    pub position: Position,
    /// Runs that had started and not ended there, with the time of their last record (ms since 1970).
    pub open_runs: BTreeMap<String, i64>,
}

impl Progress {
    /// Nothing delivered.
    pub const START: Self = Self {
        position: Position::START,
        open_runs: BTreeMap::new(),
    };

    /// Notes what an entry says about open runs.
    pub fn observe(&mut self, entry: &Entry) {
        let run = entry.record.run().to_string();
        match &entry.record {
            Record::RunStarted(_) | Record::RunResumed { .. } => {
                self.open_runs.insert(run, entry.at);
            }
            Record::RunEnded { .. } => {
                self.open_runs.remove(&run);
            }
            _ => {
                if let Some(last) = self.open_runs.get_mut(&run) {
                    *last = entry.at.max(*last);
                }
            }
        }
    }
}

/// What a journal is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// URI of the destination, without credentials.
    pub destination: String,
    /// Process that writes it.
    pub pid: u32,
    /// When it was begun, milliseconds since 1970.
    pub created: i64,
}

/// The journal that this process writes.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    staging: Staging,
    writer: Mutex<Writer>,
    /// Held for the life of the process; released by the kernel when it dies.
    _lock: File,
}

#[derive(Debug)]
struct Writer {
    segment: u64,
    tail: Tail,
    buffer: Vec<u8>,
    /// Entries the disk would not take; delivered after everything in the segments.
    memory: VecDeque<Entry>,
    appended: u64,
    sealed: bool,
}

/// What [`Journal::append`] did.
#[derive(Debug)]
pub enum Appended {
    /// The record is on disk.
    OnDisk,
    /// The disk would not take it; it is in memory and lost if the process dies.
    InMemory(io::Error),
    /// Earlier records are in memory already, and this one waits behind them.
    BehindMemory,
}

/// Where a journal ends now.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// Behind the last entry on disk.
    pub position: Position,
    /// Entries in memory.
    pub in_memory: usize,
    /// Entries appended since the journal was begun.
    pub appended: u64,
}

impl Journal {
    /// Begins a journal below `heimdall_dir`.
    ///
    /// # Errors
    /// [`JournalError::Create`] when the folder cannot be made.
    pub fn create(heimdall_dir: &Path, destination: &str) -> Result<Self, JournalError> {
        Self::try_create(heimdall_dir, destination).map_err(|source| JournalError::Create {
            dir: heimdall_dir.to_owned(),
            source,
        })
    }

    fn try_create(heimdall_dir: &Path, destination: &str) -> io::Result<Self> {
        let root = root(heimdall_dir);
        fs::create_dir_all(&root)?;
        let (pid, created) = (std::process::id(), now_ms());
        let name = format!("{created}-{pid}-{:04x}", rand::random::<u16>());
        // Under a hidden name until the lock is held, so that no other process takes it for abandoned.
        let hidden = root.join(format!(".{name}"));
        fs::create_dir(&hidden)?;
        let lock = File::create_new(hidden.join(recovery::LOCK))?;
        lock.try_lock().map_err(io::Error::from)?;
        let manifest = Manifest {
            destination: destination.to_owned(),
            pid,
            created,
        };
        fs::write(
            hidden.join(recovery::MANIFEST),
            serde_json::to_vec_pretty(&manifest)?,
        )?;
        let dir = root.join(name);
        fs::rename(&hidden, &dir)?;
        let staging = Staging::create(&dir)?;
        let segment = Position::START.segment;
        let tail = Tail::create(&segment::path(&dir, segment))?;
        let writer = Writer {
            segment,
            tail,
            buffer: Vec::with_capacity(4096),
            memory: VecDeque::new(),
            appended: 0,
            sealed: false,
        };
        Ok(Self {
            dir,
            staging,
            writer: Mutex::new(writer),
            _lock: lock,
        })
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its copies of files to upload.
    pub fn staging(&self) -> &Staging {
        &self.staging
    }

    /// Appends a record. When this returns, the record outlives the process.
    ///
    /// # Errors
    /// [`JournalError::Encode`] for a record beyond the format's limits, [`JournalError::Full`] when neither
    /// the disk nor memory takes it, [`JournalError::Sealed`] after its end.
    pub fn append(&self, record: Record) -> Result<Appended, JournalError> {
        self.append_entries([Entry {
            at: now_ms(),
            record,
        }])
    }

    /// Appends records that belong together, in one write: after a kill all of them are there or, as good as
    /// always, none.
    ///
    /// # Errors
    /// Those of [`Journal::append`]; none of them is kept then.
    pub fn append_all(&self, records: Vec<Record>) -> Result<Appended, JournalError> {
        let at = now_ms();
        let entries: Vec<Entry> = records
            .into_iter()
            .map(|record| Entry { at, record })
            .collect();
        self.append_entries(entries)
    }

    fn append_entries(
        &self,
        entries: impl AsRef<[Entry]> + IntoIterator<Item = Entry>,
    ) -> Result<Appended, JournalError> {
        let mut writer = self.writer();
        let writer = &mut *writer;
        if writer.sealed {
            return Err(JournalError::Sealed);
        }
        writer.buffer.clear();
        for entry in entries.as_ref() {
            frame::encode(entry, &mut writer.buffer).map_err(JournalError::Encode)?;
        }
        let count = entries.as_ref().len();
        let outcome = if writer.memory.is_empty() {
            match writer.write(&self.dir) {
                Ok(()) => Appended::OnDisk,
                Err(error) => Appended::InMemory(error),
            }
        } else {
            Appended::BehindMemory
        };
        if !matches!(outcome, Appended::OnDisk) {
            if writer.memory.len() + count > MEMORY_LIMIT {
                return Err(JournalError::Full {
                    dir: self.dir.clone(),
                });
            }
            writer.memory.extend(entries);
        }
        writer.appended += count as u64;
        Ok(outcome)
    }

    /// Where it ends now.
    pub fn end(&self) -> End {
        let writer = self.writer();
        End {
            position: Position {
                segment: writer.segment,
                offset: writer.tail.offset(),
            },
            in_memory: writer.memory.len(),
            appended: writer.appended,
        }
    }

    /// Closes it for good, unless more than `appended` entries have come in.
    pub(crate) fn seal(&self, appended: u64) -> bool {
        let mut writer = self.writer();
        writer.sealed = writer.appended == appended;
        writer.sealed
    }

    /// The first entries that are in memory only.
    pub(crate) fn in_memory(&self, most: usize) -> Vec<Entry> {
        self.writer().memory.iter().take(most).cloned().collect()
    }

    /// Forgets the first entries in memory: they are delivered.
    pub(crate) fn forget_in_memory(&self, count: usize) {
        let mut writer = self.writer();
        let count = count.min(writer.memory.len());
        writer.memory.drain(..count);
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        // A panic while appending leaves the offset behind the last whole frame, so going on is sound.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    fn write(&mut self, dir: &Path) -> io::Result<()> {
        if self.tail.offset() >= segment::ROTATE_AT {
            self.tail = Tail::create(&segment::path(dir, self.segment + 1))?;
            self.segment += 1;
        }
        self.tail.append(&self.buffer)
    }
}

/// Folder of the journals below `heimdall_dir`.
pub fn root(heimdall_dir: &Path) -> PathBuf {
    heimdall_dir.join("journal")
}

/// Replaces a file so that a reader, or a kill, sees the old or the new content.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<(), JournalError> {
    let write = || -> io::Result<()> {
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(content)?;
        fs::rename(&new, path)
    };
    write().map_err(|source| JournalError::Io {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
