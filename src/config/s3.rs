//! Access to S3 stores: the fields of the settings, then the variables and files that boto3 and MLflow read.

use std::{collections::BTreeMap, path::PathBuf};

use crate::{
    mlflow::invalid::Invalid,
    net::secret::{Secret, without_credentials},
};

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

/// Access key, secret key and, for credentials that expire, session token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AwsKeys {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key_id: Secret,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: Secret,
    /// `AWS_SESSION_TOKEN`.
    pub session_token: Option<Secret>,
}

/// Credentials, endpoint and other settings for S3 stores.
#[derive(Clone, Debug, Default)]
pub(crate) struct S3Access {
    /// Endpoint for stores that are not AWS, for example `http://minio:9000`; `MLFLOW_S3_ENDPOINT_URL`.
    pub endpoint_url: Option<String>,
    /// Access keys; where there are none, they come from a web identity, a container or an instance.
    pub keys: Option<AwsKeys>,
    /// `credential_process` of the profile: the program that prints keys, with its arguments.
    pub key_process: Option<Secret>,
    /// `AWS_REGION`, else `AWS_DEFAULT_REGION`, else the region of the profile.
    pub region: Option<String>,
    /// `MLFLOW_S3_IGNORE_TLS`: certificates are not verified.
    pub insecure_tls: bool,
    /// `AWS_CA_BUNDLE`: certificates to trust besides the system's.
    pub ca_bundle: Option<PathBuf>,
    /// False where `AWS_REQUEST_CHECKSUM_CALCULATION` is `when_required`: uploads carry no checksums.
    pub has_checksums: bool,
    /// False where `AWS_RESPONSE_CHECKSUM_VALIDATION` is `when_required`: downloads ask for no checksums.
    pub validates_answers: bool,
    /// True where buckets are part of the host's name at a custom endpoint: `MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE`,
    /// `S3_ADDRESSING_STYLE`, or `addressing_style` of the profile is `virtual`.
    pub is_virtual_hosted: Option<bool>,
    /// `MLFLOW_S3_UPLOAD_EXTRA_ARGS`, as headers of the requests that create an object.
    pub upload_headers: Headers,
    /// Content type of every object, from `MLFLOW_S3_UPLOAD_EXTRA_ARGS`.
    pub content_type: Option<String>,
    /// `MLFLOW_S3_EXPECTED_BUCKET_OWNER`: account that must own the bucket.
    pub bucket_owner: Option<String>,
}

impl S3Access {
    /// Reads the settings' fields and the environment.
    ///
    /// # Errors
    /// [`Invalid::Setting`] for an access key without its secret key or the reverse, an unknown argument of uploads,
    /// and a profile that does not exist or gets its keys in a way that is not supported.
    pub(crate) fn new(given: &S3Config) -> Result<Self, Invalid> {
        Self::from_variables(given, |name| std::env::var(name).ok())
    }

    /// Returns true where the environment turns the verification of certificates off.
    pub(crate) fn ignores_tls() -> bool {
        ignores_tls(|name| std::env::var(name).ok())
    }

