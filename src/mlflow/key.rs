//! Keys of metrics, params and tags, by the rules of MLflow's `utils/validation.py`.

use serde::{Deserialize, Serialize};

use super::{artifact_path::is_normalised, invalid::Invalid};

/// Longest key of a param, metric or tag, in characters.
pub(crate) const MAX_KEY_LENGTH: usize = 250;

/// Key of a metric, param or tag that MLflow takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key(Box<str>);

impl Key {
    /// Checks a key.
    ///
    /// # Errors
    /// [`Invalid::Value`] naming `what` when the key is empty, longer than 250 characters, has a character
    /// other than letters, digits, `_ - . / :` and blank, or is not its own normalised path.
    pub fn parse(what: &'static str, text: &str) -> Result<Self, Invalid> {
        Self::check(what, text)?;
        Ok(Self(text.into()))
    }

    /// Checks a key without keeping it.
    ///
    /// # Errors
    /// The errors of [`Key::parse`].
    pub fn check(what: &'static str, text: &str) -> Result<(), Invalid> {
        // Nearly every key is some ASCII words with slashes between them; one pass recognises such a key.
        if is_plain_key(text.as_bytes()) {
            return Ok(());
        }
        if text.is_empty() {
            return Err(Invalid::value(
                what,
                text,
                "a key must have at least one character",
            ));
        }
        // The number of bytes is checked first: it is never smaller than the number of characters.
        if text.len() > MAX_KEY_LENGTH && text.chars().count() > MAX_KEY_LENGTH {
            return Err(Invalid::value(
                what,
                text,
                "a key must have at most 250 characters",
            ));
        }
        if !text.chars().all(is_key_char) {
            return Err(Invalid::value(
                what,
                text,
                "a key must have only letters, digits, underscores, dashes, dots, slashes, colons and blanks",
            ));
        }
        if !is_normalised(text) {
            return Err(Invalid::value(
                what,
                text,
                "a key must be its own normalised path: no leading or trailing slash, no '//', no '.' or '..' part",
            ));
        }
        Ok(())
    }

    /// Returns the key.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Returns true for a key of ASCII letters, digits, `_ - :` and blanks, with single slashes inside. Keys with dots,
/// which may have a part `..`, are left to the complete check.
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

/// Returns true for a character that a key may have.
pub(crate) fn is_key_char(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | ':' | ' ')
}

#[cfg(test)]
mod tests {
    use crate::mlflow::{
        artifact_path::ArtifactPath,
        limits::{cut, dataset},
        run::DatasetInput,
    };
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
