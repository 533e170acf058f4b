//! The folder of a journal, from its making to its removal.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{Durability, JournalConfig, Manifest, recovery, root, staging};
use crate::process::KeptLock;

/// The folder of a journal. Its lock is held for the life of the process; the kernel releases it.
#[derive(Debug)]
pub(super) struct Home {
    pub dir: PathBuf,
    lock: KeptLock,
}

impl Home {
    /// Makes a folder under a hidden name, and locks it, so that no other process takes it for abandoned.
    pub fn begin(config: &JournalConfig, created: i64) -> io::Result<Self> {
        let root = root(&config.heimdall_dir);
        fs::create_dir_all(&root)?;
        let pid = std::process::id();
        let name = format!("{created}-{pid}-{:08x}", rand::random::<u32>());
        let hidden = root.join(format!(".{name}"));
        fs::create_dir(&hidden)?;
        let made = Self::begin_in(&hidden, config, pid, created);
        made.inspect_err(|_| {
            let _ = fs::remove_dir_all(&hidden);
        })
    }

    fn begin_in(hidden: &Path, config: &JournalConfig, pid: u32, created: i64) -> io::Result<Self> {
        let lock = KeptLock::take(File::create_new(hidden.join(recovery::LOCK))?)?;
        let manifest = Manifest {
            destinations: config.destinations.clone(),
            pid,
            created,
        };
        let mut file = File::create_new(hidden.join(recovery::MANIFEST))?;
        file.write_all(&serde_json::to_vec_pretty(&manifest)?)?;
        fs::create_dir(staging::folder(hidden))?;
        if config.durability == Durability::Power {
            file.sync_all()?;
        }
        Ok(Self {
            dir: hidden.to_owned(),
            lock,
        })
    }

    /// Gives it its name, whole as it is now.
    pub fn shown(mut self, config: &JournalConfig) -> io::Result<Self> {
        let name = self.dir.file_name().unwrap_or_default().to_string_lossy();
        let dir = self.dir.with_file_name(name.trim_start_matches('.'));
        if config.durability == Durability::Power {
            sync_folder(&self.dir)?;
        }
        fs::rename(&self.dir, &dir)?;
        self.dir = dir;
        if config.durability == Durability::Power {
            for folder in [&root(&config.heimdall_dir), &config.heimdall_dir] {
                // It is there, and what it holds is: only its name may be lost with the power.
                let _ = sync_folder(folder);
            }
        }
        Ok(self)
    }

    /// Whether somebody has deleted it.
    pub fn is_gone(&self) -> bool {
        let same = |one: &fs::Metadata, other: &fs::Metadata| {
            (one.dev(), one.ino()) == (other.dev(), other.ino())
        };
        let held = self.lock.file().metadata();
        match (held, fs::metadata(self.dir.join(recovery::LOCK))) {
            (Ok(held), Ok(there)) => !same(&held, &there),
            (_, Err(error)) => error.kind() == io::ErrorKind::NotFound,
            (Err(_), _) => false,
        }
    }
}

/// Waits until the names in a folder are on the disk.
pub(super) fn sync_folder(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Removes a journal's folder. It is hidden first, so that nobody finds half of it, whenever this process dies.
pub(crate) fn remove(dir: &Path) {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let hidden = dir.with_file_name(format!("{}{name}", recovery::GONE));
    let _ = match fs::rename(dir, &hidden) {
        Ok(()) => fs::remove_dir_all(&hidden),
        Err(_) => fs::remove_dir_all(dir),
    };
}
