//! Appending: the work that a caller's thread does to record something.

use std::{
    fs, io,
    ops::Range,
    sync::{Arc, atomic::Ordering},
};

use super::{
    config::Durability,
    error::{JournalError, Room},
    frame::Draft,
    layout::{self, sync_folder},
    position::Position,
    record::{Entry, Record},
    segment::Tail,
    writer::{Disk, Gate, Journal, Segment, Writer},
};
use crate::os::clock::now_ms;

/// Entries that belong together are in one frame up to this many bytes.
const MAX_TOGETHER: usize = 16 << 20;
/// Bytes that the records of a run's start may take.
const RUN_START_ROOM: usize = 4096;

/// Rule by which a batch is subject to the limits of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// The batch is refused with [`JournalError::NoRoom`] while the journal is at its limits.
    Bounded,
    /// The batch is accepted beyond the limits: it completes something that was accepted before, such as the end of a
    /// run or the record of a staged file.
    Always,
}

/// Records to append together, encoded. After a kill, the journal has either all of them or none, up to some megabytes.
#[derive(Debug)]
pub(crate) enum EncodedRecords<'a> {
    /// A frame in the caller's buffer.
    Draft(Draft<'a>),
    /// Frames, each with its number of entries.
    Frames(Vec<(Vec<u8>, u32)>),
}

/// The outcome of an append.
#[derive(Debug)]
pub(crate) struct Appended {
    /// Numbers of the entries in the journal.
    pub numbers: Range<u64>,
    /// The medium that the entries are on.
    pub medium: Medium,
}

/// The medium that appended entries are on.
#[derive(Debug)]
pub(crate) enum Medium {
    /// The entries are on disk.
    Disk,
    /// The disk refused the entries: they are in memory, and lost if the process dies.
    Memory(io::Error),
    /// Earlier entries are in memory already, and these entries wait behind them.
    BehindMemory,
}

/// The reason for which a frame is not on the disk.
pub(crate) enum NotWritten {
    Limit,
    NoFolder,
    Io(io::Error),
}

impl EncodedRecords<'static> {
    /// Encodes records with the present time.
    ///
    /// # Errors
    /// [`JournalError::Encode`] for a record beyond the limits of the format.
    pub(crate) fn of(records: Vec<Record>) -> Result<Self, JournalError> {
        let at = now_ms();
        let mut frames = Vec::with_capacity(1);
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
        Ok(Self::Frames(frames))
    }
}

impl Journal {
    /// Appends a batch. When this returns, its records survive the end of the process.
    ///
    /// # Errors
    /// [`JournalError::NoRoom`] for a bounded batch when neither the disk nor memory accepts more,
    /// [`JournalError::Sealed`] after the journal's end, [`JournalError::Frozen`] when the process is about to die.
    /// None of the records is kept then.
    pub(crate) fn append(
        &self,
        batch: EncodedRecords<'_>,
        admission: Admission,
    ) -> Result<Appended, JournalError> {
        let mut writer = self.writer();
        match batch {
            EncodedRecords::Draft(mut draft) => {
                self.append_frame(&mut writer, &mut draft, admission)
            }
            EncodedRecords::Frames(frames) => {
                let first = writer.appended;
                let mut medium = Medium::Disk;
                for (at, (mut bytes, entries)) in frames.into_iter().enumerate() {
                    let mut draft = Draft::of(&mut bytes, entries);
                    // The first frame is accepted, and the others belong to it.
                    let admission = if at > 0 { Admission::Always } else { admission };
                    medium = self
                        .append_frame(&mut writer, &mut draft, admission)?
                        .medium;
                }
                let numbers = first..writer.appended;
                Ok(Appended { numbers, medium })
            }
        }
    }

    fn append_frame(
        &self,
        writer: &mut Writer,
        draft: &mut Draft<'_>,
        admission: Admission,
    ) -> Result<Appended, JournalError> {
        match writer.gate {
            Gate::Open => {}
            Gate::Sealed => return Err(JournalError::Sealed),
            Gate::Frozen => return Err(JournalError::Frozen),
        }
        let (number, entries) = (writer.appended, u64::from(draft.entries()));
        let frame = draft.sealed(number);
        let no_room = |writer: &Writer| self.no_room(&writer.disk, Room::Frame(frame.len()));
        let medium = if writer.memory.frames.is_empty() {
            match self.write(&mut writer.disk, frame, admission) {
                Ok(()) => Medium::Disk,
                Err(NotWritten::Io(error)) => Medium::Memory(error),
                Err(NotWritten::NoFolder) => {
                    let error = writer.health.disk_error.clone().unwrap_or_default();
                    Medium::Memory(io::Error::other(error))
                }
                Err(NotWritten::Limit) => return Err(no_room(writer)),
            }
        } else {
            Medium::BehindMemory
        };
        if !matches!(medium, Medium::Disk) {
            let is_full = writer.memory.bytes + frame.len() > self.config.memory_limit;
            let is_bounded = admission == Admission::Bounded;
            if is_full && is_bounded && !writer.memory.frames.is_empty() {
                return Err(no_room(writer));
            }
            if let Medium::Memory(error) = &medium {
                writer.health.disk_error = Some(error.to_string());
            }
            writer.memory.push(number, entries, frame);
            self.in_memory.fetch_add(entries, Ordering::Release);
        }
        writer.appended += entries;
        // This is a full barrier. A thread that looks for sleepers after this line is seen by a thread that looks at
        // this counter before it sleeps.
        self.appended.fetch_add(entries, Ordering::SeqCst);
        Ok(Appended {
            numbers: number..number + entries,
            medium,
        })
    }

