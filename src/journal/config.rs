//! Settings of a journal.

#[cfg(test)]
use std::path::Path;
use std::path::PathBuf;

/// Events that an accepted record survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// The end of the process, whatever ends it.
    #[default]
    Process,
    /// A power cut as well: each call waits for the disk.
    Power,
}

/// Place, destinations and limits of a journal.
#[derive(Clone, Debug)]
pub(crate) struct JournalConfig {
    /// `HEIMDALL_DIR`.
    pub heimdall_dir: PathBuf,
    /// URIs of the destinations, without credentials; the primary one first.
    pub destinations: Vec<String>,
    /// Most bytes on the disk, for segments and staged files together.
    pub disk_limit: u64,
    /// Most bytes in memory while the disk accepts nothing.
    pub memory_limit: usize,
    /// Events that an accepted record survives.
    pub durability: Durability,
    /// Folder in which relative artifact locations begin.
    pub working_dir: PathBuf,
}

impl JournalConfig {
    /// Most bytes on the disk by default: 10 GiB.
    pub(crate) const DISK_LIMIT: u64 = 10 << 30;
    /// Most bytes in memory by default: 256 MiB.
    pub(crate) const MEMORY_LIMIT: usize = 256 << 20;
    /// Least and greatest length of a segment in bytes. A segment for a longer frame is longer.
    const SEGMENT_LENGTHS: (u64, u64) = (1 << 14, 8 << 20);

    /// Returns a configuration with the default limits.
    #[cfg(test)]
    pub(crate) fn new(heimdall_dir: &Path, destinations: Vec<String>) -> Self {
        Self {
            heimdall_dir: heimdall_dir.to_owned(),
            destinations,
            disk_limit: Self::DISK_LIMIT,
            memory_limit: Self::MEMORY_LIMIT,
            durability: Durability::default(),
            working_dir: PathBuf::new(),
        }
    }

    /// Returns the length of a segment in bytes, chosen so that several segments fit within the limit of the disk.
    pub(crate) fn segment_length(&self) -> u64 {
        let (least, most) = Self::SEGMENT_LENGTHS;
        (self.disk_limit / 4).clamp(least, most)
    }
}
