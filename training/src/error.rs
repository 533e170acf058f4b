//! Errors in reading a dataset or training a model: the failed action, the value, and the remedy.

use std::path::{Path, PathBuf};

/// Shorthand for a result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the code that a callback belongs to (a Python exception, for example), passed on unchanged.
pub type ForeignError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// A failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder of the dataset does not exist.
    #[error("{} does not exist: {expected}", path.display())]
    Missing {
        /// The missing path.
        path: PathBuf,
        /// Description of the expected content.
        expected: &'static str,
    },

    /// A file exists, but cannot be read, written or removed.
    #[error("{} cannot be {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// `read`, `written` or `removed`.
        action: &'static str,
        /// Error of the system.
        #[source]
        source: std::io::Error,
    },

    /// A line of a dataset file breaks the format.
    #[error("{}, line {line}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: u64,
        /// Description of the mistake, with the value.
        reason: String,
    },

    /// A file is not of the format that it must be.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Description of the mistake, with the value and what it must be.
        reason: String,
    },

    /// The dataset has no split of that name.
    #[error("{} has no split {name:?}; it has: {}", path.display(), known.join(", "))]
    UnknownSplit {
        /// The file that lists the splits.
        path: PathBuf,
        /// The requested name.
        name: String,
        /// The existing names.
        known: Vec<String>,
    },

    /// The dataset cannot be divided as requested, or a part of it is empty.
    #[error("the dataset cannot be split: {reason}")]
    Split {
        /// Reason, with the numbers.
        reason: String,
    },

    /// A setting cannot work.
    #[error("{name}={value} cannot be used: {reason}")]
    Configuration {
        /// The setting as the user spells it.
        name: &'static str,
        /// The value.
        value: String,
        /// Description of a valid value.
        reason: String,
    },

    /// An input has the wrong shape or kind.
    #[error("{what} must be {expected}, not {found}")]
    Shape {
        /// Name of the input.
        what: &'static str,
        /// The expected shape.
        expected: String,
        /// The actual shape.
        found: String,
    },

    /// Training diverged.
    #[error(
        "{what} is {value} in epoch {epoch} at step {step}, batch {batch}: training has diverged; a smaller lr, a longer \
         warm-up or gradient clipping usually helps"
    )]
    NonFinite {
        /// `train/loss` or `val/loss`.
        what: &'static str,
        /// `NaN` or `inf`.
        value: f64,
        /// Epoch, from 0.
        epoch: usize,
        /// Batch of the epoch, from 0: the one with this loss, or the one before the validation.
        batch: usize,
        /// Number of optimiser steps before.
        step: usize,
    },

    /// A checkpoint is missing, belongs to another model, or was requested before one exists.
    #[error("checkpoint {}: {reason}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// Description of the problem.
        reason: String,
    },

    /// A callback failed, or ended the training by an error of its own (Ctrl-C).
    #[error(transparent)]
    Foreign(ForeignError),

    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

impl Error {
    /// Returns an [`Error::Malformed`].
    pub(crate) fn malformed(path: &Path, line: u64, reason: impl Into<String>) -> Self {
        Self::Malformed {
            path: path.to_owned(),
            line,
            reason: reason.into(),
        }
    }

    /// Returns an [`Error::File`].
    pub(crate) fn file(path: &Path, reason: impl Into<String>) -> Self {
        Self::File {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    /// Returns an [`Error::Configuration`].
    pub(crate) fn configuration(
        name: &'static str,
        value: impl std::fmt::Display,
        reason: impl Into<String>,
    ) -> Self {
        Self::Configuration {
            name,
            value: value.to_string(),
            reason: reason.into(),
        }
    }

    /// Returns an [`Error::Missing`] or [`Error::Io`] for a file that cannot be read.
    pub(crate) fn reading(path: &Path, expected: &'static str, source: std::io::Error) -> Self {
        if source.kind() == std::io::ErrorKind::NotFound {
            return Self::Missing {
                path: path.to_owned(),
                expected,
            };
        }
        Self::Io {
            path: path.to_owned(),
            action: "read",
            source,
        }
    }
}
