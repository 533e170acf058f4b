//! What a tracker is told at construction: where to write, with which credentials, under which experiment.

use std::{
    fmt,
    path::{Component, Path, PathBuf},
};

use crate::{error::Error, record};

/// Experiment that is used when none is named.
pub const DEFAULT_EXPERIMENT: &str = "heimdall-localization";
/// Folder, in the working directory, of the journals when `HEIMDALL_DIR` is not set.
pub const DEFAULT_HEIMDALL_DIR: &str = ".heimdall";

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

/// Arguments of a tracker, as the user gave them.
#[derive(Clone, Debug, Default)]
pub struct TrackerConfig {
    /// Where runs are recorded.
    pub tracking_uri: String,
    /// Where artifacts of a new experiment go; beside the database by default.
    pub artifact_uri: Option<String>,
    /// Database behind the tracking server; only its agreement with `tracking_uri` is checked.
    pub backend_store_uri: Option<String>,
    /// Where models are registered; the tracking store by default.
    pub registry_uri: Option<String>,
    /// S3 endpoint, access key and secret key, for `s3://` artifacts.
    pub s3: S3Config,
    /// Name of the experiment.
    pub experiment_name: String,
    /// Folder of the journals.
    pub heimdall_dir: PathBuf,
}

/// Access to an S3 store.
#[derive(Clone, Debug, Default)]
pub struct S3Config {
    /// Endpoint for stores that are not AWS, for example `http://minio:9000`.
    pub endpoint_url: Option<String>,
    /// Access key.
    pub access_key_id: Option<Secret>,
    /// Secret key.
    pub secret_access_key: Option<Secret>,
}

/// A place that runs are recorded in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A SQLite database file, by its absolute path.
    Sqlite(PathBuf),
}

impl Destination {
    /// Reads a tracking, backend-store or registry URI.
    ///
    /// # Errors
    /// [`Error::Configuration`], naming `what`, for schemes that are unknown or not supported by this
    /// version and for URIs that name no file.
    pub fn parse(what: &'static str, uri: &str) -> Result<Self, Error> {
        let shown = without_credentials(uri);
        let refuse = |reason: String| Err(Error::configuration(what, &shown, reason));
        let Some((scheme, rest)) = uri.split_once(':') else {
            return refuse(format!(
                "it has no scheme; for a SQLite database file write sqlite:///{uri}"
            ));
        };
        // SQLAlchemy users name the driver too: sqlite+pysqlite://.
        let dialect = scheme
            .split('+')
            .next()
            .unwrap_or(scheme)
            .to_ascii_lowercase();
        match dialect.as_str() {
            "sqlite" => {}
            "postgresql" | "postgres" | "mysql" | "mssql" | "http" | "https" => {
                return refuse(format!(
                    "this version does not write to {dialect} yet; use sqlite:///mlflow.db"
                ));
            }
            "file" => {
                return refuse(
                    "MLflow's file store is no longer maintained; use sqlite:///mlflow.db and move \
                     existing runs with `mlflow migrate-filestore --source <folder> --target \
                     sqlite:///mlflow.db`"
                        .into(),
                );
            }
            _ => {
                return refuse(format!(
                    "the scheme {scheme:?} is not known; use sqlite:///mlflow.db"
                ));
            }
        }
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

    /// The URI without credentials: what the journal and messages say.
    pub fn uri(&self) -> String {
        match self {
            Self::Sqlite(path) => format!("sqlite:///{}", path.display()),
        }
    }

    /// Where artifacts go unless the user says otherwise: beside the database, in the folder stock MLflow
    /// uses.
    pub fn default_artifact_root(&self) -> String {
        match self {
            Self::Sqlite(path) => path.with_file_name("mlruns").display().to_string(),
        }
    }
}

/// A place that artifacts are put in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArtifactUri {
    /// A local folder, by its absolute path.
    Local(PathBuf),
}

