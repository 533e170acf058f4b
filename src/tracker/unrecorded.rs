//! Values that cannot be recorded, and keys under another spelling: they are counted, told once and kept readable.

use std::sync::atomic::Ordering;

use serde::Serialize;

use super::{lock::lock, notes::MOST_KEYS, open::Tracker};
use crate::{
    delivery::dead_letter::DeadLetters,
    environment::secrets::{is_secret_name, masked_text},
    mlflow::{
        artifact_path::is_normalised,
        invalid::shorten,
        key::{Key, MAX_KEY_LENGTH, is_key_char},
        run::RunId,
    },
    os::clock::now_ms,
};

/// Most characters of a value that are kept.
const SHOWN_LENGTH: usize = 500;
/// Most dead letters of one tracker, so that the disk is not filled by the same mistake at each step.
const MOST_LETTERS: u64 = 100_000;
/// Hexadecimal digits of a hash, with the underscore before them.
const SUFFIX_LENGTH: usize = 9;
/// Value in place of a secret.
const MASK: &str = "***";

/// A value that a call was given and that cannot be recorded.
#[derive(Clone, Debug, Serialize)]
pub struct Unrecorded {
    /// Kind of the value: `metric`, `param`, `tag`, `artifact` or `input`.
    pub kind: &'static str,
    /// Key of the value, or the path of an artifact.
    pub key: String,
    /// Value as a text.
    pub value: String,
    /// Step of a metric.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Cause.
    #[serde(skip)]
    pub reason: String,
}

impl Unrecorded {
    /// Returns the value as it may be shown: short, and without secrets.
    fn shown(&self) -> String {
        if is_secret_name(&self.key) {
            return MASK.to_owned();
        }
        // A secret that is cut in the middle is no longer recognised.
        let begin: String = self.value.chars().take(4 * SHOWN_LENGTH).collect();
        let text = masked_text(&begin, true);
        if text.chars().count() <= SHOWN_LENGTH {
            return text;
        }
        let cut = text.chars().take(SHOWN_LENGTH - 1);
        cut.chain("…".chars()).collect()
    }
}

/// A line of the dead letters.
#[derive(Serialize)]
struct Letter<'a> {
    reason: String,
    summary: String,
    at: i64,
    run: Option<String>,
    record: &'a Unrecorded,
}

impl Tracker {
    /// Notes values that could not be recorded: counts them, keeps them as dead letters and tells the user once per
    /// kind and key. Waits on the disk.
    pub fn note_unrecorded(&self, run: Option<RunId>, values: Vec<Unrecorded>) {
        let recorder = self.recorder();
        let Some(delivery) = &recorder.delivery else {
            // Rank 0 is given the same values, and tells of them.
            return;
        };
        let dir = delivery.journal().dir();
        let letters = DeadLetters::of(&self.stores.config.heimdall_dir, &dir, 0);
        for value in values {
            let count = recorder.notes.count.fetch_add(1, Ordering::Relaxed);
            let reason = if is_secret_name(&value.key) {
                "the reason could show a secret and is left out".to_owned()
            } else {
                masked_text(&value.reason, true)
            };
            let value = Unrecorded {
                value: value.shown(),
                ..value
            };
            let is_new = recorder.notes.is_new(value.kind, &value.key);
            let kept = if count < MOST_LETTERS {
                let letter = Letter {
                    summary: format!("{} {}", value.kind, value.key),
                    at: now_ms(),
                    run: run.map(|run| run.to_string()),
                    reason: reason.clone(),
                    record: &value,
                };
                letters.add(&letter).map_err(|error| error.to_string())
            } else {
                Err(format!("{MOST_LETTERS} values are kept already"))
            };
            if !is_new {
                continue;
            }
            let place = match kept {
                Ok(()) => format!("It is kept in {}", letters.path().display()),
                Err(error) => format!("It cannot be kept on the disk ({error})"),
            };
            self.stores.notices.tell(format!(
                "{} {:?} was not recorded: {reason}. Its value is {}. {place}. This is told once per key",
                value.kind,
                shorten(&value.key),
                value.value,
            ));
        }
    }

    /// Tells the user, once per key, of something that was recorded in another form than it was given.
    pub fn tell_once(&self, kind: &'static str, key: &str, text: impl FnOnce() -> String) {
        let recorder = self.recorder();
        if recorder.delivery.is_some() && recorder.notes.is_new(kind, key) {
            self.stores.notices.tell(text());
        }
    }

