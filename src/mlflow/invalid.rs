//! The error of every parser: a value that breaks a rule, and the rule.

/// A value that cannot be recorded or a setting that cannot work.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    /// A key, value, path, status or stage that MLflow would not take.
    #[error("{what} {value:?} is not valid: {reason}")]
    Value {
        /// Name of the thing that was given, for example `metric key`.
        what: &'static str,
        /// The value as it was given, shortened.
        value: String,
        /// The rule that the value breaks, and what would be right.
        reason: String,
    },

    /// A value of a type that cannot be recorded there, for example a metric that is not a number.
    #[error("{what} {key:?} must be {expected}, not {found}")]
    Type {
        /// Kind of the record, for example `metric`.
        what: &'static str,
        /// Key of the value.
        key: String,
        /// The type that the value must have.
        expected: &'static str,
        /// The type that the value has.
        found: String,
    },

    /// A setting that cannot work: a URI, a folder, an experiment.
    #[error("{what} {value:?} cannot be used: {reason}")]
    Setting {
        /// Name of the setting.
        what: &'static str,
        /// Value of the setting, without credentials.
        value: String,
        /// The cause, and what to do.
        reason: String,
    },
}

impl Invalid {
    /// Returns an [`Invalid::Value`] whose value is shortened for the message.
    pub fn value(what: &'static str, value: &str, reason: impl Into<String>) -> Self {
        Self::Value {
            what,
            value: shorten(value),
            reason: reason.into(),
        }
    }

    /// Returns an [`Invalid::Setting`] whose value is shortened for the message.
    pub fn setting(what: &'static str, value: &str, reason: impl Into<String>) -> Self {
        Self::Setting {
            what,
            value: shorten(value),
            reason: reason.into(),
        }
    }
}

/// Shortens a value to the single line that error messages quote.
pub(crate) fn shorten(value: &str) -> String {
    const LIMIT: usize = 120;
    if value.chars().count() <= LIMIT {
        return value.to_owned();
    }
    value.chars().take(LIMIT).chain("…".chars()).collect()
}
