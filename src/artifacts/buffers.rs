//! Memory that the parts of a long file share.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;

/// Memory of parts that have been sent, for those that come: as much as the parts that are on their way at a time.
/// Asking for it anew has the kernel clear every page, and allocators keep more than they hand out.
#[derive(Clone, Debug, Default)]
pub struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

/// One of them, which comes back when nobody needs what is in it.
struct Lent {
    content: Vec<u8>,
    home: Buffers,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let content = std::mem::take(&mut self.content);
        self.home.free().push(content);
    }
}

impl Buffers {
    fn free(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a file has in a range. Waits on the disk.
    ///
    /// # Errors
    /// The disk's; [`io::ErrorKind::UnexpectedEof`] where the file is shorter.
    pub fn read(&self, file: &File, range: Range<u64>) -> io::Result<Bytes> {
        let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        let mut content = self.free().pop().unwrap_or_default();
        content.resize(length, 0);
        file.read_exact_at(&mut content, range.start)?;
        let home = self.clone();
        Ok(Bytes::from_owner(Lent { content, home }))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn memory_comes_back_and_holds_what_is_read_next() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let buffers = Buffers::default();
        let first = buffers.read(&file, 0..4).unwrap();
        let second = buffers.read(&file, 4..8).unwrap();
        assert_eq!((&first[..], &second[..]), (&b"0123"[..], &b"4567"[..]));
        drop((first.slice(1..), first, second));
        assert_eq!(buffers.free().len(), 2);
        let last = buffers.read(&file, 8..10).unwrap();
        assert_eq!((&last[..], buffers.free().len()), (&b"89"[..], 1));
        let error = buffers.read(&file, 8..11).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
