//! Features on disk, keyed by the content that they were computed of and by the parameters.
//!
//! Each entry is a file that gets its name only when it is whole, so workers and processes share a folder without locks
//! and a kill leaves no half entry. An entry that does not match its checksum counts as missing.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// It changes whenever the same parameters give other features.
const VERSION: &[u8] = b"heimdall features 1";
const CHECKSUM: usize = 32;

/// A folder of features.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    unwritten: AtomicU64,
}

/// Name of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// Returns the key of content under parameters.
    ///
    /// # Errors
    /// [`Error::Configuration`] for parameters without a form as JSON.
    pub fn new(content: &[u8], parameters: &impl Serialize) -> Result<Self> {
        let parameters = serde_json::to_vec(parameters)
            .map_err(|error| Error::configuration("parameters", "", error.to_string()))?;
        let mut hash = Sha256::new();
        // The lengths separate the parts, so that no two pairs of them are the same bytes.
        for part in [VERSION, &parameters, content] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Ok(Self(
            hash.finalize()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        ))
    }
}

impl Cache {
    /// Opens a folder, and makes it where it is missing.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be made.
    pub fn open(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|source| Error::Io {
            path: folder.to_owned(),
            action: "written",
            source,
        })?;
        Ok(Self {
            folder: folder.to_owned(),
            unwritten: AtomicU64::new(0),
        })
    }

    /// Returns the number of entries that could not be written: a full disk costs time, and no training.
    #[must_use]
    pub fn unwritten(&self) -> u64 {
        self.unwritten.load(Ordering::Relaxed)
    }

    /// Returns the `length` values of a key, which `compute` gives where they are missing.
    ///
    /// # Errors
    /// Those of `compute`.
    pub fn get_or_compute(
        &self,
        key: &Key,
        length: usize,
        compute: impl FnOnce() -> Result<Vec<f32>>,
    ) -> Result<Vec<f32>> {
        let path = self.folder.join(format!("{}.f32", key.0));
        if let Some(values) = read(&path, length) {
            return Ok(values);
        }
        let values = compute()?;
        if self.write(&path, &values).is_err() {
            self.unwritten.fetch_add(1, Ordering::Relaxed);
        }
        Ok(values)
    }

    fn write(&self, path: &Path, values: &[f32]) -> std::io::Result<()> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let partial = self
            .folder
            .join(format!(".{}-{number}.partial", std::process::id()));
        let data: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let mut bytes = Sha256::digest(&data).to_vec();
        bytes.extend(data);
        let written = fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, path));
        written.inspect_err(|_| drop(fs::remove_file(&partial)))
    }
}

fn read(path: &Path, length: usize) -> Option<Vec<f32>> {
    let size = fs::metadata(path).ok()?.len();
    if size != (CHECKSUM + 4 * length) as u64 {
        return None;
    }
    let bytes = fs::read(path).ok()?;
    let (checksum, data) = bytes.split_first_chunk::<CHECKSUM>()?;
    if Sha256::digest(data).as_slice() != checksum || data.len() != 4 * length {
        return None;
    }
    let (values, _) = data.as_chunks::<4>();
    Some(
        values
            .iter()
            .map(|&value| f32::from_le_bytes(value))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::{Cache, Key};
    use std::fs;

    fn files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
        fs::read_dir(folder)
            .unwrap()
            .map(|it| it.unwrap().path())
            .collect()
    }

    #[test]
    fn a_key_follows_from_content_and_parameters() {
        let key = |content: &[u8], parameters: &[u32]| Key::new(content, &parameters).unwrap();
        assert_eq!(key(b"a", &[1]), key(b"a", &[1]));
        assert_ne!(key(b"a", &[1]), key(b"b", &[1]));
        assert_ne!(key(b"a", &[1]), key(b"a", &[2]));
    }

    #[test]
    fn values_are_computed_once_and_again_after_damage() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let key = Key::new(b"content", &1).unwrap();
        let mut computed = 0;
        let mut get = || {
            let compute = || {
                computed += 1;
                Ok(vec![1.0, -2.5])
            };
            assert_eq!(cache.get_or_compute(&key, 2, compute).unwrap(), [1.0, -2.5]);
            computed
        };
        assert_eq!((get(), get()), (1, 1));
        let file = files(folder.path()).remove(0);
        let mut bytes = fs::read(&file).unwrap();
        bytes[33] ^= 1;
        fs::write(&file, &bytes).unwrap();
        assert_eq!((get(), get()), (2, 2));
        fs::write(&file, &bytes[..20]).unwrap();
        assert_eq!((get(), get()), (3, 3));
        assert_eq!(files(folder.path()).len(), 1);
    }

    #[test]
    fn many_workers_share_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let key = Key::new(b"content", &1).unwrap();
        let values: Vec<f32> = (0..10_000_u16).map(f32::from).collect();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let cache = Cache::open(folder.path()).unwrap();
                    for _ in 0..20 {
                        let found = cache.get_or_compute(&key, values.len(), || Ok(values.clone()));
                        assert_eq!(found.unwrap(), values);
                    }
                    assert_eq!(cache.unwritten(), 0);
                });
            }
        });
        assert_eq!(files(folder.path()).len(), 1);
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_an_error_is_passed_on() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(&folder.path().join("cache")).unwrap();
        let key = Key::new(b"content", &1).unwrap();
        let failing = || Err(crate::Error::configuration("a", 1, "b"));
        assert!(cache.get_or_compute(&key, 1, failing).is_err());
        fs::remove_dir(folder.path().join("cache")).unwrap();
        assert_eq!(
            cache.get_or_compute(&key, 1, || Ok(vec![1.0])).unwrap(),
            [1.0]
        );
        assert_eq!(cache.unwritten(), 1);
    }
}
