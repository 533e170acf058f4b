//! Any text as a URI: understood or refused, and no password in what is shown of it.
#![no_main]

use heimdall_tracking::{ArtifactUri, Destination, without_credentials};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = ArtifactUri::parse(text);
    let _ = without_credentials(text);
    let _ = Destination::parse("URI", text);
    // A host's name may be the same word as the password, in any case: only the password that we put there counts.
    let secret = format!("postgresql://user:hunter2-{}@host/db", text.len());
    let shown = match Destination::parse("URI", &secret) {
        Ok(destination) => destination.uri(),
        Err(error) => error.to_string(),
    };
    assert!(!shown.contains("hunter2"));
});
