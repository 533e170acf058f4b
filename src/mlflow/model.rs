//! Names, aliases, stages and texts that MLflow's registry takes.

use std::str::FromStr;

use super::invalid::Invalid;

/// Longest description of a model or a version: the width of the store's columns.
const MAX_DESCRIPTION_LENGTH: usize = 5_000;
/// Longest registered model name: the width of the store's column.
const MAX_NAME_LENGTH: usize = 256;
/// MLflow's limit for the length of an alias.
const MAX_ALIAS_LENGTH: usize = 255;
/// MLflow's limit for the length of a tag's value; before MLflow 3 the limit was 5,000.
const MAX_TAG_VALUE_LENGTH: usize = 100_000;
/// The reserved alias, which always points to the newest version.
pub(crate) const LATEST: &str = "latest";

/// Name of a registered model that MLflow takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelName(String);

impl ModelName {
    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ModelName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse = |reason: &str| Err(Invalid::value("model name", text, reason));
        if text.trim().is_empty() {
            return refuse("a registered model must have a name");
        }
        if text.contains(['/', ':', '\0']) || matches!(text, "." | "..") || text.starts_with("..") {
            return refuse("a model name must have no '/', ':' or NUL and not begin with '..'");
        }
        if text.chars().count() > MAX_NAME_LENGTH {
            return refuse("a model name must have at most 256 characters");
        }
        Ok(Self(text.to_owned()))
    }
}

/// Alias of a model version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias(String);

impl Alias {
    /// Checks an alias that is to be set.
    ///
    /// # Errors
    /// [`Invalid::Value`] for a text that is no alias, and for `latest` and `v<number>`, which MLflow reserves.
    pub fn parse_new(text: &str) -> Result<Self, Invalid> {
        let alias: Self = text.parse()?;
        let is_number = |rest: &str| !rest.is_empty() && rest.chars().all(char::is_numeric);
        if alias.is_latest() || text.strip_prefix(['v', 'V']).is_some_and(is_number) {
            let reason = "latest and v<number> are reserved: choose another alias";
            return Err(Invalid::value("alias", text, reason));
        }
        Ok(alias)
    }

    /// Returns the alias.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns true for the reserved alias of the newest version.
    pub fn is_latest(&self) -> bool {
        self.0.eq_ignore_ascii_case(LATEST)
    }
}

impl FromStr for Alias {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse = |reason: &str| Err(Invalid::value("alias", text, reason));
        if text.is_empty() {
            return refuse("an alias must have at least one character");
        }
        if !text
            .chars()
            .all(|c| c.is_alphanumeric() || matches!(c, '_' | '-'))
        {
            return refuse("an alias may have letters, digits, underscores and dashes only");
        }
        if text.chars().count() > MAX_ALIAS_LENGTH {
            return refuse("an alias must have at most 255 characters");
        }
        Ok(Self(text.to_owned()))
    }
}

/// Stage of a model version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The version has no stage yet.
    None,
    /// The version is being tried.
    Staging,
    /// The version is in use.
    Production,
    /// The version is no longer in use.
    Archived,
}

impl Stage {
    /// All stages.
    pub const ALL: [Self; 4] = [Self::None, Self::Staging, Self::Production, Self::Archived];

    /// Returns the word in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Staging => "Staging",
            Self::Production => "Production",
            Self::Archived => "Archived",
        }
    }

    /// Returns `archive`, after a check that the versions in this stage can be archived when another version moves to
    /// it, where `archive` is true.
    ///
    /// # Errors
    /// [`Invalid::Value`] for a stage that is neither `Staging` nor `Production`.
    pub fn archives(self, archive: bool) -> Result<bool, Invalid> {
        if archive && !matches!(self, Self::Staging | Self::Production) {
            let reason =
                "existing versions can be archived only where the stage is Staging or Production";
            return Err(Invalid::value("stage", self.as_str(), reason));
        }
        Ok(archive)
    }
}

impl FromStr for Stage {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::ALL
            .into_iter()
            .find(|stage| stage.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| {
                Invalid::value(
                    "stage",
                    text,
                    "a stage must be None, Staging, Production or Archived",
                )
            })
    }
}

/// Value of a tag of a model or a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagValue(String);

