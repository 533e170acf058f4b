//! Maps a file's pages into memory, so that an append costs no system call.
//!
//! The pages belong to the kernel: bytes that are copied into them outlive the process from that instruction on. The
//! file's blocks are reserved before the file is mapped, because writing to a page for which the disk has no block ends
//! the process (SIGBUS). Where blocks cannot be reserved (on another system than Linux, or a file system without that
//! call), an append is a `pwrite`.

use std::{fs::File, io};

use super::frame::MARKER_LEN;

/// Returns the error for a frame of `frame` bytes that does not fit behind byte `at` of `length`.
pub(crate) fn does_not_fit(frame: usize, at: u64, length: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::WriteZero,
        format!("a frame of {frame} bytes does not fit behind byte {at} of {length}"),
    )
}

/// The pages of a file from its beginning.
#[derive(Debug)]
pub(crate) struct Map {
    pages: memmap2::MmapMut,
}

impl Map {
    /// Maps the first `length` bytes of a file after reserving their blocks. Returns `None` where this system or file
    /// system cannot do that.
    ///
    /// # Errors
    /// Errors of the file system, mostly a lack of room.
    #[cfg(target_os = "linux")]
    pub(crate) fn new(file: &File, length: u64) -> io::Result<Option<Self>> {
        use rustix::{fs::FallocateFlags, io::Errno};
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, length) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let length = usize::try_from(length).map_err(io::Error::other)?;
        // SAFETY: nobody else writes to the file, because its folder is locked. Readers read through the file and check
        // the bytes that they get. If somebody cut the file short, writing to it would end the process.
        #[expect(unsafe_code, reason = "a mapping and its marker have no safe form")]
        let pages = unsafe { memmap2::MmapOptions::new().len(length).map_mut(file) };
        Ok(pages.ok().map(|pages| Self { pages }))
    }

    /// Returns `None`: this system cannot reserve a file's blocks.
    #[cfg(not(target_os = "linux"))]
    pub fn new(_file: &File, _length: u64) -> io::Result<Option<Self>> {
        Ok(None)
    }

    /// Makes the kernel load the pages now, so that no append waits for that.
    pub(crate) fn populate(&self) {
        #[cfg(target_os = "linux")]
        // An older kernel loads the pages one by one when they are written to.
        let _ = self.pages.advise(memmap2::Advice::PopulateWrite);
    }

    /// Copies a frame to `at`, its marker last: a frame with a marker is whole.
    ///
    /// # Errors
    /// [`io::ErrorKind::WriteZero`] for a frame that does not fit behind `at`; no part of it is written.
    pub(crate) fn put(&mut self, at: usize, frame: &[u8]) -> io::Result<()> {
        let place = at
            .checked_add(frame.len())
            .and_then(|end| self.pages.get_mut(at..end));
        let Some(place) = place.filter(|place| place.len() >= MARKER_LEN) else {
            return Err(does_not_fit(
                frame.len(),
                at as u64,
                self.pages.len() as u64,
            ));
        };
        place[MARKER_LEN..].copy_from_slice(&frame[MARKER_LEN..]);
        // The compiler must neither move the marker before the rest of the frame nor write it twice.
        std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
        for (to, byte) in place[..MARKER_LEN].iter_mut().zip(frame) {
            // SAFETY: `to` is a byte of the mapped pages that nobody else writes to.
            #[expect(unsafe_code, reason = "a mapping and its marker have no safe form")]
            unsafe {
                std::ptr::write_volatile(to, *byte);
            }
        }
        Ok(())
    }

    /// Waits until these bytes are on the disk itself.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn sync(&self, at: usize, length: usize) -> io::Result<()> {
        self.pages.flush_range(at, length)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_does_not_fit_is_an_error_and_leaves_no_byte() {
        let file = tempfile::tempfile().unwrap();
        let mut map = Map::new(&file, 64)
            .unwrap()
            .expect("blocks can be reserved");
        let frame = [7u8; 32];
        map.put(0, &frame).unwrap();
        for at in [33, 64, 65, usize::MAX] {
            let error = map.put(at, &frame).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WriteZero, "{at}");
        }
        assert_eq!(
            map.put(40, &[]).unwrap_err().kind(),
            io::ErrorKind::WriteZero
        );
        assert_eq!(map.pages[..32], frame);
        assert!(map.pages[32..].iter().all(|byte| *byte == 0));
    }
}
