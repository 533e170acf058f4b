//! The documented mel spectrogram of the magnitude of IQ samples.
//!
//! For each channel: |IQ| → short-time Fourier transform with the conventions of `scipy.signal.stft` (periodic Hann
//! window, half a window of zeros at both ends, zeros up to a whole number of hops, division by the sum of the window)
//! → power → triangular bands on the scale 2595·log10(1 + f/700) from 0 to half the sample rate, with peak 1 and
//! without normalisation of area → 10·log10(x + 1e-9) → normalisation over the whole recording → the middle frames, or
//! reflection where the recording has fewer.

use realfft::RealFftPlanner;
use serde::{Deserialize, Serialize};

use super::{Channels, check_sample_rate, checked_length};
use crate::error::{Error, Result};

const POWER_FLOOR: f64 = 1e-9;
const STD_FLOOR: f64 = 1e-8;
/// No sensible setting has more; it bounds what a setting can allocate.
const LARGEST: usize = 1 << 20;

/// Selects over which values a spectrogram gets zero mean and unit variance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalisation {
    /// Over each channel, as documented. It removes the level of each receiver.
    PerChannel,
    /// Over all channels together. It keeps the differences of level between receivers.
    Joint,
    /// None: decibels.
    None,
}

/// Settings of a [`MelSpectrogram`]; the defaults are the documented ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MelSettings {
    /// Samples per second of the recording.
    pub sample_rate: f64,
    /// Points of the Fourier transform.
    pub n_fft: usize,
    /// Samples between two frames.
    pub hop: usize,
    /// Number of mel bands.
    pub bands: usize,
    /// Number of frames of the result.
    pub frames: usize,
    /// Normalisation of the decibels.
    pub normalisation: Normalisation,
    /// Leaves bands that contain no frequency of the transform out of mean and deviation, and makes them 0. Such bands
    /// are constant, -90 dB; at the defaults they are 4 of 128.
    pub skip_empty_bands: bool,
}

impl Default for MelSettings {
    fn default() -> Self {
        Self {
            sample_rate: 192_000.0,
            n_fft: 2048,
            hop: 512,
            bands: 128,
            frames: 32,
            normalisation: Normalisation::PerChannel,
            skip_empty_bands: false,
        }
    }
}

impl MelSettings {
    fn check(&self) -> Result<()> {
        check_sample_rate(self.sample_rate)?;
        for (name, value, smallest) in [
            ("n_fft", self.n_fft, 2),
            ("hop", self.hop, 1),
            ("bands", self.bands, 1),
            ("frames", self.frames, 1),
        ] {
            if !(smallest..=LARGEST).contains(&value) {
                let reason = format!("it must be from {smallest} to {LARGEST}");
                return Err(Error::configuration(name, value, reason));
            }
        }
        if self.hop > self.n_fft {
            let reason = format!("it must be at most n_fft={}", self.n_fft);
            return Err(Error::configuration("hop", self.hop, reason));
        }
        if !self.n_fft.is_multiple_of(2) {
            return Err(Error::configuration("n_fft", self.n_fft, "it must be even"));
        }
        Ok(())
    }
}

/// The weights of one band: those from bin `first` on.
#[derive(Debug, Clone)]
struct Band {
    first: usize,
    weights: Vec<f64>,
}

/// Values of one channel, row by row: `[bands][frames]`.
type Decibels = Vec<Vec<f64>>;

/// The transform of recordings into `[channels, bands, frames]`.
#[derive(Debug, Clone)]
pub struct MelSpectrogram {
    settings: MelSettings,
    window: Vec<f64>,
    bands: Vec<Band>,
}

impl MelSpectrogram {
    /// Prepares window and bands.
    ///
    /// # Errors
    /// [`Error::Configuration`] for a setting out of its range.
    pub fn new(settings: MelSettings) -> Result<Self> {
        settings.check()?;
        let n = settings.n_fft as f64;
        let hann = |k| 0.5 - 0.5 * (std::f64::consts::TAU * k as f64 / n).cos();
        Ok(Self {
            window: (0..settings.n_fft).map(hann).collect(),
            bands: bands(&settings),
            settings,
        })
    }

    /// Returns the settings.
    #[must_use]
    pub fn settings(&self) -> &MelSettings {
        &self.settings
    }