    fn from_variables(
        given: &S3Config,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Invalid> {
        let variable = |name: &str| {
            let value = variable(name)?.trim().to_owned();
            Some(value).filter(|value| !value.is_empty())
        };
        let filled = |secret: &Option<Secret>| secret.clone().filter(|it| !it.reveal().is_empty());
        let in_environment = keys(
            variable("AWS_ACCESS_KEY_ID").map(Secret::from),
            variable("AWS_SECRET_ACCESS_KEY").map(Secret::from),
            variable("AWS_SESSION_TOKEN").map(Secret::from),
            "AWS_ACCESS_KEY_ID",
        );
        let settings = keys(
            filled(&given.access_key_id),
            filled(&given.secret_access_key),
            None,
            "s3_access_key_id",
        )?;
        let keys = match settings {
            // The settings are usually made from the environment: the token of the environment belongs to these keys
            // where they are equal.
            Some(keys) => match in_environment {
                Ok(Some(same))
                    if same.access_key_id == keys.access_key_id
                        && same.secret_access_key == keys.secret_access_key =>
                {
                    Some(same)
                }
                _ => Some(keys),
            },
            None => in_environment?,
        };
        let is_role = variable("AWS_WEB_IDENTITY_TOKEN_FILE").is_some();
        let profile = if keys.is_none() && !is_role || variable("AWS_PROFILE").is_some() {
            Profile::find(&variable)?
        } else {
            Profile::default()
        };
        let (keys, key_process) = match keys {
            None if !is_role => profile.keys()?,
            keys => (keys, None),
        };
        let (upload_headers, content_type) = match variable("MLFLOW_S3_UPLOAD_EXTRA_ARGS") {
            Some(json) => upload_headers(&json)?,
            None => (Vec::new(), None),
        };
        let endpoint = given.endpoint_url.clone().filter(|url| !url.is_empty());
        let checksums = |name: &'static str, of_profile: &str| {
            let given = variable(name).or_else(|| profile.value(of_profile));
            is_always(name, given.as_deref().unwrap_or_default())
        };
        Ok(Self {
            has_checksums: checksums(
                "AWS_REQUEST_CHECKSUM_CALCULATION",
                "request_checksum_calculation",
            )?,
            validates_answers: checksums(
                "AWS_RESPONSE_CHECKSUM_VALIDATION",
                "response_checksum_validation",
            )?,
            is_virtual_hosted: addressing_style(&variable, &profile)?,
            endpoint_url: endpoint_url(endpoint, &variable, &profile)?,
            keys,
            key_process,
            region: variable("AWS_REGION")
                .or_else(|| variable("AWS_DEFAULT_REGION"))
                .or_else(|| profile.value("region")),
            insecure_tls: ignores_tls(variable),
            ca_bundle: variable("AWS_CA_BUNDLE").map(PathBuf::from),
            upload_headers,
            content_type,
            bucket_owner: variable("MLFLOW_S3_EXPECTED_BUCKET_OWNER"),
        })
    }
}

/// Sources of the endpoint, in the order in which they count.
const ENDPOINTS: [&str; 3] = [
    "MLFLOW_S3_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
];

/// Returns the endpoint of the settings, else that of the environment or the profile.
///
/// # Errors
/// [`Invalid::Setting`], naming the source, for an endpoint that is no URL of a host.
fn endpoint_url(
    given: Option<String>,
    variable: &impl Fn(&str) -> Option<String>,
    profile: &Profile,
) -> Result<Option<String>, Invalid> {
    let given = given.map(|url| ("s3_endpoint_url", url));
    let of_environment = || {
        let mut found = ENDPOINTS.iter().map(|name| (*name, variable(name)));
        found.find_map(|(name, url)| Some((name, url?)))
    };
    let of_profile = || {
        Some((
            "endpoint_url of the profile",
            profile.value("endpoint_url")?,
        ))
    };
    let Some((name, url)) = given.or_else(of_environment).or_else(of_profile) else {
        return Ok(None);
    };
    let trimmed = url.trim().trim_matches(['"', '\'']).trim();
    let rest = trimmed
        .strip_prefix("http://")
        .or_else(|| trimmed.strip_prefix("https://"));
    let has_host = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['/', ':']));
    let is_odd = trimmed
        .chars()
        .any(|it| it.is_whitespace() || it.is_control());
    if !has_host || is_odd || reqwest::Url::parse(trimmed).is_err() {
        return Err(Invalid::setting(
            name,
            &without_credentials(&url),
            "it must be a URL of a host, for example http://minio:9000",
        ));
    }
    Ok(Some(trimmed.to_owned()))
}

/// Reads boto3's words for the calculation of checksums; returns false for `when_required`.
fn is_always(name: &'static str, text: &str) -> Result<bool, Invalid> {
    match text.trim().to_ascii_lowercase().as_str() {
        "" | "when_supported" => Ok(true),
        "when_required" => Ok(false),
        _ => Err(Invalid::setting(
            name,
            text,
            "it must be \"when_supported\" or \"when_required\"",
        )),
    }
}

/// Returns true where buckets are to be part of the host's name, false where they are part of the path, and none where
/// the user leaves that open.
fn addressing_style(
    variable: &impl Fn(&str) -> Option<String>,
    profile: &Profile,
) -> Result<Option<bool>, Invalid> {
    let name = "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE";
    let given = variable(name)
        .or_else(|| variable("S3_ADDRESSING_STYLE"))
        .or_else(|| profile.value("addressing_style"));
    match given
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
        .as_str()
    {
        "" | "auto" => Ok(None),
        "virtual" => Ok(Some(true)),
        "path" => Ok(Some(false)),
        other => Err(Invalid::setting(
            name,
            other,
            "it must be \"auto\", \"path\" or \"virtual\"",
        )),
    }
}

