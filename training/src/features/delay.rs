//! Delay and phase between each pair of receivers, by generalised cross-correlation.
//!
//! The cross-spectrum of two channels, within a band and weighted, is transformed back into the cross-correlation. The
//! greatest magnitude within the longest possible delay is searched between the samples as well, by evaluating the same
//! sum of frequencies there, which is exact for a signal within the band.

use realfft::num_complex::Complex64;
use rustfft::FftPlanner;
use serde::{Deserialize, Serialize};

use super::{Channels, check_sample_rate, checked_length};
use crate::error::{Error, Result};

/// Rounds of the search between samples; each makes the interval 0.618 times as wide.
const ROUNDS: usize = 24;
/// It bounds the memory: four vectors of twice as many complex numbers.
const MOST_SAMPLES: usize = 1 << 26;

/// Weights of the frequencies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// None: plain correlation. Strong frequencies decide.
    None,
    /// The inverse of the magnitude: each frequency has the same weight. It separates echoes, and it suits only a band
    /// that the signal fills, because noise counts as much as the signal.
    Phat,
}

/// Settings of [`delays`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DelaySettings {
    /// Samples per second.
    pub sample_rate: f64,
    /// Frequencies that count, as a distance from the middle of the recorded band in Hz. A lower bound above 0 leaves a
    /// carrier out, which has no delay that can be measured.
    pub band_hz: (f64, f64),
    /// Weights of the frequencies.
    pub weighting: Weighting,
    /// The longest possible delay in seconds: distance of the receivers divided by the speed of light.
    pub max_delay_s: f64,
}

/// Delay of a pair of receivers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Delay {
    /// Number of the first receiver, from 0.
    pub first: usize,
    /// Number of the second receiver.
    pub second: usize,
    /// Time of arrival at the second receiver less that at the first, in seconds.
    pub delay_s: f64,
    /// Phase of the second receiver less that of the first at that delay, in radians.
    pub phase_rad: f64,
    /// Magnitude of the correlation at that delay, 0 to 1.
    pub coherence: f64,
}

/// Returns the delay of each pair: (0, 1), (0, 2), …, (1, 2), ….
///
/// # Errors
/// [`Error::Shape`] for fewer than two channels, unequal ones, or a value that is not finite; [`Error::Configuration`]
/// for a setting out of its range.
pub fn delays(channels: &Channels, settings: &DelaySettings) -> Result<Vec<Delay>> {
    check(settings)?;
    let samples = checked_length(channels, 2)?;
    if channels.len() < 2 || samples > MOST_SAMPLES {
        return Err(Error::Shape {
            what: "iq",
            expected: format!("of at least two channels of at most {MOST_SAMPLES} samples"),
            found: format!("{} of {samples}", channels.len()),
        });
    }
    let correlator = Correlator::new(samples, settings);
    let spectra: Vec<_> = channels.iter().map(|it| correlator.spectrum(it)).collect();
    let pairs = (0..channels.len()).flat_map(|a| (a + 1..channels.len()).map(move |b| (a, b)));
    Ok(pairs
        .map(|(first, second)| {
            let peak = correlator.peak(&spectra[first], &spectra[second]);
            Delay {
                first,
                second,
                delay_s: peak.0 / settings.sample_rate,
                phase_rad: peak.1.arg(),
                coherence: peak.1.norm(),
            }
        })
        .collect())
}

fn check(settings: &DelaySettings) -> Result<()> {
    check_sample_rate(settings.sample_rate)?;
    let (low, high) = settings.band_hz;
    if !(low >= 0.0 && high > low && high.is_finite()) {
        let reason = "it must be two frequencies in Hz, from 0 on, the lower one first";
        return Err(Error::configuration(
            "band_hz",
            format!("({low}, {high})"),
            reason,
        ));
    }
    if !(settings.max_delay_s > 0.0 && settings.max_delay_s.is_finite()) {
        let reason = "it must be a positive number of seconds";
        return Err(Error::configuration(
            "max_delay_s",
            settings.max_delay_s,
            reason,
        ));
    }
    Ok(())
}

