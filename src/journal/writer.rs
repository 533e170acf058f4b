//! The journal that this process writes.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File},
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use super::{
    append::MAX_TOGETHER,
    config::JournalConfig,
    folder::Home,
    frame,
    layout::{self, remove, root},
    ledger::Ledger,
    position::{Position, Progress},
    reader::Placed,
    segment::Tail,
};
use crate::os::clock::now_ms;

/// The journal that this process writes.
#[derive(Debug)]
pub struct Journal {
    pub(crate) config: JournalConfig,
    pub(crate) created: i64,
    writer: Mutex<Writer>,
    /// Told when something was removed.
    pub(crate) room: Condvar,
    /// Segment and offset behind the last frame on disk, in one word; read without the lock.
    pub(crate) end: AtomicU64,
    pub(crate) appended: AtomicU64,
    pub(crate) in_memory: AtomicU64,
    /// Bytes of staged files.
    pub(crate) staged: AtomicU64,
    pub(crate) next_staged: AtomicU64,
    pub(crate) ledger: Ledger,
    /// What was saved last for each destination, for a folder that has to be made again.
    progress: Mutex<Vec<Option<Progress>>>,
}

#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) home: Option<Home>,
    pub(crate) segment: u64,
    pub(crate) tail: Option<Tail>,
    /// The next segment, made ahead of the need.
    pub(crate) spare: Option<Tail>,
    /// Segments that some destination has not delivered, the tail among them. Read through these, so that nothing is
    /// lost where somebody deletes the folder.
    pub(crate) segments: BTreeMap<u64, Segment>,
    /// Frames that the disk would not take; all later than those on it.
    pub(crate) memory: VecDeque<InMemory>,
    pub(crate) memory_bytes: usize,
    pub(crate) appended: u64,
    pub(crate) sealed: bool,
    /// When it was last looked whether the folder is there, and whether it was not.
    pub(crate) looked: Instant,
    pub(crate) is_lost: bool,
    /// No call returns any more.
    pub(crate) is_frozen: bool,
    /// What the disk answers while it takes nothing.
    pub(crate) trouble: Option<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) file: Arc<File>,
    pub(crate) length: u64,
}

#[derive(Debug)]
pub(crate) struct InMemory {
    pub(crate) number: u64,
    pub(crate) entries: u64,
    pub(crate) frame: Box<[u8]>,
}

/// Where a journal ends now.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// Behind the last frame on disk.
    pub position: Position,
    /// Entries in memory.
    pub in_memory: u64,
    /// Entries appended since the journal was begun.
    pub appended: u64,
}

impl Journal {
    /// Begins a journal. Where its folder cannot be made, it begins in memory, and [`Journal::trouble`] says why.
    pub fn create(config: JournalConfig) -> Self {
        let created = now_ms();
        let ledger = Ledger::new(vec![(Position::START, 0); config.destinations.len()]);
        let progress = Mutex::new(vec![None; config.destinations.len()]);
        let journal = Self {
            config,
            created,
            writer: Mutex::new(Writer {
                home: None,
                segment: Position::START.segment - 1,
                tail: None,
                spare: None,
                segments: BTreeMap::new(),
                memory: VecDeque::new(),
                memory_bytes: 0,
                appended: 0,
                sealed: false,
                looked: Instant::now(),
                is_lost: false,
                is_frozen: false,
                trouble: None,
            }),
            room: Condvar::new(),
            end: AtomicU64::new(packed(Position::START)),
            appended: AtomicU64::new(0),
            in_memory: AtomicU64::new(0),
            staged: AtomicU64::new(0),
            next_staged: AtomicU64::new(0),
            ledger,
            progress,
        };
        let mut writer = journal.writer();
        if let Err(error) = journal.settle(&mut writer) {
            writer.trouble = Some(error.to_string());
        }
        drop(writer);
        journal
    }

    /// Its folder, or where it would be.
    pub fn dir(&self) -> PathBuf {
        match &self.writer().home {
            Some(home) => home.dir.clone(),
            None => root(&self.config.heimdall_dir),
        }
    }

