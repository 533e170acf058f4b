//! Files of a run: kept in the journal as they are at the call.

use std::{
    fs,
    ops::Range,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures_util::future::{Either, select};
use tokio::sync::oneshot;

use super::{open::Tracker, session::Session};
use crate::{
    artifacts::{
        download::{download::download, part_file::is_part},
        error::ArtifactError,
        store::{ArtifactStore, FileInfo},
    },
    config::uri::ArtifactUri,
    delivery::{destination::Refused, runtime::KeepWaiting},
    error::{Error, Result},
    journal::{error::JournalError, record::Record, staging::Staged, writer::Journal},
    mlflow::{artifact_path::ArtifactPath, run::RunId},
    store::tracking::TrackingStore,
};

/// Largest file that is kept in memory while the disk takes no copy of it.
const SMALL_FILE: u64 = 32 << 20;

/// Files that were logged by one call: kept in the journal, on their way to the store.
#[derive(Clone, Debug, Default)]
pub struct Logged {
    /// Paths among the run's artifacts.
    pub paths: Vec<String>,
    /// Numbers in the journal among which theirs are.
    numbers: Range<u64>,
}

/// How a file is kept until it is uploaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// As a copy: the caller may change or delete it at once.
    Copy,
    /// As it is: the caller says that nobody changes it. It may be deleted where the journal is on the same disk.
    Original,
}

impl Tracker {
    /// Logs a file as it is now, below `folder` of the active run's artifacts. Waits on the disk.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`]; [`Error::NoSuchFile`] when it is no file; [`Error::Invalid`] for a bad path.
    pub fn log_artifact(&self, file: &Path, folder: &str, keep: Keep) -> Result<Logged> {
        self.check_process()?;
        let run = self.active("log_artifact")?;
        let folder = ArtifactPath::parse(folder)?;
        if !file.is_file() {
            return Err(Error::NoSuchFile {
                path: file.to_owned(),
                expected: "a file",
            });
        }
        let name = file.file_name().unwrap_or_default();
        self.log_files(
            run,
            vec![(file.to_owned(), folder.join(utf8(name.as_ref())?)?)],
            keep,
        )
    }

