//! The state of the source, as git knows it.

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use super::secrets::{masked_text, masked_url};

/// Most bytes of a difference that are recorded.
const LIMIT: usize = 1024 * 1024;
/// Files that usually hold keys: none of their content is recorded.
const KEY_FILES: [&str; 10] = [
    "**/.env*",
    "**/*.env",
    "**/*.pem",
    "**/*.key",
    "**/*.p12",
    "**/id_rsa*",
    "**/id_ed25519*",
    "**/.netrc",
    "**/.pypirc",
    "**/*credentials*",
];
/// Endings of files in which a bare value may be code.
const CODE: [&str; 16] = [
    "c", "cc", "cpp", "cu", "cuh", "go", "h", "hpp", "ipynb", "java", "jl", "js", "py", "pyi",
    "rs", "ts",
];

/// Returns the folder of a script; the working directory where the source is no script.
pub(crate) fn source_folder(source: &str) -> PathBuf {
    let folder = Path::new(source).parent().filter(|it| it.is_dir());
    folder.unwrap_or(Path::new(".")).to_owned()
}

/// A repository with a commit.
#[derive(Debug)]
pub(crate) struct Repository {
    folder: PathBuf,
    commit: String,
    branch: Option<String>,
    remote: Option<String>,
    changed: Vec<String>,
}

impl Repository {
    /// Finds the repository that contains a folder.
    pub(crate) fn of(folder: PathBuf) -> Option<Self> {
        let line = |arguments: &[&str]| {
            let (text, _) = git(&folder, arguments)?;
            Some(text.trim().to_owned()).filter(|line| !line.is_empty())
        };
        let commit = line(&["rev-parse", "--verify", "HEAD"])?;
        // There is none while no branch is checked out.
        let branch = line(&["symbolic-ref", "--short", "-q", "HEAD"]);
        let remote = line(&["config", "--get", "remote.origin.url"]).map(|url| masked_url(&url));
        let (changed, _) = git(&folder, &["diff", "HEAD", "--name-only", "-z"])?;
        let changed = changed.split_terminator('\0').map(str::to_owned).collect();
        Some(Self {
            folder,
            commit,
            branch,
            remote,
            changed,
        })
    }

    /// Returns the tags of the repository; the commit is one of MLflow's own tags.
    pub(crate) fn tags(&self) -> Vec<(&'static str, String)> {
        let mut tags = vec![("heimdall.git.dirty", self.is_dirty().to_string())];
        tags.extend(self.branch.clone().map(|it| ("heimdall.git.branch", it)));
        tags.extend(self.remote.clone().map(|it| ("heimdall.git.remote", it)));
        tags
    }

    pub(crate) fn as_json(&self) -> Value {
        json!({
            "commit": self.commit,
            "branch": self.branch,
            "remote": self.remote,
            "dirty": self.is_dirty(),
            "changed": self.changed,
        })
    }

    /// Returns true where files that git tracks differ from the last commit.
    fn is_dirty(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Returns the difference to the last commit in the format of `git apply`, except for masked, omitted and cut
    /// parts.
    pub(crate) fn difference(&self) -> Option<String> {
        if !self.is_dirty() {
            return None;
        }
        let left_out = KEY_FILES.map(|glob| format!(":(top,exclude,icase,glob){glob}"));
        let mut arguments = vec![
            "-c",
            "diff.relative=false",
            "diff",
            "HEAD",
            "--no-color",
            "--no-ext-diff",
            "--no-textconv",
            "--src-prefix=a/",
            "--dst-prefix=b/",
            "--",
            ":/",
        ];
        arguments.extend(left_out.iter().map(String::as_str));
        let (text, cut) = git(&self.folder, &arguments)?;
        Some(patch(text, cut))
    }
}

/// Masks a difference, and adds a note where it is cut.
fn patch(mut text: String, cut: bool) -> String {
    if cut {
        // The rest of the last line may be half a secret.
        text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
    }
    let mut patch = String::with_capacity(text.len());
    for file in files(&text) {
        let name = file.lines().next().unwrap_or_default();
        let ending = name.trim_end_matches('"').rsplit_once('.');
        let ending = ending.map_or("", |(_, ending)| ending);
        patch += &masked_text(file, !CODE.contains(&ending));
    }
    if cut {
        patch += &format!("# cut after {LIMIT} bytes: the difference is longer\n");
    }
    patch
}

/// Iterates over the parts of a difference, one for each file.
fn files(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let next = rest.find("\ndiff --git ");
        let (file, left) = rest.split_at(next.map_or(rest.len(), |at| at + 1));
        rest = left;
        Some(file)
    })
}

/// Runs git and returns its output up to the limit, and true where that is not all of it. Git changes nothing, prompts
/// nobody and fetches nothing.
fn git(folder: &Path, arguments: &[&str]) -> Option<(String, bool)> {
    let mut child = Command::new("git")
        .arg("--no-optional-locks")
        .args(arguments)
        .current_dir(folder)
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_NO_LAZY_FETCH", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut bytes = Vec::new();
    let read = child
        .stdout
        .take()?
        .take(LIMIT as u64 + 1)
        .read_to_end(&mut bytes);
    let cut = bytes.len() > LIMIT;
    // Its output is closed, so git ends now at the latest.
    let ended = child.wait().ok()?;
    read.ok()?;
    bytes.truncate(LIMIT);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    (cut || ended.success()).then_some((text, cut))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_difference_is_about_one_file() {
        let text = "diff --git a/x b/x\n+1\ndiff --git a/y b/y\n+diff --git no\n";
        let parts: Vec<_> = files(text).collect();
        assert_eq!(
            parts,
            [
                "diff --git a/x b/x\n+1\n",
                "diff --git a/y b/y\n+diff --git no\n"
            ]
        );
        assert_eq!(files("").count(), 0);
    }

    #[test]
    fn a_difference_is_masked_by_what_kind_of_file_it_is_of() {
        let text = "diff --git a/x.py b/x.py\n+token = tokens[0]\ndiff --git a/x.yaml b/x.yaml\n+token: hush\n";
        assert_eq!(patch(text.into(), false), text.replace("hush", "***"));
    }

    #[test]
    fn a_difference_that_is_cut_ends_with_a_whole_line_and_says_so() {
        let text = "diff --git a/x.py b/x.py\n+whole\n+password = 'hu";
        let patch = patch(text.into(), true);
        assert!(patch.contains("+whole\n# cut after"), "{patch}");
        assert!(!patch.contains("hu"), "{patch}");
    }

    #[test]
    fn a_folder_outside_any_repository_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Repository::of(dir.path().into()).is_none());
    }
}
