//! Artifacts in a local folder.

use std::{
    fs, io,
    ops::Range,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt};

use super::{
    buffers::pieces,
    download::part_file::{self, is_part},
    error::{ArtifactError, damaged, staged_lost},
    store::{
        ArtifactStore, Content, FileInfo, FileState, UnfinishedUpload, Upload, Usage, open_staged,
        sort_by_path,
    },
};
use crate::{mlflow::artifact_path::ArtifactPath, os::copy_file};

/// Bytes that are read at a time.
const CHUNK: u64 = 4 << 20;

/// The folder that contains a run's artifacts.
#[derive(Clone, Debug)]
pub(crate) struct LocalArtifacts {
    root: PathBuf,
}

impl LocalArtifacts {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn at(&self, path: &ArtifactPath) -> PathBuf {
        match path.as_str() {
            "" => self.root.clone(),
            path => self.root.join(path),
        }
    }

    fn failed(&self, path: &ArtifactPath, source: io::Error) -> ArtifactError {
        let artifact = path.as_str().to_owned();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ArtifactError::NotFound {
                artifact,
                store: self.root.display().to_string(),
            },
            _ => ArtifactError::Io {
                artifact,
                target: self.at(path),
                source,
            },
        }
    }

    fn list_now(&self, folder: &ArtifactPath) -> Result<Vec<FileInfo>, ArtifactError> {
        let children = match fs::read_dir(self.at(folder)) {
            Ok(children) => children,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(Vec::new());
            }
            Err(error) => return Err(self.failed(folder, error)),
        };
        let mut infos = Vec::new();
        for child in children {
            let child = child.map_err(|error| self.failed(folder, error))?;
            let name = child.file_name();
            let path = name.to_str().and_then(|name| folder.join(name).ok());
            let Some(path) = path else {
                return Err(ArtifactError::BadName {
                    name: name.to_string_lossy().into_owned(),
                    store: self.root.display().to_string(),
                });
            };
            // The rest of an interrupted copy is no artifact, and neither is a link that leads nowhere.
            let Ok(metadata) = fs::metadata(child.path()) else {
                continue;
            };
            if !is_part(&name.to_string_lossy()) {
                let size = metadata.is_file().then_some(metadata.len());
                infos.push(FileInfo { path, size });
            }
        }
        sort_by_path(&mut infos);
        Ok(infos)
    }

    fn head_now(&self, path: &ArtifactPath) -> Result<FileState, ArtifactError> {
        let metadata = fs::metadata(self.at(path)).map_err(|error| self.failed(path, error))?;
        if !metadata.is_file() {
            return Err(self.failed(path, io::ErrorKind::NotFound.into()));
        }
        let size = metadata.len();
        Ok(FileState {
            size,
            version: since_epoch(&metadata).map(|time| format!("{}-{size}", time.as_nanos())),
            modified: modified(&metadata),
        })
    }

    /// Calls `each` with every file below a folder and its metadata. Follows no links; skips an entry that is deleted
    /// meanwhile.
    fn walk(
        &self,
        each: &mut dyn FnMut(&Path, &fs::Metadata) -> Result<(), ArtifactError>,
    ) -> Result<(), ArtifactError> {
        let failed = |error| self.failed(&ArtifactPath::root(), error);
        let mut folders = vec![self.root.clone()];
        while let Some(folder) = folders.pop() {
            let children = match fs::read_dir(&folder) {
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                    ) =>
                {
                    continue;
                }
                children => children.map_err(failed)?,
            };
            for child in children {
                let path = child.map_err(failed)?.path();
                match fs::symlink_metadata(&path) {
                    Ok(metadata) if metadata.is_dir() => folders.push(path),
                    Ok(metadata) => each(&path, &metadata)?,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(failed(error)),
                }
            }
        }
        Ok(())
    }

    fn usage_now(&self) -> Result<Usage, ArtifactError> {
        let mut usage = Usage::default();
        self.walk(&mut |_, metadata| {
            usage.files += 1;
            usage.bytes += metadata.len();
            Ok(())
        })?;
        Ok(usage)
    }

    fn unfinished_uploads_now(&self) -> Result<Vec<UnfinishedUpload>, ArtifactError> {
        let mut found = Vec::new();
        self.walk(&mut |path, metadata| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_part = metadata.is_file() && is_part(&name);
            let below = path.strip_prefix(&self.root).ok().and_then(Path::to_str);
            // A file below a name that no artifact can have was not made here.
            if is_part && let Some(Ok(path)) = below.map(ArtifactPath::parse) {
                found.push(UnfinishedUpload {
                    path,
                    id: String::new(),
                    bytes: metadata.len(),
                    begun: modified(metadata),
                });
            }
            Ok(())
        })?;
        found.sort_by(|a, b| a.path.as_str().cmp(b.path.as_str()));
        Ok(found)
    }

    fn clear_now(&self) -> Result<(), ArtifactError> {
        // This removes links, but not their targets.
        match fs::remove_dir_all(&self.root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(self.failed(&ArtifactPath::root(), error));
            }
            _ => {}
        }
        // The run's own folder is removed too where nothing else is in it.
        if let Some(parent) = self.root.parent() {
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }

    fn delete_tree_now(&self, path: &ArtifactPath) -> Result<(), ArtifactError> {
        let target = self.at(path);
        let deleted = self.check_inside(&target).and_then(|()| {
            if target == self.root {
                let mut children = fs::read_dir(&target)?;
                children.try_for_each(|child| remove(&child?.path()))
            } else {
                remove(&target)
            }
        });
        deleted.or_else(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(()),
            _ => Err(ArtifactError::Deletion {
                artifact: path.as_str().to_owned(),
                target,
                source,
            }),
        })
    }

    /// Checks that no link among the folders above a path leads out of the run's artifacts.
    fn check_inside(&self, target: &Path) -> io::Result<()> {
        let root = self.root.canonicalize()?;
        let folder = match target.parent() {
            Some(folder) if target != self.root => folder.canonicalize()?,
            _ => root.clone(),
        };
        if folder.starts_with(&root) {
            return Ok(());
        }
        let reason = format!(
            "its folder is a link to {}, outside of the run's artifacts",
            folder.display()
        );
        Err(io::Error::new(io::ErrorKind::PermissionDenied, reason))
    }

    /// Runs blocking disk work on a thread where it delays nobody.
    async fn on_blocking_thread<T: Send + 'static>(
        &self,
        path: &ArtifactPath,
        work: impl FnOnce(&Self, &ArtifactPath) -> Result<T, ArtifactError> + Send + 'static,
    ) -> Result<T, ArtifactError> {
        let (this, there) = (self.clone(), path.clone());
        let done = tokio::task::spawn_blocking(move || work(&this, &there)).await;
        done.unwrap_or_else(|panic| Err(self.failed(path, io::Error::other(panic))))
    }
}