    /// Logs every file below a folder as it is now. Waits on the disk. Links are followed where they stay
    /// in the folder.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`]; [`Error::NoSuchFile`] when it is no folder; [`Error::Invalid`] for a bad path
    /// or a link that leaves the folder.
    pub fn log_artifacts_dir(&self, dir: &Path, folder: &str, keep: Keep) -> Result<Logged> {
        self.check_process()?;
        let run = self.active("log_artifacts_dir")?;
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

    /// Logs bytes as the file `path` among the active run's artifacts. Waits on the disk.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`]; [`Error::Invalid`] for a bad path.
    pub fn log_bytes(&self, content: &[u8], path: &str) -> Result<Logged> {
        self.check_process()?;
        let run = self.active("log_artifact")?;
        let path = file_path(path)?;
        self.logged(vec![path.as_str().to_owned()], || {
            self.session.accept_bytes(run, path, content)
        })
    }

    /// Waits until files have arrived at the primary destination.
    ///
    /// # Errors
    /// [`Error::Refused`] where the store has refused some of them for good; [`Error::Undelivered`] after `timeout`,
    /// [`Error::Interrupted`].
    pub fn wait_for(
        &self,
        logged: &Logged,
        timeout: Option<Duration>,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<()> {
        self.check_process()?;
        let Some(delivery) = &self.session.delivery else {
            return Ok(());
        };
        let refused = delivery.wait_for_artifacts(&logged.numbers, timeout, keep_waiting)?;
        // Other threads log as well: these are theirs.
        let is_of_these = |it: &Refused| logged.paths.iter().any(|path| path == it.path());
        match refused.into_iter().find(is_of_these) {
            Some(refused) => Err(refused.into()),
            None => Ok(()),
        }
    }

    /// Whether files have arrived at the primary destination, or were refused.
    pub fn has_arrived(&self, logged: &Logged) -> bool {
        match &self.session.delivery {
            Some(delivery) => delivery.has_delivered(logged.numbers.end),
            None => true,
        }
    }

    /// What lies in a folder of a run's artifacts, by name. Delivers first, and waits on the stores.
    ///
    /// # Errors
    /// [`Error::NoActiveRun`] where no run is named and none is active; [`Error::Invalid`] for a bad path;
    /// [`Error::Store`] when the run does not exist; [`Error::Artifact`] when the artifacts cannot be listed.
    pub fn list_artifacts(
        &self,
        folder: &str,
        run: Option<&str>,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<Vec<FileInfo>> {
        let folder = ArtifactPath::parse(folder.trim_end_matches('/'))?;
        let run = match run {
            Some(run) => run.to_owned(),
            None => self.active("list_artifacts")?.to_string(),
        };
        self.settle_artifacts(keep_waiting)?;
        let store = Arc::clone(&self.store);
        let uri = self.ask(async move { store.artifact_uri(&run).await }, keep_waiting)?;
        let store = self.artifact_store(&uri)?;
        let listed = async move { store.list(&folder).await };
        Ok(self.background.wait(listed, keep_waiting)??)
    }

    /// Downloads artifacts and returns where they are on this disk. `source` is a run's id or any URI of artifacts or
    /// of a model, `path` what is below it. What is on this disk already is not copied where `dst` is not given;
    /// else that is a new folder which nobody else may read. Delivers first, and waits on the stores. Who stops waiting
    /// stops the download; the next call goes on with what has arrived of a long file.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is no source or path; [`Error::Store`] where the run or version does not exist;
    /// [`Error::Artifact`] where there are no such artifacts or they cannot be fetched.
    pub fn download_artifacts(
        &self,
        source: &str,
        path: &str,
        dst: Option<&Path>,
        keep_waiting: KeepWaiting<'_>,
    ) -> Result<PathBuf> {
        let path = ArtifactPath::parse(path.trim_end_matches('/'))?;
        self.settle_artifacts(keep_waiting)?;
        let is_run = source.len() == 32 && source.chars().all(|c| c.is_ascii_hexdigit());
        let (root, path) = if is_run {
            let (store, run) = (Arc::clone(&self.store), source.to_owned());
            let root = self.ask(async move { store.artifact_uri(&run).await }, keep_waiting)?;
            (root, path)
        } else {
            let (location, within) = self.located(source, keep_waiting)?;
            let path = match within.as_str() {
                "" => path,
                within => {
                    let path = format!("{within}/{}", path.as_str());
                    ArtifactPath::parse(path.trim_end_matches('/'))?
                }
            };
            let is_whole = source.starts_with("models:") || is_whole_run(source);
            match path.as_str() {
                // As with MLflow, what a URI names arrives under its own name.
                "" if !is_whole => parent_and_name(&location)?,
                _ => (location, path),
            }
        };
        let local = match ArtifactUri::parse(&root) {
            Ok(ArtifactUri::Local(root)) if dst.is_none() => Some(match path.as_str() {
                "" => root,
                path => root.join(path),
            }),
            _ => None,
        };
        if let Some(there) = local {
            return match there.exists() {
                true => Ok(there),
                false => Err(Error::Artifact(ArtifactError::NotFound {
                    artifact: path.as_str().to_owned(),
                    store: root,
                })),
            };
        }
        let store = Arc::from(self.artifact_store(&root)?);
        let dst = match dst {
            Some(dst) => dst.to_owned(),
            None => private_folder()?,
        };
        // Who stops waiting has it stop.
        let (waiting, gone) = oneshot::channel::<()>();
        let download = async move {
            match select(pin!(download(store, &path, &dst)), gone).await {
                Either::Left((downloaded, _)) => downloaded.map_err(Error::from),
                Either::Right(_) => Err(Error::Interrupted),
            }
        };
        let downloaded = self.background.wait(download, keep_waiting);
        drop(waiting);
        downloaded?
    }

    fn artifact_store(&self, uri: &str) -> Result<Box<dyn ArtifactStore>> {
        match self.store.artifacts(uri) {
            Some(store) => Ok(store),
            None => Ok(self.settled.access().open(uri)?),
        }
    }

    fn logged(&self, paths: Vec<String>, log: impl FnOnce() -> Result<()>) -> Result<Logged> {
        let appended = || {
            let delivery = self.session.delivery.as_ref();
            delivery.map_or(0, |delivery| delivery.journal().appended())
        };
        let before = appended();
        log()?;
        Ok(Logged {
            paths,
            numbers: before..appended(),
        })
    }

    fn log_files(
        &self,
        run: RunId,
        files: Vec<(PathBuf, ArtifactPath)>,
        keep: Keep,
    ) -> Result<Logged> {
        let paths = files.iter().map(|(_, path)| path.as_str().to_owned());
        let paths = paths.collect();
        let Some(delivery) = &self.session.delivery else {
            let numbers = 0..0;
            return Ok(Logged { paths, numbers });
        };
        let journal = delivery.journal();
        let mut records: Vec<Record> = Vec::with_capacity(files.len());
        let staged = files
            .into_iter()
            .try_for_each(|(file, path)| self.stage(journal, run, file, path, keep, &mut records));
        if let Err(error) = staged {
            // All of a folder or nothing of it.
            for record in &records {
                if let Record::Artifact { staged, size, .. } = record {
                    journal.discard(staged, *size);
                }
            }
            return Err(error);
        }
        self.logged(paths, || delivery.accept_all_beyond_limits(records))
    }

    /// Keeps a file of the caller's as it is now, and adds its record.
    fn stage(
        &self,
        journal: &Journal,
        run: RunId,
        file: PathBuf,
        path: ArtifactPath,
        keep: Keep,
        records: &mut Vec<Record>,
    ) -> Result<()> {
        let staged = match keep {
            Keep::Copy => journal.stage_file(&file, !records.is_empty())?,
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
                self.notices.tell(format!(
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

/// Whether a URI names all artifacts of a run.
fn is_whole_run(uri: &str) -> bool {
    let rest = uri.strip_prefix("runs:").map(|rest| rest.trim_matches('/'));
    rest.is_some_and(|rest| !rest.contains('/'))
}

/// The folder that a location lies in, and its own name there.
fn parent_and_name(location: &str) -> Result<(String, ArtifactPath)> {
    let location = location.trim_end_matches('/');
    let split = location.rsplit_once('/').filter(|(parent, name)| {
        // A bucket alone has no parent.
        !parent.ends_with(":/") && !parent.is_empty() && !name.is_empty()
    });
    match split {
        Some((parent, name)) => Ok((parent.to_owned(), ArtifactPath::parse(name)?)),
        None => Ok((location.to_owned(), ArtifactPath::root())),
    }
}

/// A new folder that nobody else may read.
fn private_folder() -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("heimdall-{:016x}", rand::random::<u64>()));
    let made = fs::DirBuilder::new().mode(0o700).create(&folder);
    made.map_err(|source| {
        Error::Artifact(ArtifactError::Io {
            artifact: String::new(),
            target: folder.clone(),
            source,
        })
    })?;
    Ok(folder)
}

impl Session {
    pub(crate) fn accept_bytes(
        &self,
        run: RunId,
        path: ArtifactPath,
        content: &[u8],
    ) -> Result<()> {
        let Some(delivery) = &self.delivery else {
            return Ok(());
        };
        let record = match delivery.journal().stage_bytes(content)? {
            Staged::Copied { name, size } => Record::Artifact {
                run,
                staged: name,
                path,
                size,
            },
            // In memory, then, like everything that the disk does not take.
            Staged::Refused(_) => Record::ArtifactInline {
                run,
                content: content.to_owned(),
                path,
            },
        };
        delivery.accept_beyond_limits(record)
    }
}

/// Whether a file may be kept in memory while the disk takes no copy of it.
fn is_small(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|metadata| metadata.len() <= SMALL_FILE)
}

/// The files below the last of `folders`, in order of their names, and where they go. The others are the
/// folders above it, the one that is logged first.
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
            // What an interrupted download has left there is no file of the user's.
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
pub fn file_path(path: &str) -> Result<ArtifactPath> {
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