/// Returns true where the user has turned the verification of the certificates of S3 stores off.
pub(crate) fn ignores_tls(variable: impl Fn(&str) -> Option<String>) -> bool {
    variable("MLFLOW_S3_IGNORE_TLS")
        .is_some_and(|text| matches!(text.to_lowercase().as_str(), "true" | "1"))
}

fn keys(
    id: Option<Secret>,
    secret: Option<Secret>,
    session_token: Option<Secret>,
    what: &'static str,
) -> Result<Option<AwsKeys>, Invalid> {
    match (id, secret) {
        (Some(access_key_id), Some(secret_access_key)) => Ok(Some(AwsKeys {
            access_key_id,
            secret_access_key,
            session_token,
        })),
        (None, None) => Ok(None),
        (id, _) => Err(Invalid::setting(
            what,
            if id.is_some() { "***" } else { "" },
            "an access key and its secret key come together: give both or neither",
        )),
    }
}

/// Names and values of headers.
type Headers = Vec<(String, String)>;

/// Arguments of boto3's `ExtraArgs`, each with its header.
const UPLOAD_HEADERS: [(&str, &str); 22] = [
    ("ACL", "x-amz-acl"),
    (
        "BucketKeyEnabled",
        "x-amz-server-side-encryption-bucket-key-enabled",
    ),
    ("CacheControl", "cache-control"),
    ("ContentDisposition", "content-disposition"),
    ("ContentEncoding", "content-encoding"),
    ("ContentLanguage", "content-language"),
    ("ExpectedBucketOwner", "x-amz-expected-bucket-owner"),
    ("Expires", "expires"),
    ("GrantFullControl", "x-amz-grant-full-control"),
    ("GrantRead", "x-amz-grant-read"),
    ("GrantReadACP", "x-amz-grant-read-acp"),
    ("GrantWriteACP", "x-amz-grant-write-acp"),
    ("ObjectLockLegalHoldStatus", "x-amz-object-lock-legal-hold"),
    ("ObjectLockMode", "x-amz-object-lock-mode"),
    (
        "ObjectLockRetainUntilDate",
        "x-amz-object-lock-retain-until-date",
    ),
    ("RequestPayer", "x-amz-request-payer"),
    (
        "SSEKMSEncryptionContext",
        "x-amz-server-side-encryption-context",
    ),
    ("SSEKMSKeyId", "x-amz-server-side-encryption-aws-kms-key-id"),
    ("ServerSideEncryption", "x-amz-server-side-encryption"),
    ("StorageClass", "x-amz-storage-class"),
    ("Tagging", "x-amz-tagging"),
    ("WebsiteRedirectLocation", "x-amz-website-redirect-location"),
];

/// Converts arguments of boto3's `ExtraArgs` into headers of `PutObject`; returns the content type separately.
fn upload_headers(json: &str) -> Result<(Headers, Option<String>), Invalid> {
    const NAME: &str = "MLFLOW_S3_UPLOAD_EXTRA_ARGS";
    let refuse = |value: &str, reason: &str| Err(Invalid::setting(NAME, value, reason));
    let Ok(arguments) = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(json)
    else {
        return refuse(
            json,
            "it must be a JSON object, for example {\"ServerSideEncryption\": \"aws:kms\"}",
        );
    };
    let mut headers = Vec::new();
    let mut content_type = None;
    for (name, value) in arguments {
        let text = match &value {
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Bool(_) | serde_json::Value::Number(_) => value.to_string(),
            serde_json::Value::Object(metadata) if name == "Metadata" => {
                for (key, value) in metadata {
                    let Some(text) = value.as_str() else {
                        return refuse(key, "metadata must be a text");
                    };
                    headers.push((format!("x-amz-meta-{}", key.to_lowercase()), text.into()));
                }
                continue;
            }
            _ => return refuse(&name, "its value must be a text"),
        };
        match name.as_str() {
            "ContentType" => content_type = Some(text),
            // Every object gets a checksum, which is compared, with or without this argument.
            "ChecksumAlgorithm" => {}
            name => match UPLOAD_HEADERS
                .iter()
                .find(|(argument, _)| *argument == name)
            {
                Some((_, header)) => headers.push(((*header).to_owned(), text)),
                None => {
                    return refuse(
                        name,
                        "it is no argument of uploads that is known here: see boto3's ExtraArgs",
                    );
                }
            },
        }
    }
    Ok((headers, content_type))
}

