//! Journals of processes that have died.

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

/// Age at which a half-made folder counts as abandoned.
const HALF_MADE: Duration = Duration::from_secs(10);

/// A journal whose process is dead, locked by this process.
#[derive(Debug)]
pub(crate) struct AbandonedJournal {
    /// Owner and destinations of the journal.
    pub manifest: Manifest,
    /// Folder of the journal.
    pub dir: PathBuf,
    /// End of the journal.
    pub end: Position,
    ledger: Arc<Ledger>,
    _lock: FileLock,
}

impl AbandonedJournal {
    /// Returns a reader for one of the destinations.
    pub(crate) fn reader(&self, destination: usize) -> Reader {
        Reader::folder(&self.dir, Arc::clone(&self.ledger), destination)
    }

    /// Returns true where everything is delivered to all destinations.
    pub(crate) fn is_done(&self) -> bool {
        (0..self.manifest.destinations.len()).all(|it| self.reader(it).is_done(self.end))
    }

    /// Removes the journal.
    pub(crate) fn remove(&self) {
        layout::remove(&self.dir);
    }
}

/// Removes the rest of journals whose process died while it made or removed them: nobody was told that anything in them
/// is kept.
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
        // A folder without a manifest may belong to a process that is just making it and will lock it.
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

/// Returns the journals below `heimdall_dir` whose processes are dead and that `wanted` accepts, oldest first.
pub(crate) fn lock_all(
    heimdall_dir: &Path,
    wanted: impl Fn(&Manifest) -> bool,
) -> Vec<AbandonedJournal> {
    sweep(heimdall_dir);
    folders(heimdall_dir)
        .unwrap_or_default()
        .iter()
        .filter_map(|dir| take(dir, &wanted))
        .collect()
}

/// Returns true where the process of the journal in `dir` is alive.
pub(crate) fn is_alive(dir: &Path) -> bool {
    File::open(dir.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_err())
}

fn take(dir: &Path, wanted: impl Fn(&Manifest) -> bool) -> Option<AbandonedJournal> {
    let found = manifest(dir).filter(wanted)?;
    let lock = FileLock::take(File::open(dir.join(LOCK)).ok()?).ok()?;
    // Another process may have delivered and removed the journal between the listing and the lock.
    let manifest = manifest(dir).filter(|manifest| *manifest == found)?;
    let cursors = (0..manifest.destinations.len()).map(|destination| {
        let saved = reader::saved(dir, destination);
        (saved.position, saved.next)
    });
    Some(AbandonedJournal {
        ledger: Arc::new(Ledger::new(cursors.collect())),
        end: end(dir).ok()?,
        dir: dir.to_owned(),
        manifest,
        _lock: lock,
    })
}
