//! What can be recorded, and MLflow's rules for it.
//!
//! A key or a value that has passed through here is one that every MLflow store takes; what breaks a rule
//! is refused before anything is written. The rules and limits are those of MLflow's `utils/validation.py`.

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, shorten},
    run::{DatasetInput, RunId, RunStatus},
};

/// Longest key of a param, metric or tag, in characters.
pub const MAX_KEY_LENGTH: usize = 250;
/// Longest param value; a longer one is cut, as MLflow does by default.
pub const MAX_PARAM_VALUE_LENGTH: usize = 6_000;
/// Longest tag value; a longer one is cut, as MLflow does by default.
pub const MAX_TAG_VALUE_LENGTH: usize = 8_000;
/// Longest run name and experiment name: the width of the columns in the store.
const MAX_RUN_NAME_LENGTH: usize = 250;
const MAX_EXPERIMENT_NAME_LENGTH: usize = 256;
/// Widths of a dataset's columns, and of those of an input's tags.
const MAX_DATASET_NAME_LENGTH: usize = 500;
const MAX_DATASET_DIGEST_LENGTH: usize = 36;
const MAX_DATASET_SOURCE_TYPE_LENGTH: usize = 36;
const MAX_DATASET_SOURCE_LENGTH: usize = 65_535;
const MAX_DATASET_SCHEMA_LENGTH: usize = 1_048_575;
const MAX_DATASET_PROFILE_LENGTH: usize = 16_777_215;
const MAX_INPUT_TAG_KEY_LENGTH: usize = 255;
const MAX_INPUT_TAG_VALUE_LENGTH: usize = 500;

/// One thing to deliver, as the journal keeps it.
///
/// The order of the variants and of their fields is the journal's format: a new variant goes to the end,
/// any other change raises [`crate::journal::FORMAT_VERSION`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Record {
    /// A run begins.
    RunStarted(RunStart),
    /// Values of one step.
    Metrics {
        /// The run.
        run: RunId,
        /// Step (any integer; the epoch, by custom).
        step: i64,
        /// Milliseconds since 1970.
        timestamp: i64,
        /// Key and value; NaN and infinities are allowed.
        values: Vec<(Key, f64)>,
    },
    /// Params of a run.
    Params {
        /// The run.
        run: RunId,
        /// Key and value.
        values: Vec<(Key, String)>,
    },
    /// Tags of a run.
    Tags {
        /// The run.
        run: RunId,
        /// Key and value.
        values: Vec<(Key, String)>,
    },
    /// A file for the run's artifacts.
    Artifact {
        /// The run.
        run: RunId,
        /// Name of the copy in the journal's staging folder.
        staged: String,
        /// Where it goes, below the run's artifact URI.
        path: ArtifactPath,
        /// Its length in bytes.
        size: u64,
    },
    /// A run ends.
    RunEnded {
        /// The run.
        run: RunId,
        /// How.
        status: RunStatus,
        /// Milliseconds since 1970.
        end_time: i64,
    },
    /// A tag of a run is removed; a tag that is not there is no error.
    TagDeleted {
        /// The run.
        run: RunId,
        /// The tag's key.
        key: Key,
    },
    /// A run is given a dataset.
    Input {
        /// The run.
        run: RunId,
        /// The dataset.
        dataset: Box<DatasetInput>,
    },
    /// A run that has ended goes on: RUNNING, without an end time.
    RunResumed {
        /// The run.
        run: RunId,
    },
    /// Records of a run follow that another process has started and will end. Nothing to deliver.
    RunAttached {
        /// The run.
        run: RunId,
    },
    /// A file for the run's artifacts that could not be copied: it is read where it is, as it is then.
    ArtifactInPlace {
        /// The run.
        run: RunId,
        /// The file's own absolute path.
        source: String,
        /// Where it goes, below the run's artifact URI.
        path: ArtifactPath,
    },
    /// A small file for the run's artifacts, with its content.
    ArtifactInline {
        /// The run.
        run: RunId,
        /// Its content.
        content: Vec<u8>,
        /// Where it goes, below the run's artifact URI.
        path: ArtifactPath,
    },
    /// A run is about to be created at a server, which chooses its id; this is ours, which the server's run has as a
    /// tag. Nothing to deliver; where the process dies before [`Record::RunNamed`], the run is found by it.
    RunCreating {
        /// Our id.
        run: RunId,
    },
    /// That run has the server's id now, under which the other records have it.
    RunNamed {
        /// Our id.
        run: RunId,
    },
}