    /// URIs of its destinations.
    pub fn destinations(&self) -> &[String] {
        &self.config.destinations
    }

    /// What the disk answers while it takes nothing.
    pub fn trouble(&self) -> Option<String> {
        let writer = self.writer();
        match writer.is_well() {
            // What there was is over, although nobody has said so yet.
            true => None,
            false => writer.trouble.clone(),
        }
    }

    /// Where it ends now.
    pub fn end(&self) -> End {
        // In this order: what is counted first is on the disk or in memory before the others are read.
        let appended = self.appended.load(Ordering::SeqCst);
        let in_memory = self.in_memory.load(Ordering::Acquire);
        End {
            position: unpacked(self.end.load(Ordering::Acquire)),
            in_memory,
            appended,
        }
    }

    /// Entries appended since it was begun.
    pub fn appended(&self) -> u64 {
        self.appended.load(Ordering::SeqCst)
    }

    pub(crate) fn progress(&self) -> MutexGuard<'_, Vec<Option<Progress>>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frames that are in memory only, from entry `next` on, at most some megabytes of them; none while there are others
    /// on the disk behind `position`, which come first.
    pub(crate) fn in_memory(&self, next: u64, position: Position) -> Vec<Placed> {
        let mut placed = Vec::new();
        let mut bytes = 0;
        let writer = self.writer();
        if position < unpacked(self.end.load(Ordering::Acquire)) {
            return placed;
        }
        for frame in &writer.memory {
            if frame.number + frame.entries <= next || bytes > MAX_TOGETHER {
                continue;
            }
            bytes += frame.frame.len();
            if let frame::Decoded::Frame {
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

    /// A segment's file and length, if some destination needs it still.
    pub(crate) fn segment(&self, number: u64) -> Option<Segment> {
        self.writer().segments.get(&number).cloned()
    }

    /// Notes how far a destination is, and removes what none needs any more.
    pub(crate) fn delivered(&self, destination: usize, progress: &Progress) {
        let (position, next) = (progress.position, progress.next);
        if let Some(slot) = self.progress().get_mut(destination) {
            *slot = Some(progress.clone());
        }
        let (_, (least, least_next)) = self.ledger.advance(destination, position, next);
        let mut writer = self.writer();
        let kept = writer.segments.split_off(&least.segment);
        let removed = std::mem::replace(&mut writer.segments, kept);
        while let Some(first) = writer.memory.front()
            && first.number + first.entries <= least_next
        {
            let (bytes, entries) = (first.frame.len(), first.entries);
            writer.memory_bytes -= bytes;
            writer.memory.pop_front();
            self.in_memory.fetch_sub(entries, Ordering::AcqRel);
        }
        let dir = writer.home.as_ref().map(|home| home.dir.clone());
        drop(writer);
        if let Some(dir) = dir {
            for number in removed.keys() {
                let _ = fs::remove_file(layout::segment_path(&dir, *number));
            }
        }
        self.room.notify_all();
    }

    /// Removes the journal: all is delivered to all.
    pub(crate) fn remove(&self) {
        let mut writer = self.writer();
        if let Some(home) = &writer.home {
            remove(&home.dir);
        }
        writer.segments.clear();
    }

    pub(crate) fn writer(&self) -> MutexGuard<'_, Writer> {
        // A panic while appending leaves the offset behind the last whole frame, so going on is sound.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    /// Whether the disk has everything and takes more.
    pub(crate) fn is_well(&self) -> bool {
        !self.is_lost && self.tail.is_some() && self.memory.is_empty()
    }
}

/// Segment and offset in one word: a segment is shorter than 4 GiB, and there are fewer than 2^32.
pub(crate) fn packed(position: Position) -> u64 {
    position.segment << 32 | position.offset & 0xFFFF_FFFF
}

fn unpacked(word: u64) -> Position {
    Position {
        segment: word >> 32,
        offset: word & 0xFFFF_FFFF,
    }
}
