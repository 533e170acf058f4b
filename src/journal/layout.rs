//! Names and paths in the folder of a journal.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{error::JournalError, position::Position};

/// Waits until the names in a folder are on the disk.
pub(crate) fn sync_folder(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Removes a journal's folder. It is hidden first, so that nobody finds half of it, whenever this process dies.
pub(crate) fn remove(dir: &Path) {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let hidden = dir.with_file_name(format!("{GONE}{name}"));
    let _ = match fs::rename(dir, &hidden) {
        Ok(()) => fs::remove_dir_all(&hidden),
        Err(_) => fs::remove_dir_all(dir),
    };
}

/// What a journal is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// URIs of the destinations, without credentials; the primary one first.
    pub destinations: Vec<String>,
    /// Process that writes it.
    pub pid: u32,
    /// When it was begun, milliseconds since 1970.
    pub created: i64,
}

/// Folder of the journals below `heimdall_dir`.
pub fn root(heimdall_dir: &Path) -> PathBuf {
    heimdall_dir.join("journal")
}

/// Replaces a file so that a reader, or a kill, sees the old or the new content.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<(), JournalError> {
    let write = || -> io::Result<()> {
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(content)?;
        fs::rename(&new, path)
    };
    write().map_err(|source| JournalError::Io {
        path: path.to_owned(),
        source,
    })
}

pub(crate) fn trouble_path(dir: &Path, destination: usize) -> PathBuf {
    dir.join(format!("trouble-{destination}.txt"))
}

pub(crate) fn position_path(dir: &Path, destination: usize) -> PathBuf {
    dir.join(format!("position-{destination}.json"))
}

/// Name of the lock file.
pub const LOCK: &str = "lock";

/// Name of the manifest.
pub const MANIFEST: &str = "manifest.json";

/// How the name of a journal begins that is being removed.
pub const GONE: &str = ".gone-";

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
        last = last.max(segment_number(&file?.path()));
    }
    let Some(segment) = last else {
        return Ok(Position::START);
    };
    let offset = match fs::metadata(segment_path(dir, segment)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        metadata => metadata?.len(),
    };
    Ok(Position { segment, offset })
}

/// Name of the next segment while it is not needed yet.
pub const SPARE: &str = "spare";

/// Path of segment `number` in a journal's folder.
pub fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:08}.segment"))
}

/// Number of the segment at `path`, if it is one.
pub fn segment_number(path: &Path) -> Option<u64> {
    (path.extension()? == "segment")
        .then(|| path.file_stem()?.to_str()?.parse().ok())
        .flatten()
}

/// Staging folder of the journal in `journal`.
pub fn staging_folder(journal: &Path) -> PathBuf {
    journal.join("staging")
}

/// A staged file's path; whatever a record says, it lies in the staging folder.
pub fn staged_path(journal: &Path, name: &str) -> PathBuf {
    staging_folder(journal).join(Path::new(name).file_name().unwrap_or_default())
}
