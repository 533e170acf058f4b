//! Tracking, registry and artifact URIs, and the places that they name.

use std::path::{Component, Path, PathBuf};

pub(crate) use super::postgres_uri::PostgresUri;
use crate::{
    mlflow::invalid::Invalid,
    net::secret::{Secret, without_credentials},
};

/// A store that runs are recorded in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A SQLite database file, by its absolute path.
    Sqlite(PathBuf),
    /// A PostgreSQL database.
    Postgres(PostgresUri),
    /// An MLflow tracking server.
    Server(ServerUri),
}

/// An MLflow tracking server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUri {
    base: String,
    user: Option<(Secret, Secret)>,
}

impl ServerUri {
    /// Returns scheme, host, port and path prefix, without credentials and without a slash at the end.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Returns the user and the password of the URI itself.
    pub fn user(&self) -> Option<&(Secret, Secret)> {
        self.user.as_ref()
    }
}

impl Destination {
    /// Reads a tracking, backend-store or registry URI.
    ///
    /// # Errors
    /// [`Invalid::Setting`], naming `what`, for schemes that are unknown or not supported by this
    /// version and for URIs that name no file, database or host.
    pub fn parse(what: &'static str, uri: &str) -> Result<Self, Invalid> {
        let shown = without_credentials(uri);
        let refuse = |reason: String| Err(Invalid::setting(what, &shown, reason));
        let Some((scheme, rest)) = uri.split_once(':') else {
            return refuse(format!(
                "it has no scheme; for a SQLite database file write sqlite:///{uri}"
            ));
        };
        // URIs for SQLAlchemy may name the driver too: sqlite+pysqlite://, postgresql+psycopg2://.
        let dialect = scheme
            .split('+')
            .next()
            .unwrap_or(scheme)
            .to_ascii_lowercase();
        match dialect.as_str() {
            "sqlite" => {
                let path = rest.strip_prefix("///").unwrap_or_default();
                if path.is_empty() || path == ":memory:" {
                    return refuse(
                        "a database in memory cannot be read by MLflow; name a file, for example \
                         sqlite:///mlflow.db"
                            .into(),
                    );
                }
                if path.contains('?') {
                    return refuse("options after '?' are not supported".into());
                }
                Ok(Self::Sqlite(absolute(what, Path::new(path))?))
            }
            "postgresql" | "postgres" => match PostgresUri::parse(rest) {
                Ok(uri) => Ok(Self::Postgres(uri)),
                Err(reason) => refuse(reason.into()),
            },
            "http" | "https" => match server(&dialect, rest) {
                Ok(uri) => Ok(Self::Server(uri)),
                Err(reason) => refuse(reason.into()),
            },
            "mysql" | "mssql" | "oracle" | "mariadb" => refuse(format!(
                "{dialect} databases are not written to directly; start `mlflow server` on it and give \
                 the server's http:// address"
            )),
            "databricks" | "databricks-uc" => refuse(
                "Databricks is not supported; use a tracking server, PostgreSQL or SQLite".into(),
            ),
            "file" => refuse(
                "MLflow's file store is no longer maintained; use sqlite:///mlflow.db and move existing \
                 runs with `mlflow migrate-filestore --source <folder> --target sqlite:///mlflow.db`"
                    .into(),
            ),
            _ => refuse(format!(
                "the scheme {scheme:?} is not known; use http(s)://, postgresql:// or \
                 sqlite:///mlflow.db"
            )),
        }
    }

    /// Returns the URI without credentials, for the journal and for messages. It is the same for all URIs of one place.
    pub fn uri(&self) -> String {
        match self {
            Self::Sqlite(path) => format!("sqlite:///{}", path.display()),
            Self::Postgres(uri) => uri.shown().to_owned(),
            Self::Server(uri) => uri.base.clone(),
        }
    }

    /// Returns the location of the default folder of artifacts: the folder that stock MLflow uses, beside a database
    /// file, else in the working directory. Returns none for a server, which chooses the folder itself.
    pub fn default_artifact_root(&self) -> Option<String> {
        let folder = match self {
            Self::Sqlite(path) => path.with_file_name("mlruns"),
            Self::Postgres(_) => std::path::absolute("mlruns").unwrap_or_else(|_| "mlruns".into()),
            Self::Server(_) => return None,
        };
        Some(escaped(&folder.display().to_string()))
    }
}