impl ArtifactUri {
    /// Reads an artifact URI: a path, or `file:` with a path.
    ///
    /// # Errors
    /// [`Error::Configuration`] for schemes that are unknown or not supported by this version.
    pub fn parse(uri: &str) -> Result<Self, Error> {
        let what = "artifact URI";
        let shown = without_credentials(uri);
        let refuse = |reason: String| Err(Error::configuration(what, &shown, reason));
        let path = match uri.split_once(':') {
            None => uri.to_owned(),
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
            // A colon further back is part of a file name.
            Some((scheme, _)) if scheme.contains('/') => uri.to_owned(),
            Some(("s3" | "gs" | "wasbs" | "abfss" | "mlflow-artifacts" | "http" | "https", _)) => {
                return refuse(
                    "this version stores artifacts in local folders only; name a folder".into(),
                );
            }
            Some((scheme, _)) => {
                return refuse(format!(
                    "the scheme {scheme:?} is not known; name a local folder"
                ));
            }
        };
        if path.is_empty() {
            return refuse("it is empty; name a folder".into());
        }
        Ok(Self::Local(absolute(what, Path::new(&path))?))
    }

    /// The location as an experiment stores it.
    pub fn location(&self) -> String {
        match self {
            Self::Local(path) => path.display().to_string(),
        }
    }
}

/// [`TrackerConfig`] after its rules have been checked.
#[derive(Clone, Debug)]
pub(crate) struct Settled {
    pub tracking: Destination,
    pub registry: Destination,
    pub artifacts: Option<ArtifactUri>,
    pub experiment_name: String,
    pub heimdall_dir: PathBuf,
}

impl TrackerConfig {
    /// Checks everything that can be checked without touching a store.
    pub(crate) fn settle(&self) -> Result<Settled, Error> {
        let given = |uri: &Option<String>| uri.clone().filter(|uri| !uri.is_empty());
        let tracking = Destination::parse("tracking URI", &self.tracking_uri)?;
        if let Some(uri) = given(&self.backend_store_uri) {
            let backend = Destination::parse("backend store URI", &uri)?;
            if backend != tracking {
                return Err(Error::configuration(
                    "backend store URI",
                    &backend.uri(),
                    format!(
                        "runs are written to the tracking URI {}; leave it out or make both the same",
                        tracking.uri()
                    ),
                ));
            }
        }
        let registry = match given(&self.registry_uri) {
            Some(uri) => Destination::parse("registry URI", &uri)?,
            None => tracking.clone(),
        };
        let artifacts = given(&self.artifact_uri)
            .map(|uri| ArtifactUri::parse(&uri))
            .transpose()?;
        Ok(Settled {
            tracking,
            registry,
            artifacts,
            experiment_name: record::experiment_name(&self.experiment_name)?,
            heimdall_dir: absolute("HEIMDALL_DIR", &self.heimdall_dir)?,
        })
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

fn absolute(what: &'static str, path: &Path) -> Result<PathBuf, Error> {
    let absolute = std::path::absolute(path).map_err(|source| {
        Error::configuration(what, &path.display().to_string(), source.to_string())
    })?;
    // `..` goes, as the same database must have one name whatever folder it is named from.
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

fn percent_decoded(text: &str) -> Option<String> {
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

    fn sqlite(uri: &str) -> Result<Destination, Error> {
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
        assert_eq!(absolute.default_artifact_root(), "/data/mlruns");
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
            "postgresql://h/db",
            "https://mlflow.example",
        ] {
            let error = sqlite(uri).unwrap_err().to_string();
            assert!(
                error.starts_with("tracking URI") && error.contains("sqlite:///")
                    || uri.contains('?'),
                "{error}"
            );
        }
    }

    #[test]
    fn credentials_never_reach_a_message() {
        let error = sqlite("postgresql://me:p@ss/word@host/db").unwrap_err();
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
        let folder = |uri: &str| ArtifactUri::parse(uri).map(|uri| uri.location());
        assert_eq!(folder("/data/a:b").unwrap(), "/data/a:b");
        assert_eq!(folder("file:///data/a%20b").unwrap(), "/data/a b");
        assert_eq!(folder("file:/data").unwrap(), "/data");
        for wrong in [
            "",
            "s3://bucket",
            "ftp://x",
            "file://relative",
            "file:///a%2",
        ] {
            assert!(folder(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_backend_store_other_than_the_tracking_store_is_refused() {
        let config = TrackerConfig {
            tracking_uri: "sqlite:////a.db".into(),
            backend_store_uri: Some("sqlite:////b.db".into()),
            experiment_name: "e".into(),
            heimdall_dir: "h".into(),
            ..TrackerConfig::default()
        };
        assert!(config.settle().unwrap_err().to_string().contains("/b.db"));
        let same = TrackerConfig {
            backend_store_uri: Some("sqlite:////a.db".into()),
            ..config
        };
        assert!(same.settle().is_ok());
    }
}
