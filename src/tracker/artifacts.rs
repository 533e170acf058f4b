//! Files of a run: the journal keeps their content as it is at the call.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{open::Tracker, recorder::Recorder};
use crate::{
    artifacts::download::part_file::is_part,
    delivery::runtime::KeepWaiting,
    error::{Error, Result},
    journal::{
        append::{Admission, EncodedRecords},
        error::JournalError,
        record::Record,
        staging::Staged,
        writer::Journal,
    },
    mlflow::{artifact_path::ArtifactPath, run::RunId},
};

/// Largest file that is kept in memory while the disk accepts no copy of it.
const SMALL_FILE: u64 = 32 << 20;

/// Files that were logged by one call: they are kept in the journal and will be uploaded.
#[derive(Clone, Debug, Default)]
pub struct Logged {
    /// Paths among the run's artifacts.
    pub paths: Vec<String>,
    /// Numbers of their entries in the journal.
    pub numbers: Range<u64>,
}

/// The way in which a file is kept until it is uploaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// A copy: the caller may change or delete the file at once.
    Copy,
    /// The original: the caller says that nobody changes it. It may be deleted if the journal is on the same disk.
    Original,
}

impl Tracker {
    /// Logs a file as it is now, below `folder` of a run's artifacts. Waits on the disk.
    ///
    /// # Errors
    /// [`Error::NoSuchFile`] when the path is no file; [`Error::Invalid`] for a bad path.
    pub fn log_artifact(
        &self,
        run: RunId,
        file: &Path,
        folder: &str,
        keep: Keep,
    ) -> Result<Logged> {
        self.check_process()?;
        let folder = ArtifactPath::parse(folder)?;
        if !file.is_file() {
            return Err(Error::NoSuchFile {
                path: file.to_owned(),
                expected: "a file",
            });
        }
        let name = file.file_name().unwrap_or_default();
        let path = folder.join(utf8(name.as_ref())?)?;
        self.log_files(run, vec![(file.to_owned(), path)], keep)
    }

    /// Logs every file below a folder as it is now. Waits on the disk. Follows links that stay inside the folder.
    ///
    /// # Errors
    /// [`Error::NoSuchFile`] when the path is no folder; [`Error::Invalid`] for a bad path or a
    /// link that leaves the folder.
    pub fn log_artifacts_dir(
        &self,
        run: RunId,
        dir: &Path,
        folder: &str,
        keep: Keep,
    ) -> Result<Logged> {
        self.check_process()?;
        let folder = ArtifactPath::parse(folder)?;
        if !dir.is_dir() {
            return Err(Error::NoSuchFile {
                path: dir.to_owned(),
                expected: "a folder",
            });
        }
        let failed = |source| JournalError::Stage {
            path: dir.to_owned(),
            source,
        };
        let root = dir.canonicalize().map_err(failed)?;
        let mut files = Vec::new();
        collect(&mut vec![root], &folder, &mut files)?;
        self.log_files(run, files, keep)
    }

    /// Logs bytes as the file `path` among a run's artifacts. Waits on the disk.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a bad path.
    pub fn log_bytes(&self, run: RunId, content: &[u8], path: &str) -> Result<Logged> {
        self.check_process()?;
        let path = file_path(path)?;
        let paths = vec![path.as_str().to_owned()];
        let numbers = self.recorder().record_bytes(run, path, content)?;
        tell_logged(run, &paths[0]);
        Ok(Logged { paths, numbers })
    }

    /// Records that a file, or a folder with everything below it, is deleted from a run's artifacts; without a path, all
    /// of them. Files that are logged later stay.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a bad or empty path.
    pub fn delete_artifacts(&self, run: RunId, path: Option<&str>) -> Result<()> {
        self.check_process()?;
        let path = match path {
            None => ArtifactPath::root(),
            Some("") => {
                let reason = "it must name a file or folder; None stands for all artifacts";
                return Err(Error::invalid("artifact path", "", reason));
            }
            Some(path) => ArtifactPath::parse(path)?,
        };
        let deletion = Record::ArtifactsDeleted { run, path };
        self.recorder().record(vec![deletion], Admission::Bounded)?;
        Ok(())
    }

