//! Names and paths in the folder of a journal, and the files that are replaced or removed whole.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{error::JournalError, position::Position};

/// Name of the lock file.
pub(crate) const LOCK: &str = "lock";
/// Name of the manifest.
pub(crate) const MANIFEST: &str = "manifest.json";
/// Name of the next segment while it is not needed yet.
pub(crate) const SPARE: &str = "spare";
/// Beginning of the name of a journal that is being removed.
pub(crate) const GONE: &str = ".gone-";

/// The destinations and the owner of a journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// URIs of the destinations, without credentials; the primary one first.
    pub destinations: Vec<String>,
    /// Process that writes the journal.
    pub pid: u32,
    /// Time at which the journal was begun, milliseconds since 1970.
    pub created: i64,
    /// Folder in which relative artifact locations begin; older journals have none.
    #[serde(default)]
    pub working_dir: String,
}

/// Returns the folder of all journals below `heimdall_dir`.
pub(crate) fn root(heimdall_dir: &Path) -> PathBuf {
    heimdall_dir.join("journal")
}

/// Returns the path of segment `number` in a journal's folder.
pub(crate) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:08}.segment"))
}

/// Returns the number of the segment at `path`; `None` for any other file.
pub(crate) fn segment_number(path: &Path) -> Option<u64> {
    (path.extension()? == "segment")
        .then(|| path.file_stem()?.to_str()?.parse().ok())
        .flatten()
}

/// Returns the staging folder of the journal in `journal`.
pub(crate) fn staging_folder(journal: &Path) -> PathBuf {
    journal.join("staging")
}

/// Returns the path of a staged file. It lies in the staging folder, whatever name a record has for it.
pub(crate) fn staged_path(journal: &Path, name: &str) -> PathBuf {
    staging_folder(journal).join(Path::new(name).file_name().unwrap_or_default())
}

/// Returns the path of the note with the reason why a destination accepts nothing.
pub(crate) fn outage_path(dir: &Path, destination: usize) -> PathBuf {
    dir.join(format!("trouble-{destination}.txt"))
}

/// Returns the path of the saved position of a destination.
pub(crate) fn position_path(dir: &Path, destination: usize) -> PathBuf {
    dir.join(format!("position-{destination}.json"))
}

/// Lists the folders of all journals below `heimdall_dir`, oldest first, of live and dead processes alike.
///
/// # Errors
/// Errors of the file system. A folder that does not exist is no error: it has no journals.
pub(crate) fn folders(heimdall_dir: &Path) -> io::Result<Vec<PathBuf>> {
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

/// Returns true where `dir` has no journal, or a journal that is half made or half removed. A folder that cannot be
/// read counts as a journal.
pub(crate) fn is_none(dir: &Path) -> bool {
    matches!(dir.join(MANIFEST).try_exists(), Ok(false))
}

/// Reads the manifest of the journal in `dir`; returns `None` where the manifest is damaged or cannot be read.
pub(crate) fn manifest(dir: &Path) -> Option<Manifest> {
    serde_json::from_slice(&fs::read(dir.join(MANIFEST)).ok()?).ok()
}

/// Finds the end of the journal in `dir`.
///
/// # Errors
/// Errors of the file system. A segment that is removed meanwhile is no error: it has been delivered.
pub(crate) fn end(dir: &Path) -> io::Result<Position> {
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

/// Replaces a file so that a reader sees either the old or the new content, also after a kill.
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

/// Waits until the names in a folder are on the disk.
pub(crate) fn sync_folder(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Removes the folder of a journal. Hides it first, so that no process finds half a journal if this process dies
/// meanwhile.
pub(crate) fn remove(dir: &Path) {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let hidden = dir.with_file_name(format!("{GONE}{name}"));
    let _ = match fs::rename(dir, &hidden) {
        Ok(()) => fs::remove_dir_all(&hidden),
        Err(_) => fs::remove_dir_all(dir),
    };
}
