//! The journal that this process writes: its parts, and its state as other threads see it.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tokio::sync::Notify;

use super::{
    config::JournalConfig,
    folder::Folder,
    frame::{self, Decoded},
    layout::{remove, root, segment_path},
    ledger::Ledger,
    position::{Position, Progress},
    reader::Placed,
    segment::Tail,
};
use crate::os::clock::now_ms;

/// Bytes of frames that are read from memory at a time.
const MEMORY_CHUNK: usize = 16 << 20;

/// The journal that this process writes.
#[derive(Debug)]
pub(crate) struct Journal {
    pub config: JournalConfig,
    /// Time at which the journal was begun, milliseconds since 1970.
    pub created: i64,
    writer: Mutex<Writer>,
    /// Notified when something was removed.
    pub room: Notify,
    /// Segment and offset behind the last frame on disk, in one word; read without the lock.
    pub end: AtomicU64,
    pub appended: AtomicU64,
    pub in_memory: AtomicU64,
    /// Bytes of staged files.
    pub staged: AtomicU64,
    pub next_staged: AtomicU64,
    pub ledger: Ledger,
    /// Progress of each destination as it was saved last, for a folder that has to be made again.
    progress: Mutex<Vec<Option<Progress>>>,
}

/// The parts of a journal that change under its lock.
#[derive(Debug)]
pub(crate) struct Writer {
    pub disk: Disk,
    pub memory: Memory,
    pub health: Health,
    /// Entries appended since the journal was begun.
    pub appended: u64,
    pub gate: Gate,
}

/// The part of a journal that is on the disk.
#[derive(Debug)]
pub(crate) struct Disk {
    pub folder: Option<Folder>,
    /// Number of the newest segment.
    pub segment: u64,
    /// The end of the newest segment.
    pub tail: Option<Tail>,
    /// The next segment, made before it is needed.
    pub spare: Option<Tail>,
    /// Segments that some destination has not delivered, including the newest. They are read through these files, so
    /// that nothing is lost where somebody deletes the folder.
    pub segments: BTreeMap<u64, Segment>,
}

/// A segment on the disk.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub file: Arc<File>,
    /// Bytes that the segment occupies on the disk.
    pub length: u64,
}

/// Frames that the disk refused. All of them are later than the frames on the disk.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub frames: VecDeque<InMemory>,
    pub bytes: usize,
}

/// A frame in memory.
#[derive(Debug)]
pub(crate) struct InMemory {
    /// Number of the frame's first entry.
    pub number: u64,
    pub entries: u64,
    pub frame: Box<[u8]>,
}

/// State of the journal's folder and disk.
#[derive(Debug)]
pub(crate) struct Health {
    /// Time of the last check that the folder exists.
    pub checked: Instant,
    /// True where the last check did not find the folder and no new folder could be made.
    pub is_lost: bool,
    /// Error of the disk while it accepts nothing.
    pub disk_error: Option<String>,
}

/// State of the journal for calls: open, sealed or frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    Open,
    /// The tracker is closed: calls are refused.
    Sealed,
    /// The process is about to die from a signal: no call returns.
    Frozen,
}

/// The end of a journal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JournalEnd {
    /// Position behind the last frame on disk.
    pub position: Position,
    /// Entries in memory.
    pub in_memory: u64,
    /// Entries appended since the journal was begun.
    pub appended: u64,
}

impl Journal {
    /// Begins a journal. Where its folder cannot be made, the journal begins in memory, and [`Journal::disk_error`]
    /// returns the reason.
    pub(crate) fn create(config: JournalConfig) -> Self {
        let ledger = Ledger::new(vec![(Position::START, 0); config.destinations.len()]);
        let progress = Mutex::new(vec![None; config.destinations.len()]);
        let journal = Self {
            config,
            created: now_ms(),
            writer: Mutex::new(Writer {
                disk: Disk {
                    folder: None,
                    segment: Position::START.segment - 1,
                    tail: None,
                    spare: None,
                    segments: BTreeMap::new(),
                },
                memory: Memory::default(),
                health: Health {
                    checked: Instant::now(),
                    is_lost: false,
                    disk_error: None,
                },
                appended: 0,
                gate: Gate::Open,
            }),
            room: Notify::new(),
            end: AtomicU64::new(packed(Position::START)),
            appended: AtomicU64::new(0),
            in_memory: AtomicU64::new(0),
            staged: AtomicU64::new(0),
            next_staged: AtomicU64::new(0),
            ledger,
            progress,
        };
        let mut writer = journal.writer();
        if let Err(error) = journal.make_folder(&mut writer.disk) {
            writer.health.disk_error = Some(error.to_string());
        }
        drop(writer);
        journal
    }

    /// Returns the folder, or the folder above where there is none.
    pub(crate) fn dir(&self) -> PathBuf {
        self.dir_of(&self.writer().disk)
    }

    pub(crate) fn dir_of(&self, disk: &Disk) -> PathBuf {
        match &disk.folder {
            Some(folder) => folder.dir.clone(),
            None => root(&self.config.heimdall_dir),
        }
    }

    /// Returns the error of the disk while it accepts nothing.
    pub(crate) fn disk_error(&self) -> Option<String> {
        let writer = self.writer();
        // An error that nobody has cleared yet is over once everything is on the disk.
        (!writer.is_well())
            .then(|| writer.health.disk_error.clone())
            .flatten()
    }

