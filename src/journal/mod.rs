//! The journal: what the tracker has promised to deliver, on local disk.
//!
//! A record that [`Journal::append`] has taken survives the end of the process at any later instruction, because
//! its bytes are with the kernel; with [`Durability::Power`] it survives a power cut. A record leaves the journal
//! only after every destination's worker has seen its store commit it and has saved a position behind it.
//!
//! One folder per tracker, below `$HEIMDALL_DIR/journal`:
//!
//! ```text
//! 1795450774263-4711-9f3a/
//!   lock              held while the process lives
//!   manifest.json     where the records go (no credentials), who wrote them
//!   00000001.segment  frames (see [`frame`]); a delivered segment is removed
//!   position-0.json   how far the first destination is, and which runs were open there
//!   staging/          copies of the files to upload
//! ```
//!
//! Where the disk takes nothing (it is full, read-only, or the folder was deleted), records wait in memory, are
//! delivered from there, and move to the disk as soon as it takes them. Where neither takes more, callers wait.

pub mod frame;
mod home;
pub mod inspect;
pub mod ledger;
mod mapped;
pub mod reader;
pub mod recovery;
pub mod segment;
pub mod staging;

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{record::Record, run::now_ms};
use frame::Draft;
use home::{Home, remove, sync_folder};
use ledger::Ledger;
use reader::Placed;
use segment::Tail;

/// Version of the frames and their content; a reader takes no other.
pub const FORMAT_VERSION: u32 = 2;
/// Entries that belong together are in one frame up to this many bytes.
const MAX_TOGETHER: usize = 16 << 20;
/// Bytes that the beginning of a run may take.
const MANY: usize = 4096;
/// How often a caller that waits for room looks whether it should go on waiting.
const PATIENCE: Duration = Duration::from_millis(50);
/// How often it is looked whether the journal's folder is there.
const LOOK: Duration = Duration::from_millis(500);

/// What can go wrong with the journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A file to upload cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
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
    /// The process is about to die of a signal: the call must not return.
    #[error("this process is about to end")]
    Frozen,
    /// The record itself cannot be kept.
    #[error("the record cannot be journaled: {0}")]
    Encode(String),
    /// It is as large as it may get: wait for room and try again.
    #[error("the journal in {} is as large as it may get", dir.display())]
    NoRoom {
        /// The folder.
        dir: PathBuf,
        /// What there is no room for.
        room: Room,
    },
}

/// Room that something needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// For a frame of so many bytes.
    Frame(usize),
    /// For the copy of a file of so many bytes.
    File(u64),
}

/// A record and when it was recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Milliseconds since 1970.
    pub at: i64,
    /// The record.
    pub record: Record,
}

/// A place between two frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// Number of the segment.
    pub segment: u64,
    /// Byte in the segment.
    pub offset: u64,
}

impl Position {
    /// The place before every frame.
    pub const START: Self = Self {
        segment: 1,
        offset: segment::HEADER_LEN,
    };
    /// A place behind every frame.
    pub const END: Self = Self {
        segment: u64::MAX,
        offset: u64::MAX,
    };
}

/// How far a journal is delivered to one destination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Everything before it has been committed by the destination.
    pub position: Position,
    /// Number of the first entry that has not.
    pub next: u64,
    /// Runs that had started and not ended there, with the time of their last record (ms since 1970).
    pub open_runs: BTreeMap<String, i64>,
}

impl Progress {
    /// Nothing delivered.
    pub const START: Self = Self {
        position: Position::START,
        next: 0,
        open_runs: BTreeMap::new(),
    };

