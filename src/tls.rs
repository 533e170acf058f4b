//! TLS for everything that talks to a network.

use std::sync::Once;

/// Names the one implementation of cryptography, before a client is built.
pub(crate) fn install() {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // Fails where the process has one already, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}