/// Reads the rest of a URI after `http:` or `https:`.
fn server(scheme: &str, rest: &str) -> Result<ServerUri, &'static str> {
    let form = "the form is https://host:5000 or https://host/prefix";
    let rest = rest.strip_prefix("//").ok_or(form)?;
    let (user, place) = credentials(rest);
    if place.contains(['?', '#']) {
        return Err("a server's address has no options");
    }
    let (host, path) = place.split_once('/').unwrap_or((place, ""));
    if host.is_empty() || host.starts_with(':') || host.contains(char::is_whitespace) {
        return Err(form);
    }
    let user = match user {
        None => None,
        Some((user, password)) => {
            let decoded = |text: &str| {
                percent_decoded(text)
                    .map(Secret::from)
                    .ok_or("it has a broken %-escape")
            };
            Some((decoded(user)?, decoded(password.unwrap_or_default())?))
        }
    };
    let base = format!("{scheme}://{}/{path}", host.to_ascii_lowercase());
    Ok(ServerUri {
        base: base.trim_end_matches('/').to_owned(),
        user,
    })
}

/// Splits a text into user and password, as they are written, and the rest after them.
pub(super) fn credentials(rest: &str) -> (Option<(&str, Option<&str>)>, &str) {
    // The last '@' before the first '?' ends the password, which may contain '/' and '@'. Another '@' after the '?'
    // may belong to an option.
    let options = rest.find('?').unwrap_or(rest.len());
    let Some(at) = rest[..options].rfind('@').or_else(|| {
        let colon = rest[..options].find(':')?;
        // In `user:pass?word@host` there is no '@' before the '?': the password contains the '?' and ends at the '@'.
        (colon < options).then(|| rest.find('@')).flatten()
    }) else {
        return (None, rest);
    };
    let (user, place) = (&rest[..at], &rest[at + 1..]);
    let (user, password) = match user.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (user, None),
    };
    (Some((user, password)), place)
}

/// Percent-encodes all characters that are not safe in every part of a URI.
pub(super) fn percent_encoded(text: &str) -> String {
    use std::fmt::Write;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

/// A place that artifacts are stored in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArtifactUri {
    /// A local folder, by its absolute path.
    Local(PathBuf),
    /// A prefix in an object store.
    Object(ObjectUri),
    /// A folder that a tracking server keeps for its clients, `mlflow-artifacts:`.
    Server(String),
}

/// The provider of an object store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cloud {
    /// Amazon S3, or a store with the same API.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
}

/// A prefix in an object store, as `s3://bucket/prefix`, `gs://bucket/prefix` and
/// `wasbs://container@account.blob.core.windows.net/prefix` name one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectUri {
    /// Provider of the store.
    pub cloud: Cloud,
    /// Bucket, or Azure's container.
    pub bucket: String,
    /// Azure's storage account.
    pub account: Option<String>,
    /// Beginning of the keys, without a slash at either end; empty for the whole bucket.
    pub prefix: String,
    uri: String,
}

impl ObjectUri {
    fn parse(scheme: &str, rest: &str, uri: &str) -> Result<Self, String> {
        let rest = rest
            .strip_prefix("//")
            .ok_or_else(|| format!("write {scheme}://<bucket>/<prefix>"))?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if let Some(known) = ["s3:", "gs:", "file:"]
            .iter()
            .find(|known| authority.eq_ignore_ascii_case(known))
        {
            return Err(format!(
                "it has two schemes: leave out the second, {known:?}"
            ));
        }
        let cloud = match scheme {
            "gs" => Cloud::Google,
            "wasbs" | "wasb" | "abfss" | "abfs" => Cloud::Azure,
            _ => Cloud::S3,
        };
        let (bucket, account) = match (cloud, authority.split_once('@')) {
            (Cloud::Azure, Some((container, host))) => {
                let account = host.split('.').next().unwrap_or_default();
                (container, Some(account.to_owned()))
            }
            (Cloud::Azure, None) => {
                return Err(format!(
                    "write {scheme}://<container>@<account>.blob.core.windows.net/<prefix>"
                ));
            }
            (_, Some(_)) => {
                return Err(
                    "credentials do not belong in it: give them as settings or in the environment"
                        .into(),
                );
            }
            (_, None) => (authority, None),
        };
        if bucket.is_empty() || account.as_deref() == Some("") || bucket.contains([':', '?', '#']) {
            return Err(format!(
                "it names no bucket; write {scheme}://<bucket>/<prefix>"
            ));
        }
        let prefix = path.trim_matches('/');
        if prefix.split('/').any(|part| matches!(part, "." | ".."))
            || prefix.contains("//")
            || prefix.chars().any(char::is_control)
        {
            return Err("its path has an empty part, '.', '..' or a control character".into());
        }
        Ok(Self {
            cloud,
            bucket: bucket.to_owned(),
            account,
            prefix: prefix.to_owned(),
            uri: uri.trim_end_matches('/').to_owned(),
        })
    }

