//! Memory that the parts of a long file share.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use memmap2::MmapMut;

/// Memory of parts that have been sent, kept for later parts: as much memory as the parts that are sent at a time.
/// Memory from the system would cost the kernel the clearing of every page, and allocators keep more than they hand
/// out.
///
/// Each piece of memory begins at the start of a page. Allocators start 16 bytes into a page, and there some processors
/// (AMD's Zen 3 and 4) take four times as long for bytes that the kernel copies from files:
/// <https://xuanwo.io/2023/04-rust-std-fs-slower-than-python/>.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffers(Arc<Mutex<Vec<MmapMut>>>);

/// One piece of memory, which returns to the pool when nobody needs its content.
struct PooledBuffer {
    memory: Option<MmapMut>,
    length: usize,
    pool: Buffers,
}

impl PooledBuffer {
    fn new(pool: Buffers, length: usize) -> io::Result<Self> {
        let free = pool.free().pop().filter(|free| free.len() >= length);
        let memory = match free {
            Some(memory) => memory,
            None => {
                let memory = MmapMut::map_anon(length)?;
                // Huge pages mean fewer page faults; small pages work as well.
                #[cfg(target_os = "linux")]
                let _ = memory.advise(memmap2::Advice::HugePage);
                memory
            }
        };
        Ok(Self {
            memory: Some(memory),
            length,
            pool,
        })
    }
}

impl AsRef<[u8]> for PooledBuffer {
    fn as_ref(&self) -> &[u8] {
        self.memory
            .as_deref()
            .map_or(&[], |memory| &memory[..self.length])
    }
}

impl AsMut<[u8]> for PooledBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        let length = self.length;
        self.memory
            .as_deref_mut()
            .map_or(&mut [], |memory| &mut memory[..length])
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.pool.free().push(memory);
        }
    }
}

impl Buffers {
    fn free(&self) -> MutexGuard<'_, Vec<MmapMut>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the bytes of a file in a range.
    ///
    /// # Errors
    /// Errors of the disk; [`io::ErrorKind::UnexpectedEof`] where the file is shorter than the range.
    pub(crate) async fn read(&self, file: Arc<File>, range: Range<u64>) -> io::Result<Bytes> {
        let pool = self.clone();
        // The read runs on a thread where the disk delays nobody else.
        let read = tokio::task::spawn_blocking(move || {
            let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
            let mut buffer = PooledBuffer::new(pool, length)?;
            file.read_exact_at(buffer.as_mut(), range.start)?;
            Ok(Bytes::from_owner(buffer))
        });
        read.await
            .unwrap_or_else(|panic| Err(io::Error::other(panic)))
    }
}

/// Returns the bytes of a file in a range, in pieces of a limited length.
pub(crate) fn pieces(
    file: Arc<File>,
    range: Range<u64>,
    length: u64,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let buffers = Buffers::default();
    stream::try_unfold(range.start, move |at| {
        let (file, end, buffers) = (Arc::clone(&file), range.end, buffers.clone());
        async move {
            if at >= end {
                return Ok(None);
            }
            let to = end.min(at + length);
            Ok(Some((buffers.read(file, at..to).await?, to)))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn memory_comes_back_and_holds_what_is_read_next() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let (file, buffers) = (Arc::new(file), Buffers::default());
        let read = |range| buffers.read(Arc::clone(&file), range);
        let (first, second) = (read(0..4).await.unwrap(), read(4..8).await.unwrap());
        assert_eq!((&first[..], &second[..]), (&b"0123"[..], &b"4567"[..]));
        assert_eq!(first.as_ptr().align_offset(4096), 0);
        drop((first.slice(1..), first, second));
        assert_eq!(buffers.free().len(), 2);
        let last = read(8..10).await.unwrap();
        assert_eq!((&last[..], buffers.free().len()), (&b"89"[..], 1));
        let error = read(8..11).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
