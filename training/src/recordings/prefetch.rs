//! Batches of recordings that worker threads read ahead of the training.

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use super::features::Featurised;
use crate::error::{Error, Result};

/// One recording of a dataset.
#[derive(Clone, Debug)]
pub struct Row {
    /// Dataset that has the recording.
    pub data: Arc<Featurised>,
    /// Number of the recording in it.
    pub number: usize,
}

/// Features and labels of some recordings, one after the other.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Number of recordings.
    pub rows: usize,
    /// Shape of the features of one recording.
    pub shape: [usize; 3],
    /// Features, `[rows, channels, bands, frames]`.
    pub features: Vec<f32>,
    /// Latitudes and longitudes in degrees, `[rows, 2]`.
    pub labels: Vec<f32>,
}

impl Batch {
    /// Reads the recordings of a batch, in their order.
    ///
    /// # Errors
    /// One that names the file; [`Error::Shape`] where the features differ in shape.
    pub fn read(rows: &[Row]) -> Result<Self> {
        let mut batch = Self {
            rows: rows.len(),
            shape: rows.first().map_or([0; 3], |row| row.data.shape()),
            features: Vec::new(),
            labels: Vec::with_capacity(2 * rows.len()),
        };
        batch
            .features
            .reserve_exact(rows.len() * batch.shape.iter().product::<usize>());
        for row in rows {
            if row.data.shape() != batch.shape {
                return Err(Error::Shape {
                    what: "the features of a batch",
                    expected: format!("of the shape {:?}", batch.shape),
                    found: format!("{:?}", row.data.shape()),
                });
            }
            let example = row.data.read(row.number)?;
            batch.features.extend_from_slice(&example.features);
            batch.labels.push(example.label.lat as f32);
            batch.labels.push(example.label.lon as f32);
        }
        Ok(batch)
    }
}

/// What the threads and the reader of the batches share.
#[derive(Debug, Default)]
struct State {
    /// Number of the next batch that a thread begins.
    next: usize,
    /// Number of batches that were handed out.
    taken: usize,
    finished: BTreeMap<usize, Result<Batch>>,
    is_closed: bool,
}

#[derive(Debug)]
struct Shared {
    batches: Vec<Vec<Row>>,
    /// Batches that may be begun ahead of the one that is taken next.
    ahead: usize,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let woken = self.changed.wait(state);
        woken.unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of the next batch to read; waits while enough are read ahead.
    fn begin(&self) -> Option<usize> {
        let mut state = self.lock();
        while !state.is_closed && state.next < self.batches.len() {
            if state.next < state.taken + self.ahead {
                state.next += 1;
                return Some(state.next - 1);
            }
            state = self.wait(state);
        }
        None
    }

    fn work(&self) {
        while let Some(number) = self.begin() {
            // Whoever waits for a batch must not wait for a thread that has died.
            let read =
                std::panic::catch_unwind(AssertUnwindSafe(|| Batch::read(&self.batches[number])));
            let read = read.unwrap_or_else(|_| {
                let reason = format!("the thread that read batch {number} has panicked");
                Err(Error::Foreign(reason.into()))
            });
            self.lock().finished.insert(number, read);
            self.changed.notify_all();
        }
    }
}

