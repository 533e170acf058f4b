//! Features of simultaneous recordings: mel spectrogram, level and delay.
//!
//! The documented [`mel`] spectrogram takes magnitudes and normalises each channel, which removes the level and nearly
//! all of the delay, and these carry the position. [`level`] and [`delay`] give both back, and joint normalisation
//! keeps the differences of level within the spectrogram.

pub mod delay;
pub mod level;
pub mod mel;

pub use delay::{Delay, DelaySettings, delays};
pub use level::{Level, LevelSettings, levels};
pub use mel::{MelSettings, MelSpectrogram, Normalisation};
pub use realfft::num_complex::Complex64;

use crate::error::{Error, Result};

/// Samples of one receiver each, of the same time and rate.
pub type Channels = [Vec<Complex64>];

/// Returns the number of samples of every channel.
///
/// # Errors
/// [`Error::Shape`] unless there are channels of one length with at least `smallest` samples, all of them finite.
pub(crate) fn checked_length(channels: &Channels, smallest: usize) -> Result<usize> {
    let wrong = |expected: String, found: String| Error::Shape {
        what: "iq",
        expected,
        found,
    };
    let Some(first) = channels.first() else {
        return Err(wrong(
            "of at least one channel".to_owned(),
            "empty".to_owned(),
        ));
    };
    let samples = first.len();
    if channels.iter().any(|channel| channel.len() != samples) {
        let found = format!("{:?}", channels.iter().map(Vec::len).collect::<Vec<_>>());
        return Err(wrong("channels of one length".to_owned(), found));
    }
    if samples < smallest {
        let expected = format!("at least {smallest} samples long");
        return Err(wrong(expected, format!("{samples} samples")));
    }
    let finite = |it: &Complex64| it.re.is_finite() && it.im.is_finite();
    for (number, channel) in channels.iter().enumerate() {
        if let Some(at) = channel.iter().position(|it| !finite(it)) {
            let found = format!("{} in channel {number} at sample {at}", channel[at]);
            return Err(wrong("finite".to_owned(), found));
        }
    }
    Ok(samples)
}

/// Refuses a sample rate that no recording has.
///
/// # Errors
/// [`Error::Configuration`] for a rate that is not a positive number.
pub(crate) fn check_sample_rate(sample_rate: f64) -> Result<()> {
    if sample_rate.is_finite() && sample_rate > 0.0 {
        return Ok(());
    }
    let reason = "it must be a positive number of samples per second";
    Err(Error::configuration("sample_rate", sample_rate, reason))
}
