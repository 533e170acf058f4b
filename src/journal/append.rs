//! Appending: what the caller's thread does.

use std::{
    fs::{self},
    io::{self},
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use super::{
    config::Durability,
    error::{JournalError, Room},
    frame::Draft,
    layout::{self, root, sync_folder},
    position::Position,
    record::{Entry, Record},
    segment::Tail,
    writer::{InMemory, Journal, Segment, Writer, packed},
};
use crate::os::clock::now_ms;

/// Entries that belong together are in one frame up to this many bytes.
pub(crate) const MAX_TOGETHER: usize = 16 << 20;

/// Bytes that the beginning of a run may take.
const MANY: usize = 4096;

/// How often a caller that waits for room looks whether it should go on waiting.
const PATIENCE: Duration = Duration::from_millis(50);

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

/// Why a frame is not on the disk.
pub(crate) enum NotWritten {
    Limit,
    Io(io::Error),
}

impl Journal {
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

    pub(crate) fn no_room(&self, writer: &Writer, room: Room) -> JournalError {
        JournalError::NoRoom {
            room,
            dir: writer
                .home
                .as_ref()
                .map_or_else(|| root(&self.config.heimdall_dir), |home| home.dir.clone()),
        }
    }

    /// Writes a frame to the disk.
    pub(crate) fn write(
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
        let path = layout::segment_path(&home.dir, writer.segment + 1);
        // One that is too short for this frame is left for the next.
        let spare = writer
            .spare
            .take_if(|spare| spare.takes(least))
            .filter(|_| fs::rename(home.dir.join(layout::SPARE), &path).is_ok());
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

    pub(crate) fn on_disk(&self, writer: &Writer) -> u64 {
        let segments: u64 = writer.segments.values().map(|segment| segment.length).sum();
        segments + self.staged.load(Ordering::Acquire)
    }

    pub(crate) fn has_room(&self, writer: &Writer, room: Room) -> bool {
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
}
