//! User and source of a run: the tags that MLflow's own client adds to a run.

use std::process::Command;

use super::{capture::Interpreter, git::source_folder, secrets::masked_url};
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
    /// Repository that contains the source, if any.
    pub repository: Option<SourceRepository>,
    /// Name of this machine.
    pub hostname: String,
    /// The interpreter, where the environment of a run is recorded.
    pub interpreter: Option<Interpreter>,
}

impl RunContext {
    /// Returns the context of a script, or of a notebook. Runs `git` twice.
    pub fn of(user: String, source_name: String, in_notebook: bool, hostname: String) -> Self {
        Self {
            user,
            hostname,
            repository: SourceRepository::of(&source_name),
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
        if let Some(repository) = self.repository.clone() {
            tags.push(("mlflow.source.git.commit", repository.commit));
            let branch = repository.branch;
            tags.extend(branch.map(|it| ("mlflow.source.git.branch", it)));
            let url = repository.url;
            tags.extend(url.map(|it| ("mlflow.source.git.repoURL", it)));
        }
        tags.extend(self.interpreter.iter().flat_map(Interpreter::tags));
        tags
    }
}

/// A repository, as MLflow's tags describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceRepository {
    commit: String,
    /// None while no branch is checked out.
    branch: Option<String>,
    /// Address of the remote `origin`, without a password.
    url: Option<String>,
}

impl SourceRepository {
    /// Finds the repository of a source; none without a commit. Runs `git` twice.
    fn of(source: &str) -> Option<Self> {
        let folder = source_folder(source);
        let lines = |arguments: &[&str]| {
            let output = Command::new("git")
                .args(arguments)
                .current_dir(&folder)
                .output();
            let output = output.ok().filter(|output| output.status.success())?;
            String::from_utf8(output.stdout).ok()
        };
        let head = lines(&["rev-parse", "HEAD", "--abbrev-ref", "HEAD"])?;
        let mut head = head.lines().map(str::trim);
        let commit = head.next()?.to_owned();
        if commit.len() < 40 || !commit.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let url = lines(&["config", "--get", "remote.origin.url"]);
        let url = url.map(|url| masked_url(url.trim()));
        Some(Self {
            commit,
            branch: head.next().filter(|it| *it != "HEAD").map(str::to_owned),
            url: url.filter(|url| !url.is_empty()),
        })
    }
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
    fn a_source_outside_any_repository_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("train.py").display().to_string();
        assert_eq!(SourceRepository::of(&source), None);
    }
}