/// A profile of the shared files of AWS's tools.
#[derive(Debug, Default)]
struct Profile {
    name: String,
    values: BTreeMap<String, String>,
}

impl Profile {
    /// Returns the profile that `AWS_PROFILE` names, else the default profile, which is empty where it does not exist.
    fn find(variable: &impl Fn(&str) -> Option<String>) -> Result<Self, Invalid> {
        let asked = variable("AWS_PROFILE").or_else(|| variable("AWS_DEFAULT_PROFILE"));
        let name = asked.clone().unwrap_or_else(|| "default".to_owned());
        let file = |name: &str, default: &str| {
            let path = match variable(name) {
                Some(path) => PathBuf::from(path),
                None => PathBuf::from(variable("HOME").unwrap_or_default()).join(default),
            };
            std::fs::read_to_string(path).unwrap_or_default()
        };
        let config = file("AWS_CONFIG_FILE", ".aws/config");
        let credentials = file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials");
        let mut values = section(&config, &[&name, &format!("profile {name}")]);
        // As in boto3, values of the credentials file replace those of the config file.
        let of_credentials = section(&credentials, &[&name]);
        let is_there = values.is_some() || of_credentials.is_some();
        let mut values = values.take().unwrap_or_default();
        values.extend(of_credentials.unwrap_or_default());
        match asked {
            Some(name) if !is_there => Err(Invalid::setting(
                "AWS_PROFILE",
                &name,
                "no such profile stands in ~/.aws/credentials or ~/.aws/config",
            )),
            _ => Ok(Self { name, values }),
        }
    }

    fn value(&self, key: &str) -> Option<String> {
        self.values.get(key).cloned()
    }

    /// Returns the keys of the profile, or the program that prints them.
    fn keys(&self) -> Result<(Option<AwsKeys>, Option<Secret>), Invalid> {
        let secret = |key: &str| self.value(key).map(Secret::from);
        let found = keys(
            secret("aws_access_key_id"),
            secret("aws_secret_access_key"),
            secret("aws_session_token"),
            "AWS_PROFILE",
        )?;
        let others = ["role_arn", "sso_session", "sso_start_url"];
        let other = others.iter().find(|key| self.values.contains_key(**key));
        match (found, other) {
            (None, Some(key)) => Err(Invalid::setting(
                "AWS_PROFILE",
                &self.name,
                format!(
                    "the profile gets its keys by {key}, which is not supported: export them with \
                     `aws configure export-credentials --format env`, or name a profile that has \
                     `credential_process = aws configure export-credentials --profile {}`",
                    self.name
                ),
            )),
            (Some(keys), _) => Ok((Some(keys), None)),
            (None, None) => Ok((None, secret("credential_process"))),
        }
    }
}

