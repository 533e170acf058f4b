//! Any text as a filter and an order: understood or refused, without a panic.
#![no_main]

use heimdall_tracking::mlflow::search::runs::{Filter, OrderBy};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = Filter::parse(text);
    let _ = OrderBy::parse_all(&[text.to_owned()]);
});
