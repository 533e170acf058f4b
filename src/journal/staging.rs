//! Copies of the files that artifact records name.
//!
//! A logged file must arrive with the content that it had at the call, and training scripts overwrite and delete their
//! checkpoints right after the call. So the file is copied (as a reflink where the file system can) into the journal's
//! folder before the record is appended.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::atomic::Ordering,
};

use super::{
    append::Admission,
    config::Durability,
    error::{JournalError, Room},
    layout::{staged_path, staging_folder, sync_folder},
    writer::Journal,
};
use crate::os::copy_file;

/// The result of staging a file.
#[derive(Debug)]
pub(crate) enum Staged {
    /// A copy of the file is in the staging folder.
    Copied {
        /// Name of the copy there.
        name: String,
        /// Length of the copy in bytes.
        size: u64,
    },
    /// The disk accepts no copy.
    Refused(io::Error),
}

impl Journal {
    /// Copies a file. Goes beyond the limits where other files of the same call have been copied already. Waits on the
    /// disk.
    ///
    /// # Errors
    /// [`JournalError::Stage`] where the file cannot be read, [`JournalError::NoRoom`] where the journal is at its
    /// limits.
    pub(crate) fn stage_file(
        &self,
        file: &Path,
        admission: Admission,
    ) -> Result<Staged, JournalError> {
        let unreadable = |source| unreadable(file, source);
        let size = length(file).map_err(unreadable)?;
        let staged = self.stage(size, admission, |target| copy_file::copy(file, target))?;
        match &staged {
            // The copy may have failed because the file itself cannot be read: this line checks for that.
            Staged::Refused(_) => File::open(file).map(|_| staged).map_err(unreadable),
            Staged::Copied { .. } => Ok(staged),
        }
    }

    /// Keeps a file that nobody changes under a second name. The second name costs no room, so there are no limits.
    /// Refuses where the journal is on another disk.
    ///
    /// # Errors
    /// [`JournalError::Stage`] where the file cannot be read.
    pub(crate) fn stage_link(&self, file: &Path) -> Result<Staged, JournalError> {
        let unreadable = |source| unreadable(file, source);
        let file = file.canonicalize().map_err(unreadable)?;
        let size = length(&file).map_err(unreadable)?;
        self.stage(size, Admission::Always, |target| {
            fs::hard_link(&file, target).map(|()| size)
        })
    }

    /// Writes `content` as a staged file. Waits on the disk.
    ///
    /// # Errors
    /// [`JournalError::NoRoom`] where the journal is at its limits.
    pub(crate) fn stage_bytes(&self, content: &[u8]) -> Result<Staged, JournalError> {
        let size = content.len() as u64;
        self.stage(size, Admission::Bounded, |target| {
            fs::write(target, content).map(|()| size)
        })
    }

    fn stage(
        &self,
        size: u64,
        admission: Admission,
        fill: impl FnOnce(&Path) -> io::Result<u64>,
    ) -> Result<Staged, JournalError> {
        let writer = self.writer();
        let Some(folder) = &writer.disk.folder else {
            let reason = writer.health.disk_error.clone().unwrap_or_default();
            return Ok(Staged::Refused(io::Error::other(reason)));
        };
        if admission == Admission::Bounded && !self.has_room(&writer, Room::File(size)) {
            return Err(self.no_room(&writer.disk, Room::File(size)));
        }
        let folder = staging_folder(&folder.dir);
        drop(writer);
        let name = format!("{:08}", self.next_staged.fetch_add(1, Ordering::Relaxed));
        let target = folder.join(&name);
        self.staged.fetch_add(size, Ordering::AcqRel);
        match fill(&target) {
            Ok(copied) => {
                if self.config.durability == Durability::Power
                    && let Err(error) = File::open(&target)
                        .and_then(|file| file.sync_all())
                        .and_then(|()| sync_folder(&folder))
                {
                    let _ = fs::remove_file(&target);
                    self.staged.fetch_sub(size, Ordering::AcqRel);
                    return Ok(Staged::Refused(error));
                }
                // The file may have grown or shrunk meanwhile.
                self.staged.fetch_add(copied, Ordering::AcqRel);
                self.staged.fetch_sub(size, Ordering::AcqRel);
                Ok(Staged::Copied { name, size: copied })
            }
            Err(error) => {
                let _ = fs::remove_file(&target);
                self.staged.fetch_sub(size, Ordering::AcqRel);
                Ok(Staged::Refused(error))
            }
        }
    }

    /// Removes a copy that no record names any more.
    pub(crate) fn discard(&self, name: &str, size: u64) {
        let _ = fs::remove_file(staged_path(&self.dir(), name));
        self.staged.fetch_sub(size, Ordering::AcqRel);
        self.room.notify_waiters();
    }
}

/// Returns the length of a file that can be read.
fn length(file: &Path) -> io::Result<u64> {
    Ok(File::open(file)?.metadata()?.len())
}

fn unreadable(file: &Path, source: io::Error) -> JournalError {
    JournalError::Stage {
        path: file.to_owned(),
        source,
    }
}