struct Correlator<'a> {
    settings: &'a DelaySettings,
    planner: std::cell::RefCell<FftPlanner<f64>>,
    /// Points of the transforms: with zeros, so that the correlation is not circular.
    points: usize,
    /// Samples of the longest delay.
    reach: usize,
}

impl<'a> Correlator<'a> {
    fn new(samples: usize, settings: &'a DelaySettings) -> Self {
        let longest = (settings.max_delay_s * settings.sample_rate).ceil();
        Self {
            settings,
            planner: std::cell::RefCell::new(FftPlanner::new()),
            points: (2 * samples).next_power_of_two(),
            reach: (longest as usize).clamp(1, samples - 1),
        }
    }

    fn spectrum(&self, channel: &[Complex64]) -> Vec<Complex64> {
        let mut values = channel.to_vec();
        values.resize(self.points, Complex64::ZERO);
        let transform = self.planner.borrow_mut().plan_fft_forward(self.points);
        transform.process(&mut values);
        values
    }

    /// Returns the cross-spectrum within the band, and the magnitude that a perfect correlation has.
    fn cross(&self, a: &[Complex64], b: &[Complex64]) -> (Vec<Complex64>, f64) {
        let (low, high) = self.settings.band_hz;
        let step = self.settings.sample_rate / self.points as f64;
        let inside = |bin: usize| {
            let frequency = bin.min(self.points - bin) as f64 * step;
            frequency >= low && frequency <= high
        };
        let (mut cross, mut energies, mut bins) =
            (vec![Complex64::ZERO; self.points], (0.0, 0.0), 0);
        for bin in (0..self.points).filter(|&bin| inside(bin)) {
            let product = b[bin] * a[bin].conj();
            let magnitude = product.norm();
            cross[bin] = match self.settings.weighting {
                Weighting::None => product,
                Weighting::Phat if magnitude > 0.0 => product / magnitude,
                Weighting::Phat => Complex64::ZERO,
            };
            energies = (
                energies.0 + a[bin].norm_sqr(),
                energies.1 + b[bin].norm_sqr(),
            );
            bins += 1;
        }
        let perfect = match self.settings.weighting {
            Weighting::None => (energies.0 * energies.1).sqrt(),
            Weighting::Phat => f64::from(bins),
        };
        (cross, perfect)
    }

    /// Returns the delay in samples, and the correlation there.
    fn peak(&self, a: &[Complex64], b: &[Complex64]) -> (f64, Complex64) {
        let (cross, perfect) = self.cross(a, b);
        if perfect <= 0.0 {
            return (0.0, Complex64::ZERO);
        }
        let mut correlation = cross.clone();
        let inverse = self.planner.borrow_mut().plan_fft_inverse(self.points);
        inverse.process(&mut correlation);
        let reach = self.reach as i64;
        let at = |lag: i64| correlation[lag.rem_euclid(self.points as i64) as usize].norm_sqr();
        let best = (-reach..=reach)
            .max_by(|&x, &y| at(x).total_cmp(&at(y)))
            .unwrap_or(0) as f64;
        let lag = golden_section(best - 1.0, best + 1.0, |lag| {
            correlation_at(&cross, lag).norm_sqr()
        });
        (lag, correlation_at(&cross, lag) / perfect)
    }
}

/// Returns the correlation at a delay between the samples.
fn correlation_at(cross: &[Complex64], lag: f64) -> Complex64 {
    let points = cross.len();
    let turn = std::f64::consts::TAU * lag / points as f64;
    let step = Complex64::from_polar(1.0, turn);
    let half = |bins: &[Complex64], first: f64| {
        let mut phasor = Complex64::from_polar(1.0, turn * first);
        let mut sum = Complex64::ZERO;
        for bin in bins {
            sum += bin * phasor;
            phasor *= step;
        }
        sum
    };
    // The second half has the negative frequencies.
    let (positive, negative) = cross.split_at(points / 2);
    half(positive, 0.0) + half(negative, -(points as f64) / 2.0)
}

