//! The longest texts that MLflow's tables take, and the checks of names, texts and datasets against them.
//!
//! The limits are those of MLflow's `utils/validation.py` and of the columns of its tables.

use super::{invalid::Invalid, key::Key, run::DatasetInput};

/// Longest param value, in characters; a longer one is cut, as MLflow does by default.
pub(crate) const MAX_PARAM_VALUE_LENGTH: usize = 6_000;

/// Longest tag value, in characters; a longer one is cut, as MLflow does by default.
pub(crate) const MAX_TAG_VALUE_LENGTH: usize = 8_000;

/// Longest run name and experiment name: the width of the columns in the store.
pub(crate) const MAX_RUN_NAME_LENGTH: usize = 250;

const MAX_EXPERIMENT_NAME_LENGTH: usize = 256;

/// Widths of the columns of a dataset and of the tags of an input.
const MAX_DATASET_NAME_LENGTH: usize = 500;

const MAX_DATASET_DIGEST_LENGTH: usize = 36;

const MAX_DATASET_SOURCE_TYPE_LENGTH: usize = 36;

const MAX_DATASET_SOURCE_LENGTH: usize = 65_535;

const MAX_DATASET_SCHEMA_LENGTH: usize = 1_048_575;

const MAX_DATASET_PROFILE_LENGTH: usize = 16_777_215;

const MAX_INPUT_TAG_KEY_LENGTH: usize = 255;

const MAX_INPUT_TAG_VALUE_LENGTH: usize = 500;

/// Cuts a value to `limit` characters.
pub(crate) fn cut(mut value: String, limit: usize) -> String {
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
/// [`Invalid::Value`], naming `what` and the key, for a text with a NUL, which PostgreSQL cannot store.
pub(crate) fn text(what: &'static str, key: &str, value: String) -> Result<String, Invalid> {
    if value.contains('\0') {
        return Err(Invalid::value(
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
/// [`Invalid::Value`], naming the metric, for a time before 1970.
pub(crate) fn timestamp(key: &str, timestamp: i64) -> Result<i64, Invalid> {
    if timestamp < 0 {
        let reason = format!("its timestamp {timestamp} is negative: give milliseconds since 1970");
        return Err(Invalid::value("metric", key, reason));
    }
    Ok(timestamp)
}

/// Checks a dataset that is logged to a run.
///
/// # Errors
/// [`Invalid::Value`] for a dataset without a name or a digest, and where a text is longer than MLflow takes or has a
/// NUL.
pub(crate) fn dataset(dataset: DatasetInput) -> Result<DatasetInput, Invalid> {
    let name = &dataset.name;
    if name.is_empty() || dataset.digest.is_empty() {
        return Err(Invalid::value(
            "dataset",
            name,
            "a dataset must have a name and a digest",
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
            return Err(Invalid::value("dataset", name, reason));
        }
        if text.contains('\0') {
            let reason = format!("its {part} has a NUL character, which no store keeps: remove it");
            return Err(Invalid::value("dataset", name, reason));
        }
    }
    Ok(dataset)
}

/// Checks the name of a run.
///
/// # Errors
/// [`Invalid::Value`] when the name is longer than the store's column or has a NUL.
pub(crate) fn run_name(name: &str) -> Result<String, Invalid> {
    let text = text("run name", name, name.to_owned())?;
    if text.chars().count() > MAX_RUN_NAME_LENGTH {
        return Err(Invalid::value(
            "run name",
            name,
            "a run name must have at most 250 characters",
        ));
    }
    Ok(text)
}

/// Checks the name of an experiment.
///
/// # Errors
/// [`Invalid::Value`] when the name is empty or longer than the store's column.
pub(crate) fn experiment_name(text: &str) -> Result<String, Invalid> {
    let what = "experiment name";
    if text.trim().is_empty() {
        return Err(Invalid::value(what, text, "an experiment must have a name"));
    }
    if text.chars().count() > MAX_EXPERIMENT_NAME_LENGTH {
        return Err(Invalid::value(
            what,
            text,
            "an experiment name must have at most 256 characters",
        ));
    }
    Ok(text.to_owned())
}

/// Checks the tags of a run; values are cut to the length that MLflow keeps.
///
/// # Errors
/// [`Invalid::Value`] for a key that MLflow refuses, and for a value with a NUL.
pub(crate) fn tags(
    tags: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<(Key, String)>, Invalid> {
    tags.into_iter()
        .map(|(key, value)| {
            let value = text("tag", &key, value)?;
            let key = Key::parse("tag key", &key)?;
            Ok((key, cut(value, MAX_TAG_VALUE_LENGTH)))
        })
        .collect()
}