    /// Waits until the files of some entries have arrived at the primary destination.
    ///
    /// # Errors
    /// [`Error::Refused`] where the store has finally refused some of the files; [`Error::Undelivered`] after
    /// `timeout`, [`Error::Interrupted`].
    pub fn wait_for(
        &self,
        numbers: &Range<u64>,
        timeout: Option<Duration>,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<()> {
        self.check_process()?;
        let Some(delivery) = &self.recorder().delivery else {
            return Ok(());
        };
        self.wait_for_entries(delivery, numbers.end, timeout, keep_waiting)?;
        match delivery.refused_among(numbers).into_iter().next() {
            Some(refused) => Err(refused.into()),
            None => Ok(()),
        }
    }

    /// Returns true where the files of the entries before a number have arrived at the primary destination, or were
    /// refused.
    pub fn has_arrived(&self, end: u64) -> bool {
        match &self.recorder().delivery {
            Some(delivery) => delivery.has_delivered(end),
            None => true,
        }
    }

    fn log_files(
        &self,
        run: RunId,
        files: Vec<(PathBuf, ArtifactPath)>,
        keep: Keep,
    ) -> Result<Logged> {
        let paths = files.iter().map(|(_, path)| path.as_str().to_owned());
        let paths: Vec<String> = paths.collect();
        let Some(delivery) = &self.recorder().delivery else {
            let numbers = 0..0;
            return Ok(Logged { paths, numbers });
        };
        let journal = delivery.journal();
        let mut records: Vec<Record> = Vec::with_capacity(files.len());
        let staged = files
            .into_iter()
            .try_for_each(|(file, path)| self.stage(journal, run, file, path, keep, &mut records));
        if let Err(error) = staged {
            // Either all files of a folder are recorded or none.
            for record in &records {
                if let Record::Artifact { staged, size, .. } = record {
                    journal.discard(staged, *size);
                }
            }
            return Err(error);
        }
        let numbers = delivery.accept(EncodedRecords::of(records)?, Admission::Always)?;
        for path in &paths {
            tell_logged(run, path);
        }
        Ok(Logged { paths, numbers })
    }

    /// Keeps a caller's file as it is now, and adds its record.
    fn stage(
        &self,
        journal: &Journal,
        run: RunId,
        file: PathBuf,
        path: ArtifactPath,
        keep: Keep,
        records: &mut Vec<Record>,
    ) -> Result<()> {
        // The first file of a call is accepted, and the other files belong to it.
        let admission = if records.is_empty() {
            Admission::Bounded
        } else {
            Admission::Always
        };
        let staged = match keep {
            Keep::Copy => journal.stage_file(&file, admission)?,
            Keep::Original => journal.stage_link(&file)?,
        };
        records.push(match staged {
            Staged::Copied { name, size } => Record::Artifact {
                run,
                staged: name,
                path,
                size,
            },
            Staged::Refused(_) if keep == Keep::Original => in_place(run, &file, path)?,
            Staged::Refused(_) if is_small(&file) => Record::ArtifactInline {
                run,
                content: fs::read(&file)
                    .map_err(|source| JournalError::Stage { path: file, source })?,
                path,
            },
            Staged::Refused(error) => {
                self.stores.notices.tell(format!(
                    "tracking is degraded, training is not: {} cannot be copied into the journal ({error}). It \
                     is uploaded from where it is, as it is then: leave it there",
                    file.display()
                ));
                in_place(run, &file, path)?
            }
        });
        Ok(())
    }
}

fn tell_logged(run: RunId, path: &str) {
    tracing::info!(
        name: "artifact_logged",
        target: "heimdall_tracking.artifacts",
        run_id = %run,
        path,
    );
}

impl Recorder {
    /// Records bytes as a file of a run. Waits on the disk. Returns the number of the record.
    pub(crate) fn record_bytes(
        &self,
        run: RunId,
        path: ArtifactPath,
        content: &[u8],
    ) -> Result<Range<u64>> {
        let Some(delivery) = &self.delivery else {
            return Ok(0..0);
        };
        let record = match delivery.journal().stage_bytes(content)? {
            Staged::Copied { name, size } => Record::Artifact {
                run,
                staged: name,
                path,
                size,
            },
            // The content is kept in memory, like everything that the disk refuses.
            Staged::Refused(_) => Record::ArtifactInline {
                run,
                content: content.to_owned(),
                path,
            },
        };
        self.record(vec![record], Admission::Always)
    }
}

fn in_place(run: RunId, file: &Path, path: ArtifactPath) -> Result<Record> {
    let source = std::path::absolute(file).map_err(|source| JournalError::Stage {
        path: file.to_owned(),
        source,
    })?;
    Ok(Record::ArtifactInPlace {
        run,
        source: utf8(&source)?.to_owned(),
        path,
    })
}

/// Returns true for a file that may be kept in memory while the disk accepts no copy of it.
fn is_small(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|metadata| metadata.len() <= SMALL_FILE)
}

/// Collects the files below the last of `folders`, ordered by name, with their paths among the artifacts. The other
/// folders are the ones above it, beginning with the logged folder.
fn collect(
    folders: &mut Vec<PathBuf>,
    to: &ArtifactPath,
    files: &mut Vec<(PathBuf, ArtifactPath)>,
) -> Result<()> {
    let Some(dir) = folders.last().cloned() else {
        return Ok(());
    };
    let failed = |source| JournalError::Stage {
        path: dir.clone(),
        source,
    };
    let mut children = fs::read_dir(&dir)
        .and_then(|children| children.collect::<Result<Vec<_>, _>>())
        .map_err(failed)?;
    children.sort_by_key(fs::DirEntry::file_name);
    for child in children {
        let path = to.join(utf8(child.file_name().as_ref())?)?;
        let resolved = child.path().canonicalize().map_err(failed)?;
        if !resolved.starts_with(&folders[0]) || folders.contains(&resolved) {
            return Err(Error::invalid(
                "link",
                &child.path().display().to_string(),
                format!(
                    "it leads to {}, outside or above the folder that is logged",
                    resolved.display()
                ),
            ));
        }
        if resolved.is_dir() {
            folders.push(resolved);
            collect(folders, &path, files)?;
            folders.pop();
        } else if resolved.is_file() {
            // The rest of an interrupted download is not a file of the user.
            if !is_part(path.name()) {
                files.push((resolved, path));
            }
        } else {
            return Err(Error::NoSuchFile {
                path: child.path(),
                expected: "a file",
            });
        }
    }
    Ok(())
}

/// Checks the path of a file among the artifacts.
///
/// # Errors
/// [`Error::Invalid`] where [`ArtifactPath::parse`] has one, and for an empty path.
pub(crate) fn file_path(path: &str) -> Result<ArtifactPath> {
    match ArtifactPath::parse(path)? {
        root if root.as_str().is_empty() => Err(Error::invalid(
            "artifact file",
            path,
            "name a file, for example \"plots/loss.png\"",
        )),
        file => Ok(file),
    }
}

fn utf8(name: &Path) -> Result<&str> {
    name.to_str().ok_or_else(|| {
        Error::invalid(
            "file name",
            &name.display().to_string(),
            "an artifact's name must be UTF-8",
        )
    })
}