/// Returns the place of the greatest value between `low` and `high`.
fn golden_section(mut low: f64, mut high: f64, value: impl Fn(f64) -> f64) -> f64 {
    let ratio = (5.0_f64.sqrt() - 1.0) / 2.0;
    let (mut left, mut right) = (high - ratio * (high - low), low + ratio * (high - low));
    let (mut at_left, mut at_right) = (value(left), value(right));
    for _ in 0..ROUNDS {
        if at_left > at_right {
            (high, right, at_right) = (right, left, at_left);
            left = high - ratio * (high - low);
            at_left = value(left);
        } else {
            (low, left, at_left) = (left, right, at_right);
            right = low + ratio * (high - low);
            at_right = value(right);
        }
    }
    f64::midpoint(low, high)
}

#[cfg(test)]
mod tests {
    use super::{DelaySettings, Weighting, delays};
    use crate::features::Complex64;

    const RATE: f64 = 10_000.0;

    /// Tones of a fixed set, later by `delay` samples and turned by `phase`.
    fn tones(delay: f64, phase: f64) -> Vec<Complex64> {
        let tone =
            |k: f64, n: f64| Complex64::from_polar(1.0, 0.013 * k * (n - delay) + k * k + phase);
        (0..4000)
            .map(|n| (-40..40).map(|k| tone(f64::from(k), f64::from(n))).sum())
            .collect()
    }

    fn settings(weighting: Weighting) -> DelaySettings {
        DelaySettings {
            sample_rate: RATE,
            band_hz: (0.0, 2_000.0),
            weighting,
            max_delay_s: 0.002,
        }
    }

    #[test]
    fn a_delay_between_samples_and_a_phase_are_found() {
        let channels = [tones(0.0, 0.0), tones(7.3, 1.0), tones(-4.6, -0.5)];
        let found = delays(&channels, &settings(Weighting::None)).unwrap();
        for (pair, (delay, phase)) in found.iter().zip([(7.3, 1.0), (-4.6, -0.5), (-11.9, -1.5)]) {
            assert!((pair.delay_s * RATE - delay).abs() < 0.02, "{pair:?}");
            assert!((pair.phase_rad - phase).abs() < 0.02, "{pair:?}");
            assert!(pair.coherence > 0.98 && pair.coherence <= 1.0, "{pair:?}");
        }
        assert_eq!(
            found
                .iter()
                .map(|it| (it.first, it.second))
                .collect::<Vec<_>>(),
            [(0, 1), (0, 2), (1, 2)]
        );
    }

    #[test]
    fn equal_weights_find_the_delay_of_a_signal_that_fills_the_band() {
        let mut state = 7_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state >> 8) / f64::from(1_u32 << 24) - 0.5
        };
        let noise: Vec<_> = (0..4007).map(|_| Complex64::new(next(), next())).collect();
        let channels = [noise[7..].to_vec(), noise[..4000].to_vec()];
        let found = delays(&channels, &settings(Weighting::Phat)).unwrap();
        assert!((found[0].delay_s * RATE - 7.0).abs() < 0.05, "{found:?}");
    }

    #[test]
    fn silence_has_no_coherence_and_wrong_settings_are_refused() {
        let silent = [vec![Complex64::ZERO; 100], vec![Complex64::ZERO; 100]];
        assert_eq!(
            delays(&silent, &settings(Weighting::Phat)).unwrap()[0].coherence,
            0.0
        );
        assert!(delays(&silent[..1], &settings(Weighting::None)).is_err());
        let wrong = DelaySettings {
            band_hz: (5.0, 5.0),
            ..settings(Weighting::None)
        };
        assert!(
            delays(&silent, &wrong)
                .unwrap_err()
                .to_string()
                .contains("band_hz=(5, 5)")
        );
    }
}
