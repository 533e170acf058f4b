//! Keeps the best weights and the last weights on disk.

use std::path::{Path, PathBuf};

use tch::Tensor;

use super::{Callback, Epoch, Flow, MONITOR, Snapshot};
use crate::error::{Error, Result};

/// The content of a checkpoint.
#[derive(Clone, Copy)]
pub struct Checkpoint<'a> {
    /// The epoch of the checkpoint.
    pub epoch: &'a Epoch,
    /// The network in training.
    pub snapshot: Snapshot<'a>,
}

/// The format of checkpoint files.
pub trait CheckpointStore {
    /// Writes a checkpoint. Afterwards the file is complete or, if this fails, unchanged.
    fn save(&mut self, path: &Path, checkpoint: &Checkpoint<'_>) -> Result<()>;

    /// Reads the tensors of a checkpoint by name.
    fn load(&mut self, path: &Path) -> Result<Vec<(String, Tensor)>>;
}

/// A checkpoint on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Saved {
    /// Path of the file.
    pub path: PathBuf,
    /// Validation loss of its epoch.
    pub score: f64,
}

/// Keeps the checkpoints of the `save_top_k` epochs with the lowest validation loss, and `last.ckpt`.
#[derive(Debug)]
pub struct ModelCheckpoint<S> {
    store: S,
    folder: PathBuf,
    save_top_k: usize,
    best: Vec<Saved>,
}

impl<S: CheckpointStore> ModelCheckpoint<S> {
    /// Keeps checkpoints in `folder`, which is created when the first checkpoint is written.
    pub fn new(store: S, folder: &Path, save_top_k: usize) -> Result<Self> {
        if save_top_k == 0 {
            let reason = "the best checkpoint is needed for the test: keep at least 1";
            return Err(Error::configuration("save_top_k", save_top_k, reason));
        }
        Ok(Self {
            store,
            folder: folder.to_owned(),
            save_top_k,
            best: Vec::new(),
        })
    }

    /// Returns the kept checkpoints, the best first; of two with the same loss, the earlier first.
    pub fn best(&self) -> &[Saved] {
        &self.best
    }

    /// Returns the path of the checkpoint of the last epoch.
    pub fn last(&self) -> PathBuf {
        self.folder.join("last.ckpt")
    }
}

impl<S: CheckpointStore> Callback for ModelCheckpoint<S> {
    fn on_epoch_end(&mut self, epoch: &mut Epoch, snapshot: &Snapshot<'_>) -> Result<Flow> {
        let epoch = &*epoch;
        let checkpoint = Checkpoint {
            epoch,
            snapshot: *snapshot,
        };
        if self.best.is_empty() {
            std::fs::create_dir_all(&self.folder).map_err(|source| Error::Io {
                path: self.folder.clone(),
                action: "written",
                source,
            })?;
        }
        let score = epoch.metric(MONITOR).unwrap_or(f64::INFINITY);
        let rank = self.best.partition_point(|kept| kept.score <= score);
        if rank < self.save_top_k {
            let path = self
                .folder
                .join(format!("epoch={}-step={}.ckpt", epoch.index, epoch.step));
            self.store.save(&path, &checkpoint)?;
            self.best.insert(rank, Saved { path, score });
            // A worse checkpoint is removed only after the better one is safe.
            for worse in self.best.split_off(self.best.len().min(self.save_top_k)) {
                std::fs::remove_file(&worse.path).map_err(|source| Error::Io {
                    path: worse.path,
                    action: "removed",
                    source,
                })?;
            }
        }
        self.store.save(&self.last(), &checkpoint)?;
        Ok(Flow::Continue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::callbacks::tests::run;

    /// A store of files that hold the number of their epoch.
    struct Numbers;

    impl CheckpointStore for Numbers {
        fn save(&mut self, path: &Path, checkpoint: &Checkpoint<'_>) -> Result<()> {
            std::fs::write(path, checkpoint.epoch.index.to_string()).map_err(|source| Error::Io {
                path: path.to_owned(),
                action: "written",
                source,
            })
        }

        fn load(&mut self, _path: &Path) -> Result<Vec<(String, Tensor)>> {
            Ok(Vec::new())
        }
    }

    fn kept(losses: &[f64], top: usize) -> (Vec<f64>, Vec<String>, String) {
        let folder = tempfile::tempdir().unwrap();
        let mut callback = ModelCheckpoint::new(Numbers, &folder.path().join("new"), top).unwrap();
        run(&mut callback, losses);
        let scores = callback.best().iter().map(|saved| saved.score).collect();
        let mut names: Vec<_> = std::fs::read_dir(folder.path().join("new"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        (
            scores,
            names,
            std::fs::read_to_string(callback.last()).unwrap(),
        )
    }

    #[test]
    fn the_best_and_the_last_are_kept_and_no_other() {
        let (scores, names, last) = kept(&[5.0, 3.0, 4.0, 1.0, 2.0, 9.0], 3);
        assert_eq!(scores, [1.0, 2.0, 3.0]);
        assert_eq!(
            names,
            [
                "epoch=1-step=20.ckpt",
                "epoch=3-step=40.ckpt",
                "epoch=4-step=50.ckpt",
                "last.ckpt"
            ]
        );
        assert_eq!(last, "5");
    }

    #[test]
    fn of_equal_losses_the_earlier_is_the_better() {
        let (_, names, _) = kept(&[1.0, 1.0, 1.0], 1);
        assert_eq!(names, ["epoch=0-step=10.ckpt", "last.ckpt"]);
    }

    #[test]
    fn keeping_none_is_refused() {
        let text = ModelCheckpoint::new(Numbers, Path::new("x"), 0)
            .err()
            .unwrap()
            .to_string();
        assert!(text.starts_with("save_top_k=0 "), "{text}");
    }
}