    /// Notes what an entry says about open runs.
    pub fn observe(&mut self, entry: &Entry) {
        let run = entry.record.run().to_string();
        match &entry.record {
            Record::RunStarted(_) | Record::RunResumed { .. } | Record::RunCreating { .. } => {
                self.open_runs.insert(run, entry.at);
            }
            Record::RunEnded { .. } | Record::RunNamed { .. } => {
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
    /// URIs of the destinations, without credentials; the primary one first.
    pub destinations: Vec<String>,
    /// Process that writes it.
    pub pid: u32,
    /// When it was begun, milliseconds since 1970.
    pub created: i64,
}

/// What an accepted record survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// The end of the process, however it comes.
    #[default]
    Process,
    /// A power cut as well: each call waits for the disk.
    Power,
}

/// How a journal is kept.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// `HEIMDALL_DIR`.
    pub heimdall_dir: PathBuf,
    /// URIs of the destinations, without credentials; the primary one first.
    pub destinations: Vec<String>,
    /// Most bytes on the disk, segments and staged files together.
    pub disk_limit: u64,
    /// Most bytes in memory while the disk takes nothing.
    pub memory_limit: usize,
    /// What an accepted record survives.
    pub durability: Durability,
}

impl JournalConfig {
    /// Most bytes on the disk by default: 10 GiB.
    pub const DISK_LIMIT: u64 = 10 << 30;
    /// Most bytes in memory by default: 256 MiB.
    pub const MEMORY_LIMIT: usize = 256 << 20;

    /// Bytes of its segments: some of them are within the limit.
    fn segment_length(&self) -> u64 {
        let (least, most) = segment::LENGTHS;
        (self.disk_limit / 4).clamp(least, most)
    }

    /// A journal for these destinations, otherwise as by default.
    pub fn new(heimdall_dir: &Path, destinations: Vec<String>) -> Self {
        Self {
            heimdall_dir: heimdall_dir.to_owned(),
            destinations,
            disk_limit: Self::DISK_LIMIT,
            memory_limit: Self::MEMORY_LIMIT,
            durability: Durability::default(),
        }
    }
}

/// The journal that this process writes.
#[derive(Debug)]
pub struct Journal {
    config: JournalConfig,
    created: i64,
    writer: Mutex<Writer>,
    /// Told when something was removed.
    room: Condvar,
    /// Segment and offset behind the last frame on disk, in one word; read without the lock.
    end: AtomicU64,
    appended: AtomicU64,
    in_memory: AtomicU64,
    /// Bytes of staged files.
    staged: AtomicU64,
    next_staged: AtomicU64,
    ledger: Ledger,
    /// What was saved last for each destination, for a folder that has to be made again.
    progress: Mutex<Vec<Option<Progress>>>,
}

#[derive(Debug)]
struct Writer {
    home: Option<Home>,
    segment: u64,
    tail: Option<Tail>,
    /// The next segment, made ahead of the need.
    spare: Option<Tail>,
    /// Segments that some destination has not delivered, the tail among them. Read through these, so that nothing is
    /// lost where somebody deletes the folder.
    segments: BTreeMap<u64, Segment>,
    /// Frames that the disk would not take; all later than those on it.
    memory: VecDeque<InMemory>,
    memory_bytes: usize,
    appended: u64,
    sealed: bool,
    /// When it was last looked whether the folder is there, and whether it was not.
    looked: Instant,
    is_lost: bool,
    /// No call returns any more.
    is_frozen: bool,
    /// What the disk answers while it takes nothing.
    trouble: Option<String>,
}

#[derive(Clone, Debug)]
struct Segment {
    file: Arc<File>,
    length: u64,
}

#[derive(Debug)]
struct InMemory {
    number: u64,
    entries: u64,
    frame: Box<[u8]>,
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
    /// Behind the last frame on disk.
    pub position: Position,
    /// Entries in memory.
    pub in_memory: u64,
    /// Entries appended since the journal was begun.
    pub appended: u64,
}

/// Why a frame is not on the disk.
enum NotWritten {
    Limit,
    Io(io::Error),
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

    /// Appends a record. When this returns, the record outlives the process.
    ///
    /// # Errors
    /// [`JournalError::Encode`] for a record beyond the format's limits, [`JournalError::NoRoom`] when neither
    /// the disk nor memory takes more, [`JournalError::Sealed`] after its end.
    pub fn append(&self, record: Record) -> Result<Appended, JournalError> {
        self.append_all(vec![record])
    }

