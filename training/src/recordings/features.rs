//! Sessions as a network takes them: features, label and metadata.

use serde_json::{Map, Value};

use super::layout::{Session, Sessions};
use crate::{
    cache::{Cache, Key},
    error::{Error, Result},
    features::{MelSettings, MelSpectrogram},
    geo::LatLon,
};

/// Recordings of a split with the settings of their features.
#[derive(Debug)]
pub struct Featurised {
    sessions: Sessions,
    settings: MelSettings,
    channels: usize,
    /// Samples per second of the recordings that do not say theirs.
    sample_rate: Option<f64>,
    cache: Option<Cache>,
}

/// One recording as a network takes it.
#[derive(Debug, Clone)]
pub struct Example {
    /// Features, row by row: `[channels, bands, frames]`.
    pub features: Vec<f32>,
    /// Position of the transmitter.
    pub label: LatLon,
    /// Content of `_meta.json`, with `session` and `sample_rate`.
    pub metadata: Map<String, Value>,
}

impl Featurised {
    /// Joins sessions and settings; the sample rate of `settings` is replaced by that of each recording.
    ///
    /// # Errors
    /// [`Error::Configuration`] for a setting out of its range.
    pub fn new(
        sessions: Sessions,
        channels: usize,
        settings: MelSettings,
        sample_rate: Option<f64>,
        cache: Option<Cache>,
    ) -> Result<Self> {
        let tried = sample_rate.unwrap_or(settings.sample_rate);
        MelSpectrogram::new(MelSettings {
            sample_rate: tried,
            ..settings.clone()
        })?;
        Ok(Self {
            sessions,
            settings,
            channels,
            sample_rate,
            cache,
        })
    }

    /// Returns the sessions.
    #[must_use]
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Returns the shape of the features.
    #[must_use]
    pub fn shape(&self) -> [usize; 3] {
        [self.channels, self.settings.bands, self.settings.frames]
    }

    /// Reads a recording by its number.
    ///
    /// # Errors
    /// One that names the file.
    pub fn read(&self, number: usize) -> Result<Example> {
        let mut session = self.sessions.read(number)?;
        let path = self.sessions.samples_file(&session.name);
        let sample_rate = self
            .sample_rate_of(&session)
            .map_err(|reason| Error::file(&path, reason))?;
        let settings = MelSettings {
            sample_rate,
            ..self.settings.clone()
        };
        let compute = || {
            let channels = session.channels()?;
            let features = MelSpectrogram::new(settings.clone())?.of(&channels);
            features.map_err(|error| Error::file(&path, error.to_string()))
        };
        let features = match &self.cache {
            Some(cache) => {
                let key = Key::new(&session.content, &(&settings, self.channels))?;
                cache.get_or_compute(&key, self.shape().iter().product(), compute)?
            }
            None => compute()?,
        };
        let metadata = &mut session.metadata;
        metadata.insert("session".to_owned(), session.name.into());
        metadata.insert("sample_rate".to_owned(), sample_rate.into());
        Ok(Example {
            features,
            label: session.label,
            metadata: session.metadata,
        })
    }

    fn sample_rate_of(&self, session: &Session) -> Result<f64, String> {
        let told = session
            .metadata
            .get("sample_rate")
            .or_else(|| session.metadata.get("sample_rate_hz"));
        match (told, self.sample_rate) {
            (Some(value), _) => match value.as_f64() {
                Some(rate) if rate > 0.0 => Ok(rate),
                _ => Err(format!(
                    "the sample rate {value} of its metadata must be a positive number"
                )),
            },
            (None, Some(rate)) => Ok(rate),
            (None, None) => Err(format!(
                "its sample rate is unknown: {}_meta.json must have \"sample_rate\", or the dataset must be given one",
                session.name
            )),
        }
    }
}
