//! Switches among the environment variables.

use crate::mlflow::invalid::Invalid;

/// What was given, else what the environment says in MLflow's words, else the default.
///
/// # Errors
/// [`Invalid::Setting`] when the variable is neither true nor false.
pub fn switch(given: Option<bool>, variable: &'static str, default: bool) -> Result<bool, Invalid> {
    if let Some(given) = given {
        return Ok(given);
    }
    let text = std::env::var(variable).unwrap_or_default();
    Ok(truth(variable, &text)?.unwrap_or(default))
}

/// What the text of a variable says, in MLflow's words; nothing where it is empty.
pub(crate) fn truth(variable: &'static str, text: &str) -> Result<Option<bool>, Invalid> {
    match text.to_lowercase().as_str() {
        "" => Ok(None),
        "true" | "1" => Ok(Some(true)),
        "false" | "0" => Ok(Some(false)),
        _ => Err(Invalid::setting(variable, text, "it is true or false")),
    }
}
