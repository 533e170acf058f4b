//! Any bytes as a segment of the journal: read to the end, with progress, without a panic.
#![no_main]

use heimdall_tracking::journal::segment::{self, HEADER_LEN};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let end = bytes.len() as u64;
    let mut offset = HEADER_LEN;
    while offset < end {
        let Ok(chunk) = segment::read(bytes, offset, end) else {
            return;
        };
        assert!(chunk.offset > offset && chunk.offset <= end);
        assert!(chunk.entries.iter().all(|(_, _, behind)| *behind <= chunk.offset));
        offset = chunk.offset;
    }
});
