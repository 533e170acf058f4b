//! Journals that dead processes have left.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    Manifest, Position, home,
    ledger::Ledger,
    reader::{self, Reader},
    root, segment,
};
use crate::process::KeptLock;

/// Name of the lock file.
pub const LOCK: &str = "lock";
/// Name of the manifest.
pub const MANIFEST: &str = "manifest.json";

/// How the name of a journal begins that is being removed.
pub const GONE: &str = ".gone-";
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
    _lock: KeptLock,
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
        home::remove(&self.dir);
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
            home::remove(&dir);
        }
    }
}

/// The folders of all journals below `heimdall_dir`, oldest first, whether their processes live or not.
///
/// # Errors
/// Those of the file system, but for a folder that is not there: that has none.
pub fn folders(heimdall_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let folders = match fs::read_dir(root(heimdall_dir)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        folders => folders?,
    };
    let mut dirs = Vec::new();
    for folder in folders {
        let folder = folder?;
        if !folder.file_name().as_encoded_bytes().starts_with(b".") {
            dirs.push(folder.path());
        }
    }
    dirs.sort();
    Ok(dirs)
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

/// Whether there is no journal in `dir`, or one that is half made or half removed. What cannot be looked into is one.
pub fn is_none(dir: &Path) -> bool {
    matches!(dir.join(MANIFEST).try_exists(), Ok(false))
}

/// What the journal in `dir` is for; `None` where that is damaged or may not be read.
pub fn manifest(dir: &Path) -> Option<Manifest> {
    serde_json::from_slice(&fs::read(dir.join(MANIFEST)).ok()?).ok()
}

/// Where the journal in `dir` ends.
///
/// # Errors
/// Those of the file system, but for a segment that is removed meanwhile: it has been delivered.
pub fn end(dir: &Path) -> io::Result<Position> {
    let mut last = None;
    for file in fs::read_dir(dir)? {
        last = last.max(segment::number(&file?.path()));
    }
    let Some(segment) = last else {
        return Ok(Position::START);
    };
    let offset = match fs::metadata(segment::path(dir, segment)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        metadata => metadata?.len(),
    };
    Ok(Position { segment, offset })
}

/// Whether the process of the journal in `dir` lives.
pub fn is_alive(dir: &Path) -> bool {
    File::open(dir.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_err())
}

fn take(dir: &Path, wanted: impl Fn(&Manifest) -> bool) -> Option<Abandoned> {
    let found = manifest(dir).filter(wanted)?;
    let lock = KeptLock::take(File::open(dir.join(LOCK)).ok()?).ok()?;
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