impl TagValue {
    /// Checks a value for the tag `key`.
    ///
    /// # Errors
    /// [`Invalid::Value`], naming the key, for a value that is too long or has a NUL: unlike the tags of runs, these
    /// values are not cut.
    pub fn parse(key: &str, value: String) -> Result<Self, Invalid> {
        let value = super::limits::text("tag", key, value)?;
        if value.len() > MAX_TAG_VALUE_LENGTH && value.chars().count() > MAX_TAG_VALUE_LENGTH {
            let reason = "its value has more than 100000 characters, which no registry keeps";
            return Err(Invalid::value("tag", key, reason));
        }
        Ok(Self(value))
    }

    /// Returns the value.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Reads the number of a model version.
///
/// # Errors
/// [`Invalid::Value`] when the text is not a whole number of at least 1.
pub fn parse_version(text: &str) -> Result<i64, Invalid> {
    text.parse()
        .ok()
        .filter(|version| *version >= 1)
        .ok_or_else(|| {
            Invalid::value(
                "model version",
                text,
                "a version must be a whole number of at least 1",
            )
        })
}

/// Checks that a description fits into the store.
///
/// # Errors
/// [`Invalid::Value`] when the description is too long or has a NUL.
pub fn parse_description(text: &str) -> Result<String, Invalid> {
    if text.chars().count() > MAX_DESCRIPTION_LENGTH {
        return Err(Invalid::value(
            "description",
            text,
            "it must have at most 5000 characters",
        ));
    }
    if text.contains('\0') {
        let reason = "it has a NUL character, which no store keeps: remove it";
        return Err(Invalid::value("description", text, reason));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stages_are_read_in_any_case() {
        assert_eq!("production".parse::<Stage>().unwrap(), Stage::Production);
        assert_eq!("None".parse::<Stage>().unwrap(), Stage::None);
        let error = "Live".parse::<Stage>().unwrap_err().to_string();
        assert!(error.contains("\"Live\""));
        // MLflow's own word for a deleted version is not a stage.
        assert!("Deleted_Internal".parse::<Stage>().is_err());
    }

    #[test]
    fn model_names_that_mlflow_refuses_are_refused() {
        for wrong in ["", "  ", "a/b", "a:b", "..", ".", "..a", "a\0"] {
            assert!(wrong.parse::<ModelName>().is_err(), "{wrong}");
        }
        for name in ["heimdall-localization", " a ", ".a", "a..", "é 'x' \"y\""] {
            assert_eq!(name.parse::<ModelName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn versions_are_whole_numbers_from_one_on() {
        assert_eq!(parse_version("12").unwrap(), 12);
        for wrong in ["", "0", "-1", "1.0", "latest"] {
            assert!(parse_version(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn aliases_that_mlflow_has_given_a_meaning_are_not_set() {
        for alias in ["champion", "Champion_2-b", "é", "v", "v1a", "lates"] {
            assert_eq!(Alias::parse_new(alias).unwrap().as_str(), alias);
        }
        for reserved in ["latest", "LATEST", "v1", "V20"] {
            assert!(Alias::parse_new(reserved).is_err(), "{reserved}");
            assert!(reserved.parse::<Alias>().is_ok(), "{reserved}");
        }
        for wrong in ["", "a b", "a.b", "a/b", "a@b", "a\n", &"a".repeat(256)] {
            assert!(wrong.parse::<Alias>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn values_of_tags_are_kept_whole_or_refused() {
        let longest = "é".repeat(MAX_TAG_VALUE_LENGTH);
        assert_eq!(
            TagValue::parse("k", longest.clone()).unwrap().as_str(),
            longest
        );
        assert!(TagValue::parse("k", longest + "é").is_err());
        assert!(TagValue::parse("k", "\0".to_owned()).is_err());
    }

    proptest! {
        #[test]
        fn what_is_a_name_or_an_alias_is_the_text_itself(text in "\\PC{0,300}") {
            if let Ok(name) = text.parse::<ModelName>() {
                prop_assert_eq!(name.as_str(), &text);
            }
            if let Ok(alias) = Alias::parse_new(&text) {
                prop_assert_eq!(alias.as_str(), &text);
            }
        }
    }
}