/// The beginning of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunStart {
    /// Its id, chosen here so that a second delivery finds the first.
    pub run: RunId,
    /// Name of the experiment it belongs to.
    pub experiment: String,
    /// Artifact location of that experiment, should it have to be created.
    pub artifact_location: Option<String>,
    /// Name of the run.
    pub name: String,
    /// Who runs it.
    pub user: String,
    /// Milliseconds since 1970.
    pub start_time: i64,
}

impl Record {
    /// The run it belongs to.
    pub fn run(&self) -> RunId {
        match self {
            Self::RunStarted(start) => start.run,
            Self::Metrics { run, .. }
            | Self::Params { run, .. }
            | Self::Tags { run, .. }
            | Self::Artifact { run, .. }
            | Self::RunEnded { run, .. }
            | Self::TagDeleted { run, .. }
            | Self::Input { run, .. }
            | Self::RunResumed { run }
            | Self::RunAttached { run }
            | Self::RunCreating { run }
            | Self::RunNamed { run }
            | Self::ArtifactInPlace { run, .. }
            | Self::ArtifactInline { run, .. } => *run,
        }
    }

    /// True for what is noted of a run's creation, under an id that the store may not know.
    pub fn is_about_creation(&self) -> bool {
        matches!(self, Self::RunCreating { .. } | Self::RunNamed { .. })
    }

    /// True for a file, which goes to the store of artifacts.
    pub fn is_artifact(&self) -> bool {
        self.artifact_path().is_some()
    }

    /// Where a file goes among the artifacts of its run.
    pub fn artifact_path(&self) -> Option<&ArtifactPath> {
        match self {
            Self::Artifact { path, .. }
            | Self::ArtifactInPlace { path, .. }
            | Self::ArtifactInline { path, .. } => Some(path),
            _ => None,
        }
    }

    /// One line for people: what it is, without its values.
    pub fn summary(&self) -> String {
        let keys = |keys: &mut dyn Iterator<Item = &Key>| {
            keys.map(Key::as_str).collect::<Vec<_>>().join(", ")
        };
        match self {
            Self::RunStarted(start) => format!("start of run {:?}", start.name),
            Self::Metrics { step, values, .. } => {
                format!(
                    "metrics {} at step {step}",
                    keys(&mut values.iter().map(|(key, _)| key))
                )
            }
            Self::Params { values, .. } => {
                format!("params {}", keys(&mut values.iter().map(|(key, _)| key)))
            }
            Self::Tags { values, .. } => {
                format!("tags {}", keys(&mut values.iter().map(|(key, _)| key)))
            }
            Self::Artifact { path, .. }
            | Self::ArtifactInPlace { path, .. }
            | Self::ArtifactInline { path, .. } => format!("artifact {}", path.as_str()),
            Self::RunEnded { status, .. } => format!("end of run, {}", status.as_str()),
            Self::TagDeleted { key, .. } => format!("deletion of tag {}", key.as_str()),
            Self::Input { dataset, .. } => format!("dataset {:?}", dataset.name),
            Self::RunResumed { .. } => "resumption of run".to_owned(),
            Self::RunAttached { .. } => "attachment to run".to_owned(),
            Self::RunCreating { .. } => "creation of run".to_owned(),
            Self::RunNamed { .. } => "id of run".to_owned(),
        }
    }
}

/// Key of a metric, param or tag that MLflow takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key(Box<str>);

impl Key {
    /// Checks a key.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming `what` when the key is empty, longer than 250 characters, has a character
    /// other than letters, digits, `_ - . / :` and blank, or is not its own normalised path.
    pub fn parse(what: &'static str, text: &str) -> Result<Self, Error> {
        Self::check(what, text)?;
        Ok(Self(text.into()))
    }

    /// Checks a key without keeping it.
    ///
    /// # Errors
    /// Those of [`Key::parse`].
    pub fn check(what: &'static str, text: &str) -> Result<(), Error> {
        // Nearly every key is some ASCII words with slashes between them, which one pass finds out.
        if is_plain_key(text.as_bytes()) {
            return Ok(());
        }
        if text.is_empty() {
            return Err(Error::invalid(
                what,
                text,
                "a key needs at least one character",
            ));
        }
        // Every byte limit is a character limit for the ASCII keys that people use.
        if text.len() > MAX_KEY_LENGTH && text.chars().count() > MAX_KEY_LENGTH {
            return Err(Error::invalid(
                what,
                text,
                "a key has at most 250 characters",
            ));
        }
        if !text.chars().all(is_key_char) {
            return Err(Error::invalid(
                what,
                text,
                "a key has letters, digits, underscores, dashes, dots, slashes, colons and blanks only",
            ));
        }
        if !is_normalised(text) {
            return Err(Error::invalid(
                what,
                text,
                "a key must be its own normalised path: no leading or trailing slash, no '//', no '.' or '..' part",
            ));
        }
        Ok(())
    }

