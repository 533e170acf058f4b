//! Uploads in parts, to any store: the place of each part in its file, and the parts in transit.

use std::{
    fs::File,
    ops::Range,
    os::unix::fs::MetadataExt,
    sync::atomic::{AtomicBool, Ordering},
};

use futures_util::{StreamExt, stream};
use tokio::sync::Semaphore;

/// Most parts that S3 accepts of a file.
pub(crate) const MAX_PARTS: u64 = 10_000;

/// The parts of a file, numbered from 0. All parts but the last have the same size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PartLayout {
    /// Size of the file in bytes.
    pub file_size: u64,
    /// Size of a part in bytes.
    pub part_size: u64,
}

impl PartLayout {
    /// Divides a file into parts; they are larger than `part_size` where the file would have too many parts.
    pub(crate) fn new(file_size: u64, part_size: u64) -> Self {
        let part_size = part_size.max(file_size.div_ceil(MAX_PARTS));
        Self {
            file_size,
            part_size,
        }
    }

    /// Returns the number of parts.
    pub(crate) fn count(self) -> u64 {
        self.file_size.div_ceil(self.part_size)
    }

    /// Returns the range of a part in the file.
    pub(crate) fn range(self, part: u64) -> Range<u64> {
        let start = part * self.part_size;
        start..self.file_size.min(start + self.part_size)
    }

    /// Returns the size of a part.
    pub(crate) fn size_of(self, part: u64) -> u64 {
        let range = self.range(part);
        range.end - range.start
    }
}

/// The size of a file and the time of its last change, by which a change since the first part is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileStamp {
    /// Size in bytes.
    pub size: u64,
    /// Time of the last change, in nanoseconds since 1970; 0 where the disk does not say.
    pub modified: i64,
}

impl FileStamp {
    /// Returns the stamp of a file of this size.
    pub(crate) fn of(file: &File, size: u64) -> Self {
        let modified = file.metadata().map_or(0, |metadata| {
            metadata
                .mtime()
                .wrapping_mul(1_000_000_000)
                .wrapping_add(metadata.mtime_nsec())
        });
        Self { size, modified }
    }
}

/// Sends parts, at most `together` at a time and only while there is `room`, and calls `sent` for each that has
/// arrived. After a failure no further part is begun; the parts in transit may still arrive, so that they need not be
/// sent again.
///
/// # Errors
/// The first error of a part.
pub(crate) async fn send_parts<T, E, F>(
    parts: Vec<u64>,
    together: usize,
    room: &Semaphore,
    send: impl Fn(u64) -> F,
    mut sent: impl FnMut(u64, T),
) -> Result<(), E>
where
    F: Future<Output = Result<T, E>>,
{
    let (send, has_failed) = (&send, &AtomicBool::new(false));
    let mut sending = stream::iter(parts)
        .map(|part| async move {
            let _permit = room.acquire().await;
            if has_failed.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let outcome = send(part).await;
            has_failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
            outcome.map(|outcome| Some((part, outcome)))
        })
        .buffer_unordered(together);
    let mut first_error = None;
    while let Some(outcome) = sending.next().await {
        match outcome {
            Ok(Some((part, outcome))) => sent(part, outcome),
            Ok(None) => {}
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    first_error.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn parts_cover_the_file_and_are_not_too_many() {
        let layout = PartLayout::new(20, 8);
        let ranges: Vec<_> = (0..layout.count()).map(|part| layout.range(part)).collect();
        assert_eq!(ranges, [0..8, 8..16, 16..20]);
        assert_eq!(layout.size_of(2), 4);
        let layout = PartLayout::new(MAX_PARTS * 10 + 1, 8);
        assert_eq!(layout.part_size, 11);
        assert!(layout.count() <= MAX_PARTS);
    }

    #[tokio::test]
    async fn no_part_is_begun_after_a_failure() {
        let begun = Mutex::new(Vec::new());
        let mut arrived = Vec::new();
        let send = |part| {
            begun.lock().unwrap().push(part);
            std::future::ready(if part == 1 { Err(part) } else { Ok(part * 2) })
        };
        let room = Semaphore::new(1);
        let outcome = send_parts(vec![0, 1, 2, 3], 2, &room, send, |part, outcome| {
            arrived.push((part, outcome));
        });
        assert_eq!(outcome.await, Err(1));
        assert_eq!(*begun.lock().unwrap(), [0, 1]);
        assert_eq!(arrived, [(0, 0)]);
    }
}
