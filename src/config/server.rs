//! Access to a tracking server, from MLflow's own environment variables, which are read here only.

use std::{path::PathBuf, time::Duration};

use super::{credential_files, s3::ignores_tls, variables::truth};
use crate::{mlflow::invalid::Invalid, net::secret::Secret};

const TIMEOUT_S: f64 = 120.0;
const MAX_RETRIES: u32 = 3;
const BACKOFF_FACTOR: f64 = 0.5;
const PARTS_FROM: f64 = (500 << 20) as f64;
const PART: f64 = (10 << 20) as f64;

/// Credentials, certificates and time limits for tracking servers.
#[derive(Clone, Debug)]
pub(crate) struct ServerAccess {
    /// User and password of `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`.
    pub user: Option<(Secret, Secret)>,
    /// Bearer token of `MLFLOW_TRACKING_TOKEN`.
    pub token: Option<Secret>,
    /// Content of the `.netrc` file, which counts where nothing else gives credentials.
    pub netrc: Option<Secret>,
    /// `MLFLOW_TRACKING_INSECURE_TLS`: certificates are not verified.
    pub insecure_tls: bool,
    /// `MLFLOW_TRACKING_SERVER_CERT_PATH`: the only certificates to trust.
    pub server_cert: Option<PathBuf>,
    /// `MLFLOW_TRACKING_CLIENT_CERT_PATH`: a certificate of our own with its key.
    pub client_cert: Option<PathBuf>,
    /// `MLFLOW_HTTP_REQUEST_TIMEOUT`: longest time for an answer; 120 s.
    pub timeout: Duration,
    /// `MLFLOW_HTTP_REQUEST_MAX_RETRIES`: number of times that a query is repeated; 3. A delivery is repeated until it
    /// succeeds.
    pub max_retries: u32,
    /// `MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR`: seconds before a query is repeated the first time, doubled each time; 0.5.
    pub backoff_factor: f64,
    /// Settings of uploads in parts to the store behind the server.
    pub parts: PartsAccess,
}

/// Settings of uploads in parts, which are sent directly to the store behind a tracking server.
#[derive(Clone, Debug)]
pub(crate) struct PartsAccess {
    /// `MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD`: true where files are sent in parts; where it is not set, the server
    /// decides.
    pub enabled: Option<bool>,
    /// `MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE`: least length of a file that is sent in parts; 500 MiB.
    pub from: u64,
    /// `MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE`: length of a part; 10 MiB.
    pub length: u64,
    /// `MLFLOW_S3_IGNORE_TLS`: certificates of that store are not verified.
    pub insecure_tls: bool,
    /// `AWS_CA_BUNDLE`: certificates to trust for that store besides the system's.
    pub ca_bundle: Option<PathBuf>,
}

