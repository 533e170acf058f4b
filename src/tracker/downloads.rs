//! Reading artifacts back: lists of folders, and downloads.

use std::{fs, os::unix::fs::DirBuilderExt, path::PathBuf, sync::Arc};

use super::stores::Stores;
use crate::{
    artifacts::{download::fetch::download, error::ArtifactError, store::FileInfo},
    config::uri::{ArtifactUri, unescaped},
    delivery::destination::Traffic,
    error::{Error, Result},
    mlflow::artifact_path::ArtifactPath,
};

impl Stores {
    /// Lists a folder of a run's artifacts by name.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a bad path; [`Error::Store`] when the run does not exist; [`Error::Artifact`] when the artifacts cannot be listed.
    pub async fn list_artifacts(&self, folder: &str, run: &str) -> Result<Vec<FileInfo>> {
        let folder = ArtifactPath::parse(folder.trim_end_matches('/'))?;
        self.deliver_first(Traffic::Artifacts).await?;
        let uri = self.run_artifact_uri(run).await?;
        Ok(self.artifacts(&uri).await?.list(&folder).await?)
    }

    /// Downloads artifacts and returns their place on this disk. `source` is a run's id or any URI of artifacts or of a
    /// model; `path` is a path below it. Without `dst`, artifacts that are on this disk already are not copied, and
    /// other artifacts go into a new folder that nobody else may read. If a download is dropped, the next one continues
    /// it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a bad source or path; [`Error::Store`] where the run or version does not exist;
    /// [`Error::Artifact`] where there are no such artifacts or they cannot be downloaded.
    pub async fn download_artifacts(
        &self,
        source: &str,
        path: &str,
        dst: Option<PathBuf>,
    ) -> Result<PathBuf> {
        let path = ArtifactPath::parse(path.trim_end_matches('/'))?;
        self.deliver_first(Traffic::Artifacts).await?;
        let (root, path) = self.place_of(source, path).await?;
        if dst.is_none()
            && let Ok(ArtifactUri::Local(folder)) = ArtifactUri::parse(&root)
        {
            return local(folder, path, root);
        }
        let store = Arc::from(self.artifacts(&root).await?);
        let dst = match dst {
            Some(dst) => dst,
            None => private_folder()?,
        };
        Ok(download(store, &path, &dst).await?)
    }

    /// Returns the URI of the store that has some artifacts, and their path there.
    async fn place_of(&self, source: &str, path: ArtifactPath) -> Result<(String, ArtifactPath)> {
        if source.len() == 32 && source.chars().all(|c| c.is_ascii_hexdigit()) {
            return Ok((self.run_artifact_uri(source).await?, path));
        }
        let (location, within) = self.locate(source).await?;
        let path = match within.as_str() {
            "" => path,
            within => {
                let path = format!("{within}/{}", path.as_str());
                ArtifactPath::parse(path.trim_end_matches('/'))?
            }
        };
        let is_whole = source.starts_with("models:") || is_whole_run(source);
        match path.as_str() {
            // As in MLflow, the target of a URI arrives under its own name.
            "" if !is_whole => parent_and_name(&location),
            _ => Ok((location, path)),
        }
    }
}

/// Returns the place of artifacts that are on this disk.
fn local(folder: PathBuf, path: ArtifactPath, root: String) -> Result<PathBuf> {
    let there = match path.as_str() {
        "" => folder,
        path => folder.join(path),
    };
    if there.exists() {
        return Ok(there);
    }
    Err(Error::Artifact(ArtifactError::NotFound {
        artifact: path.as_str().to_owned(),
        store: root,
    }))
}

/// Returns true for a URI that names all artifacts of a run.
fn is_whole_run(uri: &str) -> bool {
    let rest = uri.strip_prefix("runs:").map(|rest| rest.trim_matches('/'));
    rest.is_some_and(|rest| !rest.contains('/'))
}

/// Returns the folder that contains a location, and the name of the location in it.
pub(super) fn parent_and_name(location: &str) -> Result<(String, ArtifactPath)> {
    let location = location.trim_end_matches('/');
    let split = location.rsplit_once('/').filter(|(parent, name)| {
        // A bucket itself has no parent.
        !parent.ends_with(":/") && !parent.is_empty() && !name.is_empty()
    });
    let Some((parent, name)) = split else {
        return Ok((location.to_owned(), ArtifactPath::root()));
    };
    let name = match ArtifactUri::parse(location) {
        Ok(ArtifactUri::Local(_)) => ArtifactPath::parse(&unescaped(name))?,
        _ => ArtifactPath::parse(name)?,
    };
    Ok((parent.to_owned(), name))
}

/// Makes a folder that nobody else may read.
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
