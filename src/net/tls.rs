//! TLS for everything that talks to a network.

use std::{fs, path::Path, sync::Once};

use reqwest::Certificate;

/// Names the one implementation of cryptography, before a client is built.
pub(crate) fn install() {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // Fails where the process has one already, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// The certificates of a PEM file, at least one; what is wrong with it, in words that name it.
pub(crate) fn certificates(path: &Path) -> Result<Vec<Certificate>, String> {
    let shown = path.display();
    let pem = fs::read(path).map_err(|error| format!("{shown}: {error}"))?;
    match Certificate::from_pem_bundle(&pem) {
        Ok(found) if found.is_empty() => Err(format!("{shown} has no PEM certificate")),
        Ok(found) => Ok(found),
        Err(error) => Err(format!("{shown} has no PEM certificate: {error}")),
    }
}