    /// Appends a record beyond the limits: what it is about has been taken before.
    ///
    /// # Errors
    /// [`JournalError::Encode`], [`JournalError::Sealed`].
    pub fn append_beyond_limits(&self, record: Record) -> Result<Appended, JournalError> {
        self.append_together(vec![record], true)
    }

    /// Appends records that belong together: after a kill all of them are there or none, up to some megabytes.
    ///
    /// # Errors
    /// Those of [`Journal::append`]; none of them is kept then.
    pub fn append_all(&self, records: Vec<Record>) -> Result<Appended, JournalError> {
        self.append_together(records, false)
    }

    /// Appends records that belong together, beyond the limits: what they are about has been taken before.
    ///
    /// # Errors
    /// [`JournalError::Encode`], [`JournalError::Sealed`].
    pub fn append_all_beyond_limits(&self, records: Vec<Record>) -> Result<Appended, JournalError> {
        self.append_together(records, true)
    }

    fn append_together(
        &self,
        records: Vec<Record>,
        beyond_limits: bool,
    ) -> Result<Appended, JournalError> {
        let at = now_ms();
        let mut frames: Vec<(Vec<u8>, u32)> = Vec::with_capacity(1);
        let mut buffer = Vec::with_capacity(256);
        let mut draft = Draft::new(&mut buffer);
        for record in records {
            draft
                .push(&Entry { at, record })
                .map_err(JournalError::Encode)?;
            if draft.length() > MAX_TOGETHER {
                frames.push(draft.taken());
            }
        }
        if draft.entries() > 0 {
            frames.push(draft.taken());
        }
        let mut appended = Appended::OnDisk;
        let mut writer = self.writer();
        for (place, (mut bytes, entries)) in frames.into_iter().enumerate() {
            // What follows the first frame belongs to it, and is taken beyond the limits.
            let mut draft = Draft::of(&mut bytes, entries);
            appended = self.append_to(&mut writer, &mut draft, beyond_limits || place > 0)?;
        }
        Ok(appended)
    }

    /// Appends a frame.
    ///
    /// # Errors
    /// Those of [`Journal::append`].
    pub fn append_draft(&self, draft: &mut Draft<'_>) -> Result<Appended, JournalError> {
        self.append_to(&mut self.writer(), draft, false)
    }

    fn append_to(
        &self,
        writer: &mut Writer,
        draft: &mut Draft<'_>,
        beyond_limits: bool,
    ) -> Result<Appended, JournalError> {
        if writer.is_frozen {
            return Err(JournalError::Frozen);
        }
        if writer.sealed {
            return Err(JournalError::Sealed);
        }
        let (number, entries) = (writer.appended, u64::from(draft.entries()));
        let frame = draft.sealed(number);
        let outcome = if writer.memory.is_empty() {
            match self.write(writer, frame, beyond_limits) {
                Ok(()) => Appended::OnDisk,
                Err(NotWritten::Io(error)) => Appended::InMemory(error),
                Err(NotWritten::Limit) => {
                    return Err(self.no_room(writer, Room::Frame(frame.len())));
                }
            }
        } else {
            Appended::BehindMemory
        };
        if !matches!(outcome, Appended::OnDisk) {
            let full = writer.memory_bytes + frame.len() > self.config.memory_limit;
            if full && !writer.memory.is_empty() && !beyond_limits {
                return Err(self.no_room(writer, Room::Frame(frame.len())));
            }
            if let Appended::InMemory(error) = &outcome {
                writer.trouble = Some(error.to_string());
            }
            writer.memory_bytes += frame.len();
            writer.memory.push_back(InMemory {
                number,
                entries,
                frame: frame.into(),
            });
            self.in_memory.fetch_add(entries, Ordering::Release);
        }
        writer.appended += entries;
        // A full barrier: whoever looks for sleepers after this is seen by whoever looks at this before sleeping.
        self.appended.fetch_add(entries, Ordering::SeqCst);
        Ok(outcome)
    }

