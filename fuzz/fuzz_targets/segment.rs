//! Any bytes as a segment of the journal: read to the end, with progress, without a panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| heimdall_tracking::fuzzing::read_segment(bytes));
