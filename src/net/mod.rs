//! The network: credentials, TLS and the pauses between attempts.

pub mod retry;
pub mod secret;
pub mod tls;