    fn no_room(&self, writer: &Writer, room: Room) -> JournalError {
        JournalError::NoRoom {
            room,
            dir: writer
                .home
                .as_ref()
                .map_or_else(|| root(&self.config.heimdall_dir), |home| home.dir.clone()),
        }
    }

    /// Writes a frame to the disk.
    fn write(
        &self,
        writer: &mut Writer,
        frame: &[u8],
        beyond_limits: bool,
    ) -> Result<(), NotWritten> {
        let takes = |tail: &Tail| tail.takes(frame.len());
        if !writer.tail.as_ref().is_some_and(takes) {
            self.rotate(writer, frame.len(), beyond_limits)?;
        }
        let Some(tail) = &mut writer.tail else {
            return Err(NotWritten::Io(io::ErrorKind::NotFound.into()));
        };
        tail.append(frame, self.config.durability)
            .map_err(NotWritten::Io)?;
        let end = Position {
            segment: writer.segment,
            offset: tail.offset(),
        };
        self.end.store(packed(end), Ordering::Release);
        Ok(())
    }

    /// Goes on in the next segment.
    fn rotate(
        &self,
        writer: &mut Writer,
        least: usize,
        beyond_limits: bool,
    ) -> Result<(), NotWritten> {
        let Some(home) = &writer.home else {
            let reason = writer.trouble.clone().unwrap_or_default();
            return Err(NotWritten::Io(io::Error::other(reason)));
        };
        // Two segments there may always be: one that is delivered and one that is written.
        if !beyond_limits
            && writer.segments.len() > 1
            && self.on_disk(writer) + self.config.segment_length() > self.config.disk_limit
        {
            return Err(NotWritten::Limit);
        }
        let path = segment::path(&home.dir, writer.segment + 1);
        // One that is too short for this frame is left for the next.
        let spare = writer
            .spare
            .take_if(|spare| spare.takes(least))
            .filter(|_| fs::rename(home.dir.join(segment::SPARE), &path).is_ok());
        let made = match spare {
            Some(spare) => Ok(spare),
            None => Tail::create(&path, self.config.segment_length(), least as u64),
        };
        let synced = made.and_then(|tail| {
            if self.config.durability == Durability::Power {
                tail.file().sync_all()?;
                sync_folder(&home.dir)?;
            }
            Ok(tail)
        });
        let tail = synced.map_err(|error| {
            // The name must be free for the next attempt.
            let _ = fs::remove_file(&path);
            NotWritten::Io(error)
        })?;
        writer.segment += 1;
        writer.segments.insert(
            writer.segment,
            Segment {
                file: Arc::clone(tail.file()),
                length: tail.length(),
            },
        );
        writer.tail = Some(tail);
        Ok(())
    }

