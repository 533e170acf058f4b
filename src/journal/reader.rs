//! Reads a journal back for one destination: while the journal is written, and after its process died.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    error::JournalError,
    layout::{self, outage_path, position_path, replace},
    ledger::Ledger,
    position::{Position, Progress},
    record::{Entry, Record},
    segment,
    writer::Journal,
};

/// An entry of a journal, with its number and the position behind it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Placed {
    /// Number of the entry in the journal.
    pub number: u64,
    /// The position to save once this entry is delivered: the end of its frame if it is the frame's last entry,
    /// otherwise the frame's start.
    pub behind: Position,
    /// The entry.
    pub entry: Entry,
}

/// Entries behind a reader's position.
#[derive(Debug, Default)]
pub(crate) struct ReadBatch {
    /// The entries, in order.
    pub entries: Vec<Placed>,
    /// Descriptions of damaged parts that were skipped; empty where everything was intact.
    pub damage: Vec<String>,
}

/// The journal that is read.
#[derive(Debug)]
enum Source {
    /// The journal of this process.
    Live(Arc<Journal>),
    /// The folder of a dead process.
    Folder { dir: PathBuf, ledger: Arc<Ledger> },
}

/// Reads a journal for one of its destinations, from the saved position of that destination on.
#[derive(Debug)]
pub(crate) struct Reader {
    source: Source,
    destination: usize,
    /// Progress of the delivery, as saved on disk.
    saved: Progress,
    /// Position behind the entries that [`Reader::read`] has returned.
    ahead: Position,
    next: u64,
    /// True for a reader that changes nothing on the disk.
    peeks: bool,
}

impl Reader {
    /// Returns a reader of this process' own journal, from its beginning.
    pub(crate) fn live(journal: Arc<Journal>, destination: usize) -> Self {
        Self::at(Source::Live(journal), destination, Progress::START)
    }

    /// Returns the time at which the oldest record that waits for a destination of this process' own journal was logged
    /// (ms since the epoch). Waits on the disk.
    pub(crate) fn oldest(journal: &Arc<Journal>, destination: usize) -> Option<i64> {
        let (position, next) = journal.ledger.cursor(destination)?;
        let from = Progress {
            position,
            next,
            ..Progress::START
        };
        let mut reader = Self::at(Source::Live(Arc::clone(journal)), destination, from);
        reader.peeks = true;
        let entries = reader.read(journal.end().position).ok()?.entries;
        let first = entries.into_iter().chain(reader.in_memory()).next()?;
        Some(first.entry.at)
    }

    /// Returns a reader of the journal in `dir`, whose process is dead, at the saved position.
    pub(crate) fn folder(dir: &Path, ledger: Arc<Ledger>, destination: usize) -> Self {
        let source = Source::Folder {
            dir: dir.to_owned(),
            ledger,
        };
        Self::at(source, destination, saved(dir, destination))
    }

    /// Returns a reader that only looks at the journal in `dir`.
    fn peeking(dir: &Path, destination: usize) -> Self {
        let mut reader = Self::folder(dir, Arc::new(Ledger::new(Vec::new())), destination);
        reader.peeks = true;
        reader
    }

    fn at(source: Source, destination: usize, saved: Progress) -> Self {
        Self {
            source,
            destination,
            ahead: saved.position,
            next: saved.next,
            saved,
            peeks: false,
        }
    }

    /// Returns the journal's folder.
    pub(crate) fn dir(&self) -> PathBuf {
        match &self.source {
            Source::Live(journal) => journal.dir(),
            Source::Folder { dir, .. } => dir.clone(),
        }
    }

    /// Returns the folder in which relative artifact locations begin; empty where the journal does not tell.
    pub(crate) fn working_dir(&self) -> PathBuf {
        let manifest = layout::manifest(&self.dir());
        PathBuf::from(manifest.map(|it| it.working_dir).unwrap_or_default())
    }

    /// Returns the progress as of the last [`Reader::advance`].
    pub(crate) fn progress(&self) -> &Progress {
        &self.saved
    }

    /// Returns the number of the first entry that is not delivered.
    pub(crate) fn next(&self) -> u64 {
        self.saved.next
    }

    /// Returns the path of a staged file.
    pub(crate) fn staged(&self, name: &str) -> PathBuf {
        layout::staged_path(&self.dir(), name)
    }

