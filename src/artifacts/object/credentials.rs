//! The credentials of an S3 store, from any source.

use std::{
    fmt,
    io::{self, Read},
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use object_store::{
    CredentialProvider,
    aws::{AwsCredential, AwsCredentialProvider},
};
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::net::secret::Secret;

/// Time before their expiry at which keys are fetched anew; botocore does the same.
const REFRESH_BEFORE_EXPIRY: TimeDelta = TimeDelta::minutes(10);
/// Longest time that a program may take to print keys.
const PROCESS_TIMEOUT: Duration = Duration::from_secs(60);
/// Time between two checks that the program has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// No credentials were found in any of the known places.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct MissingCredentials(#[source] object_store::Error);

/// Credentials whose error says [`MissingCredentials`] where there are none.
#[derive(Debug)]
pub(crate) struct CheckedCredentials(AwsCredentialProvider);

impl CheckedCredentials {
    pub(crate) fn wrap(provider: &AwsCredentialProvider) -> AwsCredentialProvider {
        Arc::new(Self(Arc::clone(provider)))
    }
}

#[async_trait]
impl CredentialProvider for CheckedCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let found = self.0.get_credential().await;
        found.map_err(|error| object_store::Error::Generic {
            store: "S3",
            source: Box::new(MissingCredentials(error)),
        })
    }
}

/// ProcessOutput that a program prints, which `credential_process` of a profile names.
///
/// The format is described at <https://docs.aws.amazon.com/sdkref/latest/guide/feature-process-credentials.html>.
pub(crate) struct ProcessCredentials {
    command: Secret,
    cached: Mutex<Option<CachedCredential>>,
}

struct CachedCredential {
    credential: Arc<AwsCredential>,
    expires: Option<DateTime<Utc>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ProcessOutput {
    version: u64,
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
    expiration: Option<DateTime<Utc>>,
}

impl ProcessCredentials {
    pub(crate) fn new(command: Secret) -> Self {
        Self {
            command,
            cached: Mutex::default(),
        }
    }
}

impl fmt::Debug for ProcessCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProcessCredentials")
    }
}

#[async_trait]
impl CredentialProvider for ProcessCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut cached = self.cached.lock().await;
        if let Some(cached) = &*cached
            && cached
                .expires
                .is_none_or(|at| at - Utc::now() > REFRESH_BEFORE_EXPIRY)
        {
            return Ok(Arc::clone(&cached.credential));
        }
        let command = self.command.clone();
        let printed = tokio::task::spawn_blocking(move || read(&command)).await;
        let keys = printed.unwrap_or_else(|panic| Err(panic.to_string()));
        let keys = keys.map_err(|reason| object_store::Error::Generic {
            store: "credential_process",
            source: reason.into(),
        })?;
        let credential = Arc::new(AwsCredential {
            key_id: keys.access_key_id,
            secret_key: keys.secret_access_key,
            token: keys.session_token,
        });
        *cached = Some(CachedCredential {
            credential: Arc::clone(&credential),
            expires: keys.expiration,
        });
        Ok(credential)
    }
}

/// Returns the keys that a program prints, or the reason why there are none. The reason has no word of the program's
/// output, which may be secret.
fn read(command: &Secret) -> Result<ProcessOutput, String> {
    let output = output(command).map_err(|error| {
        format!(
            "the program of the profile's credential_process gives no keys: {error}; try it by hand"
        )
    })?;
    match serde_json::from_slice::<ProcessOutput>(&output) {
        Ok(keys) if keys.version == 1 => Ok(keys),
        Ok(keys) => Err(format!(
            "the program of the profile's credential_process prints keys of version {}: it must be 1",
            keys.version
        )),
        Err(error) => Err(format!(
            "the output of the profile's credential_process must be JSON as AWS's tools read it ({:?} error in line {}, \
             column {})",
            error.classify(),
            error.line(),
            error.column()
        )),
    }
}

/// Runs a program to its end, as AWS's own clients in Rust do, and returns its output.
fn output(command: &Secret) -> io::Result<Vec<u8>> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", command.reveal()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begun.elapsed() > PROCESS_TIMEOUT {
            child.kill()?;
            child.wait()?;
            let seconds = PROCESS_TIMEOUT.as_secs();
            return Err(io::Error::other(format!(
                "it has not ended within {seconds} s"
            )));
        }
        thread::sleep(POLL_INTERVAL);
    };
    if !status.success() {
        return Err(io::Error::other(format!("it has ended with {status}")));
    }
    let mut printed = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_end(&mut printed)?;
    }
    Ok(printed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(command: &str) -> String {
        read(&Secret::from(command.to_owned()))
            .map(drop)
            .unwrap_err()
    }

    #[test]
    fn keys_are_read_as_aws_describes_them() {
        let command = r#"echo '{"Version": 1, "AccessKeyId": "a", "SecretAccessKey": "s", "SessionToken": "t",
            "Expiration": "2026-01-02T03:04:05Z", "More": 1}'"#;
        let keys = read(&Secret::from(command.to_owned())).unwrap();
        assert_eq!(
            (keys.access_key_id.as_str(), keys.secret_access_key.as_str()),
            ("a", "s")
        );
        assert_eq!(keys.session_token.as_deref(), Some("t"));
        assert_eq!(keys.expiration.unwrap().timestamp(), 1_767_323_045);
    }

    #[test]
    fn what_is_none_is_told_without_what_it_prints() {
        for (command, words) in [
            ("echo hush; exit 3", "exit status: 3"),
            ("echo hush", "Syntax error in line 1"),
            (r#"echo '{"Version": "hush"}'"#, "Data error"),
            (
                r#"echo '{"Version": 2, "AccessKeyId": "hush", "SecretAccessKey": "hush"}'"#,
                "version 2",
            ),
            ("/nowhere/hush", "exit status: 127"),
        ] {
            let reason = reason(command);
            assert!(reason.contains(words), "{reason}");
            assert!(!reason.contains("hush"), "{reason}");
        }
    }
}
