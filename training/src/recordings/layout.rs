//! The layout of the original project: `<split>/<session>_iq.npy`, `_label.npy` and `_meta.json`.

use std::path::{Path, PathBuf};

use realfft::num_complex::Complex64;
use serde_json::{Map, Value};

use super::npy::{Array, parse_npy, read_bytes, read_npy};
use crate::{
    error::{Error, Result},
    geo::LatLon,
};

const ENDING: &str = "_iq.npy";
/// No metadata is longer.
const LONGEST_METADATA: u64 = 1 << 24;

/// The sessions of one split, in the order of their names.
#[derive(Debug, Clone)]
pub struct Sessions {
    folder: PathBuf,
    names: Vec<String>,
    channels: usize,
}

/// One recording.
#[derive(Debug, Clone)]
pub struct Session {
    /// Name: that of the files without their endings.
    pub name: String,
    /// Position of the transmitter.
    pub label: LatLon,
    /// Content of `_meta.json`; empty without that file.
    pub metadata: Map<String, Value>,
    /// Bytes of the file of samples.
    pub content: Vec<u8>,
    path: PathBuf,
    channels: usize,
}

impl Session {
    /// Returns the samples of each receiver; features that are in a cache need none.
    ///
    /// # Errors
    /// [`Error::File`] for another format or number of channels.
    pub fn channels(&self) -> Result<Vec<Vec<Complex64>>> {
        parse_npy(&self.content)
            .and_then(|array| channels_of(&array, self.channels))
            .map_err(|reason| Error::file(&self.path, reason))
    }
}

impl Sessions {
    /// Lists the sessions of a split.
    ///
    /// # Errors
    /// [`Error::Missing`] without the folder, without a session, or for a session without its label; [`Error::File`] for
    /// pickled metadata, which can contain code.
    pub fn list(root: &Path, split: &str, channels: usize) -> Result<Self> {
        let folder = root.join(split);
        let expected = "it must be a folder with <session>_iq.npy and <session>_label.npy";
        let failed = |error| Error::reading(&folder, expected, error);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if let Some(name) = name.to_str().and_then(|it| it.strip_suffix(ENDING)) {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        if names.is_empty() {
            return Err(Error::file(
                &folder,
                format!("it has no file *{ENDING}; {expected}"),
            ));
        }
        let sessions = Self {
            folder,
            names,
            channels,
        };
        sessions
            .names
            .iter()
            .try_for_each(|name| sessions.check(name))?;
        Ok(sessions)
    }

    fn check(&self, name: &str) -> Result<()> {
        let (label, pickled) = (self.file(name, "_label.npy"), self.file(name, "_meta.pkl"));
        if !label.is_file() {
            return Err(Error::Missing {
                path: label,
                expected: "it must be the label of the recording, latitude and longitude in degrees",
            });
        }
        if pickled.exists() && !self.file(name, "_meta.json").is_file() {
            let reason = format!(
                "pickled metadata can run code and is never read; it must be {name}_meta.json"
            );
            return Err(Error::file(&pickled, reason));
        }
        Ok(())
    }

    fn file(&self, name: &str, ending: &str) -> PathBuf {
        self.folder.join(format!("{name}{ending}"))
    }

    /// Returns the file of samples of a session.
    pub(crate) fn samples_file(&self, name: &str) -> PathBuf {
        self.file(name, ENDING)
    }

    /// Returns the names of the sessions.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Reads a session by its number.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Io`] or [`Error::File`], which name the file; [`Error::Shape`] for a number out of
    /// range.
    pub fn read(&self, number: usize) -> Result<Session> {
        let name = self.names.get(number).ok_or_else(|| Error::Shape {
            what: "index",
            expected: format!("below {}", self.names.len()),
            found: number.to_string(),
        })?;
        let path = self.file(name, ENDING);
        Ok(Session {
            name: name.clone(),
            label: label_of(&self.file(name, "_label.npy"))?,
            metadata: metadata_of(&self.file(name, "_meta.json"))?,
            content: read_bytes(&path)?,
            path,
            channels: self.channels,
        })
    }
}

/// Returns the channels; one row of samples is that of every channel, as in the original.
fn channels_of(array: &Array, channels: usize) -> Result<Vec<Vec<Complex64>>, String> {
    match *array.shape.as_slice() {
        [_] => Ok(vec![array.values.clone(); channels]),
        [rows, samples] if rows == channels => Ok(array
            .values
            .chunks_exact(samples)
            .map(<[_]>::to_vec)
            .collect()),
        _ => Err(format!(
            "its shape {:?} must be ({channels}, samples)",
            array.shape
        )),
    }
}

fn label_of(path: &Path) -> Result<LatLon> {
    let array = read_npy(path)?;
    let position = match array.values.as_slice() {
        [lat, lon] if array.real => LatLon::new(lat.re, lon.re),
        _ => None,
    };
    position.ok_or_else(|| Error::file(path, "it must be [latitude, longitude] in degrees"))
}

fn metadata_of(path: &Path) -> Result<Map<String, Value>> {
    let expected = "it must be an object of JSON";
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Ok(found) if found.len() > LONGEST_METADATA => {
            return Err(Error::file(
                path,
                format!("it must have at most {LONGEST_METADATA} bytes"),
            ));
        }
        _ => {}
    }
    let text = std::fs::read(path).map_err(|error| Error::reading(path, expected, error))?;
    serde_json::from_slice(&text).map_err(|error| Error::file(path, format!("{expected}: {error}")))
}
