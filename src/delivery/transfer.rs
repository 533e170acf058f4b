//! Running uploads: the tasks that send files to an artifact store.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::FutureExt;
use tokio::task::JoinSet;

use super::{
    attempts::{Attempts, DeadlineReached, DeliveryError},
    destination::DestinationState,
};
use crate::{
    artifacts::{
        error::ArtifactError,
        store::{ArtifactStore, Upload},
    },
    journal::{reader::Placed, record::Record},
    mlflow::artifact_path::ArtifactPath,
};

/// An upload that has finished.
#[derive(Debug)]
pub(crate) struct FinishedUpload {
    pub placed: Placed,
    pub outcome: Result<Result<(), DeliveryError>, DeadlineReached>,
}

/// The source and the target of an upload.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub store: Arc<dyn ArtifactStore>,
    /// Length of the file in bytes.
    pub size: u64,
    /// The journal's copy of the file, if it has one.
    pub staged: Option<PathBuf>,
    /// True where nobody else needs the journal's copy.
    pub is_ours: bool,
    /// File in which an upload in parts notes the parts that it has sent.
    pub resume: PathBuf,
    /// File with the reason why the store accepts nothing.
    pub outage_file: PathBuf,
    /// Folder for content that is only in memory.
    pub heimdall_dir: PathBuf,
}

/// The running uploads of one journal.
#[derive(Debug, Default)]
pub(crate) struct Transfers {
    tasks: JoinSet<FinishedUpload>,
    /// Length and sent bytes of each file, by the number of its entry.
    progress: BTreeMap<u64, (u64, Arc<AtomicU64>)>,
}

impl Transfers {
    /// Starts an upload.
    pub(crate) fn start(
        &mut self,
        placed: Placed,
        transfer: Transfer,
        attempts: Attempts,
        destination: &DestinationState,
    ) {
        let sent = Arc::new(AtomicU64::new(0));
        let progress = (transfer.size, Arc::clone(&sent));
        self.progress.insert(placed.number, progress);
        tell_begun(&placed.entry.record, transfer.size);
        self.tasks.spawn(async move {
            let attempt = || {
                sent.store(0, Ordering::Relaxed);
                put(&placed.entry.record, &transfer, &sent)
            };
            let upload = attempts.make(Some(&transfer.outage_file), attempt);
            // A bug in one upload must not end the other uploads.
            let outcome = AssertUnwindSafe(upload).catch_unwind().await;
            let outcome = outcome.unwrap_or_else(|_| {
                Ok(Err(DeliveryError::Artifact(ArtifactError::Io {
                    artifact: placed.entry.record.summary(),
                    target: transfer.resume.clone(),
                    source: io::Error::other("the upload panicked"),
                })))
            });
            FinishedUpload { placed, outcome }
        });
        self.show(destination);
    }

    /// Waits for the next upload to finish; returns `None` where no upload runs.
    pub(crate) async fn next(&mut self, destination: &DestinationState) -> Option<FinishedUpload> {
        let finished = self.tasks.join_next().await?.ok()?;
        self.progress.remove(&finished.placed.number);
        self.show(destination);
        Some(finished)
    }

    fn show(&self, destination: &DestinationState) {
        let uploads = self.progress.values().cloned().collect();
        destination.update(|state| state.uploads = uploads);
    }
}

fn tell_begun(record: &Record, bytes: u64) {
    let path = record.artifact_path().map_or("", ArtifactPath::as_str);
    if record.is_deletion() {
        tracing::debug!(
            name: "deletion_begun",
            target: "heimdall_tracking.artifacts",
            run_id = %record.run(),
            path,
        );
    } else {
        tracing::debug!(
            name: "upload_begun",
            target: "heimdall_tracking.artifacts",
            run_id = %record.run(),
            path,
            bytes,
        );
    }
}

/// Tells that an upload or a deletion has finished.
pub(crate) fn tell_finished(record: &Record, outcome: &Result<(), DeliveryError>) {
    let path = record.artifact_path().map_or("", ArtifactPath::as_str);
    let error = outcome.as_ref().err().map(tracing::field::display);
    if record.is_deletion() {
        tracing::debug!(
            name: "deletion_finished",
            target: "heimdall_tracking.artifacts",
            run_id = %record.run(),
            path,
            error,
        );
    } else {
        tracing::debug!(
            name: "upload_finished",
            target: "heimdall_tracking.artifacts",
            run_id = %record.run(),
            path,
            error,
        );
    }
}

async fn put(record: &Record, transfer: &Transfer, sent: &AtomicU64) -> Result<(), DeliveryError> {
    let upload = |file, size, path, is_ours, resume| Upload {
        file,
        size,
        path,
        is_ours,
        resume,
        sent,
    };
    let resume = Some(transfer.resume.as_path());
    match record {
        Record::Artifact { path, size, .. } => {
            let file = transfer.staged.as_deref().unwrap_or(Path::new(""));
            let upload = upload(file, *size, path, transfer.is_ours, resume);
            transfer.store.put(upload).await?;
        }
        Record::ArtifactInPlace { source, path, .. } => {
            let file = Path::new(source);
            let metadata = fs::metadata(file).map_err(|_| lost(file, path))?;
            let upload = upload(file, metadata.len(), path, false, resume);
            transfer.store.put(upload).await?;
        }
        Record::ArtifactInline { content, path, .. } => {
            let name = format!(".inline-{:016x}", rand::random::<u64>());
            // The full disk may be the journal's own.
            let places = [transfer.heimdall_dir.clone(), std::env::temp_dir()];
            let file = places
                .iter()
                .map(|place| place.join(&name))
                .find(|file| write_private(file, content).is_ok());
            let Some(file) = file else {
                return Err(DeliveryError::Artifact(ArtifactError::Io {
                    artifact: path.as_str().to_owned(),
                    target: places[1].join(&name),
                    source: io::ErrorKind::StorageFull.into(),
                }));
            };
            // The file is removed also where this future is dropped.
            let _removed = Temporary(&file);
            let upload = upload(&file, content.len() as u64, path, false, None);
            transfer.store.put(upload).await?;
        }
        Record::ArtifactsDeleted { path, .. } => transfer.store.delete_tree(path).await?,
        _ => {}
    }
    Ok(())
}

/// A file that is removed when this is dropped.
struct Temporary<'a>(&'a Path);

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0);
    }
}

fn lost(file: &Path, path: &ArtifactPath) -> ArtifactError {
    ArtifactError::StagedLost {
        staged: file.to_owned(),
        artifact: path.as_str().to_owned(),
    }
}

/// Writes a file that nobody else may read.
fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(content).inspect_err(|_| {
        let _ = fs::remove_file(path);
    })
}