/// Returns the values of the sections that have one of these names, with keys in lower case and without nested values.
fn section(text: &str, names: &[&str]) -> Option<BTreeMap<String, String>> {
    let mut found: Option<BTreeMap<String, String>> = None;
    let mut is_inside = false;
    for line in text.lines() {
        let is_nested = line.starts_with([' ', '\t']);
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.split_once(']'))
            .map(|(name, _)| name.split_whitespace().collect::<Vec<_>>().join(" "))
        {
            is_inside = names.contains(&name.as_str());
            if is_inside {
                found.get_or_insert_default();
            }
        } else if is_inside
            && !is_nested
            && let Some((key, value)) = line.split_once('=')
        {
            let values = found.get_or_insert_default();
            values.insert(key.trim().to_lowercase(), value.trim().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn access(given: &S3Config, variables: &[(&str, &str)]) -> Result<S3Access, Invalid> {
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        S3Access::from_variables(given, |name| {
            variables.get(name).map(|value| (*value).to_owned())
        })
    }

    fn shown(access: &S3Access) -> Option<(&str, &str, Option<&str>)> {
        access.keys.as_ref().map(|keys| {
            (
                keys.access_key_id.reveal(),
                keys.secret_access_key.reveal(),
                keys.session_token.as_ref().map(Secret::reveal),
            )
        })
    }

    #[test]
    fn the_settings_come_before_the_environment_and_that_before_a_profile() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("credentials");
        std::fs::write(
            &file,
            "[default]\naws_access_key_id = d\naws_secret_access_key = ds\nregion = eu-south-1\n\
             [other]\naws_access_key_id=o\naws_secret_access_key=hush\naws_session_token=ot\n",
        )
        .unwrap();
        let file = file.to_str().unwrap();
        let files = ("AWS_SHARED_CREDENTIALS_FILE", file);
        let none = ("AWS_CONFIG_FILE", "/nowhere");
        let given = S3Config {
            access_key_id: Some("s".to_owned().into()),
            secret_access_key: Some("ss".to_owned().into()),
            ..S3Config::default()
        };
        let environment = [
            ("AWS_ACCESS_KEY_ID", "e"),
            ("AWS_SECRET_ACCESS_KEY", "es"),
            ("AWS_SESSION_TOKEN", "et"),
            files,
            none,
        ];
        let found = access(&given, &environment).unwrap();
        assert_eq!(shown(&found), Some(("s", "ss", None)));
        let found = access(&S3Config::default(), &environment).unwrap();
        assert_eq!(shown(&found), Some(("e", "es", Some("et"))));
        let found = access(&S3Config::default(), &[files, none]).unwrap();
        assert_eq!(shown(&found), Some(("d", "ds", None)));
        assert_eq!(found.region.as_deref(), Some("eu-south-1"));
        let found = access(
            &S3Config::default(),
            &[files, none, ("AWS_PROFILE", "other")],
        )
        .unwrap();
        assert_eq!(shown(&found), Some(("o", "hush", Some("ot"))));
        assert!(!format!("{found:?}").contains("hush"));
        let wrong = access(
            &S3Config::default(),
            &[files, none, ("AWS_PROFILE", "third")],
        );
        assert!(wrong.unwrap_err().to_string().contains("third"));
    }

    #[test]
    fn the_token_of_the_environment_belongs_to_its_keys() {
        let given = S3Config {
            access_key_id: Some("e".to_owned().into()),
            secret_access_key: Some("es".to_owned().into()),
            ..S3Config::default()
        };
        let environment = [
            ("AWS_ACCESS_KEY_ID", "e"),
            ("AWS_SECRET_ACCESS_KEY", "es"),
            ("AWS_SESSION_TOKEN", "et"),
        ];
        let found = access(&given, &environment).unwrap();
        assert_eq!(shown(&found), Some(("e", "es", Some("et"))));
        // The secret key of another tracker in the environment does not belong to these settings.
        let other = S3Config {
            secret_access_key: Some("other".to_owned().into()),
            ..given.clone()
        };
        let found = access(&other, &environment).unwrap();
        assert_eq!(shown(&found), Some(("e", "other", None)));
    }

    #[test]
    fn half_a_pair_of_keys_is_refused_without_showing_it() {
        let error = access(&S3Config::default(), &[("AWS_ACCESS_KEY_ID", "hush")]).unwrap_err();
        assert!(!error.to_string().contains("hush"));
    }

    #[test]
    fn arguments_of_uploads_become_headers() {
        let (headers, content_type) = upload_headers(
            r#"{"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "k", "ACL": "private",
                "Metadata": {"Team": "rf"}, "ContentType": "x/y", "BucketKeyEnabled": true}"#,
        )
        .unwrap();
        let has = |name: &str, value: &str| headers.iter().any(|(n, v)| n == name && v == value);
        assert!(has("x-amz-server-side-encryption", "aws:kms"));
        assert!(has("x-amz-server-side-encryption-aws-kms-key-id", "k"));
        assert!(has("x-amz-acl", "private") && has("x-amz-meta-team", "rf"));
        assert!(has(
            "x-amz-server-side-encryption-bucket-key-enabled",
            "true"
        ));
        assert_eq!(content_type.as_deref(), Some("x/y"));
        for wrong in ["[]", "{\"Acl\": \"private\"}", "{\"ACL\": []}", "no"] {
            assert!(upload_headers(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_section_has_its_own_values_alone() {
        let text = "# c\n[profile a b]\nKey = 1 \ns3 =\n  region = nested\nregion=eu\n[profile c]\nregion = us\n";
        let found = section(text, &["profile a b"]).unwrap();
        assert_eq!(found.get("region").map(String::as_str), Some("eu"));
        assert_eq!(found.get("key").map(String::as_str), Some("1"));
        assert!(section(text, &["a b"]).is_none());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_of_profiles_panic(text in "(\\[default\\]|[ =\\n#;a-z\\]\\[é])*") {
            let _ = section(&text, &["default"]);
        }
    }
}