#[async_trait]
impl ArtifactStore for LocalArtifacts {
    fn uri(&self) -> String {
        self.root.display().to_string()
    }

    async fn put(&self, upload: Upload<'_>) -> Result<(), ArtifactError> {
        let (file, size) = (upload.file.to_owned(), upload.size);
        let can_link = upload.is_ours;
        self.on_blocking_thread(upload.path, move |this, path| {
            put(&this.root, &file, path, size, can_link)
        })
        .await?;
        upload.count(size);
        Ok(())
    }

    async fn list(&self, folder: &ArtifactPath) -> Result<Vec<FileInfo>, ArtifactError> {
        self.on_blocking_thread(folder, Self::list_now).await
    }

    async fn head(&self, path: &ArtifactPath) -> Result<FileState, ArtifactError> {
        self.on_blocking_thread(path, Self::head_now).await
    }

    async fn read(
        &self,
        path: &ArtifactPath,
        range: Option<Range<u64>>,
        version: Option<&str>,
    ) -> Result<Content, ArtifactError> {
        let version = version.map(str::to_owned);
        let (file, range) = self
            .on_blocking_thread(path, move |this, path| {
                let state = this.head_now(path)?;
                if version.is_some() && version != state.version {
                    let reason = "it was replaced while it was read".to_owned();
                    return Err(damaged(this.uri(), path, reason));
                }
                let file = fs::File::open(this.at(path)).map_err(|e| this.failed(path, e))?;
                Ok((file, range.unwrap_or(0..state.size)))
            })
            .await?;
        let (this, path) = (self.clone(), path.clone());
        let chunks = pieces(Arc::new(file), range, CHUNK);
        let chunks = chunks.map_err(move |error| this.failed(&path, error));
        Ok(chunks.boxed())
    }

