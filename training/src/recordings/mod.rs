//! Recordings of IQ samples, read from disk.
//!
//! Nothing in a file is trusted: a size is compared with that of the file before memory is taken for it, and nothing
//! that could contain code is read.

pub mod features;
pub mod layout;
pub mod npy;
pub mod prefetch;

pub use features::{Example, Featurised};
pub use layout::{Session, Sessions};
pub use npy::{Array, read_npy};
