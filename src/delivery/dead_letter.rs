//! Records that no attempt can deliver: they are kept readable, with the reason, for the user.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::journal::record::{Entry, Record};

/// The dead letters of one journal and destination: a file with a JSON object per line, and the staged files beside it.
#[derive(Debug)]
pub(crate) struct DeadLetters {
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
    /// Returns the dead letters of the journal in folder `journal`, below `heimdall_dir`, for one of its destinations.
    /// Creates nothing yet.
    pub(crate) fn of(heimdall_dir: &Path, journal: &Path, destination: usize) -> Self {
        let name = journal.file_name().unwrap_or_default().to_string_lossy();
        let name = match destination {
            0 => format!("{name}.jsonl"),
            mirror => format!("{name}-mirror-{mirror}.jsonl"),
        };
        Self {
            file: heimdall_dir.join("dead_letter").join(name),
        }
    }

    /// Returns the path of the file.
    pub(crate) fn path(&self) -> &Path {
        &self.file
    }

    /// Adds an entry; a staged file that it names is kept beside the dead letters.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn park(
        &self,
        entry: &Entry,
        reason: &str,
        staged: Option<&Path>,
    ) -> io::Result<()> {
        let folder = self.file.with_extension("");
        let file = match staged.filter(|staged| staged.exists()) {
            Some(staged) => {
                fs::create_dir_all(&folder)?;
                let kept = folder.join(staged.file_name().unwrap_or_default());
                // Another destination may still need the file.
                match fs::hard_link(staged, &kept) {
                    // The file was parked before, by a process that died afterwards.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(_) => {
                        let new = kept.with_extension("new");
                        fs::copy(staged, &new)?;
                        fs::rename(&new, &kept)?;
                    }
                    Ok(()) => {}
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
        self.add(&letter)
    }

    /// Adds a line, and makes the folder where it is not there.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn add(&self, letter: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(letter)?;
        line.push(b'\n');
        fs::create_dir_all(self.file.parent().unwrap_or(Path::new(".")))?;
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.file)?
            .write_all(&line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mlflow::{artifact_path::ArtifactPath, run::RunId};

    #[test]
    fn a_file_that_is_parked_twice_is_kept_whole() {
        let dir = tempfile::tempdir().unwrap();
        let staged = dir.path().join("00000007");
        fs::write(&staged, "weights").unwrap();
        let letters = DeadLetters::of(dir.path(), Path::new("journal/1-2-3"), 0);
        let entry = Entry {
            at: 1,
            record: Record::Artifact {
                run: RunId::random(),
                staged: "00000007".into(),
                path: ArtifactPath::parse("a.ckpt").unwrap(),
                size: 7,
            },
        };
        for _ in 0..2 {
            letters.park(&entry, "refused", Some(&staged)).unwrap();
        }
        let kept = dir.path().join("dead_letter/1-2-3/00000007");
        assert_eq!(fs::read_to_string(kept).unwrap(), "weights");
        assert_eq!(fs::read_to_string(staged).unwrap(), "weights");
        let text = fs::read_to_string(letters.path()).unwrap();
        assert_eq!(text.lines().count(), 2);
    }
}