    fn segment(&self, number: u64) -> io::Result<Option<(Arc<File>, u64)>> {
        match &self.source {
            Source::Live(journal) => Ok(journal
                .segment(number)
                .map(|segment| (segment.file, segment.length))),
            Source::Folder { dir, .. } => match File::open(layout::segment_path(dir, number)) {
                Ok(file) => {
                    let length = file.metadata()?.len();
                    Ok(Some((Arc::new(file), length)))
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            },
        }
    }

    /// Returns entries before `end` that have not been returned yet; the batch is empty when there are none. Waits on the
    /// disk.
    ///
    /// # Errors
    /// [`JournalError::Io`] when a segment cannot be read.
    pub(crate) fn read(&mut self, end: Position) -> Result<ReadBatch, JournalError> {
        let mut batch = ReadBatch::default();
        while batch.entries.is_empty() && self.ahead < end {
            let number = self.ahead.segment;
            let path = layout::segment_path(&self.dir(), number);
            let failed = |source| JournalError::Io {
                path: path.clone(),
                source,
            };
            let is_last = number == end.segment;
            let found = self.segment(number).map_err(failed)?;
            let length = match &found {
                Some((_, length)) if is_last => end.offset.min(*length),
                Some((_, length)) => *length,
                None => 0,
            };
            match found {
                Some((file, _)) if self.ahead.offset < length => {
                    match segment::read(&*file, self.ahead.offset, length) {
                        // Somebody has cut the segment short.
                        Ok(chunk) if chunk.offset <= self.ahead.offset => {
                            batch
                                .damage
                                .push(self.put_aside(&path, "its end is missing"));
                            self.ahead.offset = length;
                        }
                        Ok(chunk) => self.take(chunk, &path, &mut batch),
                        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                            batch.damage.push(self.put_aside(&path, &error.to_string()));
                            self.ahead.offset = length;
                        }
                        Err(source) => return Err(failed(source)),
                    }
                }
                _ if is_last => self.ahead = end,
                _ => {
                    self.ahead = Position {
                        segment: number + 1,
                        offset: segment::HEADER_LEN,
                    };
                }
            }
        }
        Ok(batch)
    }

    fn take(&mut self, chunk: segment::Chunk, path: &Path, batch: &mut ReadBatch) {
        let mut missing = 0;
        for (number, entry, offset) in chunk.entries {
            // This entry was delivered from memory before it was moved to the disk.
            if number < self.next {
                continue;
            }
            missing += number - self.next;
            self.next = number + 1;
            batch.entries.push(Placed {
                number,
                behind: Position {
                    segment: self.ahead.segment,
                    offset,
                },
                entry,
            });
        }
        self.ahead.offset = chunk.offset;
        if chunk.skipped > 0 || missing > 0 {
            let lost = match missing {
                0 => String::new(),
                1 => ", and with them a record".to_owned(),
                count => format!(", and with them {count} records"),
            };
            let reason = format!("{} bytes are damaged{lost}", chunk.skipped);
            batch.damage.push(self.put_aside(path, &reason));
        }
    }

    /// Keeps a copy of a segment with unreadable parts, before it is removed with the delivered parts.
    fn put_aside(&self, path: &Path, reason: &str) -> String {
        if self.peeks {
            return format!("{}: {reason}", path.display());
        }
        let journal = self.dir();
        let keep = || -> Option<PathBuf> {
            let heimdall_dir = journal.parent()?.parent()?;
            let folder = heimdall_dir.join("damaged").join(journal.file_name()?);
            fs::create_dir_all(&folder).ok()?;
            let kept = folder.join(path.file_name()?);
            if !kept.exists() {
                fs::copy(path, &kept).ok()?;
            }
            Some(kept)
        };
        match keep() {
            Some(kept) => format!(
                "{}: {reason}; the file is kept as {}",
                path.display(),
                kept.display()
            ),
            None => format!("{}: {reason}", path.display()),
        }
    }

    /// Returns the entries of this process' journal that are in memory only, behind everything on its disk.
    pub(crate) fn in_memory(&self) -> Vec<Placed> {
        match &self.source {
            Source::Live(journal) => journal.read_memory(self.next, self.ahead),
            Source::Folder { .. } => Vec::new(),
        }
    }

