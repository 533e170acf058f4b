//! Paths of files among the artifacts of a run.

use serde::{Deserialize, Serialize};

use super::invalid::{Invalid, shorten};

/// Returns true for a relative path that `posixpath.normpath` does not change and that has no leading `..`.
pub(crate) fn is_normalised(path: &str) -> bool {
    path.split('/').all(|part| !matches!(part, "" | "." | "..")) && !path.starts_with("..")
}

/// Path of an artifact below the artifact URI of its run: relative, normalised, and never outside of the URI.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Hash)]
pub struct ArtifactPath(String);

impl ArtifactPath {
    /// Returns the root of the run's artifacts.
    pub fn root() -> Self {
        Self(String::new())
    }

    /// Checks a folder path as `log_artifact(…, artifact_path)` takes it; an empty path means the root.
    ///
    /// # Errors
    /// [`Invalid::Value`] for absolute paths, `..`, `.`, empty parts, backslashes and control characters.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() {
            return Ok(Self::root());
        }
        if !is_normalised(text) || text.contains('\\') || text.chars().any(char::is_control) {
            // The words before the semicolon are MLflow's.
            let reason = format!(
                "Invalid artifact path: '{}'; it must be a relative path below the run's artifacts, with '/' between its \
                 parts and no '.' or '..'",
                shorten(text)
            );
            return Err(Invalid::value("artifact path", text, reason));
        }
        Ok(Self(text.to_owned()))
    }

    /// Returns the path of a child of this folder.
    ///
    /// # Errors
    /// [`Invalid::Value`] if the child breaks the rules of [`ArtifactPath::parse`].
    pub fn join(&self, child: &str) -> Result<Self, Invalid> {
        let child = Self::parse(child)?;
        Ok(match (self.0.is_empty(), child.0.is_empty()) {
            (true, _) => child,
            (_, true) => self.clone(),
            _ => Self(format!("{}/{}", self.0, child.0)),
        })
    }

    /// Returns the path of the folder that has this file or folder; the root for a path of one part.
    pub fn folder(&self) -> Self {
        let (folder, _) = self.0.rsplit_once('/').unwrap_or_default();
        Self(folder.to_owned())
    }

    /// Returns the last part of the path; an empty text for the root.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// Returns the path with `/` between its parts.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns true where the path is `folder` or lies below `folder`.
    pub fn is_within(&self, folder: &Self) -> bool {
        let rest = self.0.strip_prefix(&folder.0);
        rest.is_some_and(|rest| folder.0.is_empty() || rest.is_empty() || rest.starts_with('/'))
    }
}
