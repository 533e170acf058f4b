//! Evaluation of a network on examples.

use crate::{
    error::Result,
    loss::gaussian_nll,
    metrics::{Metrics, Prediction, Tally},
    model::RssLocalizationNet,
    rss_batches::Examples,
};

/// Predicts all examples at once, without dropout and with the collected batch statistics.
pub fn evaluate(
    model: &RssLocalizationNet,
    examples: &Examples,
) -> Result<(Metrics, Vec<Prediction>)> {
    let _no_grad = tch::no_grad_guard();
    let output = model.forward(&examples.rss, false)?;
    let loss = gaussian_nll(&output.mean, &output.sigma, &examples.targets)?.f_double_value(&[])?;
    let predictions = model.predictions(&output)?;
    let mut tally = Tally::default();
    tally.add(loss, &predictions, &examples.truth);
    Ok((tally.metrics(), predictions))
}