    /// Returns the end of the journal.
    pub(crate) fn end(&self) -> JournalEnd {
        // The order matters: an entry that is counted first is on the disk or in memory before the others are read.
        let appended = self.appended.load(Ordering::SeqCst);
        let in_memory = self.in_memory.load(Ordering::Acquire);
        JournalEnd {
            position: self.end_on_disk(),
            in_memory,
            appended,
        }
    }

    fn end_on_disk(&self) -> Position {
        unpacked(self.end.load(Ordering::Acquire))
    }

    pub(crate) fn set_end_on_disk(&self, end: Position) {
        self.end.store(packed(end), Ordering::Release);
    }

    /// Returns the number of entries appended since the journal was begun.
    pub(crate) fn appended(&self) -> u64 {
        self.appended.load(Ordering::SeqCst)
    }

    /// Lets no call return any more: the process is about to die, and every record that a call has accepted must be
    /// delivered.
    pub(crate) fn freeze(&self) {
        self.writer().gate = Gate::Frozen;
        self.room.notify_waiters();
    }

    /// Closes the journal for good, unless more than `appended` entries have come in. Returns true where it is closed.
    pub(crate) fn seal(&self, appended: u64) -> bool {
        let mut writer = self.writer();
        if writer.appended != appended {
            return false;
        }
        if writer.gate == Gate::Open {
            writer.gate = Gate::Sealed;
            self.room.notify_waiters();
        }
        true
    }

    /// Reads frames that are in memory only, from entry `next` on, at most some megabytes of them. There are none while
    /// frames on the disk behind `position` come first.
    pub(crate) fn read_memory(&self, next: u64, position: Position) -> Vec<Placed> {
        let mut placed = Vec::new();
        let mut bytes = 0;
        let writer = self.writer();
        if position < self.end_on_disk() {
            return placed;
        }
        for frame in &writer.memory.frames {
            if frame.number + frame.entries <= next || bytes > MEMORY_CHUNK {
                continue;
            }
            bytes += frame.frame.len();
            if let Decoded::Frame {
                number, entries, ..
            } = frame::decode(&frame.frame)
            {
                placed.extend((number..).zip(entries).map(|(number, entry)| Placed {
                    number,
                    behind: position,
                    entry,
                }));
            }
        }
        placed.retain(|placed| placed.number >= next);
        placed
    }

    /// Returns a segment, if some destination still needs it.
    pub(crate) fn segment(&self, number: u64) -> Option<Segment> {
        self.writer().disk.segments.get(&number).cloned()
    }

    /// Notes the progress of a destination, and removes the segments and frames that no destination needs any more.
    pub(crate) fn delivered(&self, destination: usize, progress: &Progress) {
        let (position, next) = (progress.position, progress.next);
        if let Some(slot) = self.progress().get_mut(destination) {
            *slot = Some(progress.clone());
        }
        let (_, (least, least_next)) = self.ledger.advance(destination, position, next);
        let mut writer = self.writer();
        let kept = writer.disk.segments.split_off(&least.segment);
        let removed = std::mem::replace(&mut writer.disk.segments, kept);
        let forgotten = writer.memory.remove_before(least_next);
        self.in_memory.fetch_sub(forgotten, Ordering::AcqRel);
        let dir = writer.disk.folder.as_ref().map(|folder| folder.dir.clone());
        drop(writer);
        if let Some(dir) = dir {
            for number in removed.keys() {
                let _ = fs::remove_file(segment_path(&dir, *number));
            }
        }
        self.room.notify_waiters();
    }

    /// Removes the journal: everything is delivered to all destinations.
    pub(crate) fn remove(&self) {
        let mut writer = self.writer();
        if let Some(folder) = &writer.disk.folder {
            remove(&folder.dir);
        }
        writer.disk.segments.clear();
    }

    pub(crate) fn progress(&self) -> MutexGuard<'_, Vec<Option<Progress>>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn writer(&self) -> MutexGuard<'_, Writer> {
        // A panic while appending leaves the offset behind the last whole frame, so it is safe to continue.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    /// Returns true where everything is on the disk and the disk accepts more.
    pub(crate) fn is_well(&self) -> bool {
        !self.health.is_lost && self.disk.tail.is_some() && self.memory.frames.is_empty()
    }
}

impl Memory {
    /// Adds a frame behind the others.
    pub(crate) fn push(&mut self, number: u64, entries: u64, frame: &[u8]) {
        self.bytes += frame.len();
        self.frames.push_back(InMemory {
            number,
            entries,
            frame: frame.into(),
        });
    }

    /// Removes the first frame. Returns its number of entries.
    pub(crate) fn pop(&mut self) -> u64 {
        let first = self.frames.pop_front();
        first.map_or(0, |first| {
            self.bytes -= first.frame.len();
            first.entries
        })
    }

    /// Removes the frames before entry `next`. Returns their number of entries.
    fn remove_before(&mut self, next: u64) -> u64 {
        let mut removed = 0;
        while let Some(first) = self.frames.front()
            && first.number + first.entries <= next
        {
            removed += self.pop();
        }
        removed
    }
}

/// Packs segment and offset into one word: a segment is shorter than 4 GiB, and there are fewer than 2^32.
fn packed(position: Position) -> u64 {
    position.segment << 32 | position.offset & 0xFFFF_FFFF
}

fn unpacked(word: u64) -> Position {
    Position {
        segment: word >> 32,
        offset: word & 0xFFFF_FFFF,
    }
}
