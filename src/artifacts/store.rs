//! The interface of an artifact store, whatever keeps the files.

use std::{
    fmt, io,
    ops::Range,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};

use super::{
    checksum::Checksum,
    error::{ArtifactError, staged_lost},
};
use crate::mlflow::artifact_path::ArtifactPath;

/// Files that are deleted at a time.
const DELETIONS: usize = 16;

/// A file to put into a store.
#[derive(Clone, Copy, Debug)]
pub struct Upload<'a> {
    /// The file; nobody changes it during the upload.
    pub file: &'a Path,
    /// Length of the file in bytes.
    pub size: u64,
    /// Path of the file below the store's URI.
    pub path: &'a ArtifactPath,
    /// True for our own copy, which nobody changes later and nobody else needs: it may be linked instead of copied.
    pub is_ours: bool,
    /// Folder and beginning of the name of a file in which an upload in parts notes the parts it has sent, so that it
    /// continues there after an interruption. Without it, an upload begins anew.
    pub resume: Option<&'a Path>,
    /// Bytes of the file that have been sent.
    pub sent: &'a AtomicU64,
}

impl Upload<'_> {
    /// Counts bytes that the store has accepted.
    pub(crate) fn count(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Begins to count anew.
    pub(crate) fn begin_anew(&self) {
        self.sent.store(0, Ordering::Relaxed);
    }
}

/// A file or folder in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Path below the store's URI.
    pub path: ArtifactPath,
    /// Length in bytes; a folder has none.
    pub size: Option<u64>,
}

/// Sorts a list of files by path.
pub(crate) fn sort_by_path(infos: &mut [FileInfo]) {
    infos.sort_by(|a, b| a.path.as_str().cmp(b.path.as_str()));
}

/// The store's description of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileState {
    /// Length in bytes.
    pub size: u64,
    /// Version that changes whenever the file does, such as an ETag; `None` where the store has no versions.
    pub version: Option<String>,
    /// Time at which the file was last written, milliseconds since 1970.
    pub modified: Option<i64>,
}

/// Number and size of the files in a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Number of files.
    pub files: u64,
    /// Bytes of all files together.
    pub bytes: u64,
}

/// An upload that was begun and is not finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnfinishedUpload {
    /// Path of the uploaded file, or of its unfinished part, below the store's URI.
    pub path: ArtifactPath,
    /// Id of the upload at the store, where that is not its path.
    pub id: String,
    /// Bytes that were sent.
    pub bytes: u64,
    /// Time at which the upload was begun or last continued, milliseconds since 1970; `None` where the store does not
    /// say.
    pub begun: Option<i64>,
}

/// Bytes of a file, in the order they arrive.
pub(crate) type Content = BoxStream<'static, Result<Bytes, ArtifactError>>;

/// A store of artifacts below one URI.
#[async_trait]
pub trait ArtifactStore: fmt::Debug + Send + Sync {
    /// Returns the store's URI, without credentials.
    fn uri(&self) -> String;

