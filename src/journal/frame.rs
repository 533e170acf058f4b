//! Layout of a record in a segment: marker, checksum, length, number, payload.
//!
//! ```text
//! frame = marker (4 bytes) crc32 (u32 LE, over all that follows) length (u32 LE, of the payload)
//!         number (u64 LE) payload
//! ```
//!
//! The payload is one entry, or several entries that belong together: a reader gets all of them or none. The number is
//! that of the first entry, counted from the journal's beginning, so that a reader can tell which entries it has seen
//! and which are missing. The marker is written last, and lets a reader find the next frame behind damaged bytes. The
//! checksum decides whether the bytes found there are a frame.

use super::record::Entry;
use crate::mlflow::{invalid::Invalid, key::Key, run::RunId};

/// Bytes before the payload.
pub(crate) const HEADER_LEN: usize = 20;
/// Bytes of the marker.
pub(crate) const MARKER_LEN: usize = 4;
/// Longest payload that is written, and that a reader accepts.
pub(crate) const MAX_PAYLOAD: usize = 64 << 20;

/// Offset of the first byte that the checksum covers.
const CHECKED: usize = 8;
/// Bytes that begin a frame. They are neither UTF-8 nor a small number, so they are rare in recorded data.
const MARKER: [u8; MARKER_LEN] = [0xF1, 0x4A, 0xC3, 0xD7];
/// Place of `Record::Metrics` among the variants of a record.
const METRICS_VARIANT: u8 = 1;

/// An unfinished frame: it has its payload, but no number yet. It is made in a buffer that is used again.
#[derive(Debug)]
pub struct Draft<'a> {
    bytes: &'a mut Vec<u8>,
    entries: u32,
}

impl<'a> Draft<'a> {
    /// Returns a frame without entries, in an empty buffer.
    pub fn new(bytes: &'a mut Vec<u8>) -> Self {
        bytes.clear();
        bytes.extend_from_slice(&MARKER);
        bytes.extend_from_slice(&[0; HEADER_LEN - MARKER_LEN]);
        Self { bytes, entries: 0 }
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// A message when the entry cannot be encoded, or when it makes the payload longer than [`MAX_PAYLOAD`].
    pub fn push(&mut self, entry: &Entry) -> Result<(), String> {
        let taken = std::mem::take(self.bytes);
        *self.bytes = postcard::to_extend(entry, taken).map_err(|error| error.to_string())?;
        let length = self.bytes.len() - HEADER_LEN;
        if length > MAX_PAYLOAD {
            return Err(format!(
                "{length} bytes are more than the {MAX_PAYLOAD} that a record may have"
            ));
        }
        self.entries += 1;
        Ok(())
    }

    /// Adds an entry of metrics, to which exactly `count` values are pushed. Encodes the same bytes as [`Draft::push`],
    /// without making the record: training loops make this call most often.
    pub fn metrics(
        mut self,
        at: i64,
        run: RunId,
        step: i64,
        timestamp: i64,
        count: usize,
    ) -> MetricsDraft<'a> {
        varint(self.bytes, zigzag(at));
        self.bytes.push(METRICS_VARIANT);
        let run = run.as_bytes();
        varint(self.bytes, run.len() as u64);
        self.bytes.extend_from_slice(run);
        varint(self.bytes, zigzag(step));
        varint(self.bytes, zigzag(timestamp));
        varint(self.bytes, count as u64);
        self.entries += 1;
        MetricsDraft { draft: self }
    }

    /// Continues a frame that was [taken](Draft::taken).
    pub(crate) fn of(bytes: &'a mut Vec<u8>, entries: u32) -> Self {
        Self { bytes, entries }
    }

    /// Takes the frame's bytes and its number of entries out, and leaves a frame without entries.
    pub(crate) fn taken(&mut self) -> (Vec<u8>, u32) {
        let empty = self.bytes[..HEADER_LEN].to_vec();
        let bytes = std::mem::replace(self.bytes, empty);
        (bytes, std::mem::take(&mut self.entries))
    }

    /// Returns the number of entries.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Returns the length of the frame in bytes.
    pub(crate) fn length(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the whole frame, with `number` as the number of its first entry.
    pub(crate) fn sealed(&mut self, number: u64) -> &[u8] {
        let length = self.bytes.len() - HEADER_LEN;
        // `push` has refused longer payloads.
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.bytes[8..12].copy_from_slice(&length.to_le_bytes());
        self.bytes[12..20].copy_from_slice(&number.to_le_bytes());
        let crc = crc32fast::hash(&self.bytes[CHECKED..]);
        self.bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        self.bytes
    }
}

/// The values of an unfinished entry of metrics.
#[derive(Debug)]
pub struct MetricsDraft<'a> {
    draft: Draft<'a>,
}