    /// Returns the bands, from 0, that contain no frequency of the transform.
    #[must_use]
    pub fn empty_bands(&self) -> Vec<usize> {
        let empty = |&band: &usize| self.bands[band].weights.is_empty();
        (0..self.bands.len()).filter(empty).collect()
    }

    /// Returns the features of a recording, row by row: `[channels, bands, frames]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for a recording shorter than `n_fft`, of unequal channels, or with a value that is not finite.
    pub fn of(&self, channels: &Channels) -> Result<Vec<f32>> {
        checked_length(channels, self.settings.n_fft)?;
        let mut decibels: Vec<_> = channels
            .iter()
            .map(|channel| {
                let magnitude: Vec<f64> = channel.iter().map(|it| it.norm()).collect();
                self.decibels(&magnitude)
            })
            .collect::<Result<_>>()?;
        self.normalise(&mut decibels);
        let frames = self.chosen_frames(decibels[0][0].len());
        let rows = decibels.iter().flatten();
        Ok(rows
            .flat_map(|row| frames.iter().map(|&frame| row[frame] as f32))
            .collect())
    }

    fn decibels(&self, magnitude: &[f64]) -> Result<Decibels> {
        let (n, hop) = (self.settings.n_fft, self.settings.hop);
        let mut padded = vec![0.0; n / 2];
        padded.extend_from_slice(magnitude);
        padded.resize(padded.len() + n / 2, 0.0);
        let frames = (padded.len() - n).div_ceil(hop) + 1;
        padded.resize(n + (frames - 1) * hop, 0.0);

        let transform = RealFftPlanner::<f64>::new().plan_fft_forward(n);
        let (mut input, mut spectrum) = (transform.make_input_vec(), transform.make_output_vec());
        let scale = self.window.iter().sum::<f64>().powi(-2);
        let mut decibels = vec![Vec::with_capacity(frames); self.bands.len()];
        for start in (0..frames).map(|frame| frame * hop) {
            for ((to, from), weight) in input.iter_mut().zip(&padded[start..]).zip(&self.window) {
                *to = from * weight;
            }
            transform
                .process(&mut input, &mut spectrum)
                .map_err(|error| Error::configuration("n_fft", n, error.to_string()))?;
            for (band, row) in self.bands.iter().zip(&mut decibels) {
                let bins = band.weights.iter().zip(&spectrum[band.first..]);
                let power: f64 = bins.map(|(weight, bin)| weight * bin.norm_sqr()).sum();
                row.push(10.0 * (power * scale + POWER_FLOOR).log10());
            }
        }
        Ok(decibels)
    }

    fn normalise(&self, channels: &mut [Decibels]) {
        match self.settings.normalisation {
            Normalisation::PerChannel => channels
                .iter_mut()
                .for_each(|channel| self.standardise(std::slice::from_mut(channel))),
            Normalisation::Joint => self.standardise(channels),
            Normalisation::None => {}
        }
    }

    fn standardise(&self, channels: &mut [Decibels]) {
        let skipped =
            |band: usize| self.settings.skip_empty_bands && self.bands[band].weights.is_empty();
        let kept = || {
            let rows = channels
                .iter()
                .flat_map(|channel| channel.iter().enumerate());
            rows.filter(|&(band, _)| !skipped(band))
                .flat_map(|(_, row)| row)
        };
        let count = kept().count().max(1) as f64;
        let mean = kept().sum::<f64>() / count;
        let variance = kept().map(|it| (it - mean).powi(2)).sum::<f64>() / count;
        let deviation = variance.sqrt().max(STD_FLOOR);
        for (band, row) in channels.iter_mut().flat_map(|it| it.iter_mut().enumerate()) {
            for value in row {
                *value = if skipped(band) {
                    0.0
                } else {
                    (*value - mean) / deviation
                };
            }
        }
    }

    /// Returns the source of each frame of the result: the middle, or a reflection as of `numpy.pad`.
    fn chosen_frames(&self, available: usize) -> Vec<usize> {
        let wanted = self.settings.frames;
        if available >= wanted {
            let start = (available - wanted) / 2;
            return (start..start + wanted).collect();
        }
        let (before, period) = ((wanted - available) / 2, 2 * (available - 1).max(1));
        let reflected = |frame: usize| {
            // An offset of whole periods keeps the position positive.
            let position = (frame + period * wanted - before) % period;
            position.min(period - position).min(available - 1)
        };
        (0..wanted).map(reflected).collect()
    }
}