    /// Returns the number of values that could not be recorded.
    pub fn unrecorded(&self) -> u64 {
        self.recorder().notes.count.load(Ordering::Relaxed)
    }

    /// Returns the key that a value is recorded under: the given one or, where MLflow forbids it, a spelling that
    /// MLflow takes. `is_taken` returns true for a key of the same call.
    pub fn key_for(
        &self,
        kind: &'static str,
        given: &str,
        is_taken: impl Fn(&Key) -> bool,
    ) -> Result<Key, crate::mlflow::invalid::Invalid> {
        if let Ok(key) = Key::parse(kind, given) {
            return Ok(key);
        }
        let mut spellings = lock(&self.recorder().notes.spellings);
        let place = (kind, given.to_owned());
        if let Some(known) = spellings.get(&place)
            && !is_taken(known)
        {
            return Ok(known.clone());
        }
        let mut key = Key::parse(kind, &spelling(given))?;
        let of_another = |key: &Key| {
            let mut others = spellings.iter();
            others.any(|((of, other), spelt)| *of == kind && other != given && spelt == key)
        };
        if is_taken(&key) || of_another(&key) {
            key = Key::parse(kind, &with_suffix(key.as_str(), given))?;
        }
        if spellings.len() < MOST_KEYS {
            spellings.insert(place, key.clone());
        }
        drop(spellings);
        self.tell_once("spelling", given, || {
            format!(
                "MLflow takes no {kind} {:?}: it is recorded as {:?}. This is told once per key",
                shorten(given),
                key.as_str()
            )
        });
        Ok(key)
    }
}

/// Returns a spelling of a key that MLflow takes.
pub(crate) fn spelling(given: &str) -> String {
    let spelt: String = given
        .chars()
        .map(|c| if is_key_char(c) { c } else { '_' })
        .collect();
    let spelt = mended(&spelt);
    let spelt = if spelt.is_empty() {
        "_".to_owned()
    } else {
        spelt
    };
    if spelt.chars().count() > MAX_KEY_LENGTH {
        return with_suffix(&spelt, given);
    }
    spelt
}

/// Returns a path without empty parts and without the parts `.` and `..`, and with no dots at its beginning that could
/// lead upwards.
pub(crate) fn mended(path: &str) -> String {
    if is_normalised(path) {
        return path.to_owned();
    }
    let parts = path.split('/');
    let parts: Vec<&str> = parts
        .filter(|part| !matches!(*part, "" | "." | ".."))
        .collect();
    let joined = parts.join("/");
    match joined.strip_prefix("..") {
        Some(rest) => format!("__{rest}"),
        None => joined,
    }
}

/// Returns a key with a hash of the one that was given, cut to the length that MLflow takes.
fn with_suffix(key: &str, given: &str) -> String {
    let hash = crc32fast::hash(given.as_bytes());
    let begin: String = key.chars().take(MAX_KEY_LENGTH - SUFFIX_LENGTH).collect();
    format!("{}_{hash:08x}", begin.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_forbidden_key_has_a_spelling_that_a_reader_recognises() {
        for (given, spelt) in [
            ("acc@1", "acc_1"),
            ("metrics/mAP50(B)", "metrics/mAP50_B_"),
            ("/val//loss/", "val/loss"),
            ("../loss", "loss"),
            ("..loss", "__loss"),
            ("", "_"),
            ("//", "_"),
        ] {
            assert_eq!(spelling(given), spelt, "{given}");
        }
    }

    #[test]
    fn long_keys_that_begin_alike_have_two_spellings() {
        let long = |end| spelling(&format!("{}{end}", "k".repeat(300)));
        assert_ne!(long("a"), long("b"));
    }

    #[test]
    fn a_secret_is_not_shown() {
        let of = |key: &str, value: &str| Unrecorded {
            kind: "param",
            key: key.to_owned(),
            value: value.to_owned(),
            step: None,
            reason: String::new(),
        };
        assert_eq!(of("db_password", "hunter2").shown(), MASK);
        let shown = of("uri", "postgresql://ada:hunter2@host/db").shown();
        assert!(!shown.contains("hunter2"), "{shown}");
        assert_eq!(of("text", &"x".repeat(9_000)).shown().chars().count(), 500);
    }

    proptest! {
        #[test]
        fn every_spelling_is_a_key(given in ".{0,300}") {
            prop_assert!(Key::parse("key", &spelling(&given)).is_ok());
        }

        #[test]
        fn every_path_is_mended(given in "[a./ ]{0,12}") {
            let path = mended(&given);
            prop_assert!(path.is_empty() || is_normalised(&path));
        }
    }
}