impl ServerAccess {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`Invalid::Setting`] for a text that is not a number, or neither true nor false, and for certificates to trust
    /// while certificates are not verified.
    pub(crate) fn from_env() -> Result<Self, Invalid> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Invalid> {
        let given = |name: &str| {
            let value = variable(name)?.trim().to_owned();
            Some(value).filter(|value| !value.is_empty())
        };
        // A secret of Kubernetes often ends with a line break, which no header can have.
        let secret = |name: &'static str| match variable(name) {
            Some(value) if value.chars().any(char::is_control) => Err(Invalid::setting(
                name,
                "***",
                "it must be one line, without a line break at its end",
            )),
            _ => Ok(given(name).map(Secret::from)),
        };
        let path = |name: &str| given(name).map(PathBuf::from);
        let number = |name: &'static str, default: f64| {
            let Some(text) = given(name) else {
                return Ok(default);
            };
            let parsed = text.parse::<f64>().ok();
            let valid = parsed.filter(|number| number.is_finite() && *number >= 0.0);
            valid.ok_or_else(|| Invalid::setting(name, &text, "it must be a number of at least 0"))
        };
        let insecure_tls = given("MLFLOW_TRACKING_INSECURE_TLS")
            .is_some_and(|text| matches!(text.to_lowercase().as_str(), "true" | "1"));
        let server_cert = path("MLFLOW_TRACKING_SERVER_CERT_PATH");
        // The variables of the library by which stock MLflow asks.
        let bundle = path("REQUESTS_CA_BUNDLE").or_else(|| path("CURL_CA_BUNDLE"));
        let bundle = bundle.filter(|path| !insecure_tls && path.is_file());
        if let (true, Some(path)) = (insecure_tls, &server_cert) {
            return Err(Invalid::setting(
                "MLFLOW_TRACKING_SERVER_CERT_PATH",
                &path.display().to_string(),
                "certificates are not verified, as MLFLOW_TRACKING_INSECURE_TLS is true: unset one of them",
            ));
        }
        let switch = "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD";
        let parts = PartsAccess {
            enabled: truth(switch, &given(switch).unwrap_or_default())?,
            from: number("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", PARTS_FROM)? as u64,
            length: number("MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE", PART)? as u64,
            insecure_tls: ignores_tls(given),
            ca_bundle: path("AWS_CA_BUNDLE"),
        };
        if parts.length == 0 {
            return Err(Invalid::setting(
                "MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE",
                "0",
                "a part must have at least one byte",
            ));
        }
        for name in ["MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4"] {
            let value = given(name).unwrap_or_default();
            if !matches!(value.to_lowercase().as_str(), "" | "false" | "0") {
                return Err(Invalid::setting(
                    name,
                    &value,
                    "requests that a plugin or AWS signs are not supported: unset it, and use a user and password or \
                     a token",
                ));
            }
        }
        let user = secret("MLFLOW_TRACKING_USERNAME")?.zip(secret("MLFLOW_TRACKING_PASSWORD")?);
        let token = secret("MLFLOW_TRACKING_TOKEN")?;
        let user = match token {
            None => user.or_else(|| credential_files::of_mlflow(&given)),
            Some(_) => user,
        };
        let retries = number("MLFLOW_HTTP_REQUEST_MAX_RETRIES", f64::from(MAX_RETRIES))?;
        Ok(Self {
            user,
            token,
            netrc: credential_files::netrc(&given),
            insecure_tls,
            server_cert: server_cert.or(bundle),
            client_cert: path("MLFLOW_TRACKING_CLIENT_CERT_PATH"),
            timeout: Duration::try_from_secs_f64(number("MLFLOW_HTTP_REQUEST_TIMEOUT", TIMEOUT_S)?)
                .unwrap_or(Duration::MAX),
            // More than a thousand retries are as good as endless.
            max_retries: retries.clamp(0.0, 1000.0) as u32,
            backoff_factor: number("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", BACKOFF_FACTOR)?,
            parts,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(variables: &[(&str, &str)]) -> Result<ServerAccess, Invalid> {
        ServerAccess::from_variables(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn nothing_set_is_no_credentials_and_verified_certificates() {
        let access = access(&[("MLFLOW_TRACKING_TOKEN", "")]).unwrap();
        assert!(access.user.is_none() && access.token.is_none() && !access.insecure_tls);
        assert_eq!(access.timeout, Duration::from_secs(120));
        let parts = access.parts;
        assert_eq!(
            (parts.enabled, parts.from, parts.length),
            (None, 524_288_000, 10_485_760)
        );
    }

    #[test]
    fn blanks_around_a_token_are_no_part_of_it() {
        let access = access(&[("MLFLOW_TRACKING_TOKEN", " abc ")]).unwrap();
        assert_eq!(access.token.unwrap().reveal(), "abc");
    }

    #[test]
    fn credentials_are_read_and_not_shown() {
        let access = access(&[
            ("MLFLOW_TRACKING_USERNAME", "me"),
            ("MLFLOW_TRACKING_PASSWORD", "hush"),
            ("MLFLOW_TRACKING_TOKEN", "hush too"),
        ])
        .unwrap();
        assert_eq!(access.user.as_ref().unwrap().1.reveal(), "hush");
        assert!(!format!("{access:?}").contains("hush"));
    }

    #[test]
    fn what_contradicts_itself_or_is_no_number_is_refused() {
        for variables in [
            [
                ("MLFLOW_TRACKING_INSECURE_TLS", "true"),
                ("MLFLOW_TRACKING_SERVER_CERT_PATH", "/ca.pem"),
            ],
            [("MLFLOW_HTTP_REQUEST_TIMEOUT", "soon"), ("", "")],
            [("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "-1"), ("", "")],
            [("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "maybe"), ("", "")],
            [("MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE", "0"), ("", "")],
            [("MLFLOW_TRACKING_TOKEN", "abc\n"), ("", "")],
            [("MLFLOW_TRACKING_AUTH", "corp"), ("", "")],
            [("MLFLOW_TRACKING_AWS_SIGV4", "true"), ("", "")],
        ] {
            let error = access(&variables).unwrap_err().to_string();
            assert!(error.starts_with("MLFLOW_"), "{error}");
        }
    }
}
