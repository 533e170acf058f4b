//! Credentials, and URIs without them.

use std::fmt;

/// A credential. Its `Debug` form does not show it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Returns the credential, for the code that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Returns the URI of a place, without a password that it may have. Azure's URIs name the container before the `@`.
pub(crate) fn without_password(uri: &str) -> String {
    let is_azure = ["wasb:", "wasbs:", "abfs:", "abfss:"];
    if is_azure.iter().any(|scheme| uri.starts_with(scheme)) || !uri.contains('@') {
        return uri.to_owned();
    }
    without_credentials(uri)
}

/// Returns a URI for messages and attributes, with user, password and options masked.
pub fn without_credentials(uri: &str) -> String {
    let Some(start) = uri.find("://").map(|at| at + 3) else {
        return uri.to_owned();
    };
    let (scheme, rest) = uri.split_at(start);
    // A path has no credentials and no options.
    if rest.starts_with('/') {
        return uri.to_owned();
    }
    // A password may contain an unescaped '/', '?' or '@': only the text after the last '@' is sure to have no part of
    // it.
    let (user, place) = match rest.rsplit_once('@') {
        Some((_, place)) => ("***@", place),
        None => ("", rest),
    };
    // PostgreSQL accepts a password among the options, too.
    match place.split_once('?') {
        Some((place, _)) => format!("{scheme}{user}{place}?***"),
        None => format!("{scheme}{user}{place}"),
    }
}