    /// Returns the URI, without a slash at the end.
    pub fn as_str(&self) -> &str {
        &self.uri
    }
}

impl ArtifactUri {
    /// Reads an artifact URI: a path, `file:` with a path, `s3://`, `gs://`, `wasbs://` or `mlflow-artifacts:`.
    /// Percent-escapes are decoded in a path without a scheme too, as stock MLflow does.
    ///
    /// # Errors
    /// [`Invalid::Setting`] for an unknown scheme and for a URI that does not have the form of its scheme.
    pub fn parse(uri: &str) -> Result<Self, Invalid> {
        Self::parse_in(uri, Path::new(""))
    }

    /// Reads an artifact URI; a relative path begins in `folder`, or in the working directory where that is empty.
    ///
    /// # Errors
    /// The errors of [`ArtifactUri::parse`].
    pub(crate) fn parse_in(uri: &str, folder: &Path) -> Result<Self, Invalid> {
        let what = "artifact URI";
        let shown = without_credentials(uri);
        let refuse = |reason: String| Err(Invalid::setting(what, &shown, reason));
        let path = match uri.split_once(':') {
            None => unescaped(uri),
            Some(("file", rest)) => {
                let path = match rest.strip_prefix("//") {
                    Some(rest) => rest.strip_prefix("localhost").unwrap_or(rest),
                    None => rest,
                };
                if !path.starts_with('/') {
                    return refuse("write file:// and an absolute path".into());
                }
                match percent_decoded(path) {
                    Some(path) => path,
                    None => return refuse("it has a broken %-escape".into()),
                }
            }
            // A colon after a slash is part of a file name.
            Some((scheme, _)) if scheme.contains('/') => unescaped(uri),
            Some((scheme @ ("s3" | "s3a" | "gs" | "wasbs" | "wasb" | "abfss" | "abfs"), rest)) => {
                return match ObjectUri::parse(scheme, rest, uri) {
                    Ok(place) => Ok(Self::Object(place)),
                    Err(reason) => refuse(reason),
                };
            }
            Some(("mlflow-artifacts", rest)) if rest.starts_with('/') => {
                return Ok(Self::Server(uri.trim_end_matches('/').to_owned()));
            }
            Some((scheme, _)) => {
                return refuse(format!(
                    "the scheme {scheme:?} is not known; name a local folder, s3://, gs://, wasbs:// or \
                     mlflow-artifacts:/"
                ));
            }
        };
        if path.is_empty() {
            return refuse("it is empty; name a folder".into());
        }
        Ok(Self::Local(absolute(what, &folder.join(path))?))
    }

    /// Reads an artifact URI, and returns the text that an experiment stores as its location: the URI as it is given,
    /// as in stock MLflow, but a relative path as an absolute one.
    ///
    /// # Errors
    /// The errors of [`ArtifactUri::parse`].
    pub fn location(uri: &str) -> Result<String, Invalid> {
        let Self::Local(folder) = Self::parse(uri)? else {
            return Ok(uri.to_owned());
        };
        // Stock MLflow reads what follows these characters as the query of a `file:` URI, and not as part of the path.
        let is_plain = !uri.contains(['?', '#']);
        if uri.starts_with('/') || (uri.starts_with("file:") && is_plain) {
            return Ok(uri.to_owned());
        }
        Ok(escaped(&folder.display().to_string()))
    }
}