    /// Puts a file, and replaces an existing file at once and as a whole. Putting it a second time, also when the
    /// staged file is gone meanwhile, changes nothing.
    async fn put(&self, upload: Upload<'_>) -> Result<(), ArtifactError>;

    /// Lists the entries of a folder by name, without the content of subfolders; empty where there is no such folder.
    async fn list(&self, folder: &ArtifactPath) -> Result<Vec<FileInfo>, ArtifactError>;

    /// Lists all files below a folder, by path.
    async fn files(&self, folder: &ArtifactPath) -> Result<Vec<FileInfo>, ArtifactError> {
        let mut files = Vec::new();
        let mut folders = vec![folder.clone()];
        while let Some(folder) = folders.pop() {
            for info in self.list(&folder).await? {
                match info.size {
                    Some(_) => files.push(info),
                    None => folders.push(info.path),
                }
            }
        }
        sort_by_path(&mut files);
        Ok(files)
    }

    /// Returns the description of a file; [`ArtifactError::NotFound`] where the path is no file.
    async fn head(&self, path: &ArtifactPath) -> Result<FileState, ArtifactError>;

    /// Returns the checksum that the store has of that version of a whole file; `None` from stores without checksums.
    async fn checksum(
        &self,
        _path: &ArtifactPath,
        _version: Option<&str>,
    ) -> Result<Option<Checksum>, ArtifactError> {
        Ok(None)
    }

    /// Returns the bytes of a file in a range. Where `range` is `None`, returns the whole file, with
    /// [`ArtifactError::Damaged`] at its end if the store has a checksum and the bytes differ. With `version`, fails
    /// unless the file still has that version.
    async fn read(
        &self,
        path: &ArtifactPath,
        range: Option<Range<u64>>,
        version: Option<&str>,
    ) -> Result<Content, ArtifactError>;

    /// Deletes a file; a missing file is no error.
    async fn delete(&self, path: &ArtifactPath) -> Result<(), ArtifactError>;

    /// Returns the number and size of the files below the store's URI; both are 0 where there is no such folder.
    async fn usage(&self) -> Result<Usage, ArtifactError> {
        let files = self.files(&ArtifactPath::root()).await?;
        Ok(Usage {
            files: files.len() as u64,
            bytes: files.iter().filter_map(|file| file.size).sum(),
        })
    }

    /// Deletes everything below the store's URI, and the folder itself where the store has folders. The target of a
    /// link stays.
    async fn clear(&self) -> Result<(), ArtifactError> {
        self.delete_tree(&ArtifactPath::root()).await
    }

    /// Deletes a file, or a folder with everything below it; for the root, everything. A missing path is no error, and
    /// the target of a link stays.
    async fn delete_tree(&self, path: &ArtifactPath) -> Result<(), ArtifactError> {
        if *path != ArtifactPath::root() {
            self.delete(path).await?;
        }
        let files = self.files(path).await?;
        stream::iter(files)
            .map(|file| async move { self.delete(&file.path).await })
            .buffer_unordered(DELETIONS)
            .try_collect::<()>()
            .await
    }

    /// Lists the unfinished uploads below the store's URI, whether or not a process still continues them; empty for
    /// stores that keep no unfinished uploads or do not list them.
    async fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>, ArtifactError> {
        Ok(Vec::new())
    }

    /// Aborts an upload and deletes the bytes it has sent; a missing upload is no error.
    async fn abort_upload(&self, _upload: &UnfinishedUpload) -> Result<(), ArtifactError> {
        Ok(())
    }
}

/// Opens the file of an upload, if it is what was staged; returns `None` where the file is gone.
pub(crate) fn open_staged(
    file: &Path,
    path: &ArtifactPath,
    size: u64,
) -> Result<Option<std::fs::File>, ArtifactError> {
    let failed = |source| ArtifactError::Io {
        artifact: path.as_str().to_owned(),
        target: file.to_owned(),
        source,
    };
    let opened = match std::fs::File::open(file) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if opened.metadata().map_err(failed)?.len() == size {
        Ok(Some(opened))
    } else {
        Err(staged_lost(file, path))
    }
}

/// Returns true where a store has a file of that length at the place of an upload.
async fn has(store: &dyn ArtifactStore, upload: &Upload<'_>) -> Result<bool, ArtifactError> {
    match store.head(upload.path).await {
        Ok(state) => Ok(state.size == upload.size),
        Err(ArtifactError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Handles a missing staged copy. Either it was uploaded and removed just before the process died (then the store has
/// it), or it is lost.
pub(crate) async fn check_delivered(
    store: &dyn ArtifactStore,
    upload: &Upload<'_>,
) -> Result<(), ArtifactError> {
    if has(store, upload).await? {
        Ok(())
    } else {
        Err(staged_lost(upload.file, upload.path))
    }
}
