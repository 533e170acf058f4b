//! The functions `fit` and `evaluate`, for the Python trainer.

use std::path::{Path, PathBuf};

use pyo3::{
    prelude::*,
    types::{PyDict, PyTuple},
};

use super::{
    checkpoints::TorchFiles,
    dataset::RssDataset,
    errors::to_python,
    model::{RssLocalizationNet, arrays},
    outlets::{PythonLogger, PythonPrinter, Signals},
};
use crate::{
    callbacks::{
        Callback, CheckpointStore, EarlyStopping, LearningRateMonitor, MetricsLogger,
        ModelCheckpoint, Progress,
    },
    error::Result,
    fit::FitReport,
    fit_config::FitConfig,
    rss_batches::{Augmentation, Examples},
    rss_fit::{RssFitConfig, fit_rss},
};

/// Checkpoints and results of a fitted network.
struct Fitted {
    report: FitReport,
    best: Vec<(PathBuf, f64)>,
    last: PathBuf,
}

#[pyfunction]
#[pyo3(signature = (model, dataset, *, max_epochs, batch_size, lr, min_lr, warmup_steps, weight_decay, gradient_clip_val, drop_receivers, noise_db, gain_db, seed, num_threads, patience, save_top_k, checkpoint_dir, log_metrics, print_line))]
#[expect(
    clippy::too_many_arguments,
    reason = "keyword arguments, one per setting of the trainer"
)]
pub(crate) fn fit<'py>(
    py: Python<'py>,
    model: &RssLocalizationNet,
    dataset: &RssDataset,
    max_epochs: usize,
    batch_size: usize,
    lr: f64,
    min_lr: f64,
    warmup_steps: Option<usize>,
    weight_decay: f64,
    gradient_clip_val: Option<f64>,
    drop_receivers: f64,
    noise_db: f64,
    gain_db: f64,
    seed: u64,
    num_threads: usize,
    patience: Option<usize>,
    save_top_k: usize,
    checkpoint_dir: PathBuf,
    log_metrics: Py<PyAny>,
    print_line: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let config = RssFitConfig {
        fit: FitConfig {
            max_epochs,
            accumulate_grad_batches: 1,
            gradient_clip_val,
            seed: Some(seed),
            num_threads,
            ..FitConfig::default()
        },
        batch_size,
        lr,
        min_lr,
        warmup_steps,
        weight_decay,
        augmentation: Augmentation {
            drop_receivers,
            noise_db,
            gain_db,
        },
    };
    let _training = model.begin_training()?;
    let fitted = py.detach(|| {
        let mut signals = Signals::new();
        let mut lr_monitor = LearningRateMonitor;
        let mut checkpoints = ModelCheckpoint::new(TorchFiles, &checkpoint_dir, save_top_k)?;
        let mut logger = MetricsLogger(PythonLogger(log_metrics));
        let mut progress = print_line.map(|print| Progress::new(PythonPrinter(print)));
        let mut early_stopping = patience.map(EarlyStopping::new).transpose()?;

        let mut callbacks: Vec<&mut dyn Callback> =
            vec![&mut signals, &mut lr_monitor, &mut logger, &mut checkpoints];
        callbacks.extend(
            progress
                .as_mut()
                .map(|callback| callback as &mut dyn Callback),
        );
        callbacks.extend(
            early_stopping
                .as_mut()
                .map(|callback| callback as &mut dyn Callback),
        );
        let report = fit_rss(&model.lock(), &dataset.0, &config, &mut callbacks)?;
        let best = checkpoints
            .best()
            .iter()
            .map(|saved| (saved.path.clone(), saved.score))
            .collect();
        Ok(Fitted {
            report,
            best,
            last: checkpoints.last(),
        })
    });
    let Fitted { report, best, last } = fitted.map_err(|error| to_python(py, error))?;

    let history = report.epochs.iter().map(|epoch| {
        let values = PyDict::new(py);
        for (name, value) in &epoch.metrics {
            values.set_item(name, value)?;
        }
        values.set_item("step", epoch.step)?;
        Ok(values)
    });
    let answer = PyDict::new(py);
    answer.set_item("history", history.collect::<PyResult<Vec<_>>>()?)?;
    answer.set_item("best", best)?;
    answer.set_item("last", last)?;
    answer.set_item("stopped", report.stopped)?;
    answer.set_item("seconds", report.seconds)?;
    Ok(answer)
}

#[pyfunction]
#[pyo3(signature = (model, dataset, part, ckpt_path=None))]
pub(crate) fn evaluate<'py>(
    py: Python<'py>,
    model: &RssLocalizationNet,
    dataset: &RssDataset,
    part: &str,
    ckpt_path: Option<PathBuf>,
) -> PyResult<(Bound<'py, PyDict>, Bound<'py, PyTuple>, Vec<f64>)> {
    let rows = dataset.rows(part).map_err(|error| to_python(py, error))?;
    let (metrics, predictions, errors) = model.with(py, |net| -> Result<_> {
        if let Some(path) = ckpt_path {
            load(net, &path)?;
        }
        let examples = Examples::new(&dataset.0, rows, net)?;
        let (metrics, predictions) = crate::evaluate::evaluate(net, &examples)?;
        let pairs = predictions.iter().zip(&examples.truth);
        let errors = pairs
            .map(|(prediction, truth)| prediction.position.distance_m(truth.position))
            .collect();
        Ok((metrics, predictions, errors))
    })?;
    let values = PyDict::new(py);
    for (name, value) in metrics.named() {
        values.set_item(format!("{part}/{name}"), value)?;
    }
    Ok((values, arrays(py, &predictions)?, errors))
}

fn load(net: &crate::model::RssLocalizationNet, path: &Path) -> Result<()> {
    net.state().load(&TorchFiles.load(path)?)
}