pub(crate) fn absolute(what: &'static str, path: &Path) -> Result<PathBuf, Invalid> {
    let absolute = std::path::absolute(path).map_err(|source| {
        Invalid::setting(what, &path.display().to_string(), source.to_string())
    })?;
    // `..` is resolved, as a database must have the same name in every working directory.
    let mut clean = PathBuf::new();
    for part in absolute.components() {
        if part == Component::ParentDir {
            clean.pop();
        } else {
            clean.push(part);
        }
    }
    Ok(clean)
}

/// Decodes the percent-escapes of a path as stock MLflow does: text that is no escape stays as it is.
pub(crate) fn unescaped(path: &str) -> String {
    if !path.contains('%') {
        return path.to_owned();
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escape = (byte == b'%').then(|| escape(after)).flatten();
        bytes.push(escape.unwrap_or(byte));
        rest = if escape.is_some() { &after[2..] } else { after };
    }
    String::from_utf8(bytes).unwrap_or_else(|_| path.to_owned())
}

/// Returns a path in which [`unescaped`] finds the given one.
pub(crate) fn escaped(path: &str) -> String {
    let mut parts = path.split('%');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text += if escape(part.as_bytes()).is_some() {
            "%25"
        } else {
            "%"
        };
        text += part;
    }
    text
}

