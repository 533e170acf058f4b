//! The Python class `RecordingDataset`, and the reader of its batches.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use pyo3::{exceptions::PyIndexError, prelude::*, types::PyDict};
use tch::Tensor;

use super::{errors::to_python, features::mel_settings, settings::as_dict, tensors::wrap};
use crate::{
    cache::Cache,
    error::Result,
    features::MelSettings,
    recordings::{
        Featurised, Sessions,
        prefetch::{Batch, Prefetch, Row},
    },
};

/// Features, label and metadata in Python.
type ExampleTuple<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>);

#[pyclass(frozen, module = "heimdall_training")]
pub(super) struct RecordingDataset {
    data: Arc<Featurised>,
    root: PathBuf,
    split: String,
    /// The arguments by keyword, for a copy in another process.
    keywords: Py<PyDict>,
}

#[pymethods]
impl RecordingDataset {
    #[new]
    #[pyo3(signature = (root, split, *, sample_rate = None, channels = 3, cache_dir = None, **settings))]
    fn new(
        py: Python<'_>,
        root: PathBuf,
        split: String,
        sample_rate: Option<f64>,
        channels: usize,
        cache_dir: Option<PathBuf>,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let keywords = keywords(py, settings, sample_rate, channels, cache_dir.as_deref())?;
        let settings = mel_settings(py, settings, None)?;
        let data = open(&root, &split, channels, settings, sample_rate, cache_dir);
        let data = data.map_err(|error| to_python(py, error))?;
        Ok(Self {
            data: Arc::new(data),
            root,
            split,
            keywords,
        })
    }

    /// Lets a `DataLoader` pass the dataset to its workers.
    fn __getnewargs_ex__(&self, py: Python<'_>) -> ((&Path, &str), Py<PyDict>) {
        ((&self.root, &self.split), self.keywords.clone_ref(py))
    }

    #[getter]
    fn sessions(&self) -> &[String] {
        self.data.sessions().names()
    }

    fn __len__(&self) -> usize {
        self.data.sessions().names().len()
    }

    fn __getitem__<'py>(&self, py: Python<'py>, index: isize) -> PyResult<ExampleTuple<'py>> {
        let number = self.number(index)?;
        let read = py.detach(|| self.tensors(number));
        let (features, label, metadata) = read.map_err(|error| to_python(py, error))?;
        Ok((
            wrap(py, &features)?,
            wrap(py, &label)?,
            as_dict(py, &metadata)?,
        ))
    }

    fn __repr__(&self) -> String {
        let (root, count) = (self.root.display(), self.__len__());
        format!(
            "RecordingDataset({root}, {:?}, {count} recordings)",
            self.split
        )
    }
}

impl RecordingDataset {
    /// Returns the number of a recording; a negative index counts from the end.
    fn number(&self, index: isize) -> PyResult<usize> {
        let count = self.__len__();
        let number = if index < 0 {
            count.checked_add_signed(index)
        } else {
            Some(index.unsigned_abs())
        };
        number.filter(|&it| it < count).ok_or_else(|| {
            PyIndexError::new_err(format!(
                "index {index} must be below {count}, the number of recordings"
            ))
        })
    }

    fn tensors(
        &self,
        number: usize,
    ) -> Result<(Tensor, Tensor, serde_json::Map<String, serde_json::Value>)> {
        let example = self.data.read(number)?;
        let shape = self.data.shape().map(|it| it as i64);
        let features = Tensor::f_from_slice(&example.features)?.f_reshape(shape)?;
        let label = Tensor::f_from_slice(&[example.label.lat as f32, example.label.lon as f32])?;
        Ok((features, label, example.metadata))
    }
}

/// Features and labels of a batch in Python.
type BatchTuple<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>);

/// Reads batches by threads, ahead of whoever takes them.
#[pyclass(frozen, module = "heimdall_training")]
pub(super) struct BatchReader(Prefetch);

#[pymethods]
impl BatchReader {
    #[new]
    fn new(
        py: Python<'_>,
        rows: Vec<(PyRef<'_, RecordingDataset>, usize)>,
        batches: Vec<Vec<usize>>,
        workers: usize,
        ahead: usize,
    ) -> PyResult<Self> {
        let batches = rows_of(&rows, batches)?;
        let started = py.detach(|| Prefetch::start(batches, workers, ahead));
        Ok(Self(started.map_err(|error| to_python(py, error))?))
    }

    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<BatchTuple<'py>>> {
        let read = py.detach(|| {
            self.0
                .next_batch()
                .map(|batch| batch.and_then(|it| tensors_of(&it)))
        });
        let Some(batch) = read.transpose().map_err(|error| to_python(py, error))? else {
            return Ok(None);
        };
        Ok(Some((wrap(py, &batch.0)?, wrap(py, &batch.1)?)))
    }

    fn close(&self) {
        self.0.close();
    }
}

/// Returns the rows of each batch.
fn rows_of(
    rows: &[(PyRef<'_, RecordingDataset>, usize)],
    batches: Vec<Vec<usize>>,
) -> PyResult<Vec<Vec<Row>>> {
    let row = |number: usize| match rows.get(number) {
        Some((dataset, row)) => Ok(Row {
            data: Arc::clone(&dataset.data),
            number: *row,
        }),
        None => Err(PyIndexError::new_err(format!("there is no row {number}"))),
    };
    let batches = batches.into_iter();
    batches
        .map(|batch| batch.into_iter().map(row).collect())
        .collect()
}

fn tensors_of(batch: &Batch) -> Result<(Tensor, Tensor)> {
    let rows = batch.rows as i64;
    let [channels, bands, frames] = batch.shape.map(|it| it as i64);
    let features = Tensor::f_from_slice(&batch.features)?;
    let features = features.f_reshape([rows, channels, bands, frames])?;
    let labels = Tensor::f_from_slice(&batch.labels)?.f_reshape([rows, 2])?;
    Ok((features, labels))
}

fn open(
    root: &Path,
    split: &str,
    channels: usize,
    settings: MelSettings,
    sample_rate: Option<f64>,
    cache: Option<PathBuf>,
) -> Result<Featurised> {
    let cache = cache.as_deref().map(Cache::open).transpose()?;
    let sessions = Sessions::list(root, split, channels)?;
    Featurised::new(sessions, channels, settings, sample_rate, cache)
}

fn keywords(
    py: Python<'_>,
    settings: Option<&Bound<'_, PyDict>>,
    sample_rate: Option<f64>,
    channels: usize,
    cache_dir: Option<&Path>,
) -> PyResult<Py<PyDict>> {
    let keywords = settings.map_or_else(|| Ok(PyDict::new(py)), |it| it.copy())?;
    keywords.set_item("sample_rate", sample_rate)?;
    keywords.set_item("channels", channels)?;
    keywords.set_item("cache_dir", cache_dir)?;
    Ok(keywords.unbind())
}
