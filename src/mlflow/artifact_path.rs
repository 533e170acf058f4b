//! Paths of files among the artifacts of a run.

use serde::{Deserialize, Serialize};

use super::invalid::{Invalid, shorten};

/// True for a relative path that `posixpath.normpath` leaves as it is and that does not climb.
pub(crate) fn is_normalised(path: &str) -> bool {
    path.split('/').all(|part| !matches!(part, "" | "." | "..")) && !path.starts_with("..")
}

/// Path of an artifact below its run's artifact URI: relative, normalised, never climbing out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Hash)]
pub struct ArtifactPath(String);

impl ArtifactPath {
    /// The root of the run's artifacts.
    pub fn root() -> Self {
        Self(String::new())
    }

    /// Checks a folder path as `log_artifact(…, artifact_path)` takes it; empty means the root.
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

    /// This folder's child.
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

    /// Its last part; nothing for the root.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// The path with `/` between its parts.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is that folder, or below it.
    pub fn is_within(&self, folder: &Self) -> bool {
        let rest = self.0.strip_prefix(&folder.0);
        rest.is_some_and(|rest| folder.0.is_empty() || rest.is_empty() || rest.starts_with('/'))
    }
}