fn bands(settings: &MelSettings) -> Vec<Band> {
    let top = 2595.0 * (1.0 + settings.sample_rate / 2.0 / 700.0).log10();
    let step = top / (settings.bands + 1) as f64;
    let edge = |number: usize| 700.0 * (10.0_f64.powf(step * number as f64 / 2595.0) - 1.0);
    let bin = settings.sample_rate / settings.n_fft as f64;
    let band = |number| {
        let (low, middle, high) = (edge(number), edge(number + 1), edge(number + 2));
        let first = (low / bin) as usize + 1;
        let weight = |k: usize| {
            let frequency = k as f64 * bin;
            ((frequency - low) / (middle - low)).min((high - frequency) / (high - middle))
        };
        let inside = (first..=settings.n_fft / 2).map(weight);
        Band {
            first,
            weights: inside.take_while(|&weight| weight > 0.0).collect(),
        }
    };
    (0..settings.bands).map(band).collect()
}

#[cfg(test)]
mod tests {
    use super::{MelSettings, MelSpectrogram, Normalisation};
    use crate::features::Complex64;

    fn noise(samples: usize, gain: f64) -> Vec<Complex64> {
        let mut state = 7_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state >> 8) / f64::from(1_u32 << 24) - 0.5
        };
        (0..samples)
            .map(|_| Complex64::new(next(), next()) * gain)
            .collect()
    }

    fn spectrogram(change: impl FnOnce(&mut MelSettings)) -> MelSpectrogram {
        let mut settings = MelSettings::default();
        change(&mut settings);
        MelSpectrogram::new(settings).unwrap()
    }

    #[test]
    fn four_bands_are_empty_at_the_defaults() {
        assert_eq!(spectrogram(|_| ()).empty_bands(), [0, 1, 4, 9]);
    }

    #[test]
    fn the_number_of_frames_is_that_of_scipy() {
        let mel = spectrogram(|_| ());
        for (samples, frames) in [(2048, 5), (4096, 9), (15_872, 32), (192_000, 376)] {
            assert_eq!(mel.decibels(&vec![1.0; samples]).unwrap()[0].len(), frames);
        }
    }

    #[test]
    fn frames_are_the_middle_or_a_reflection() {
        let mel = spectrogram(|it| it.frames = 8);
        assert_eq!(mel.chosen_frames(11), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(mel.chosen_frames(3), [2, 1, 0, 1, 2, 1, 0, 1]);
        assert_eq!(mel.chosen_frames(1), [0; 8]);
    }

    #[test]
    fn joint_normalisation_keeps_a_difference_of_level() {
        let channels = [noise(4096, 1.0), noise(4096, 10.0)];
        let mean = |normalisation| {
            let mel = spectrogram(|it| {
                it.normalisation = normalisation;
                it.skip_empty_bands = true;
            });
            let values = mel.of(&channels).unwrap();
            let half = values.len() / 2;
            let sum = |part: &[f32]| part.iter().sum::<f32>() / half as f32;
            sum(&values[half..]) - sum(&values[..half])
        };
        assert!(mean(Normalisation::PerChannel).abs() < 0.05);
        assert!(mean(Normalisation::Joint) > 0.5);
        assert!((mean(Normalisation::None) - 20.0 * 124.0 / 128.0).abs() < 0.1);
    }

    #[test]
    fn what_cannot_be_transformed_is_refused() {
        let mel = spectrogram(|_| ());
        let error = |channels: &[Vec<Complex64>]| mel.of(channels).unwrap_err().to_string();
        assert!(error(&[noise(2047, 1.0)]).contains("at least 2048 samples"));
        assert!(error(&[noise(4096, 1.0), noise(4095, 1.0)]).contains("[4096, 4095]"));
        assert!(error(&[noise(4096, f64::NAN)]).contains("channel 0 at sample 0"));
        assert!(error(&[]).contains("at least one channel"));
        let settings = MelSettings {
            sample_rate: 0.0,
            ..MelSettings::default()
        };
        assert!(MelSpectrogram::new(settings).is_err());
    }
}