impl<'a> MetricsDraft<'a> {
    /// Adds a value under a key that has been checked.
    pub fn push(&mut self, key: Checked<'_>, value: f64) {
        let bytes = &mut *self.draft.bytes;
        varint(bytes, key.0.len() as u64);
        bytes.extend_from_slice(key.0.as_bytes());
        bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Returns the frame.
    ///
    /// # Errors
    /// A message when the payload is longer than [`MAX_PAYLOAD`].
    pub fn finish(self) -> Result<Draft<'a>, String> {
        let length = self.draft.bytes.len() - HEADER_LEN;
        if length > MAX_PAYLOAD {
            return Err(format!(
                "{length} bytes are more than the {MAX_PAYLOAD} that a record may have"
            ));
        }
        Ok(self.draft)
    }
}

/// A borrowed key that [`Key::check`] has accepted.
#[derive(Clone, Copy, Debug)]
pub struct Checked<'a>(&'a str);

impl<'a> Checked<'a> {
    /// Checks a key.
    ///
    /// # Errors
    /// The errors of [`Key::parse`].
    pub fn parse(what: &'static str, text: &'a str) -> Result<Self, Invalid> {
        Key::check(what, text)?;
        Ok(Self(text))
    }
}

/// The content at the front of some bytes of a segment.
#[derive(Debug, PartialEq)]
pub(crate) enum Decoded {
    /// An intact frame.
    Frame {
        /// Number of the first entry.
        number: u64,
        /// The entries, one or more.
        entries: Vec<Entry>,
        /// Length of the frame in bytes.
        length: usize,
    },
    /// The beginning of a frame: more bytes may complete it.
    Incomplete,
    /// Blank space of this length, to which nothing has been written.
    Blank(usize),
    /// Bytes that are no frame. The next frame can begin after this many bytes.
    Damaged(usize),
}

/// Decodes the front of `bytes`, which must not be empty.
pub(crate) fn decode(bytes: &[u8]) -> Decoded {
    let blank = blank(bytes);
    if blank > 0 {
        return Decoded::Blank(blank);
    }
    let Some(header) = bytes.get(..HEADER_LEN) else {
        return if bytes.starts_with(&MARKER) || MARKER.starts_with(bytes) {
            Decoded::Incomplete
        } else {
            Decoded::Damaged(to_next_marker(bytes))
        };
    };
    let word = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let (crc, length) = (word(4), word(8));
    let number = u64::from(word(12)) | u64::from(word(16)) << 32;
    let total = HEADER_LEN + length as usize;
    if header[..MARKER_LEN] != MARKER || length as usize > MAX_PAYLOAD {
        return Decoded::Damaged(to_next_marker(bytes));
    }
    let Some(checked) = bytes.get(CHECKED..total) else {
        return Decoded::Incomplete;
    };
    if crc32fast::hash(checked) != crc {
        return Decoded::Damaged(to_next_marker(bytes));
    }
    let mut payload = &checked[HEADER_LEN - CHECKED..];
    let mut entries = Vec::with_capacity(1);
    while !payload.is_empty() {
        match postcard::take_from_bytes(payload) {
            Ok((entry, rest)) => {
                entries.push(entry);
                payload = rest;
            }
            // The frame is whole, but of a kind that this version does not know.
            Err(_) => return Decoded::Damaged(total),
        }
    }
    if entries.is_empty() {
        return Decoded::Damaged(total);
    }
    Decoded::Frame {
        number,
        entries,
        length: total,
    }
}

/// Returns the number of zero bytes at the front.
pub(crate) fn blank(bytes: &[u8]) -> usize {
    const PAGE: [u8; 4096] = [0; 4096];
    let mut rest = bytes;
    // Most of a segment that is still written is blank.
    while let Some(next) = rest.strip_prefix(&PAGE) {
        rest = next;
    }
    let zeros = rest.iter().take_while(|byte| **byte == 0).count();
    bytes.len() - rest.len() + zeros
}

/// Returns true where the bytes begin with a marker.
pub(crate) fn has_marker(bytes: &[u8]) -> bool {
    bytes.starts_with(&MARKER)
}

/// Returns the distance to the next marker behind the first byte, or to the end.
fn to_next_marker(bytes: &[u8]) -> usize {
    (1..bytes.len())
        .find(|&at| {
            let rest = &bytes[at..];
            rest.starts_with(&MARKER) || (rest.len() < MARKER.len() && MARKER.starts_with(rest))
        })
        .unwrap_or(bytes.len())
}

