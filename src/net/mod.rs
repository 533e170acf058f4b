//! The network: credentials, TLS and the pauses between attempts.

pub(crate) mod retry;
pub(crate) mod secret;
pub(crate) mod tls;
