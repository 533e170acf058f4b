//! Environment variables that are true or false.

use crate::mlflow::invalid::Invalid;

/// Returns the given value, else that of the variable, in MLflow's words, else the default.
///
/// # Errors
/// [`Invalid::Setting`] when the variable is neither true nor false.
pub(crate) fn switch(
    given: Option<bool>,
    variable: &'static str,
    default: bool,
) -> Result<bool, Invalid> {
    if let Some(given) = given {
        return Ok(given);
    }
    let text = std::env::var(variable).unwrap_or_default();
    Ok(truth(variable, &text)?.unwrap_or(default))
}

/// Reads the text of a variable, in MLflow's words; returns none for an empty text.
pub(crate) fn truth(variable: &'static str, text: &str) -> Result<Option<bool>, Invalid> {
    match text.to_lowercase().as_str() {
        "" => Ok(None),
        "true" | "1" => Ok(Some(true)),
        "false" | "0" => Ok(Some(false)),
        _ => Err(Invalid::setting(variable, text, "it must be true or false")),
    }
}