    fn on_disk(&self, writer: &Writer) -> u64 {
        let segments: u64 = writer.segments.values().map(|segment| segment.length).sum();
        segments + self.staged.load(Ordering::Acquire)
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

    fn has_room(&self, writer: &Writer, room: Room) -> bool {
        let limit = self.config.disk_limit;
        match room {
            Room::File(size) => {
                self.staged.load(Ordering::Acquire) == 0 || self.on_disk(writer) + size <= limit
            }
            Room::Frame(length) if !writer.memory.is_empty() => {
                writer.memory_bytes + length <= self.config.memory_limit
            }
            Room::Frame(length) => {
                writer.tail.as_ref().is_some_and(|tail| tail.takes(length))
                    || writer.segments.len() < 2
                    || self.on_disk(writer) + self.config.segment_length() <= limit
            }
        }
    }

    /// That there is room for more.
    ///
    /// # Errors
    /// [`JournalError::NoRoom`].
    pub fn check_room(&self) -> Result<(), JournalError> {
        let writer = self.writer();
        match self.has_room(&writer, Room::Frame(MANY)) {
            true => Ok(()),
            false => Err(self.no_room(&writer, Room::Frame(MANY))),
        }
    }

    /// Waits, once at least, until there is room, which delivery makes; false when `keep_waiting` says to stop.
    pub fn wait_for_room(&self, room: Room, keep_waiting: &mut dyn FnMut() -> bool) -> bool {
        loop {
            let writer = self.writer();
            let (writer, _) = self
                .room
                .wait_timeout(writer, PATIENCE)
                .unwrap_or_else(PoisonError::into_inner);
            let is_over = writer.sealed || self.has_room(&writer, room);
            drop(writer);
            if !keep_waiting() {
                return false;
            }
            if is_over {
                return true;
            }
        }
    }

    /// What is better not left to the callers: makes the next segment ahead of the need, moves to the disk what is
    /// in memory, and finds the journal a new folder where its own is gone. Waits on the disk. Returns what has
    /// changed, for the user.
    pub fn maintain(&self) -> Option<String> {
        let mut writer = self.writer();
        // What is in memory alone then is for a destination that is slower than the one that has sealed it.
        if writer.sealed && writer.memory.is_empty() {
            return None;
        }
        let looks = writer.looked.elapsed() >= LOOK;
        if looks {
            writer.looked = Instant::now();
        }
        let is_gone = looks && writer.home.as_ref().is_some_and(Home::is_gone);
        let mut is_lost = writer.is_lost;
        let mut told = None;
        if is_gone || (looks && writer.home.is_none()) {
            let before = writer.home.as_ref().map(|home| home.dir.clone());
            match self.settle(&mut writer) {
                Ok(dir) => {
                    is_lost = false;
                    told = before.map(|before| {
                        format!(
                            "the journal's folder {} was deleted; what it held is in {} now, but for files that \
                             were staged for upload",
                            before.display(),
                            dir.display()
                        )
                    });
                }
                Err(error) => {
                    is_lost = true;
                    if writer.trouble.is_none()
                        && let Some(before) = before
                    {
                        told = Some(format!(
                            "tracking is degraded, training is not: the journal's folder {} was deleted and cannot \
                             be made again ({error}). Records are lost if this process dies before they are delivered",
                            before.display()
                        ));
                    }
                    writer.trouble = Some(error.to_string());
                }
            }
        }
        writer.is_lost = is_lost;
        if !is_lost && !writer.memory.is_empty() {
            self.spill(&mut writer);
        }
        if writer.is_well() && writer.trouble.take().is_some() && told.is_none() {
            told = Some("the journal is on the disk again".to_owned());
        }
        let ahead = self.wants_spare(&writer);
        drop(writer);
        // Under a name of its own, as a caller may need the next segment while this one is made.
        if let Some(path) = ahead
            && let Ok(spare) = Tail::create(&path, self.config.segment_length(), 0)
        {
            spare.populate();
            let mut writer = self.writer();
            if writer
                .home
                .as_ref()
                .map(|home| home.dir.join(segment::SPARE))
                == Some(path)
            {
                writer.spare = Some(spare);
            }
        }
        told
    }

    /// Where the next segment is to be made, if it is time.
    fn wants_spare(&self, writer: &Writer) -> Option<PathBuf> {
        let (home, tail) = (writer.home.as_ref()?, writer.tail.as_ref()?);
        let has_room =
            self.on_disk(writer) + self.config.segment_length() <= self.config.disk_limit;
        (writer.spare.is_none() && has_room && tail.offset() > tail.length() / 2)
            .then(|| home.dir.join(segment::SPARE))
    }

    /// Moves frames from memory to the disk, the first ones first.
    fn spill(&self, writer: &mut Writer) {
        // Once nobody adds any more there is nobody who could wait for room.
        let beyond_limits = writer.sealed;
        while let Some(first) = writer.memory.pop_front() {
            match self.write(writer, &first.frame, beyond_limits) {
                Ok(()) => {
                    writer.memory_bytes -= first.frame.len();
                    self.in_memory.fetch_sub(first.entries, Ordering::AcqRel);
                }
                Err(_) => {
                    writer.memory.push_front(first);
                    break;
                }
            }
        }
        self.room.notify_all();
    }

    /// Gives the journal a folder, with what its segments hold that is not delivered.
    fn settle(&self, writer: &mut Writer) -> io::Result<PathBuf> {
        let home = Home::begin(&self.config, self.created)?;
        let settled = self.settle_in(home, writer);
        if let Err((hidden, error)) = settled {
            remove(&hidden);
            return Err(error);
        }
        writer.spare = None;
        Ok(writer
            .home
            .as_ref()
            .map_or_else(PathBuf::new, |home| home.dir.clone()))
    }

    /// Fills a folder that nobody sees yet, and shows it.
    fn settle_in(&self, home: Home, writer: &mut Writer) -> Result<(), (PathBuf, io::Error)> {
        let hidden = home.dir.clone();
        let failed = |error| (hidden.clone(), error);
        let needed = self.ledger.least().0.segment;
        let mut segments = BTreeMap::new();
        let mut tail = None;
        for (number, segment) in writer.segments.range(needed..) {
            let path = segment::path(&home.dir, *number);
            let copy = match &writer.tail {
                Some(old) if *number == writer.segment => {
                    let copy = old.copied(&path).map_err(failed)?;
                    let file = Arc::clone(copy.file());
                    tail = Some(copy);
                    file
                }
                _ => {
                    let mut options = File::options();
                    let file = options.read(true).write(true).create_new(true);
                    let file = file.open(path).map_err(failed)?;
                    segment::copy_bytes(&segment.file, &file, segment.length).map_err(failed)?;
                    Arc::new(file)
                }
            };
            let length = segment.length;
            segments.insert(*number, Segment { file: copy, length });
        }
        let mut segment = writer.segment;
        if tail.is_none() {
            segment += 1;
            let path = segment::path(&home.dir, segment);
            let new = Tail::create(&path, self.config.segment_length(), 0).map_err(failed)?;
            new.populate();
            let (file, length) = (Arc::clone(new.file()), new.length());
            segments.insert(segment, Segment { file, length });
            tail = Some(new);
        }
        for (destination, progress) in self.progress().iter().enumerate() {
            if let Some(progress) = progress {
                reader::save(&home.dir, destination, progress)
                    .map_err(|error| failed(io::Error::other(error)))?;
            }
        }
        let home = home.shown(&self.config).map_err(failed)?;
        writer.home = Some(home);
        writer.segments = segments;
        writer.segment = segment;
        writer.tail = tail;
        Ok(())
    }

    fn progress(&self) -> MutexGuard<'_, Vec<Option<Progress>>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets no call return any more: the process is about to die, and what a call has accepted is to be delivered.
    pub(crate) fn freeze(&self) {
        self.writer().is_frozen = true;
    }

    /// Closes it for good, unless more than `appended` entries have come in.
    pub(crate) fn seal(&self, appended: u64) -> bool {
        let mut writer = self.writer();
        writer.sealed |= writer.appended == appended;
        writer.sealed && writer.appended == appended
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
    fn segment(&self, number: u64) -> Option<Segment> {
        self.writer().segments.get(&number).cloned()
    }

    /// Notes how far a destination is, and removes what none needs any more.
    fn delivered(&self, destination: usize, progress: &Progress) {
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
                let _ = fs::remove_file(segment::path(&dir, *number));
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

    fn writer(&self) -> MutexGuard<'_, Writer> {
        // A panic while appending leaves the offset behind the last whole frame, so going on is sound.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    /// Whether the disk has everything and takes more.
    fn is_well(&self) -> bool {
        !self.is_lost && self.tail.is_some() && self.memory.is_empty()
    }
}

/// Folder of the journals below `heimdall_dir`.
pub fn root(heimdall_dir: &Path) -> PathBuf {
    heimdall_dir.join("journal")
}

/// Segment and offset in one word: a segment is shorter than 4 GiB, and there are fewer than 2^32.
fn packed(position: Position) -> u64 {
    position.segment << 32 | position.offset & 0xFFFF_FFFF
}

fn unpacked(word: u64) -> Position {
    Position {
        segment: word >> 32,
        offset: word & 0xFFFF_FFFF,
    }
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
