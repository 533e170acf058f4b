//! The folder of a journal, from its creation to its removal.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{
    config::{Durability, JournalConfig},
    layout::{self, Manifest, root, sync_folder},
};
use crate::os::file_lock::FileLock;

/// The folder of a journal. Its lock is held for the life of the process; the kernel releases it.
#[derive(Debug)]
pub(crate) struct Folder {
    pub dir: PathBuf,
    lock: FileLock,
}

impl Folder {
    /// Makes a folder under a hidden name and locks it, so that no other process takes it for abandoned.
    pub(crate) fn begin(config: &JournalConfig, created: i64) -> io::Result<Self> {
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
        let lock = FileLock::take(File::create_new(hidden.join(layout::LOCK))?)?;
        let manifest = Manifest {
            destinations: config.destinations.clone(),
            pid,
            created,
            working_dir: config.working_dir.to_str().unwrap_or_default().to_owned(),
        };
        let mut file = File::create_new(hidden.join(layout::MANIFEST))?;
        file.write_all(&serde_json::to_vec_pretty(&manifest)?)?;
        fs::create_dir(layout::staging_folder(hidden))?;
        if config.durability == Durability::Power {
            file.sync_all()?;
        }
        Ok(Self {
            dir: hidden.to_owned(),
            lock,
        })
    }

    /// Gives the folder its final name, once its content is complete.
    pub(crate) fn shown(mut self, config: &JournalConfig) -> io::Result<Self> {
        let name = self.dir.file_name().unwrap_or_default().to_string_lossy();
        let dir = self.dir.with_file_name(name.trim_start_matches('.'));
        if config.durability == Durability::Power {
            sync_folder(&self.dir)?;
        }
        fs::rename(&self.dir, &dir)?;
        self.dir = dir;
        if config.durability == Durability::Power {
            for folder in [&root(&config.heimdall_dir), &config.heimdall_dir] {
                // The folder and its content exist. Only its name may be lost in a power cut.
                let _ = sync_folder(folder);
            }
        }
        Ok(self)
    }

    /// Returns true where somebody has deleted the folder.
    pub(crate) fn is_gone(&self) -> bool {
        let same = |one: &fs::Metadata, other: &fs::Metadata| {
            (one.dev(), one.ino()) == (other.dev(), other.ino())
        };
        let held = self.lock.file().metadata();
        match (held, fs::metadata(self.dir.join(layout::LOCK))) {
            (Ok(held), Ok(there)) => !same(&held, &there),
            (_, Err(error)) => error.kind() == io::ErrorKind::NotFound,
            (Err(_), _) => false,
        }
    }
}
