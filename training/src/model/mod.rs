//! The networks.

mod heads;
mod layers;
pub mod rss_net;
mod state;

pub use rss_net::{Output, RssLocalizationNet, RssNetConfig};
pub use state::{Entry, State};
