//! Checksums of whole files: the checksum that an object store has of a file, and its comparison with the bytes.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use futures_util::{Stream, TryStreamExt, stream};
use md5::{Digest as _, Md5};
use reqwest::header::{ETAG, HeaderMap};
use ring::digest::{Context, SHA256};

use super::error::ArtifactError;

/// The checksum that a store has of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksum {
    kind: ChecksumKind,
    value: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChecksumKind {
    Sha256,
    Crc64Nvme,
    Crc32c,
    Crc32,
    Md5,
}

impl ChecksumKind {
    /// Checksums that have a header, the strongest first.
    const NAMED: [(&str, Self); 4] = [
        ("x-amz-checksum-sha256", Self::Sha256),
        ("x-amz-checksum-crc64nvme", Self::Crc64Nvme),
        ("x-amz-checksum-crc32c", Self::Crc32c),
        ("x-amz-checksum-crc32", Self::Crc32),
    ];

    fn length(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Md5 => 16,
            Self::Crc64Nvme => 8,
            Self::Crc32c | Self::Crc32 => 4,
        }
    }

    fn crc(self) -> Option<CrcAlgorithm> {
        match self {
            Self::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
            Self::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
            Self::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
            Self::Sha256 | Self::Md5 => None,
        }
    }
}

impl Checksum {
    /// Returns the checksum of a whole object that an S3 store, or a compatible store, sends with an answer. Checksums
    /// of parts say nothing about the whole object.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        let is_composite = text("x-amz-checksum-type") == Some("COMPOSITE");
        let named = ChecksumKind::NAMED.into_iter().find_map(|(name, kind)| {
            // A checksum of parts ends with the number of parts, so it is no valid base64.
            let value = BASE64_STANDARD.decode(text(name)?).ok()?;
            (!is_composite && value.len() == kind.length()).then_some(Self { kind, value })
        });
        named.or_else(|| {
            let encryption = text("x-amz-server-side-encryption").unwrap_or_default();
            let customer = "x-amz-server-side-encryption-customer-algorithm";
            // Encryption with keys other than the store's own, and directory buckets, have ETags that are no checksums.
            let means_nothing = encryption.starts_with("aws:kms")
                || headers.contains_key(customer)
                || text("x-amz-storage-class") == Some("EXPRESS_ONEZONE");
            let is_s3 = headers.contains_key("x-amz-request-id");
            let tag = text(ETAG.as_str()).filter(|_| is_s3 && !means_nothing)?;
            let value = from_hex(tag.trim_matches('"'))?;
            let kind = ChecksumKind::Md5;
            (value.len() == kind.length()).then_some(Self { kind, value })
        })
    }

    /// Returns the CRC-64/NVME of a whole file, from the CRCs of its parts in their order, as S3 writes them, and their
    /// lengths. Returns `None` where one of them is no such CRC.
    pub(crate) fn of_parts(parts: impl IntoIterator<Item = (String, u64)>) -> Option<Self> {
        let parts = parts.into_iter().map(|(text, length)| {
            let value = BASE64_STANDARD.decode(text).ok()?;
            Some((u64::from_be_bytes(value.try_into().ok()?), length))
        });
        let parts: Vec<_> = parts.collect::<Option<_>>()?;
        let kind = ChecksumKind::Crc64Nvme;
        let value = bytes_of(kind, combined(CrcAlgorithm::Crc64Nvme, parts));
        Some(Self { kind, value })
    }

    /// Returns the algorithm, if the checksum is a CRC: the CRCs of parts add up to it.
    pub(crate) fn crc(&self) -> Option<CrcAlgorithm> {
        self.kind.crc()
    }

    /// Compares the checksum with the CRCs of all parts, in their order, and their lengths.
    ///
    /// # Errors
    /// A description of the difference, if the bytes differ; also where the checksum is no CRC.
    pub(crate) fn compare_parts(
        self,
        parts: impl IntoIterator<Item = (u64, u64)>,
    ) -> Result<(), String> {
        let found = self.crc().map(|crc| combined(crc, parts));
        let found = found.map(|whole| bytes_of(self.kind, whole));
        self.compare(&found.unwrap_or_default())
    }

    fn compare(&self, found: &[u8]) -> Result<(), String> {
        if found == self.value {
            Ok(())
        } else {
            Err(format!(
                "{:?} of what has arrived is {}, and that of what is stored {}",
                self.kind,
                BASE64_STANDARD.encode(found),
                BASE64_STANDARD.encode(&self.value)
            ))
        }
    }

    /// Returns true where both checksums are of the same bytes; `None` where they are of different kinds.
    pub(crate) fn agrees(&self, stored: &Self) -> Option<bool> {
        (self.kind == stored.kind).then(|| self.value == stored.value)
    }

    /// Returns the bytes of a whole file, with an error at their end unless they have this checksum.
    pub(crate) fn compared<S: Stream<Item = Result<Bytes, ArtifactError>>>(
        self,
        content: S,
        damaged: impl FnOnce(String) -> ArtifactError,
    ) -> impl Stream<Item = Result<Bytes, ArtifactError>> {
        let begun = (Box::pin(content), self.begin(), damaged);
        stream::try_unfold(begun, |(mut content, mut sum, damaged)| async move {
            match content.try_next().await? {
                Some(chunk) => {
                    sum.update(&chunk);
                    Ok(Some((chunk, (content, sum, damaged))))
                }
                None => sum.compare().map(|()| None).map_err(damaged),
            }
        })
    }

    /// Begins a comparison.
    fn begin(self) -> RunningChecksum {
        let state = match (self.crc(), self.kind) {
            (Some(crc), _) => HashState::Crc(Box::new(crc_fast::Digest::new(crc))),
            (None, ChecksumKind::Md5) => HashState::Md5(Md5::new()),
            (None, _) => HashState::Sha256(Context::new(&SHA256)),
        };
        RunningChecksum {
            expected: self,
            state,
        }
    }
}

