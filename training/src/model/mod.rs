//! The networks.

mod convnext;
mod heads;
mod layers;
pub mod localization_net;
pub mod rss_net;
pub mod sequential;
mod state;

pub use convnext::ConvNextSize;
pub use heads::Output;
pub use localization_net::{LocalizationNet, LocalizationNetConfig};
pub use rss_net::{RssLocalizationNet, RssNetConfig};
pub use state::{Entry, State};
