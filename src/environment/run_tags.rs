//! User and source of a run: the tags that MLflow's own client adds to a run.

use std::process::Command;

use super::{capture::Interpreter, git::source_folder};
pub(crate) use crate::mlflow::run::RUN_NAME_TAG;

/// The origin of a run.
#[derive(Clone, Debug, Default)]
pub struct RunContext {
    /// Login name.
    pub user: String,
    /// Script or notebook.
    pub source_name: String,
    /// `LOCAL` or `NOTEBOOK`.
    pub source_type: &'static str,
    /// Commit of the repository that contains the source, if any.
    pub git_commit: Option<String>,
    /// Name of this machine.
    pub hostname: String,
    /// The interpreter, where the environment of a run is recorded.
    pub interpreter: Option<Interpreter>,
}

impl RunContext {
    /// Returns the context of a script, or of a notebook. Runs `git` once.
    pub fn of(user: String, source_name: String, in_notebook: bool, hostname: String) -> Self {
        Self {
            user,
            hostname,
            git_commit: git_commit(&source_name),
            source_type: if in_notebook { "NOTEBOOK" } else { "LOCAL" },
            source_name,
            interpreter: None,
        }
    }

    /// Returns the tags, by their MLflow keys.
    pub fn tags(&self, run_name: &str) -> Vec<(&'static str, String)> {
        let mut tags = vec![
            (RUN_NAME_TAG, run_name.to_owned()),
            ("mlflow.user", self.user.clone()),
            ("mlflow.source.name", self.source_name.clone()),
            ("mlflow.source.type", self.source_type.to_owned()),
        ];
        tags.extend(
            self.git_commit
                .clone()
                .map(|commit| ("mlflow.source.git.commit", commit)),
        );
        tags.extend(self.interpreter.iter().flat_map(Interpreter::tags));
        tags
    }
}

fn git_commit(source: &str) -> Option<String> {
    let output = Command::new("git")
        .args(["rev-parse", "--verify", "HEAD"])
        .current_dir(source_folder(source))
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let commit = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (commit.len() >= 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(commit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_carry_the_names_that_mlflow_uses() {
        let context = RunContext {
            source_type: "LOCAL",
            ..RunContext::default()
        };
        let keys: Vec<_> = context
            .tags("name")
            .into_iter()
            .map(|(key, _)| key)
            .collect();
        assert_eq!(
            keys,
            [
                "mlflow.runName",
                "mlflow.user",
                "mlflow.source.name",
                "mlflow.source.type"
            ]
        );
    }

    #[test]
    fn a_source_outside_any_repository_has_no_commit() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            git_commit(&dir.path().join("train.py").display().to_string()),
            None
        );
    }
}