/// Reads batches by worker threads, and hands them out in their order.
#[derive(Debug)]
pub struct Prefetch {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Prefetch {
    /// Starts the threads.
    ///
    /// # Arguments
    /// * `batches` - The recordings of each batch.
    /// * `workers` - Threads; with 0, a batch is read when it is asked for.
    /// * `ahead` - Batches per thread that are read ahead, at least 1.
    ///
    /// # Errors
    /// [`Error::Configuration`] where the system gives no thread.
    pub fn start(batches: Vec<Vec<Row>>, workers: usize, ahead: usize) -> Result<Self> {
        let workers = workers.min(batches.len());
        let shared = Arc::new(Shared {
            batches,
            ahead: workers.saturating_mul(ahead.max(1)),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let mut prefetch = Self {
            shared,
            threads: Vec::with_capacity(workers),
        };
        for _ in 0..workers {
            let shared = Arc::clone(&prefetch.shared);
            let thread = thread::Builder::new().name("heimdall-recordings".to_owned());
            let thread = thread.spawn(move || shared.work());
            let thread = thread.map_err(|source| {
                let reason = format!("it starts no thread: {source}");
                Error::configuration("num_workers", workers, reason)
            });
            prefetch.threads.push(thread?);
        }
        Ok(prefetch)
    }

    /// Returns the next batch; none behind the last one. After an error there are no more batches.
    ///
    /// # Errors
    /// Those of [`Batch::read`].
    pub fn next_batch(&self) -> Option<Result<Batch>> {
        let mut state = self.shared.lock();
        if state.is_closed || state.taken == self.shared.batches.len() {
            return None;
        }
        let number = state.taken;
        let batch = if self.threads.is_empty() {
            drop(state);
            let batch = Batch::read(&self.shared.batches[number]);
            state = self.shared.lock();
            batch
        } else {
            loop {
                if let Some(batch) = state.finished.remove(&number) {
                    break batch;
                }
                if state.is_closed {
                    return None;
                }
                state = self.shared.wait(state);
            }
        };
        state.taken = number + 1;
        state.is_closed |= batch.is_err();
        drop(state);
        self.shared.changed.notify_all();
        Some(batch)
    }

    /// Ends the threads once each has read the recording at hand; there are no more batches.
    pub fn close(&self) {
        self.shared.lock().is_closed = true;
        self.shared.changed.notify_all();
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.close();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{features::MelSettings, recordings::Sessions};

    fn rows(folder: &std::path::Path, count: usize, broken: Option<usize>) -> Vec<Row> {
        let split = folder.join("train");
        std::fs::create_dir_all(&split).unwrap();
        for number in 0..count {
            let samples: Vec<u8> = (0..3 * 4096)
                .flat_map(|it| {
                    let angle = it as f32 * 0.01 * (number + 1) as f32;
                    [angle.cos(), angle.sin()]
                })
                .flat_map(f32::to_le_bytes)
                .collect();
            let name = |end: &str| split.join(format!("s{number}_{end}"));
            let content = if broken == Some(number) {
                b"no array".to_vec()
            } else {
                npy("<c8", "(3, 4096)", &samples)
            };
            std::fs::write(name("iq.npy"), content).unwrap();
            let label: Vec<u8> = [45.0_f64, 8.0 + number as f64]
                .into_iter()
                .flat_map(f64::to_le_bytes)
                .collect();
            std::fs::write(name("label.npy"), npy("<f8", "(2,)", &label)).unwrap();
        }
        let sessions = Sessions::list(folder, "train", 3).unwrap();
        let settings = MelSettings {
            n_fft: 256,
            hop: 128,
            bands: 16,
            frames: 4,
            ..MelSettings::default()
        };
        let data = Featurised::new(sessions, 3, settings, Some(48_000.0), None).unwrap();
        let data = Arc::new(data);
        (0..count)
            .map(|number| Row {
                data: Arc::clone(&data),
                number,
            })
            .collect()
    }

    fn npy(kind: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let mut header =
            format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}");
        while (header.len() + 11) % 64 != 0 {
            header.push(' ');
        }
        header.push('\n');
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn all(rows: &[Row], workers: usize) -> Vec<Batch> {
        let batches = rows.chunks(2).map(<[Row]>::to_vec).collect();
        let prefetch = Prefetch::start(batches, workers, 2).unwrap();
        std::iter::from_fn(|| prefetch.next_batch())
            .collect::<Result<_>>()
            .unwrap()
    }

    #[test]
    fn threads_change_neither_the_order_nor_a_bit() {
        let folder = tempfile::tempdir().unwrap();
        let rows = rows(folder.path(), 7, None);
        let alone = all(&rows, 0);
        assert_eq!(alone.len(), 4);
        assert_eq!(alone[3].rows, 1);
        assert_eq!(alone[0].labels, [45.0, 8.0, 45.0, 9.0]);
        for workers in [1, 4] {
            assert_eq!(all(&rows, workers), alone);
        }
    }

    #[test]
    fn a_recording_that_cannot_be_read_is_named_and_ends_the_batches() {
        let folder = tempfile::tempdir().unwrap();
        let rows = rows(folder.path(), 6, Some(3));
        for workers in [0, 3] {
            let batches = rows.chunks(2).map(<[Row]>::to_vec).collect();
            let prefetch = Prefetch::start(batches, workers, 1).unwrap();
            assert!(prefetch.next_batch().unwrap().is_ok());
            let error = prefetch.next_batch().unwrap().unwrap_err().to_string();
            assert!(error.contains("s3_iq.npy"), "{error}");
            assert!(prefetch.next_batch().is_none());
        }
    }

    #[test]
    fn an_early_end_waits_for_no_batch_that_nobody_takes() {
        let folder = tempfile::tempdir().unwrap();
        let rows = rows(folder.path(), 6, None);
        let batches = rows.chunks(1).map(<[Row]>::to_vec).collect();
        let prefetch = Prefetch::start(batches, 2, 1).unwrap();
        assert!(prefetch.next_batch().unwrap().is_ok());
        prefetch.close();
        assert!(prefetch.next_batch().is_none());
    }
}