    /// Saves that everything up to the last of `entries` is delivered, and removes the parts that no destination needs
    /// any more. If `entries` is empty, everything that was read counts as delivered.
    ///
    /// # Errors
    /// [`JournalError::Io`] when the position cannot be saved.
    pub(crate) fn advance(&mut self, entries: &[Placed]) -> Result<(), JournalError> {
        for placed in entries {
            self.saved.observe(&placed.entry);
            self.next = self.next.max(placed.number + 1);
        }
        // Damage that was skipped behind the last entry that was read counts as delivered with that entry.
        let (position, next) = match entries.last() {
            Some(last) if last.number + 1 < self.next => (last.behind, last.number + 1),
            _ => (self.ahead, self.next),
        };
        self.saved.position = position;
        self.saved.next = next;
        let saved = self.save();
        let before = match &self.source {
            Source::Live(journal) => {
                journal.delivered(self.destination, &self.saved);
                journal.ledger.others(self.destination)
            }
            Source::Folder { dir, ledger } => {
                let (before, after) = ledger.advance(self.destination, position, next);
                for number in before.0.segment..after.0.segment {
                    let _ = fs::remove_file(layout::segment_path(dir, number));
                }
                ledger.others(self.destination)
            }
        };
        // The last destination to store a staged file removes it.
        for placed in entries.iter().filter(|placed| placed.number < before) {
            if let Record::Artifact { staged, size, .. } = &placed.entry.record {
                match &self.source {
                    Source::Live(journal) => journal.discard(staged, *size),
                    Source::Folder { .. } => {
                        let _ = fs::remove_file(self.staged(staged));
                    }
                }
            }
        }
        // On a full disk there is room for the position only once the delivered segments are removed.
        saved.or_else(|_| self.save())
    }

    /// Returns true where nothing but skipped damage lies behind the delivered entries.
    pub(crate) fn has_passed_over(&self) -> bool {
        self.ahead > self.saved.position
    }

    /// Returns the path of the note with the reason why this destination accepts nothing. A later reader of the journal
    /// finds it there.
    pub(crate) fn outage_file(&self) -> PathBuf {
        outage_path(&self.dir(), self.destination)
    }

    /// Returns true where no other destination reads this journal.
    pub(crate) fn is_alone(&self) -> bool {
        let ledger = match &self.source {
            Source::Live(journal) => &journal.ledger,
            Source::Folder { ledger, .. } => ledger,
        };
        ledger.others(self.destination) == u64::MAX
    }

    /// Saves that the runs which the dead process left open are closed.
    ///
    /// # Errors
    /// [`JournalError::Io`] when the progress cannot be saved.
    pub(crate) fn runs_closed(&mut self) -> Result<(), JournalError> {
        self.saved.open_runs = BTreeMap::new();
        self.save()
    }

    fn save(&self) -> Result<(), JournalError> {
        save(&self.dir(), self.destination, &self.saved)
    }

    /// Returns true where everything before `end` is delivered and every run is closed.
    pub(crate) fn is_done(&self, end: Position) -> bool {
        self.saved.position >= end && self.saved.open_runs.is_empty()
    }
}

/// Saves the progress of a destination in the folder `dir` of a journal.
pub(crate) fn save(
    dir: &Path,
    destination: usize,
    progress: &Progress,
) -> Result<(), JournalError> {
    let json =
        serde_json::to_vec(progress).map_err(|error| JournalError::Encode(error.to_string()))?;
    replace(&position_path(dir, destination), &json)
}

/// Returns the saved progress of a destination of the journal in `dir`.
pub(crate) fn saved(dir: &Path, destination: usize) -> Progress {
    // An unreadable position only means that records are delivered again, and a second delivery changes nothing.
    fs::read(position_path(dir, destination))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or(Progress::START)
}

/// Shows the entries of the journal in `dir` that wait for a destination, and removes none of them.
///
/// # Errors
/// [`JournalError::Io`] when the folder or a segment cannot be read; the entries before that place have been shown.
pub(crate) fn peek(
    dir: &Path,
    destination: usize,
    mut each: impl FnMut(&ReadBatch),
) -> Result<(), JournalError> {
    let mut reader = Reader::peeking(dir, destination);
    let end = layout::end(dir).map_err(|source| JournalError::Io {
        path: dir.to_owned(),
        source,
    })?;
    loop {
        let batch = reader.read(end)?;
        each(&batch);
        if batch.entries.is_empty() {
            return Ok(());
        }
    }
}

/// Returns the noted reason for which a destination of the journal in `dir` has accepted nothing; `None` where none was
/// noted.
pub(crate) fn outage_reason(dir: &Path, destination: usize) -> Option<String> {
    fs::read_to_string(outage_path(dir, destination)).ok()
}