/// Returns the byte that two hexadecimal digits at the front of a text stand for.
fn escape(digits: &[u8]) -> Option<u8> {
    let digit = |place: usize| char::from(*digits.get(place)?).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

pub(super) fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
            let value = digit(rest.next())? * 16 + digit(rest.next())?;
            bytes.push(u8::try_from(value).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_of_the_fuzzer_is_understood_or_refused() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/uri");
        for file in std::fs::read_dir(corpus).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap_or_default();
            let shown = match Destination::parse("URI", &text) {
                Ok(destination) => destination.uri(),
                Err(error) => error.to_string(),
            };
            // Texts that the fuzzer generates may have these letters at another place.
            assert!(!shown.contains(":pw@"), "{shown}");
            let _ = ArtifactUri::parse(&text);
        }
    }

    fn sqlite(uri: &str) -> Result<Destination, Invalid> {
        Destination::parse("tracking URI", uri)
    }

    #[test]
    fn sqlite_uris_name_a_file_by_its_absolute_path() {
        let relative = std::env::current_dir().unwrap().join("a b/mlflow.db");
        assert_eq!(
            sqlite("sqlite:///a b/mlflow.db").unwrap(),
            Destination::Sqlite(relative.clone())
        );
        assert_eq!(
            sqlite("sqlite:///x/../a b/mlflow.db").unwrap(),
            Destination::Sqlite(relative)
        );
        let absolute = sqlite("sqlite+pysqlite:////data/mlflow.db").unwrap();
        assert_eq!(absolute, Destination::Sqlite("/data/mlflow.db".into()));
        assert_eq!(absolute.uri(), "sqlite:////data/mlflow.db");
        assert_eq!(
            absolute.default_artifact_root().as_deref(),
            Some("/data/mlruns")
        );
    }

    #[test]
    fn what_cannot_be_written_to_is_refused_with_what_to_do() {
        for uri in [
            "",
            "mlflow.db",
            "sqlite://",
            "sqlite:///",
            "sqlite:///:memory:",
            "sqlite:///a.db?x=1",
            "file:///mlruns",
            "ftp://x",
            "mysql://h/db",
        ] {
            let error = sqlite(uri).unwrap_err().to_string();
            assert!(error.starts_with("tracking URI"), "{error}");
        }
    }

    #[test]
    fn servers_are_read_with_their_prefix_and_without_their_credentials() {
        let Destination::Server(found) = sqlite("https://me:p%40/?ss@Host:5000/a/b/").unwrap()
        else {
            panic!()
        };
        assert_eq!(found.base(), "https://host:5000/a/b");
        let (user, password) = found.user().unwrap();
        assert_eq!((user.reveal(), password.reveal()), ("me", "p@/?ss"));
        for wrong in ["http:", "http://", "http://:5000", "http://h?x=1"] {
            assert!(sqlite(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn credentials_never_reach_a_message() {
        let error = sqlite("mysql://me:p@ss/word@host/db").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("word"), "{error:?}");
        for (uri, shown) in [
            ("https://u:p@h/x", "https://***@h/x"),
            ("https://u:p?/@@h/x", "https://***@h/x"),
            ("https://h/x?password=p", "https://h/x?***"),
            ("https://u:p@h/x?user=a@b", "https://***@b"),
            ("sqlite:////data/a@b.db", "sqlite:////data/a@b.db"),
        ] {
            assert_eq!(without_credentials(uri), shown);
        }
        assert_eq!(
            format!("{:?}", Secret::from("hush".to_owned())),
            "Secret(…)"
        );
    }

    #[test]
    fn artifact_uris_name_a_folder() {
        let folder = |uri: &str| {
            ArtifactUri::parse(uri).map(|uri| match uri {
                ArtifactUri::Local(folder) => folder,
                other => panic!("{other:?}"),
            })
        };
        for (uri, path) in [
            ("/data/a:b", "/data/a:b"),
            ("file:///data/a%20b", "/data/a b"),
            ("file://localhost/data/a%25b", "/data/a%b"),
            ("file:/data", "/data"),
            ("/data/a%20b", "/data/a b"),
            ("/data/a:%20b", "/data/a: b"),
            ("/data/100%/a%2", "/data/100%/a%2"),
        ] {
            assert_eq!(folder(uri).unwrap(), Path::new(path), "{uri}");
        }
        for wrong in [
            "",
            "ftp://x",
            "s3:/bucket",
            "s3://",
            "s3://s3://bucket/x",
            "s3://key:secret@bucket/x",
            "s3://bucket/../x",
            "s3://bucket/a//b",
            "wasbs://container/x",
            "mlflow-artifacts:x",
            "file://relative",
            "file:///a%2",
        ] {
            assert!(folder(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn object_uris_name_a_bucket_and_a_prefix() {
        let place = |uri: &str| match ArtifactUri::parse(uri).unwrap() {
            ArtifactUri::Object(place) => place,
            other => panic!("{other:?}"),
        };
        let s3 = place("s3://bucket/a b/#c/");
        assert_eq!((s3.cloud, s3.bucket.as_str()), (Cloud::S3, "bucket"));
        assert_eq!(
            (s3.prefix.as_str(), s3.as_str()),
            ("a b/#c", "s3://bucket/a b/#c")
        );
        assert_eq!(place("s3://bucket").prefix, "");
        assert_eq!(place("gs://b/x").cloud, Cloud::Google);
        let azure = place("wasbs://c@acc.blob.core.windows.net/x");
        assert_eq!(
            (azure.cloud, azure.bucket.as_str(), azure.account.as_deref()),
            (Cloud::Azure, "c", Some("acc"))
        );
        assert_eq!(
            ArtifactUri::parse("mlflow-artifacts:/1/").unwrap(),
            ArtifactUri::Server("mlflow-artifacts:/1".to_owned())
        );
    }

    #[test]
    fn a_location_stays_as_it_is_spelt() {
        for uri in [
            "/data/a b",
            "/data/a%20b/",
            "/data/x/../a",
            "file:///data/a%20b",
            "file:/data",
            "file://localhost/data/",
            "s3://bucket/a b/",
            "gs://bucket",
            "mlflow-artifacts:/1/",
        ] {
            assert_eq!(ArtifactUri::location(uri).unwrap(), uri);
        }
        let here = std::env::current_dir().unwrap();
        for (uri, path) in [
            ("mlruns", "mlruns"),
            ("./a%20b/", "a b"),
            ("a%2520b", "a%2520b"),
        ] {
            let absolute = format!("{}/{path}", here.display());
            assert_eq!(ArtifactUri::location(uri).unwrap(), absolute);
        }
        assert_eq!(
            ArtifactUri::location("file:///a?b%2520c#d").unwrap(),
            "/a?b%2520c#d"
        );
        assert!(ArtifactUri::location("dbfs:/x").is_err());
    }

    #[test]
    fn escapes_are_read_as_they_are_written() {
        for path in ["/a", "/100%", "/a%20b", "/%%41", "/%2525", "/%ff", "/é%zz"] {
            assert_eq!(unescaped(&escaped(path)), path);
        }
    }
}
