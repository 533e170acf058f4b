//! Journals that dead processes have left.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    layout::{self, GONE, LOCK, MANIFEST, Manifest, end, folders, manifest, root},
    ledger::Ledger,
    position::Position,
    reader::{self, Reader},
};
use crate::os::file_lock::FileLock;

/// A folder that is half made for so long is never finished.
const HALF_MADE: Duration = Duration::from_secs(10);

/// A journal whose process is gone, locked by this one.
#[derive(Debug)]
pub struct Abandoned {
    /// What it is for.
    pub manifest: Manifest,
    /// Its folder.
    pub dir: PathBuf,
    /// Where it ends.
    pub end: Position,
    ledger: Arc<Ledger>,
    _lock: FileLock,
}

impl Abandoned {
    /// A reader for one of its destinations.
    pub fn reader(&self, destination: usize) -> Reader {
        Reader::folder(&self.dir, Arc::clone(&self.ledger), destination)
    }

    /// Whether all is delivered to all of its destinations.
    pub fn is_done(&self) -> bool {
        (0..self.manifest.destinations.len()).all(|it| self.reader(it).is_done(self.end))
    }

    /// Removes it.
    pub fn remove(&self) {
        layout::remove(&self.dir);
    }
}

/// Removes what is left of journals whose process died while it made or removed them: nothing in them is promised to
/// anybody.
fn sweep(heimdall_dir: &Path) {
    let folders = fs::read_dir(root(heimdall_dir));
    for folder in folders.into_iter().flatten().filter_map(Result::ok) {
        let is_hidden = folder.file_name().as_encoded_bytes().starts_with(b".");
        let dir = folder.path();
        let is_old = folder
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|at| at.elapsed().is_ok_and(|age| age > HALF_MADE));
        let is_gone = folder
            .file_name()
            .as_encoded_bytes()
            .starts_with(GONE.as_bytes());
        // One without a manifest may be about to be locked by the process that makes it.
        let is_dead = match File::open(dir.join(LOCK)) {
            Ok(lock) => (is_old || dir.join(MANIFEST).exists()) && lock.try_lock().is_ok(),
            Err(_) => is_old,
        };
        if is_gone {
            let _ = fs::remove_dir_all(dir);
        } else if is_hidden && is_dead {
            layout::remove(&dir);
        }
    }
}

/// The journals below `heimdall_dir` whose processes are gone and that `wanted` wants, oldest first.
pub fn abandoned(heimdall_dir: &Path, wanted: impl Fn(&Manifest) -> bool) -> Vec<Abandoned> {
    sweep(heimdall_dir);
    folders(heimdall_dir)
        .unwrap_or_default()
        .iter()
        .filter_map(|dir| take(dir, &wanted))
        .collect()
}

/// Whether the process of the journal in `dir` lives.
pub fn is_alive(dir: &Path) -> bool {
    File::open(dir.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_err())
}

fn take(dir: &Path, wanted: impl Fn(&Manifest) -> bool) -> Option<Abandoned> {
    let found = manifest(dir).filter(wanted)?;
    let lock = FileLock::take(File::open(dir.join(LOCK)).ok()?).ok()?;
    // Another process may have delivered and removed it between the listing and the lock.
    let manifest = manifest(dir).filter(|manifest| *manifest == found)?;
    let places = (0..manifest.destinations.len()).map(|destination| {
        let saved = reader::saved(dir, destination);
        (saved.position, saved.next)
    });
    Some(Abandoned {
        ledger: Arc::new(Ledger::new(places.collect())),
        end: end(dir).ok()?,
        dir: dir.to_owned(),
        manifest,
        _lock: lock,
    })
}
