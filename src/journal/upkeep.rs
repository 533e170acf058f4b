//! Upkeep: what the keeper does so that callers need not wait for the disk.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{
    folder::Home,
    layout::{self, remove},
    reader,
    segment::{self, Tail},
    writer::{Journal, Segment, Writer},
};

/// How often it is looked whether the journal's folder is there.
const LOOK: Duration = Duration::from_millis(500);

impl Journal {
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
                .map(|home| home.dir.join(layout::SPARE))
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
            .then(|| home.dir.join(layout::SPARE))
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
    pub(crate) fn settle(&self, writer: &mut Writer) -> io::Result<PathBuf> {
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
            let path = layout::segment_path(&home.dir, *number);
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
            let path = layout::segment_path(&home.dir, segment);
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
}
