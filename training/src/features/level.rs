//! Level and signal-to-noise ratio of each receiver.

use realfft::num_complex::Complex64;
use rustfft::FftPlanner;
use serde::{Deserialize, Serialize};

use super::{Channels, checked_length};
use crate::error::{Error, Result};

const POWER_FLOOR: f64 = 1e-20;
/// Signal-to-noise ratio that is reported where nothing is above the noise, as a ratio of powers.
const SNR_FLOOR: f64 = 1e-3;

/// Settings of [`levels`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LevelSettings {
    /// Points of the Fourier transforms that the noise is estimated from.
    pub n_fft: usize,
}

impl Default for LevelSettings {
    fn default() -> Self {
        Self { n_fft: 1024 }
    }
}

/// Level of one receiver.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// Mean power in decibels of the unit of the samples: 10·log10(mean |x|²).
    pub level_db: f64,
    /// Power above the noise divided by the power of the noise in the recorded band, in decibels, at least -30.
    pub snr_db: f64,
}

/// Returns the level of each channel.
///
/// The noise is white with the density of the median bin of the averaged periodograms (Hann window, no overlap), so the
/// signal must be narrower than half the recorded band, and the receiver's filter must pass more than half of it:
/// otherwise the noise is that of the stop band, and the ratio is too large.
///
/// # Errors
/// [`Error::Shape`] for a recording shorter than `n_fft`, of unequal channels, or with a value that is not finite;
/// [`Error::Configuration`] for an `n_fft` out of its range.
pub fn levels(channels: &Channels, settings: &LevelSettings) -> Result<Vec<Level>> {
    if !(8..=1 << 20).contains(&settings.n_fft) {
        let reason = "it must be from 8 to 1048576";
        return Err(Error::configuration("n_fft", settings.n_fft, reason));
    }
    checked_length(channels, settings.n_fft)?;
    let level = |channel: &Vec<Complex64>| level(channel, settings.n_fft);
    Ok(channels.iter().map(level).collect())
}

fn level(channel: &[Complex64], n_fft: usize) -> Level {
    let total = channel.iter().map(Complex64::norm_sqr).sum::<f64>() / channel.len() as f64;
    let noise = noise_power(channel, n_fft);
    let signal = (total - noise).max(noise * SNR_FLOOR);
    Level {
        level_db: 10.0 * (total + POWER_FLOOR).log10(),
        snr_db: 10.0 * ((signal + POWER_FLOOR * SNR_FLOOR) / (noise + POWER_FLOOR)).log10(),
    }
}

fn noise_power(channel: &[Complex64], n_fft: usize) -> f64 {
    let window: Vec<f64> = (0..n_fft)
        .map(|k| 0.5 - 0.5 * (std::f64::consts::TAU * k as f64 / n_fft as f64).cos())
        .collect();
    let scale = window.iter().map(|weight| weight * weight).sum::<f64>();
    let transform = FftPlanner::new().plan_fft_forward(n_fft);
    let mut power = vec![0.0; n_fft];
    let segments = channel.chunks_exact(n_fft);
    let count = segments.len() as f64;
    for segment in segments {
        let mut bins: Vec<Complex64> = segment
            .iter()
            .zip(&window)
            .map(|(sample, weight)| sample * weight)
            .collect();
        transform.process(&mut bins);
        for (sum, bin) in power.iter_mut().zip(&bins) {
            *sum += bin.norm_sqr();
        }
    }
    power.sort_unstable_by(f64::total_cmp);
    // The median of a mean of exponential variables is below their mean (Wilson and Hilferty's approximation).
    let bias = (1.0 - 1.0 / (9.0 * count)).powi(3);
    power[n_fft / 2] / count / scale / bias
}

#[cfg(test)]
mod tests {
    use super::{LevelSettings, levels};
    use crate::features::Complex64;

    fn recording(tone: f64, noise: f64) -> Vec<Complex64> {
        let mut state = 3_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Uniform in ±√1.5, so that a complex sample has a power of 1.
            (f64::from(state >> 8) / f64::from(1_u32 << 24) - 0.5) * 6.0_f64.sqrt()
        };
        (0..65_536)
            .map(|k| {
                Complex64::from_polar(tone, 0.3 * f64::from(k))
                    + Complex64::new(next(), next()) * noise
            })
            .collect()
    }

    #[test]
    fn level_and_ratio_are_those_of_a_tone_in_noise() {
        let found = levels(
            &[recording(1.0, 0.1), recording(10.0, 10.0)],
            &LevelSettings::default(),
        )
        .unwrap();
        for (found, level, snr) in [(found[0], 0.043, 20.0), (found[1], 23.01, 0.0)] {
            assert!((found.level_db - level).abs() < 0.1, "{found:?}");
            assert!((found.snr_db - snr).abs() < 0.2, "{found:?}");
        }
    }

    #[test]
    fn silence_and_noise_have_finite_levels() {
        let found = levels(
            &[vec![Complex64::ZERO; 65_536], recording(0.0, 1.0)],
            &LevelSettings::default(),
        );
        for level in found.unwrap() {
            assert!(
                level.level_db.is_finite() && level.snr_db < -10.0,
                "{level:?}"
            );
        }
    }
}
