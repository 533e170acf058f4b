//! Copies of the files that artifact records name.
//!
//! What a caller logs must arrive as it was at the call, and training scripts overwrite and delete their
//! checkpoints right after it. So the file is copied (as a reflink where the file system can) into the
//! journal's folder before the record is appended.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// The staging folder of one journal.
#[derive(Debug)]
pub struct Staging {
    dir: PathBuf,
    next: AtomicU64,
}

/// A staged copy.
#[derive(Debug)]
pub struct Staged {
    /// Its name in the staging folder.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
}

impl Staging {
    /// The staging folder of the journal in `journal`; it is created.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(journal: &Path) -> io::Result<Self> {
        let dir = folder(journal);
        fs::create_dir_all(&dir)?;
        Ok(Self {
            dir,
            next: AtomicU64::new(0),
        })
    }

    /// Copies `file`. Waits on the disk.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn copy(&self, file: &Path) -> io::Result<Staged> {
        self.stage(|target| fs::copy(file, target))
    }

    /// Writes `content` as a file of its own. Waits on the disk.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, content: &[u8]) -> io::Result<Staged> {
        self.stage(|target| fs::write(target, content).map(|()| content.len() as u64))
    }

    fn stage(&self, fill: impl FnOnce(&Path) -> io::Result<u64>) -> io::Result<Staged> {
        let name = format!("{:08}", self.next.fetch_add(1, Ordering::Relaxed));
        let target = self.dir.join(&name);
        let filled = fill(&target);
        if filled.is_err() {
            let _ = fs::remove_file(&target);
        }
        Ok(Staged {
            name,
            size: filled?,
        })
    }

    /// Removes a copy that no record names.
    pub fn discard(&self, staged: &Staged) {
        let _ = fs::remove_file(self.dir.join(&staged.name));
    }
}

/// Staging folder of the journal in `journal`.
pub fn folder(journal: &Path) -> PathBuf {
    journal.join("staging")
}
