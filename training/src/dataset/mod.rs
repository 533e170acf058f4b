//! Training data: recordings, read from disk and divided into training, validation and test rows.

pub mod rss;
pub mod split;

pub use rss::{NOT_HEARD_DBM, Receiver, Recording, RssDataset};
pub use split::{Split, SplitConfig};