    /// Returns the error for a journal that has reached its limit.
    pub(crate) fn no_room(&self, disk: &Disk, room: Room) -> JournalError {
        let dir = self.dir_of(disk);
        JournalError::NoRoom { dir, room }
    }

    /// Writes a frame to the disk.
    pub(crate) fn write(
        &self,
        disk: &mut Disk,
        frame: &[u8],
        admission: Admission,
    ) -> Result<(), NotWritten> {
        let takes = |tail: &Tail| tail.takes(frame.len());
        if !disk.tail.as_ref().is_some_and(takes) {
            self.rotate(disk, frame.len(), admission)?;
        }
        let Some(tail) = &mut disk.tail else {
            return Err(NotWritten::Io(io::ErrorKind::NotFound.into()));
        };
        tail.append(frame, self.config.durability)
            .map_err(NotWritten::Io)?;
        self.set_end_on_disk(Position {
            segment: disk.segment,
            offset: tail.offset(),
        });
        Ok(())
    }

    /// Continues in the next segment, which has room for a frame of `least` bytes.
    fn rotate(
        &self,
        disk: &mut Disk,
        least: usize,
        admission: Admission,
    ) -> Result<(), NotWritten> {
        let Some(folder) = &disk.folder else {
            return Err(NotWritten::NoFolder);
        };
        // Two segments are always allowed: one that is delivered and one that is written.
        if admission == Admission::Bounded
            && disk.segments.len() > 1
            && self.on_disk(disk) + self.config.segment_length() > self.config.disk_limit
        {
            return Err(NotWritten::Limit);
        }
        let path = layout::segment_path(&folder.dir, disk.segment + 1);
        // A spare segment that is too short for this frame is kept for the next frame.
        let spare = disk
            .spare
            .take_if(|spare| spare.takes(least))
            .filter(|_| fs::rename(folder.dir.join(layout::SPARE), &path).is_ok());
        let made = match spare {
            Some(spare) => Ok(spare),
            None => Tail::create(&path, self.config.segment_length(), least as u64),
        };
        let synced = made.and_then(|tail| {
            if self.config.durability == Durability::Power {
                tail.file().sync_all()?;
                sync_folder(&folder.dir)?;
            }
            Ok(tail)
        });
        let tail = synced.map_err(|error| {
            // The name must be free for the next attempt.
            let _ = fs::remove_file(&path);
            NotWritten::Io(error)
        })?;
        disk.segment += 1;
        let (file, length) = (Arc::clone(tail.file()), tail.length());
        disk.segments.insert(disk.segment, Segment { file, length });
        disk.tail = Some(tail);
        Ok(())
    }

    /// Returns the bytes of segments and staged files.
    pub(crate) fn on_disk(&self, disk: &Disk) -> u64 {
        let segments: u64 = disk.segments.values().map(|segment| segment.length).sum();
        segments + self.staged.load(Ordering::Acquire)
    }

    /// Returns true where the journal has room.
    pub(crate) fn has_room(&self, writer: &Writer, room: Room) -> bool {
        let (disk, limit) = (&writer.disk, self.config.disk_limit);
        match room {
            Room::File(size) => {
                self.staged.load(Ordering::Acquire) == 0 || self.on_disk(disk) + size <= limit
            }
            Room::Frame(length) if !writer.memory.frames.is_empty() => {
                writer.memory.bytes + length <= self.config.memory_limit
            }
            Room::Frame(length) => {
                disk.tail.as_ref().is_some_and(|tail| tail.takes(length))
                    || disk.segments.len() < 2
                    || self.on_disk(disk) + self.config.segment_length() <= limit
            }
        }
    }

    /// Checks that a run can start.
    ///
    /// # Errors
    /// [`JournalError::NoRoom`] where the journal has no room for the records of a run's start.
    pub(crate) fn check_room(&self) -> Result<(), JournalError> {
        let (writer, room) = (self.writer(), Room::Frame(RUN_START_ROOM));
        if self.has_room(&writer, room) {
            Ok(())
        } else {
            Err(self.no_room(&writer.disk, room))
        }
    }

    /// Waits until delivery has made room, or the journal is closed.
    pub(crate) async fn wait_for_room(&self, room: Room) {
        loop {
            let removed = self.room.notified();
            tokio::pin!(removed);
            removed.as_mut().enable();
            let has_room = {
                let writer = self.writer();
                writer.gate != Gate::Open || self.has_room(&writer, room)
            };
            if has_room {
                return;
            }
            removed.await;
        }
    }
}
