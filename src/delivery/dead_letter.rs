//! Records that no attempt can deliver: kept readable, with the reason, for the user to look at.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{journal::Entry, record::Record};

/// The dead letters of one journal and destination: a file with a JSON object per line, and the staged files beside
/// it.
#[derive(Debug)]
pub struct DeadLetters {
    file: PathBuf,
}

#[derive(Serialize)]
struct Letter<'a> {
    reason: String,
    summary: String,
    at: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
    record: &'a Record,
}

impl DeadLetters {
    /// The dead letters of the journal in folder `journal`, below `heimdall_dir`, for one of its destinations.
    /// Nothing is created yet.
    pub fn of(heimdall_dir: &Path, journal: &Path, destination: usize) -> Self {
        let name = journal.file_name().unwrap_or_default().to_string_lossy();
        let name = match destination {
            0 => format!("{name}.jsonl"),
            mirror => format!("{name}-mirror-{mirror}.jsonl"),
        };
        Self {
            file: heimdall_dir.join("dead_letter").join(name),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.file
    }

    /// Adds an entry; a staged file that it names is kept beside the dead letters.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn park(&self, entry: &Entry, reason: &str, staged: Option<&Path>) -> io::Result<()> {
        let folder = self.file.with_extension("");
        fs::create_dir_all(self.file.parent().unwrap_or(Path::new(".")))?;
        let file = match staged.filter(|staged| staged.exists()) {
            Some(staged) => {
                fs::create_dir_all(&folder)?;
                let kept = folder.join(staged.file_name().unwrap_or_default());
                // Another destination may want the file still.
                if fs::hard_link(staged, &kept).is_err() {
                    fs::copy(staged, &kept)?;
                }
                Some(kept)
            }
            None => None,
        };
        let letter = Letter {
            reason: reason.to_owned(),
            summary: entry.record.summary(),
            at: entry.at,
            file,
            record: &entry.record,
        };
        let mut line = serde_json::to_vec(&letter)?;
        line.push(b'\n');
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.file)?
            .write_all(&line)
    }
}