/// Writes a whole number as postcard does: seven bits a byte, the lowest first.
fn varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Maps small numbers of either sign to small numbers without a sign.
fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{journal::record::Record, mlflow::run::RunId};

    fn entry(at: i64, value: f64) -> Entry {
        let key = Key::parse("metric key", "val/loss").unwrap();
        let record = Record::Metrics {
            run: RunId::random(),
            step: at,
            timestamp: at,
            values: vec![(key, value)],
        };
        Entry { at, record }
    }

    fn frame(number: u64, entries: &[Entry]) -> Vec<u8> {
        let mut buffer = Vec::new();
        let mut draft = Draft::new(&mut buffer);
        for entry in entries {
            draft.push(entry).unwrap();
        }
        draft.sealed(number).to_vec()
    }

    fn decode_all(mut bytes: &[u8]) -> Vec<(u64, Vec<Entry>)> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            match decode(bytes) {
                Decoded::Frame {
                    number,
                    entries,
                    length,
                } => {
                    found.push((number, entries));
                    bytes = &bytes[length..];
                }
                Decoded::Damaged(length) | Decoded::Blank(length) => bytes = &bytes[length..],
                // A damaged length that is too large hides the frames behind it only from this point on.
                Decoded::Incomplete => bytes = &bytes[1..],
            }
        }
        found
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(number: u64, at: i64, values in proptest::collection::vec(any::<f64>(), 1..4)) {
            let entries: Vec<Entry> = values.iter().map(|value| entry(at, *value)).collect();
            let bytes = frame(number, &entries);
            let Decoded::Frame { number: found, entries: read, length } = decode(&bytes) else { panic!("no frame") };
            prop_assert_eq!((found, length, read.len()), (number, bytes.len(), entries.len()));
            for (read, value) in read.iter().zip(values) {
                prop_assert_eq!(read.at, at);
                let Record::Metrics { values, .. } = &read.record else { panic!("no metrics") };
                prop_assert_eq!(values[0].1.to_bits(), value.to_bits());
            }
        }

        #[test]
        fn metrics_are_encoded_as_the_record_would_be(
            at: i64, step: i64, timestamp: i64,
            values in proptest::collection::vec(("[a-z/ ]{1,300}", any::<f64>()), 0..200),
        ) {
            let values: Vec<(Key, f64)> = values
                .into_iter()
                .filter_map(|(key, value)| Some((Key::parse("metric key", &key).ok()?, value)))
                .collect();
            let run = RunId::random();
            let mut buffer = Vec::new();
            let mut draft = Draft::new(&mut buffer).metrics(at, run, step, timestamp, values.len());
            for (key, value) in &values {
                draft.push(Checked::parse("metric key", key.as_str()).unwrap(), *value);
            }
            let bytes = draft.finish().unwrap().sealed(7).to_vec();
            let record = Record::Metrics { run, step, timestamp, values };
            prop_assert_eq!(bytes, frame(7, &[Entry { at, record }]));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic_and_with_progress(bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
            if let Decoded::Damaged(length) | Decoded::Blank(length) = decode(&bytes) {
                prop_assert!(length > 0);
            }
            decode_all(&bytes);
        }

        #[test]
        fn damage_in_one_frame_costs_that_frame_only(at in 0usize..80, bit in 0u8..8) {
            let entries = [entry(1, 0.5), entry(2, 1.5), entry(3, 2.5)];
            let frames: Vec<Vec<u8>> = (0..).zip(&entries).map(|(i, it)| frame(i, std::slice::from_ref(it))).collect();
            let mut bytes = frames.concat();
            bytes[frames[0].len() + at % frames[1].len()] ^= 1 << bit;
            let found = decode_all(&bytes);
            prop_assert_eq!(found, vec![(0, vec![entries[0].clone()]), (2, vec![entries[2].clone()])]);
        }
    }

    #[test]
    fn a_torn_frame_is_incomplete() {
        let bytes = frame(1, &[entry(1, 0.5)]);
        for end in 1..bytes.len() {
            assert_eq!(decode(&bytes[..end]), Decoded::Incomplete, "{end}");
        }
    }

    #[test]
    fn what_nothing_was_written_to_is_blank() {
        let bytes = [vec![0; 9], frame(1, &[entry(1, 0.5)])].concat();
        assert_eq!(decode(&bytes), Decoded::Blank(9));
        assert_eq!(decode_all(&bytes).len(), 1);
    }
}
