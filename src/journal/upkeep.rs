//! Upkeep: the work that the keeper does so that callers need not wait for the disk.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{
    append::Admission,
    folder::Folder,
    layout::{self, remove},
    reader,
    segment::{self, Tail},
    writer::{Disk, Gate, Journal, Segment, Writer},
};

/// Time between two checks that the journal's folder exists.
const FOLDER_CHECK_INTERVAL: Duration = Duration::from_millis(500);

impl Journal {
    /// Makes a new folder for the journal where the old one is gone, moves frames from memory to the disk, and makes
    /// the next segment before it is needed. Waits on the disk. Returns the change that the user should know of.
    pub(crate) fn maintain(&self) -> Option<String> {
        let mut writer = self.writer();
        // Frames that are in memory after the end are for a slower destination than the one that has sealed the
        // journal.
        if writer.gate == Gate::Sealed && writer.memory.frames.is_empty() {
            return None;
        }
        let changed = self.restore_folder(&mut writer);
        self.spill(&mut writer);
        let recovered = writer.forget_disk_error();
        let spare = self.spare_wanted(&writer.disk);
        drop(writer);
        if let Some(path) = spare {
            self.make_spare(path);
        }
        changed.or(recovered)
    }

    /// Makes a new folder where somebody has deleted the old one, or where none could be made before. Returns the
    /// change that the user should know of.
    fn restore_folder(&self, writer: &mut Writer) -> Option<String> {
        if writer.health.checked.elapsed() < FOLDER_CHECK_INTERVAL {
            return None;
        }
        writer.health.checked = Instant::now();
        let before = match &writer.disk.folder {
            Some(folder) if !folder.is_gone() => {
                return None;
            }
            folder => folder.as_ref().map(|folder| folder.dir.clone()),
        };
        let made = self.make_folder(&mut writer.disk);
        writer.health.is_lost = made.is_err();
        match made {
            Ok(dir) => before.map(|before| {
                format!(
                    "the journal's folder {} was deleted; what it held is in {} now, but for files that were staged \
                     for upload",
                    before.display(),
                    dir.display()
                )
            }),
            Err(error) => {
                let is_news = writer.health.disk_error.is_none();
                writer.health.disk_error = Some(error.to_string());
                before.filter(|_| is_news).map(|before| {
                    format!(
                        "tracking is degraded, training is not: the journal's folder {} was deleted and cannot be made \
                         again ({error}). Records are lost if this process dies before they are delivered",
                        before.display()
                    )
                })
            }
        }
    }

    /// Moves frames from memory to the disk, the first ones first.
    fn spill(&self, writer: &mut Writer) {
        if writer.health.is_lost || writer.memory.frames.is_empty() {
            return;
        }
        // Once nobody adds entries any more, nobody waits for room either.
        let admission = match writer.gate {
            Gate::Sealed => Admission::Always,
            Gate::Open | Gate::Frozen => Admission::Bounded,
        };
        while let Some(first) = writer.memory.frames.front() {
            if self
                .write(&mut writer.disk, &first.frame, admission)
                .is_err()
            {
                break;
            }
            let entries = writer.memory.pop();
            self.in_memory.fetch_sub(entries, Ordering::AcqRel);
        }
        self.room.notify_waiters();
    }

    /// Returns the path at which the next segment is to be made, if it is time.
    fn spare_wanted(&self, disk: &Disk) -> Option<PathBuf> {
        let (folder, tail) = (disk.folder.as_ref()?, disk.tail.as_ref()?);
        let has_room = self.on_disk(disk) + self.config.segment_length() <= self.config.disk_limit;
        (disk.spare.is_none() && has_room && tail.offset() > tail.length() / 2)
            .then(|| folder.dir.join(layout::SPARE))
    }

    /// Makes the next segment under a name of its own, as a caller may need the next segment meanwhile.
    fn make_spare(&self, path: PathBuf) {
        let Ok(spare) = Tail::create(&path, self.config.segment_length(), 0) else {
            return;
        };
        spare.populate();
        let disk = &mut self.writer().disk;
        let is_ours = |folder: &Folder| folder.dir.join(layout::SPARE) == path;
        if disk.folder.as_ref().is_some_and(is_ours) {
            disk.spare = Some(spare);
        }
    }

    /// Gives the journal a folder, with the segments that are not delivered. Returns its path.
    pub(crate) fn make_folder(&self, disk: &mut Disk) -> io::Result<PathBuf> {
        let folder = Folder::begin(&self.config, self.created)?;
        let hidden = folder.dir.clone();
        let dir = self
            .fill_folder(folder, disk)
            .inspect_err(|_| remove(&hidden))?;
        disk.spare = None;
        Ok(dir)
    }

    /// Fills a folder that is still hidden, and then shows it.
    fn fill_folder(&self, folder: Folder, disk: &mut Disk) -> io::Result<PathBuf> {
        let needed = self.ledger.least().0.segment;
        let mut segments = BTreeMap::new();
        let mut tail = None;
        for (number, segment) in disk.segments.range(needed..) {
            let path = layout::segment_path(&folder.dir, *number);
            let file = match &disk.tail {
                Some(old) if *number == disk.segment => {
                    let copy = old.copied(&path)?;
                    let file = Arc::clone(copy.file());
                    tail = Some(copy);
                    file
                }
                _ => {
                    let mut options = File::options();
                    let file = options.read(true).write(true).create_new(true).open(path)?;
                    segment::copy_bytes(&segment.file, &file, segment.length)?;
                    Arc::new(file)
                }
            };
            let length = segment.length;
            segments.insert(*number, Segment { file, length });
        }
        let mut number = disk.segment;
        let tail = match tail {
            Some(tail) => tail,
            None => {
                number += 1;
                let path = layout::segment_path(&folder.dir, number);
                let tail = Tail::create(&path, self.config.segment_length(), 0)?;
                tail.populate();
                let (file, length) = (Arc::clone(tail.file()), tail.length());
                segments.insert(number, Segment { file, length });
                tail
            }
        };
        for (destination, progress) in self.progress().iter().enumerate() {
            if let Some(progress) = progress {
                reader::save(&folder.dir, destination, progress).map_err(io::Error::other)?;
            }
        }
        let folder = folder.shown(&self.config)?;
        let dir = folder.dir.clone();
        disk.folder = Some(folder);
        disk.segments = segments;
        disk.segment = number;
        disk.tail = Some(tail);
        Ok(dir)
    }
}

impl Writer {
    /// Forgets the disk's error where everything is on the disk again. Returns the message for the user.
    fn forget_disk_error(&mut self) -> Option<String> {
        let is_over = self.is_well() && self.health.disk_error.take().is_some();
        is_over.then(|| "the journal is on the disk again".to_owned())
    }
}
