//! Credentials, and URIs without them.

use std::fmt;

/// A credential. It has no way to be printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The credential itself, for the one place that sends it.
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

/// An URI as messages and attributes show it: user, password and options replaced.
pub fn without_credentials(uri: &str) -> String {
    let Some(start) = uri.find("://").map(|at| at + 3) else {
        return uri.to_owned();
    };
    let (scheme, rest) = uri.split_at(start);
    // A path has neither.
    if rest.starts_with('/') {
        return uri.to_owned();
    }
    // A password may hold '/', '?' or '@' unescaped: only behind the last '@' can none of it be left.
    let (user, place) = match rest.rsplit_once('@') {
        Some((_, place)) => ("***@", place),
        None => ("", rest),
    };
    // PostgreSQL takes a password among the options, too.
    match place.split_once('?') {
        Some((place, _)) => format!("{scheme}{user}{place}?***"),
        None => format!("{scheme}{user}{place}"),
    }
}
