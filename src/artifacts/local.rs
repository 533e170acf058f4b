//! Artifacts in a local folder.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use async_trait::async_trait;

use super::{ArtifactError, ArtifactStore};
use crate::record::ArtifactPath;

/// The folder below which a run's artifacts lie.
#[derive(Debug)]
pub(super) struct LocalArtifacts {
    root: PathBuf,
}

impl LocalArtifacts {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }
}

#[async_trait]
impl ArtifactStore for LocalArtifacts {
    async fn put(
        &self,
        staged: &Path,
        path: &ArtifactPath,
        size: u64,
    ) -> Result<(), ArtifactError> {
        let (root, staged, path) = (self.root.clone(), staged.to_owned(), path.clone());
        tokio::task::spawn_blocking(move || put(&root, &staged, &path, size))
            .await
            .unwrap_or_else(|panic| {
                Err(ArtifactError::Io {
                    artifact: String::new(),
                    target: PathBuf::new(),
                    source: io::Error::other(panic),
                })
            })
    }
}

fn put(root: &Path, staged: &Path, path: &ArtifactPath, size: u64) -> Result<(), ArtifactError> {
    let target = root.join(path.as_str());
    let failed = |source| ArtifactError::Io {
        artifact: path.as_str().to_owned(),
        target: target.clone(),
        source,
    };
    let lost = || ArtifactError::StagedLost {
        staged: staged.to_owned(),
        artifact: path.as_str().to_owned(),
    };
    match fs::metadata(staged) {
        Ok(metadata) if metadata.len() == size => {}
        // Delivered, removed, and the position was not saved before a kill.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let there = fs::metadata(&target).is_ok_and(|metadata| metadata.len() == size);
            return if there { Ok(()) } else { Err(lost()) };
        }
        Ok(_) => return Err(lost()),
        Err(error) => return Err(failed(error)),
    }
    let folder = target.parent().unwrap_or(root);
    fs::create_dir_all(folder).map_err(failed)?;
    if target.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    // Beside the target under a name of its own, so that readers never see half a file. The name follows from the
    // path: what a kill leaves of it, the next attempt takes away.
    let part = folder.join(part_name(path));
    let moved = fs::copy(staged, &part).and_then(|_| fs::rename(&part, &target));
    moved.map_err(|source| {
        let _ = fs::remove_file(&part);
        failed(source)
    })
}

fn part_name(path: &ArtifactPath) -> String {
    format!(
        ".heimdall-{:08x}.part",
        crc32fast::hash(path.as_str().as_bytes())
    )
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
        put(&root, &staged, &path, 7).unwrap();
        put(&root, &staged, &path, 7).unwrap();
        fs::remove_file(&staged).unwrap();
        put(&root, &staged, &path, 7).unwrap();
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
        fs::write(folder.join(part_name(&path)), "wei").unwrap();
        put(&root, &staged, &path, 7).unwrap();
        let files: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|file| file.unwrap().file_name())
            .collect();
        assert_eq!(files, ["last.ckpt"]);
    }

    #[test]
    fn a_staged_file_that_is_gone_or_torn_is_an_error_that_does_not_pass() {
        let dir = tempfile::tempdir().unwrap();
        let staged = dir.path().join("0");
        let gone = put(dir.path(), &staged, &artifact("a"), 3).unwrap_err();
        fs::write(&staged, "x").unwrap();
        let torn = put(dir.path(), &staged, &artifact("a"), 3).unwrap_err();
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
            !put(dir.path(), &staged, &artifact("a"), 1)
                .unwrap_err()
                .is_transient()
        );
        fs::write(dir.path().join("b"), "x").unwrap();
        assert!(
            !put(dir.path(), &staged, &artifact("b/c"), 1)
                .unwrap_err()
                .is_transient()
        );
    }
}
