//! Seeds decide everything. In a process of its own, because libtorch has one generator per process and the
//! unit tests draw from it side by side.

use std::path::Path;

use heimdall_training::{
    dataset::{RssDataset, SplitConfig},
    fit_config::FitConfig,
    model::{RssLocalizationNet, RssNetConfig},
    rss_batches::Augmentation,
    rss_fit::{RssFitConfig, fit_rss},
};

#[test]
fn the_same_seed_gives_the_same_training_to_the_last_bit() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/powder_rss_462mhz");
    let dataset = RssDataset::load(&path, SplitConfig::default()).unwrap();
    let train = |seed| {
        let receivers = dataset.receivers.clone();
        let config = RssNetConfig {
            hidden: vec![32],
            seed,
            ..RssNetConfig::new(receivers)
        };
        let model = RssLocalizationNet::new(config).unwrap();
        let augmentation = Augmentation {
            drop_receivers: 0.1,
            noise_db: 1.0,
            gain_db: 1.0,
        };
        let config = RssFitConfig {
            fit: FitConfig {
                seed: Some(seed),
                max_epochs: 2,
                ..FitConfig::default()
            },
            augmentation,
            ..RssFitConfig::default()
        };
        let report = fit_rss(&model, &dataset, &config, &mut []).unwrap();
        let losses: Vec<_> = report
            .epochs
            .iter()
            .map(|epoch| epoch.metric("train/loss"))
            .collect();
        (losses, model.state().copy().unwrap())
    };
    let (first, second, other) = (train(1), train(1), train(2));
    assert_eq!(first, second);
    assert_ne!(first.0, other.0);
}
