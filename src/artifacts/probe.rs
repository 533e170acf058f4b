//! A trial of an artifact store for `heimdall doctor`: a small file is put, read and deleted.

use std::{path::Path, sync::atomic::AtomicU64};

use futures_util::TryStreamExt;

use super::{
    error::{ArtifactError, damaged},
    store::{ArtifactStore, Upload},
};
use crate::{mlflow::artifact_path::ArtifactPath, os::clock::now_ms};

/// The outcome of a trial.
#[derive(Debug, Default)]
pub(crate) struct Probe {
    /// Steps that worked, in order: `write`, `read`, `delete`.
    pub done: Vec<&'static str>,
    /// Time at which the store says that the file was written, milliseconds since 1970.
    pub modified: Option<i64>,
    /// Time of this machine just before and just after the file was written.
    pub written: (i64, i64),
    /// The error of the first step that did not work.
    pub error: Option<ArtifactError>,
}

/// Puts a file under a name, reads it and deletes it. The file is deleted as well where it cannot be read.
pub(crate) async fn probe(
    store: &dyn ArtifactStore,
    path: &ArtifactPath,
    file: &Path,
    content: &[u8],
) -> Probe {
    let mut probe = Probe::default();
    let begun = now_ms();
    let sent = AtomicU64::new(0);
    let upload = Upload {
        file,
        size: content.len() as u64,
        path,
        is_ours: false,
        resume: None,
        sent: &sent,
    };
    if let Err(error) = store.put(upload).await {
        probe.error = Some(error);
        return probe;
    }
    probe.written = (begun, now_ms());
    probe.done.push("write");
    match read(store, path, content).await {
        Ok(modified) => {
            probe.modified = modified;
            probe.done.push("read");
        }
        Err(error) => probe.error = Some(error),
    }
    match store.delete(path).await {
        Ok(()) => probe.done.push("delete"),
        Err(error) => probe.error = probe.error.or(Some(error)),
    }
    probe
}

/// Reads the file and compares it; returns the time at which the store says that it was written.
async fn read(
    store: &dyn ArtifactStore,
    path: &ArtifactPath,
    content: &[u8],
) -> Result<Option<i64>, ArtifactError> {
    let chunks: Vec<_> = store.read(path, None, None).await?.try_collect().await?;
    if chunks.concat() != content {
        let reason = "it is not what was written a moment ago".to_owned();
        return Err(damaged(store.uri(), path, reason));
    }
    Ok(store.head(path).await.ok().and_then(|state| state.modified))
}