/// The running checksum of arriving bytes, to be compared with an expected one.
struct RunningChecksum {
    expected: Checksum,
    state: HashState,
}

enum HashState {
    Sha256(Context),
    Crc(Box<crc_fast::Digest>),
    Md5(Md5),
}

impl RunningChecksum {
    fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            HashState::Sha256(state) => state.update(bytes),
            HashState::Crc(state) => state.update(bytes),
            HashState::Md5(state) => state.update(bytes),
        }
    }

    /// Compares the checksums; returns a description of the difference.
    fn compare(self) -> Result<(), String> {
        let expected = self.expected;
        expected.compare(&match self.state {
            HashState::Sha256(state) => state.finish().as_ref().to_vec(),
            HashState::Crc(state) => bytes_of(expected.kind, state.finalize()),
            HashState::Md5(state) => state.finalize().to_vec(),
        })
    }
}

/// Returns the CRC of a whole file from the CRCs of its parts and their lengths.
fn combined(crc: CrcAlgorithm, parts: impl IntoIterator<Item = (u64, u64)>) -> u64 {
    parts.into_iter().fold(0, |whole, (part, length)| {
        crc_fast::checksum_combine(crc, whole, part, length)
    })
}

/// Returns the bytes of a CRC as stores write it: the last bytes of an 8-byte number.
fn bytes_of(kind: ChecksumKind, crc: u64) -> Vec<u8> {
    crc.to_be_bytes()[8 - kind.length()..].to_vec()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(headers: &[(&'static str, &str)]) -> Option<Checksum> {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        Checksum::from_headers(&headers.collect())
    }

    #[test]
    fn every_kind_is_computed_as_the_stores_do() {
        // These are the checksums of "123456789", from the catalogues of CRCs, RFC 1321 and FIPS 180.
        for (name, value) in [
            (
                "x-amz-checksum-sha256",
                "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU=",
            ),
            ("x-amz-checksum-crc64nvme", "rosUhgp5mIg="),
            ("x-amz-checksum-crc32c", "4waSgw=="),
            ("x-amz-checksum-crc32", "y/Q5Jg=="),
            ("etag", "\"25f9e794323b453885f5181f1b624d0b\""),
        ] {
            let checksum = told(&[(name, value), ("x-amz-request-id", "1")]).unwrap();
            for (bytes, is_same) in [("123456789", true), ("123456788", false)] {
                let mut sum = checksum.clone().begin();
                sum.update(&bytes.as_bytes()[..4]);
                sum.update(&bytes.as_bytes()[4..]);
                assert_eq!(sum.compare().is_ok(), is_same, "{name}");
            }
        }
    }

    #[test]
    fn checksums_of_parts_add_up_to_that_of_the_whole() {
        let digits = b"123456789";
        let of = |bytes: &[u8]| {
            let sum = crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes);
            (
                BASE64_STANDARD.encode(sum.to_be_bytes()),
                bytes.len() as u64,
            )
        };
        let whole = told(&[("x-amz-checksum-crc64nvme", "rosUhgp5mIg=")]).unwrap();
        for cuts in [&[9][..], &[0, 9], &[1, 9], &[4, 4, 9], &[2, 5, 8, 9]] {
            let starts = [0].into_iter().chain(cuts.iter().copied());
            let parts = starts
                .zip(cuts)
                .map(|(start, end)| of(&digits[start..*end]));
            assert_eq!(Checksum::of_parts(parts), Some(whole.clone()), "{cuts:?}");
        }
        let other = Checksum::of_parts([of(b"123456788")]).unwrap();
        let of_other_kind = told(&[("x-amz-checksum-crc32", "y/Q5Jg==")]).unwrap();
        let agreed = [&other, &whole, &of_other_kind].map(|stored| other.agrees(stored));
        assert_eq!(agreed, [Some(true), Some(false), None]);
        for text in ["", "y/Q5Jg==", "!"] {
            assert_eq!(Checksum::of_parts([(text.to_owned(), 9)]), None);
        }
    }

    #[test]
    fn crcs_of_parts_are_compared_with_that_of_the_whole() {
        let digits = b"123456789";
        for (name, value) in [
            ("x-amz-checksum-crc64nvme", "rosUhgp5mIg="),
            ("x-amz-checksum-crc32c", "4waSgw=="),
            ("x-amz-checksum-crc32", "y/Q5Jg=="),
        ] {
            let whole = told(&[(name, value)]).unwrap();
            let crc = whole.crc().unwrap();
            let parts = |cut: usize| {
                let (first, second) = digits.split_at(cut);
                [first, second].map(|part| (crc_fast::checksum(crc, part), part.len() as u64))
            };
            for cut in 0..=digits.len() {
                assert_eq!(whole.clone().compare_parts(parts(cut)), Ok(()), "{name}");
            }
            let [first, second] = parts(4);
            assert!(whole.clone().compare_parts([second, first]).is_err());
            assert!(whole.clone().compare_parts([first]).is_err());
            assert!(whole.compare_parts([]).is_err());
        }
        let sha = "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU=";
        let sha = told(&[("x-amz-checksum-sha256", sha)]).unwrap();
        assert_eq!(sha.crc(), None);
        assert!(sha.compare_parts([]).is_err());
    }

    #[test]
    fn what_is_no_checksum_of_the_whole_is_not_taken_for_one() {
        let tag = ("etag", "\"25f9e794323b453885f5181f1b624d0b\"");
        let s3 = ("x-amz-request-id", "1");
        let kms = ("x-amz-server-side-encryption", "aws:kms");
        let own_key = ("x-amz-server-side-encryption-customer-algorithm", "AES256");
        let directory = ("x-amz-storage-class", "EXPRESS_ONEZONE");
        let parts = ("etag", "\"25f9e794323b453885f5181f1b624d0b-3\"");
        let composite = ("x-amz-checksum-type", "COMPOSITE");
        for headers in [
            &[tag][..],
            &[tag, s3, kms],
            &[tag, s3, own_key],
            &[tag, s3, directory],
            &[parts, s3],
            &[("x-amz-checksum-crc32", "s10s6A==-3"), s3],
            &[("x-amz-checksum-crc32", "y/Q5Jg=="), composite],
            &[("x-amz-checksum-crc32", "y/Q5"), s3],
            &[("etag", "\"\""), s3],
            &[("etag", "\"ü\""), s3],
        ] {
            assert_eq!(told(headers), None, "{headers:?}");
        }
        let own = ("x-amz-server-side-encryption", "AES256");
        assert!(told(&[tag, s3, own]).is_some());
    }
}