    /// The key itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// True for a key of ASCII letters, digits and `_ - :` and blanks, with single slashes inside. Dots, which may make a
/// part that climbs, are left to the whole check.
fn is_plain_key(text: &[u8]) -> bool {
    if text.is_empty() || text.len() > MAX_KEY_LENGTH {
        return false;
    }
    let mut before = b'/';
    for &byte in text {
        let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b':' | b' ');
        if !plain && (byte != b'/' || before == b'/') {
            return false;
        }
        before = byte;
    }
    before != b'/'
}

fn is_key_char(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | ':' | ' ')
}

/// True for a relative path that `posixpath.normpath` leaves as it is and that does not climb.
fn is_normalised(path: &str) -> bool {
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
    /// [`Error::Invalid`] for absolute paths, `..`, `.`, empty parts, backslashes and control characters.
    pub fn parse(text: &str) -> Result<Self, Error> {
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
            return Err(Error::invalid("artifact path", text, reason));
        }
        Ok(Self(text.to_owned()))
    }

    /// This folder's child.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the child breaks the rules of [`ArtifactPath::parse`].
    pub fn join(&self, child: &str) -> Result<Self, Error> {
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

/// A value cut to the characters that the store keeps.
pub fn cut(mut value: String, limit: usize) -> String {
    if value.len() > limit
        && let Some((end, _)) = value.char_indices().nth(limit)
    {
        value.truncate(end);
    }
    value
}

/// Checks a text that a store is to keep under `key`.
///
/// # Errors
/// [`Error::Invalid`], naming `what` and the key, for a text with a NUL, which PostgreSQL has no form for.
pub fn text(what: &'static str, key: &str, value: String) -> Result<String, Error> {
    if value.contains('\0') {
        return Err(Error::invalid(
            what,
            key,
            "its value has a NUL character, which no store keeps: remove it",
        ));
    }
    Ok(value)
}

/// Checks a time.
///
/// # Errors
/// [`Error::Invalid`], naming the metric, for a time before 1970.
pub fn timestamp(key: &str, timestamp: i64) -> Result<i64, Error> {
    if timestamp < 0 {
        let reason = format!("its timestamp {timestamp} is negative: give milliseconds since 1970");
        return Err(Error::invalid("metric", key, reason));
    }
    Ok(timestamp)
}

/// Checks the dataset that a run is given.
///
/// # Errors
/// [`Error::Invalid`] for a dataset without a name or a digest, and where something is longer than MLflow
/// takes or has a NUL.
pub fn dataset(dataset: DatasetInput) -> Result<DatasetInput, Error> {
    let name = &dataset.name;
    if name.is_empty() || dataset.digest.is_empty() {
        return Err(Error::invalid(
            "dataset",
            name,
            "a dataset needs a name and a digest",
        ));
    }
    let none = String::new();
    let limits = [
        ("name", name, MAX_DATASET_NAME_LENGTH),
        ("digest", &dataset.digest, MAX_DATASET_DIGEST_LENGTH),
        (
            "source type",
            &dataset.source_type,
            MAX_DATASET_SOURCE_TYPE_LENGTH,
        ),
        ("source", &dataset.source, MAX_DATASET_SOURCE_LENGTH),
        (
            "schema",
            dataset.schema.as_ref().unwrap_or(&none),
            MAX_DATASET_SCHEMA_LENGTH,
        ),
        (
            "profile",
            dataset.profile.as_ref().unwrap_or(&none),
            MAX_DATASET_PROFILE_LENGTH,
        ),
    ];
    let tags = dataset.tags.iter().flat_map(|(key, value)| {
        [
            ("key of a tag", key, MAX_INPUT_TAG_KEY_LENGTH),
            ("value of a tag", value, MAX_INPUT_TAG_VALUE_LENGTH),
        ]
    });
    for (part, text, limit) in limits.into_iter().chain(tags) {
        if text.len() > limit && text.chars().count() > limit {
            let reason = format!("its {part} has more than {limit} characters");
            return Err(Error::invalid("dataset", name, reason));
        }
        if text.contains('\0') {
            let reason = format!("its {part} has a NUL character, which no store keeps: remove it");
            return Err(Error::invalid("dataset", name, reason));
        }
    }
    Ok(dataset)
}

/// Checks the name of a run.
///
/// # Errors
/// [`Error::Invalid`] when it is longer than the store's column or has a NUL.
pub fn run_name(name: &str) -> Result<String, Error> {
    let text = text("run name", name, name.to_owned())?;
    if text.chars().count() > MAX_RUN_NAME_LENGTH {
        return Err(Error::invalid(
            "run name",
            name,
            "a run name has at most 250 characters",
        ));
    }
    Ok(text)
}

/// Checks the name of an experiment.
///
/// # Errors
/// [`Error::Invalid`] when it is empty or longer than the store's column.
pub fn experiment_name(text: &str) -> Result<String, Error> {
    let what = "experiment name";
    if text.trim().is_empty() {
        return Err(Error::invalid(what, text, "an experiment needs a name"));
    }
    if text.chars().count() > MAX_EXPERIMENT_NAME_LENGTH {
        return Err(Error::invalid(
            what,
            text,
            "an experiment name has at most 256 characters",
        ));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_that_mlflow_takes_are_taken() {
        for key in [
            "loss",
            "val/loss",
            "a.b-c_d:e f",
            "système/µ",
            "a..b",
            &"k".repeat(250),
        ] {
            assert_eq!(Key::parse("metric key", key).unwrap().as_str(), key);
        }
    }

    #[test]
    fn a_path_is_within_itself_and_the_folders_above_it() {
        let path = |text: &str| ArtifactPath::parse(text).unwrap();
        let model = path("a/model/weights");
        for folder in ["", "a", "a/model", "a/model/weights"] {
            assert!(model.is_within(&path(folder)), "{folder}");
        }
        for folder in ["b", "a/mod", "model", "a/model/weights/x", "a/model/weight"] {
            assert!(!model.is_within(&path(folder)), "{folder}");
        }
    }

    #[test]
    fn keys_that_mlflow_refuses_are_refused_with_their_value() {
        for key in [
            "", "/loss", "loss/", "a//b", "./a", "a/./b", "..", "../a", "..a", "a/../b", ".",
            "a\nb", "ä#",
        ] {
            let error = Key::parse("metric key", key).unwrap_err().to_string();
            assert!(error.starts_with("metric key"), "{error}");
        }
        assert!(Key::parse("metric key", &"k".repeat(251)).is_err());
    }

    #[test]
    fn artifact_paths_stay_below_the_run() {
        let folder = ArtifactPath::parse("checkpoints/best").unwrap();
        assert_eq!(
            folder.join("a b#%.ckpt").unwrap().as_str(),
            "checkpoints/best/a b#%.ckpt"
        );
        assert_eq!(ArtifactPath::root().join("x").unwrap().as_str(), "x");
        for wrong in ["/etc", "..", "a/..", "a//b", "a\\b", "./a", "a/", "a\0"] {
            assert!(ArtifactPath::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_dataset_is_refused_by_the_part_that_is_too_long_or_missing() {
        let whole = DatasetInput {
            name: "é".repeat(500),
            digest: "d".repeat(36),
            tags: vec![("k".repeat(255), "v".repeat(500))],
            ..DatasetInput::default()
        };
        assert!(dataset(whole.clone()).is_ok());
        type Change = fn(&mut DatasetInput);
        let changes: [(Change, &str); 6] = [
            (|it| it.name.clear(), "name"),
            (|it| it.name.push('x'), "name"),
            (|it| it.digest.push('x'), "digest"),
            (|it| it.source = "x".repeat(65_536), "source"),
            (|it| it.schema = Some("\0".into()), "schema"),
            (|it| it.tags[0].1.push('x'), "value of a tag"),
        ];
        for (change, part) in changes {
            let mut changed = whole.clone();
            change(&mut changed);
            let error = dataset(changed).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    proptest! {
        #[test]
        fn a_plain_key_is_one_that_the_whole_check_finds_right(text in "[a-z/:._ #]{0,12}") {
            let whole = !text.is_empty() && text.chars().all(is_key_char) && is_normalised(&text);
            prop_assert!(!is_plain_key(text.as_bytes()) || whole);
            prop_assert_eq!(Key::check("metric key", &text).is_ok(), whole);
        }

        #[test]
        fn cutting_keeps_whole_characters_up_to_the_limit(text in ".{0,40}", limit in 0usize..30) {
            let expected: String = text.chars().take(limit).collect();
            prop_assert_eq!(cut(text, limit), expected);
        }

        #[test]
        fn an_accepted_artifact_path_never_leaves_its_root(text in "[a./\\\\ ]{0,12}") {
            if let Ok(path) = ArtifactPath::parse(&text) {
                let joined = std::path::Path::new("/root").join(path.as_str());
                prop_assert!(joined.starts_with("/root"));
                prop_assert!(!path.as_str().split('/').any(|part| part == ".."));
            }
        }
    }
}
