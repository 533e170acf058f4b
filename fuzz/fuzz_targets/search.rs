//! Any text as a filter and an order: understood or refused, without a panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| heimdall_tracking::fuzzing::read_search(text));
