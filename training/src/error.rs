//! What can go wrong while a dataset is read or a model trained: what failed, with which value, what to do.

use std::path::{Path, PathBuf};

/// Shorthand for a result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the code a callback belongs to (a Python exception, for example), carried through unchanged.
pub type ForeignError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Every failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder of the dataset is not there.
    #[error("{} does not exist: {expected}", path.display())]
    Missing {
        /// The path that was looked for.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
    },

    /// A file is there and cannot be read or written.
    #[error("{} cannot be {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// `read` or `written`.
        action: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },

    /// A dataset file breaks the format at one line.
    #[error("{}, line {line}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line in it, from 1.
        line: u64,
        /// What is wrong there, with the value.
        reason: String,
    },

    /// The dataset has no split of that name.
    #[error("{} has no split {name:?}; it has: {}", path.display(), known.join(", "))]
    UnknownSplit {
        /// The file that lists the splits.
        path: PathBuf,
        /// The name asked for.
        name: String,
        /// The names it has.
        known: Vec<String>,
    },

    /// The dataset cannot be divided as asked, or a part of it is empty.
    #[error("the dataset cannot be split: {reason}")]
    Split {
        /// Why, with the numbers.
        reason: String,
    },

    /// A setting that cannot work.
    #[error("{name}={value} cannot be used: {reason}")]
    Configuration {
        /// The setting as the user spells it.
        name: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        reason: String,
    },

    /// An input of the wrong shape or kind.
    #[error("{what} must be {expected}, not {found}")]
    Shape {
        /// Which input.
        what: &'static str,
        /// The shape it should have.
        expected: String,
        /// The shape it has.
        found: String,
    },

    /// Training diverged.
    #[error(
        "{what} is {value} in epoch {epoch} at step {step}: training has diverged; a smaller lr, a longer \
         warm-up or gradient clipping usually helps"
    )]
    NonFinite {
        /// `train/loss` or `val/loss`.
        what: &'static str,
        /// `NaN` or `inf`.
        value: f64,
        /// Epoch, from 0.
        epoch: usize,
        /// Optimiser steps done before.
        step: usize,
    },

    /// A checkpoint is missing, of another model, or asked for before there is one.
    #[error("checkpoint {}: {reason}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A callback failed, or asked to stop by an error of its own (Ctrl-C).
    #[error(transparent)]
    Foreign(ForeignError),

    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

impl Error {
    /// An [`Error::Malformed`].
    pub(crate) fn malformed(path: &Path, line: u64, reason: impl Into<String>) -> Self {
        Self::Malformed {
            path: path.to_owned(),
            line,
            reason: reason.into(),
        }
    }

    /// An [`Error::Configuration`].
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

    /// An [`Error::Missing`] or [`Error::Io`] of a file that was to be read.
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