    async fn delete(&self, path: &ArtifactPath) -> Result<(), ArtifactError> {
        self.on_blocking_thread(path, |this, path| match fs::remove_file(this.at(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(|error| this.failed(path, error)),
        })
        .await
    }

    async fn delete_tree(&self, path: &ArtifactPath) -> Result<(), ArtifactError> {
        self.on_blocking_thread(path, Self::delete_tree_now).await
    }

    async fn usage(&self) -> Result<Usage, ArtifactError> {
        let root = ArtifactPath::root();
        self.on_blocking_thread(&root, |this, _| this.usage_now())
            .await
    }

    async fn clear(&self) -> Result<(), ArtifactError> {
        let root = ArtifactPath::root();
        self.on_blocking_thread(&root, |this, _| this.clear_now())
            .await
    }

    async fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>, ArtifactError> {
        let root = ArtifactPath::root();
        self.on_blocking_thread(&root, |this, _| this.unfinished_uploads_now())
            .await
    }

    async fn abort_upload(&self, upload: &UnfinishedUpload) -> Result<(), ArtifactError> {
        self.delete(&upload.path).await
    }
}

/// Removes a file, a link, or a folder with everything in it.
fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}

/// Returns the time of a file's last change, since 1970.
fn since_epoch(metadata: &fs::Metadata) -> Option<Duration> {
    metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()
}

/// Returns the time of a file's last change, in milliseconds since 1970.
fn modified(metadata: &fs::Metadata) -> Option<i64> {
    i64::try_from(since_epoch(metadata)?.as_millis()).ok()
}

