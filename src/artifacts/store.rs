//! The seam: what a store of artifacts can do, whatever keeps the files.

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
    /// The file; nobody changes it meanwhile.
    pub file: &'a Path,
    /// Its length in bytes.
    pub size: u64,
    /// Where it goes, below the store's URI.
    pub path: &'a ArtifactPath,
    /// It is a copy of ours, which nobody changes later either and which nobody else needs: it may be linked instead
    /// of copied.
    pub is_ours: bool,
    /// Folder and beginning of the name of a file in which an upload in parts keeps what it has sent, so that it
    /// goes on there after an interruption; none where it begins anew.
    pub resume: Option<&'a Path>,
    /// Bytes of it that are sent.
    pub sent: &'a AtomicU64,
}

impl Upload<'_> {
    /// Counts bytes that have been taken.
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
    /// Its path below the store's URI.
    pub path: ArtifactPath,
    /// Length in bytes; a folder has none.
    pub size: Option<u64>,
}

/// What a store has of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileState {
    /// Length in bytes.
    pub size: u64,
    /// Changes whenever the file does, where the store has such a thing: an ETag.
    pub version: Option<String>,
    /// When it was last written, milliseconds since 1970.
    pub modified: Option<i64>,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Files.
    pub files: u64,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// An upload that was begun and is not finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// The file that it is of, or what there is of it, below the store's URI.
    pub path: ArtifactPath,
    /// By what the store knows it, where that is not its path.
    pub id: String,
    /// Bytes that were sent.
    pub bytes: u64,
    /// When it was begun, or last gone on with, milliseconds since 1970; none where the store does not say.
    pub begun: Option<i64>,
}

/// Bytes of a file as they come.
pub type Content = BoxStream<'static, Result<Bytes, ArtifactError>>;

/// A store of artifacts below one URI.
#[async_trait]
pub trait ArtifactStore: fmt::Debug + Send + Sync {
    /// Its URI, without credentials.
    fn uri(&self) -> String;

    /// Puts a file, replacing what is there at once and whole. Putting it a second time, also when the file has
    /// gone since, changes nothing.
    async fn put(&self, upload: Upload<'_>) -> Result<(), ArtifactError>;

    /// What lies in a folder, by name, without what lies deeper; nothing where there is no such folder.
    async fn list(&self, folder: &ArtifactPath) -> Result<Vec<FileInfo>, ArtifactError>;

    /// All files below a folder, by path.
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
        files.sort_by(|a, b| a.path.as_str().cmp(b.path.as_str()));
        Ok(files)
    }

    /// What is known of a file; [`ArtifactError::NotFound`] where it is none.
    async fn head(&self, path: &ArtifactPath) -> Result<FileState, ArtifactError>;

    /// The checksum that the store has of that version of a whole file; none from stores that have no such thing.
    async fn checksum(
        &self,
        _path: &ArtifactPath,
        _version: Option<&str>,
    ) -> Result<Option<Checksum>, ArtifactError> {
        Ok(None)
    }

    /// The bytes of a file in a range; the whole file where `range` is `None`, with [`ArtifactError::Damaged`] at its
    /// end where the store has a checksum and they are others. With `version`, an error unless the file is still that
    /// one.
    async fn read(
        &self,
        path: &ArtifactPath,
        range: Option<Range<u64>>,
        version: Option<&str>,
    ) -> Result<Content, ArtifactError>;

    /// Deletes a file; one that is not there is no error.
    async fn delete(&self, path: &ArtifactPath) -> Result<(), ArtifactError>;

    /// How much lies below the store's URI; nothing where there is no such folder.
    async fn usage(&self) -> Result<Usage, ArtifactError> {
        let files = self.files(&ArtifactPath::root()).await?;
        Ok(Usage {
            files: files.len() as u64,
            bytes: files.iter().filter_map(|file| file.size).sum(),
        })
    }

    /// Deletes all that lies below the store's URI, and the folder itself where the store has folders. What a link
    /// leads to stays.
    async fn clear(&self) -> Result<(), ArtifactError> {
        let files = self.files(&ArtifactPath::root()).await?;
        stream::iter(files)
            .map(|file| async move { self.delete(&file.path).await })
            .buffer_unordered(DELETIONS)
            .try_collect::<()>()
            .await
    }

    /// Uploads to below the store's URI that are not finished, whether somebody still goes on with them or not; none
    /// from stores that keep nothing of such, or that do not tell.
    async fn unfinished(&self) -> Result<Vec<Unfinished>, ArtifactError> {
        Ok(Vec::new())
    }

    /// Gives up an upload, and what was sent of it; one that is not there is no error.
    async fn give_up(&self, _upload: &Unfinished) -> Result<(), ArtifactError> {
        Ok(())
    }
}

/// The file of an upload, open, if it is what was staged; `None` where it has gone.
pub(crate) fn staged(
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
    match opened.metadata().map_err(failed)?.len() == size {
        true => Ok(Some(opened)),
        false => Err(staged_lost(file, path)),
    }
}

/// Whether a store has a file of that length at the place of an upload.
pub(crate) async fn has(
    store: &dyn ArtifactStore,
    upload: &Upload<'_>,
) -> Result<bool, ArtifactError> {
    match store.head(upload.path).await {
        Ok(state) => Ok(state.size == upload.size),
        Err(ArtifactError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What a copy that has gone means: delivered and removed before a kill came before the note of it, or lost.
pub(crate) async fn gone(
    store: &dyn ArtifactStore,
    upload: &Upload<'_>,
) -> Result<(), ArtifactError> {
    match has(store, upload).await? {
        true => Ok(()),
        false => Err(staged_lost(upload.file, upload.path)),
    }
}
