//! What an object store's errors mean to whoever waits for it.

use std::error::Error as StdError;

use super::{
    connector::{OtherChecksum, Refusal},
    credentials::Missing,
};

/// Codes by which stores say that they do not know us; all objects fare alike.
const KEYS: [&str; 11] = [
    "AuthenticationFailed",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidAuthenticationInfo",
    "InvalidSecurity",
    "InvalidToken",
    "NoAuthenticationInformation",
    "NotSignedUp",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
];

/// Why an object store has not done what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum ObjectFailure {
    /// It cannot be reached, or cannot at present.
    #[error("the store cannot be reached or cannot answer at present: {}", innermost(.0))]
    Unavailable(#[source] object_store::Error),
    /// It does not know us.
    #[error("the store does not accept the credentials ({said}): check {check}")]
    Credentials {
        /// Its own words.
        said: String,
        /// Where the credentials come from.
        check: &'static str,
    },
    /// There are none.
    #[error(
        "no credentials were found for the store: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the \
         settings' access key and secret key ({})",
        innermost(.0)
    )]
    NoCredentials(#[source] object_store::Error),
    /// Signatures hold for some minutes.
    #[error(
        "the clock of this machine and that of the store differ by more than the store permits ({0}): set the clock"
    )]
    Clock(String),
    /// No such bucket.
    #[error("the bucket does not exist ({0}): create it; what is recorded is delivered then")]
    Bucket(String),
    /// It knows us and does not let us.
    #[error("the store does not permit this ({0})")]
    Forbidden(String),
    /// What the store has is not what was sent.
    #[error("the bytes that arrived are not those that were sent: {}", innermost(.0))]
    Checksum(#[source] object_store::Error),
    /// An upload in parts that the store no longer knows.
    #[error("the store no longer knows the parts that were sent ({0})")]
    PartsGone(String),
    /// It does not know the checksum that it was sent, or makes another of the whole.
    #[error("the store does not know CRC-64/NVME as it is")]
    SumUnknown,
    /// It refuses for another reason.
    #[error("the store refuses this: {0}")]
    Refused(#[source] object_store::Error),
}

impl ObjectFailure {
    /// True where trying again later can help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable(_)
            | Self::Credentials { .. }
            | Self::NoCredentials(_)
            | Self::Clock(_)
            | Self::Bucket(_)
            | Self::Checksum(_)
            | Self::PartsGone(_) => true,
            // With HEAD a token that has run out is no more than a 400.
            Self::Refused(error) => {
                find::<Refusal>(error).is_some_and(|refusal| refusal.says_nothing)
            }
            Self::Forbidden(_) | Self::SumUnknown => false,
        }
    }

    /// Whether the store sees no sense in the request, as one does that knows less than the sender.
    pub(crate) fn is_not_understood(&self) -> bool {
        match self {
            Self::Refused(error) => find::<Refusal>(error)
                .is_some_and(|refusal| matches!(refusal.status, 400 | 405 | 501)),
            _ => false,
        }
    }
}

impl From<object_store::Error> for ObjectFailure {
    fn from(error: object_store::Error) -> Self {
        use object_store::Error as E;
        if find::<Missing>(&error).is_some() {
            return Self::NoCredentials(error);
        }
        if let Some(refusal) = find::<Refusal>(&error) {
            let (said, check) = (refusal.to_string(), credentials_of(&error));
            return match refusal.code.as_str() {
                "RequestTimeTooSkewed" => Self::Clock(said),
                "NoSuchBucket" | "ContainerNotFound" => Self::Bucket(said),
                "NoSuchUpload" | "InvalidPart" | "InvalidPartOrder" | "InvalidBlockList" => {
                    Self::PartsGone(said)
                }
                "BadDigest"
                | "XAmzContentSHA256Mismatch"
                | "Md5Mismatch"
                | "XAmzContentChecksumMismatch"
                | "RequestTimeout" => Self::Unavailable(error),
                code if KEYS.contains(&code) || refusal.status == 401 => {
                    Self::Credentials { said, check }
                }
                code if code.starts_with("AccessDenied") || code.starts_with("Authorization") => {
                    Self::Forbidden(said)
                }
                _ => Self::Refused(error),
            };
        }
        if find::<OtherChecksum>(&error).is_some() {
            return Self::Checksum(error);
        }
        match &error {
            E::PermissionDenied { source, .. } => Self::Forbidden(source.to_string()),
            E::Unauthenticated { source, .. } => Self::Credentials {
                said: source.to_string(),
                check: credentials_of(&error),
            },
            E::Generic { .. } | E::JoinError { .. } | E::NotFound { .. } => {
                Self::Unavailable(error)
            }
            _ => Self::Refused(error),
        }
    }
}

/// Where the credentials for the store of an error come from, as the reader is told it.
fn credentials_of(error: &object_store::Error) -> &'static str {
    match error {
        object_store::Error::Generic { store: "GCS", .. } => "GOOGLE_APPLICATION_CREDENTIALS",
        object_store::Error::Generic {
            store: "MicrosoftAzure",
            ..
        } => "AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
        object_store::Error::Generic { .. } => {
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the settings' access key and secret key"
        }
        // These do not say whose they are.
        _ => "the keys or the token",
    }
}

/// Whether it is the object alone that is not there.
pub(crate) fn missing(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::NotFound { .. })
}

/// What lies at the bottom of an error: the wrappers of a driver repeat each other, and the last of them says little.
fn innermost(error: &object_store::Error) -> String {
    let mut texts: Vec<String> = vec![error.to_string()];
    let mut next = error.source();
    while let Some(error) = next {
        let text = error.to_string();
        // A wrapper that has the text of what it wraps says no more than that.
        texts.retain(|wrapper| !wrapper.contains(&text));
        texts.push(text);
        next = error.source();
    }
    texts.join(": ")
}

fn find<T: StdError + 'static>(error: &object_store::Error) -> Option<&T> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}