fn put(
    root: &Path,
    file: &Path,
    path: &ArtifactPath,
    size: u64,
    can_link: bool,
) -> Result<(), ArtifactError> {
    let target = root.join(path.as_str());
    let failed = |source| ArtifactError::Io {
        artifact: path.as_str().to_owned(),
        target: target.clone(),
        source,
    };
    if open_staged(file, path, size)?.is_none() {
        // The file was delivered and the staged copy removed, but a kill came before the position was saved.
        let there = fs::metadata(&target).is_ok_and(|metadata| metadata.len() == size);
        return if there {
            Ok(())
        } else {
            Err(staged_lost(file, path))
        };
    }
    let folder = target.parent().unwrap_or(root);
    fs::create_dir_all(folder).map_err(failed)?;
    if target.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    // The copy is made beside the target under a name of its own, so that readers never see half a file. The name
    // follows from the path, so the next attempt removes the rest that a kill has left.
    let part = folder.join(part_file::name_of(path, "-put"));
    let _ = fs::remove_file(&part);
    // Our own copy on the same file system need not be copied again. A copy with a second name is a caller's own file,
    // which the caller may change later.
    let has_one_name = || fs::metadata(file).is_ok_and(|metadata| metadata.nlink() == 1);
    let is_linked = can_link && has_one_name() && fs::hard_link(file, &part).is_ok();
    let moved = if is_linked {
        Ok(0)
    } else {
        copy_file::copy(file, &part)
    };
    let moved = moved.and_then(|_| fs::rename(&part, &target));
    // Renaming a link to the same file leaves both names.
    let _ = is_linked.then(|| fs::remove_file(&part));
    moved.map_err(|source| {
        let _ = fs::remove_file(&part);
        failed(source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(path: &str) -> ArtifactPath {
        ArtifactPath::parse(path).unwrap()
    }

    #[test]
    fn a_file_arrives_whole_and_a_second_time_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (root, staged) = (dir.path().join("root"), dir.path().join("0"));
        fs::write(&staged, "weights").unwrap();
        let path = artifact("checkpoints/a #%.ckpt");
        put(&root, &staged, &path, 7, true).unwrap();
        put(&root, &staged, &path, 7, true).unwrap();
        fs::remove_file(&staged).unwrap();
        put(&root, &staged, &path, 7, true).unwrap();
        assert_eq!(
            fs::read_to_string(root.join(path.as_str())).unwrap(),
            "weights"
        );
        assert_eq!(
            fs::read_dir(root.join("checkpoints")).unwrap().count(),
            1,
            "no part is left"
        );
    }

    #[test]
    fn what_a_killed_attempt_left_is_gone_after_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let (root, staged) = (dir.path().join("root"), dir.path().join("0"));
        fs::write(&staged, "weights").unwrap();
        let path = artifact("checkpoints/last.ckpt");
        let folder = root.join("checkpoints");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(part_file::name_of(&path, "-put")), "wei").unwrap();
        put(&root, &staged, &path, 7, true).unwrap();
        let files: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|file| file.unwrap().file_name())
            .collect();
        assert_eq!(files, ["last.ckpt"]);
    }

    #[tokio::test]
    async fn what_links_lead_to_is_neither_counted_nor_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let (apart, root) = (dir.path().join("apart"), dir.path().join("run/artifacts"));
        fs::create_dir_all(&apart).unwrap();
        fs::create_dir_all(root.join("model")).unwrap();
        fs::write(apart.join("kept"), "12345").unwrap();
        fs::write(root.join("model/a"), "123").unwrap();
        fs::write(
            root.join("model")
                .join(part_file::name_of(&artifact("model/b"), "")),
            "12",
        )
        .unwrap();
        std::os::unix::fs::symlink(&apart, root.join("link")).unwrap();
        let store = LocalArtifacts::new(root.clone());
        let usage = store.usage().await.unwrap();
        // The link itself counts as an entry as well.
        assert_eq!(usage.files, 3);
        let unfinished = store.unfinished_uploads().await.unwrap();
        assert_eq!((unfinished.len(), unfinished[0].bytes), (1, 2));
        assert!(unfinished[0].begun.is_some());
        store.abort_upload(&unfinished[0]).await.unwrap();
        assert!(store.unfinished_uploads().await.unwrap().is_empty());
        store.clear().await.unwrap();
        store.clear().await.unwrap();
        assert!(!dir.path().join("run").exists());
        assert_eq!(fs::read_to_string(apart.join("kept")).unwrap(), "12345");
    }

    #[test]
    fn a_staged_file_that_is_gone_or_torn_is_an_error_that_does_not_pass() {
        let dir = tempfile::tempdir().unwrap();
        let staged = dir.path().join("0");
        let gone = put(dir.path(), &staged, &artifact("a"), 3, true).unwrap_err();
        fs::write(&staged, "x").unwrap();
        let torn = put(dir.path(), &staged, &artifact("a"), 3, true).unwrap_err();
        for error in [gone, torn] {
            assert!(matches!(error, ArtifactError::StagedLost { .. }) && !error.is_transient());
        }
    }

    #[test]
    fn a_folder_in_the_way_is_an_error_that_does_not_pass() {
        let dir = tempfile::tempdir().unwrap();
        let staged = dir.path().join("0");
        fs::write(&staged, "x").unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        assert!(
            !put(dir.path(), &staged, &artifact("a"), 1, true)
                .unwrap_err()
                .is_transient()
        );
        fs::write(dir.path().join("b"), "x").unwrap();
        assert!(
            !put(dir.path(), &staged, &artifact("b/c"), 1, true)
                .unwrap_err()
                .is_transient()
        );
    }
}
