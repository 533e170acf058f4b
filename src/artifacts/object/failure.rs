//! The meaning of an object store's errors for the waiting caller.

use std::error::Error as StdError;

use super::credentials::MissingCredentials;

/// A refusal by a store, with one of its codes.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {message}")]
pub(crate) struct Refusal {
    /// Status of the answer.
    pub status: u16,
    /// Code, for example `AccessDenied`.
    pub code: String,
    /// Message of the store.
    pub message: String,
    /// True where the answer has nothing but a status: the reason may be temporary.
    pub says_nothing: bool,
    /// Region of the bucket, where the answer names one.
    pub region: Option<String>,
    /// True where the request had a checksum.
    pub had_checksum: bool,
}

/// The store reports other bytes than were sent.
#[derive(Debug, thiserror::Error)]
#[error(
    "the store has {found} where {sent} was sent ({name}): the bytes were damaged on their way or in the store"
)]
pub(crate) struct ChecksumMismatch {
    pub name: &'static str,
    pub sent: String,
    pub found: String,
}

/// Codes by which stores reject the credentials; they concern all objects alike.
const CREDENTIAL_ERROR_CODES: [&str; 11] = [
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

/// Codes by which stores refuse a file for good: its name, its length, or an argument of the user's. Every other code may
/// be a state that passes, such as a quota.
const FINAL_CODES: [&str; 26] = [
    "BlobImmutableDueToPolicy",
    "EntityTooLarge",
    "EntityTooSmall",
    "InvalidArgument",
    "InvalidBlobType",
    "InvalidBucketName",
    "InvalidEncryptionAlgorithmError",
    "InvalidHeaderValue",
    "InvalidMetadata",
    "InvalidObjectName",
    "InvalidRequest",
    "InvalidResourceName",
    "InvalidStorageClass",
    "InvalidTag",
    "InvalidURI",
    "InvalidUri",
    "KeyTooLong",
    "KeyTooLongError",
    "MalformedXML",
    "MetadataTooLarge",
    "MethodNotAllowed",
    "NotImplemented",
    "RequestBodyTooLarge",
    "UnsupportedHeader",
    "XMinioInvalidObjectName",
    "XMinioInvalidResourceName",
];

/// A reason for which an object store has not carried out a request.
#[derive(Debug, thiserror::Error)]
pub enum ObjectFailure {
    /// The store cannot be reached, or not at present.
    #[error("the store cannot be reached or cannot answer at present: {}", innermost(.0))]
    Unavailable(#[source] object_store::Error),
    /// The store rejects the credentials.
    #[error("the store does not accept the credentials ({said}): check {check}")]
    Credentials {
        /// The store's own words.
        said: String,
        /// Source of the credentials, for the user to check.
        check: &'static str,
    },
    /// There are no credentials.
    #[error(
        "no credentials were found for the store: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the \
         settings' access key and secret key ({})",
        innermost(.0)
    )]
    NoCredentials(#[source] object_store::Error),
    /// The clocks differ too much: signatures are valid for some minutes only.
    #[error(
        "the clock of this machine and that of the store differ by more than the store permits ({0}): set the clock"
    )]
    Clock(String),
    /// The bucket does not exist.
    #[error("the bucket does not exist ({0}): create it; what is recorded is delivered then")]
    Bucket(String),
    /// The store accepts the credentials and forbids the request.
    #[error("the store does not permit this ({0})")]
    Forbidden(String),
    /// The request is forbidden, and the answer has no code: a gateway may have sent it.
    #[error("the store does not permit this ({0})")]
    Unexplained(String),
    /// The stored bytes differ from the sent bytes.
    #[error("the bytes that arrived are not those that were sent: {}", innermost(.0))]
    Checksum(#[source] object_store::Error),
    /// The bucket is in another region than the one that the request was signed for.
    #[error("the bucket is in the region {region}: set AWS_REGION ({said})")]
    OtherRegion {
        /// Region of the bucket.
        region: String,
        /// The store's own words.
        said: String,
    },
    /// The store no longer knows an upload in parts.
    #[error("the store no longer knows the parts that were sent ({0})")]
    UploadGone(String),
    /// The store does not know the kind of checksum, or computes another one for the whole file.
    #[error("the store does not know the checksum CRC-64/NVME")]
    ChecksumUnsupported,
    /// The store refuses for another reason.
    #[error("the store refuses this: {0}")]
    Refused(#[source] object_store::Error),
}

impl ObjectFailure {
    /// Returns true where trying again later can help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable(_)
            | Self::Credentials { .. }
            | Self::NoCredentials(_)
            | Self::Clock(_)
            | Self::Bucket(_)
            | Self::Checksum(_)
            | Self::Unexplained(_)
            | Self::OtherRegion { .. }
            | Self::UploadGone(_) => true,
            // In the answer to HEAD, an expired token is nothing more than a 400.
            Self::Refused(error) => find::<Refusal>(error).is_some_and(|refusal| {
                refusal.says_nothing || !FINAL_CODES.contains(&refusal.code.as_str())
            }),
            Self::Forbidden(_) | Self::ChecksumUnsupported => false,
        }
    }

    /// Returns the region of the bucket, where the request was signed for another one.
    pub(crate) fn region(&self) -> Option<&str> {
        match self {
            Self::OtherRegion { region, .. } => Some(region),
            _ => None,
        }
    }

    /// Returns true where the store may have refused the request for its checksum.
    pub(crate) fn is_of_checksums(&self) -> bool {
        let codes = ["InvalidArgument", "InvalidRequest", "NotImplemented"];
        match self {
            Self::ChecksumUnsupported => true,
            Self::Refused(error) => find::<Refusal>(error).is_some_and(|refusal| {
                let is_known = codes.contains(&refusal.code.as_str()) || refusal.status == 501;
                refusal.had_checksum && is_known
            }),
            _ => false,
        }
    }

    /// Returns true where the store does not understand the request, because it supports less than the sender uses.
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
        if find::<MissingCredentials>(&error).is_some() {
            return Self::NoCredentials(error);
        }
        if let Some(refusal) = find::<Refusal>(&error) {
            let (said, check) = (refusal.to_string(), credentials_of(&error));
            if let Some(region) = refusal.region.clone() {
                return Self::OtherRegion { region, said };
            }
            return match refusal.code.as_str() {
                "RequestTimeTooSkewed" => Self::Clock(said),
                "NoSuchBucket" | "ContainerNotFound" => Self::Bucket(said),
                "NoSuchUpload" | "InvalidPart" | "InvalidPartOrder" | "InvalidBlockList" => {
                    Self::UploadGone(said)
                }
                "BadDigest"
                | "XAmzContentSHA256Mismatch"
                | "Md5Mismatch"
                | "XAmzContentChecksumMismatch"
                | "RequestTimeout" => Self::Unavailable(error),
                code if CREDENTIAL_ERROR_CODES.contains(&code) || refusal.status == 401 => {
                    Self::Credentials { said, check }
                }
                code if code.starts_with("AccessDenied") || code.starts_with("Authorization") => {
                    Self::Forbidden(said)
                }
                _ => Self::Refused(error),
            };
        }
        if find::<ChecksumMismatch>(&error).is_some() {
            return Self::Checksum(error);
        }
        match &error {
            E::PermissionDenied { source, .. } => Self::Unexplained(source.to_string()),
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

/// Returns a description of the credentials for the store of an error, for the user.
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
        // These errors do not say which store they are from.
        _ => "the keys or the token",
    }
}

/// Returns true where only the object is missing.
pub(crate) fn is_missing(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::NotFound { .. })
}

/// Returns the messages of an error and of the errors inside it, without the wrappers that only repeat another message.
fn innermost(error: &object_store::Error) -> String {
    let mut texts: Vec<String> = vec![error.to_string()];
    let mut next = error.source();
    while let Some(error) = next {
        let text = error.to_string();
        // A wrapper that contains the text of the error inside it says nothing more.
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
