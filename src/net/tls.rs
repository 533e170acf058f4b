//! TLS for all network clients.

use std::{fs, path::Path, sync::Once};

use reqwest::Certificate;

/// Installs the implementation of cryptography; must be called before a client is built.
pub(crate) fn install() {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // The call fails where the process has an implementation already; that one is used then.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// Returns the certificates of a PEM file, at least one; the error names the file and what is wrong with it.
pub(crate) fn certificates(path: &Path) -> Result<Vec<Certificate>, String> {
    let shown = path.display();
    let pem = fs::read(path).map_err(|error| format!("{shown}: {error}"))?;
    match Certificate::from_pem_bundle(&pem) {
        Ok(found) if found.is_empty() => Err(format!("{shown} has no PEM certificate")),
        Ok(found) => Ok(found),
        Err(error) => Err(format!("{shown} has no PEM certificate: {error}")),
    }
}
