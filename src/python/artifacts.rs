//! Logging, listing and downloading the files of runs.

use std::path::PathBuf;

use pyo3::prelude::*;

use super::{
    arguments::{ArtifactFile, ArtifactTree, RunId, Seconds},
    calls::Calls,
    results::run::FileInfo,
    runs::run_of,
    tracker::MLflowTracker,
};
use crate::tracker::artifacts::{Keep, Logged, file_path};

/// Paths of logged files, and the range of the journal's entries that contains them: the first entry, and the entry
/// behind the last.
type LoggedFiles = (Vec<String>, u64, u64);

#[pymethods]
impl MLflowTracker {
    fn _log_artifact(
        slf: &Bound<'_, Self>,
        local_path: PathBuf,
        artifact_path: Option<&str>,
        immutable: bool,
        run_id: Option<&str>,
    ) -> PyResult<LoggedFiles> {
        let run = run_of(slf, run_id, "log_artifact")?;
        let (folder, keep) = (artifact_path.unwrap_or_default(), keep(immutable));
        let logged = slf.record_on_disk(|it| it.log_artifact(run, &local_path, folder, keep))?;
        Ok(logged_files(logged))
    }

    fn _log_artifacts_dir(
        slf: &Bound<'_, Self>,
        local_dir: PathBuf,
        artifact_path: Option<&str>,
        immutable: bool,
        run_id: Option<&str>,
    ) -> PyResult<LoggedFiles> {
        let run = run_of(slf, run_id, "log_artifacts_dir")?;
        let (folder, keep) = (artifact_path.unwrap_or_default(), keep(immutable));
        let logged =
            slf.record_on_disk(|it| it.log_artifacts_dir(run, &local_dir, folder, keep))?;
        Ok(logged_files(logged))
    }

    fn _log_bytes(
        slf: &Bound<'_, Self>,
        content: &[u8],
        artifact_file: ArtifactFile,
        run_id: Option<&str>,
    ) -> PyResult<()> {
        let run = run_of(slf, run_id, "log_artifact")?;
        slf.record_on_disk(|tracker| tracker.log_bytes(run, content, &artifact_file.0))?;
        Ok(())
    }

    fn _check_artifact_file(slf: &Bound<'_, Self>, artifact_file: ArtifactFile) -> PyResult<()> {
        slf.record(|_| file_path(&artifact_file.0))?;
        Ok(())
    }

    fn _has_arrived(&self, end: u64) -> PyResult<bool> {
        Ok(self.of_this_process()?.has_arrived(end))
    }

    fn _wait_for(
        slf: &Bound<'_, Self>,
        start: u64,
        end: u64,
        timeout: Option<Seconds>,
    ) -> PyResult<()> {
        let timeout = timeout.map(|timeout| timeout.0);
        slf.wait(|tracker, waiting| tracker.wait_for(&(start..end), timeout, waiting))
    }

    #[pyo3(signature = (path=None, run_id=None))]
    fn delete_artifacts(
        slf: &Bound<'_, Self>,
        path: Option<ArtifactTree>,
        run_id: Option<&str>,
    ) -> PyResult<()> {
        let run = run_of(slf, run_id, "delete_artifacts")?;
        let path = path.as_ref().map(|path| path.0.as_str());
        slf.record(|tracker| tracker.delete_artifacts(run, path))
    }

    #[pyo3(signature = (path="", run_id=None))]
    fn list_artifacts(
        slf: &Bound<'_, Self>,
        path: &str,
        run_id: Option<RunId>,
    ) -> PyResult<Vec<FileInfo>> {
        let run = match run_id {
            Some(run) => run.0,
            None => run_of(slf, None, "list_artifacts")?.to_string(),
        };
        let path = path.to_owned();
        let listed = slf.ask_with_bar(|it| async move { it.list_artifacts(&path, &run).await })?;
        Ok(listed.into_iter().map(Into::into).collect())
    }

    #[pyo3(signature = (source, path="", dst=None))]
    fn download_artifacts(
        slf: &Bound<'_, Self>,
        source: PathBuf,
        path: &str,
        dst: Option<PathBuf>,
    ) -> PyResult<String> {
        download(slf, &source, path.to_owned(), dst)
    }
}

fn download(
    tracker: &Bound<'_, MLflowTracker>,
    source: &std::path::Path,
    path: String,
    dst: Option<PathBuf>,
) -> PyResult<String> {
    let source = source.to_string_lossy().into_owned();
    let downloaded = tracker.ask_with_bar(|stores| async move {
        stores.download_artifacts(&source, &path, dst).await
    })?;
    Ok(downloaded.to_string_lossy().into_owned())
}

fn logged_files(logged: Logged) -> LoggedFiles {
    (logged.paths, logged.numbers.start, logged.numbers.end)
}

/// Chooses between the file itself and a copy, according to what the caller says about later changes.
fn keep(immutable: bool) -> Keep {
    if immutable {
        Keep::Original
    } else {
        Keep::Copy
    }
}
