//! How one record lies in a segment: marker, length, checksum, payload.
//!
//! ```text
//! frame   = marker (4 bytes) length (u32 LE) crc32 (u32 LE, over length and payload) payload
//! ```
//!
//! The marker lets a reader find the next frame behind damaged bytes; the checksum decides whether what it
//! found is one.

use super::Entry;

/// Bytes before the payload.
pub const HEADER_LEN: usize = 12;
/// Longest payload that is written or believed.
pub const MAX_PAYLOAD: usize = 64 << 20;

/// Not UTF-8 and not a small number, so it is rare in what people record.
const MARKER: [u8; 4] = [0xF1, 0x4A, 0xC3, 0xD7];

/// Appends the frame of `entry` to `out`.
///
/// # Errors
/// A message when the entry cannot be encoded or is longer than [`MAX_PAYLOAD`].
pub fn encode(entry: &Entry, out: &mut Vec<u8>) -> Result<(), String> {
    let start = out.len();
    out.extend_from_slice(&MARKER);
    out.extend_from_slice(&[0; HEADER_LEN - MARKER.len()]);
    let taken = std::mem::take(out);
    *out = postcard::to_extend(entry, taken).map_err(|error| error.to_string())?;
    let payload = start + HEADER_LEN;
    let length = out.len() - payload;
    let length = u32::try_from(length)
        .ok()
        .filter(|_| length <= MAX_PAYLOAD)
        .ok_or_else(|| {
            format!("{length} bytes are more than the {MAX_PAYLOAD} that a record may have")
        })?;
    let crc = checksum(length, &out[payload..]);
    out[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
    out[start + 8..start + 12].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

/// What stands at the front of some bytes of a segment.
#[derive(Debug, PartialEq)]
pub enum Decoded {
    /// An intact frame of this total length.
    Frame(Entry, usize),
    /// The beginning of a frame: more bytes may complete it.
    Incomplete,
    /// Bytes that are no frame. The next one can begin after this many.
    Damaged(usize),
}

/// Decodes the front of `bytes`.
pub fn decode(bytes: &[u8]) -> Decoded {
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
    let (length, crc) = (word(4), word(8));
    let total = HEADER_LEN + length as usize;
    if header[..4] != MARKER || length as usize > MAX_PAYLOAD {
        return Decoded::Damaged(to_next_marker(bytes));
    }
    let Some(payload) = bytes.get(HEADER_LEN..total) else {
        return Decoded::Incomplete;
    };
    if checksum(length, payload) != crc {
        return Decoded::Damaged(to_next_marker(bytes));
    }
    match postcard::from_bytes(payload) {
        Ok(entry) => Decoded::Frame(entry, total),
        Err(_) => Decoded::Damaged(total),
    }
}

fn checksum(length: u32, payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&length.to_le_bytes());
    crc.update(payload);
    crc.finalize()
}

/// Distance to the next marker behind the first byte, or to the end.
fn to_next_marker(bytes: &[u8]) -> usize {
    (1..bytes.len())
        .find(|&at| {
            let rest = &bytes[at..];
            rest.starts_with(&MARKER) || (rest.len() < MARKER.len() && MARKER.starts_with(rest))
        })
        .unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        record::{Key, Record},
        run::RunId,
    };

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

    fn decode_all(mut bytes: &[u8]) -> Vec<Entry> {
        let mut found = Vec::new();
        loop {
            match decode(bytes) {
                Decoded::Frame(entry, length) => {
                    found.push(entry);
                    bytes = &bytes[length..];
                }
                Decoded::Damaged(length) => bytes = &bytes[length..],
                // A length that damage made too long hides the frames behind it from this point only.
                Decoded::Incomplete if bytes.len() > 1 => bytes = &bytes[1..],
                Decoded::Incomplete => return found,
            }
            if bytes.is_empty() {
                return found;
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(at in any::<i64>(), value in any::<f64>()) {
            let mut bytes = Vec::new();
            encode(&entry(at, value), &mut bytes).unwrap();
            let Decoded::Frame(found, length) = decode(&bytes) else { panic!("no frame") };
            prop_assert_eq!(length, bytes.len());
            prop_assert_eq!(found.at, at);
            let Record::Metrics { values, .. } = found.record else { panic!("no metrics") };
            prop_assert_eq!(values[0].1.to_bits(), value.to_bits());
        }

        #[test]
        fn any_bytes_are_read_without_a_panic_and_with_progress(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Decoded::Damaged(length) = decode(&bytes) {
                prop_assert!(bytes.is_empty() || length > 0);
            }
            decode_all(&bytes);
        }

        #[test]
        fn damage_in_one_frame_costs_that_frame_only(at in 0usize..60, bit in 0u8..8) {
            let entries = [entry(1, 0.5), entry(2, 1.5), entry(3, 2.5)];
            let (mut bytes, mut second) = (Vec::new(), 0..0);
            for (i, entry) in entries.iter().enumerate() {
                let start = bytes.len();
                encode(entry, &mut bytes).unwrap();
                if i == 1 { second = start..bytes.len() }
            }
            let at = second.start + at % second.len();
            bytes[at] ^= 1 << bit;
            let found = decode_all(&bytes);
            prop_assert_eq!(found, vec![entries[0].clone(), entries[2].clone()]);
        }
    }

    #[test]
    fn a_torn_frame_is_incomplete() {
        let mut bytes = Vec::new();
        encode(&entry(1, 0.5), &mut bytes).unwrap();
        for end in 0..bytes.len() {
            assert_eq!(decode(&bytes[..end]), Decoded::Incomplete, "{end}");
        }
    }
}
