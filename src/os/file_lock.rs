//! File locks that end with this process, even while forks of the process still live.
//!
//! A lock lasts as long as any process has its descriptor, and a fork has all descriptors of its parent. So the
//! descriptors of all locks are listed, and a fork replaces each of them right after the fork.

use std::{
    fs::{File, TryLockError},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
};

/// Descriptors of the locks of this process. A lock that finds no slot lasts as long as the forks do.
static LOCKS: [AtomicI32; 1024] = [const { AtomicI32::new(NONE) }; 1024];
const NONE: i32 = -1;

/// A locked file. Dropping it releases the lock.
#[derive(Debug)]
pub(crate) struct FileLock(Arc<File>);

impl FileLock {
    /// Locks a file without waiting.
    ///
    /// # Errors
    /// [`TryLockError::WouldBlock`] where another process has locked the file, and the errors of the file system.
    pub(crate) fn take(file: File) -> Result<Self, TryLockError> {
        // The descriptor is listed before the file is locked, as a fork may happen at any time.
        list(&file);
        let lock = Self(Arc::new(file));
        lock.0.try_lock()?;
        Ok(lock)
    }

    /// Returns the locked file.
    pub(crate) fn file(&self) -> &Arc<File> {
        &self.0
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        let descriptor = self.0.as_raw_fd();
        for slot in &LOCKS {
            let _ = slot.compare_exchange(descriptor, NONE, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

fn list(file: &File) {
    let descriptor = file.as_raw_fd();
    for slot in &LOCKS {
        let taken = slot.compare_exchange(NONE, descriptor, Ordering::Relaxed, Ordering::Relaxed);
        if taken.is_ok() {
            return;
        }
    }
}

/// Drops the locks of the parent in a fork: their descriptors lead to `/dev/null` in the fork.
#[cfg(target_os = "linux")]
pub(crate) fn release_in_fork() {
    // SAFETY: these calls are allowed in a fork before it calls `exec`. The descriptors stay open, so that code that
    // closes them later does not close another file.
    #[allow(unsafe_code, reason = "only these calls are allowed in a fork")]
    unsafe {
        let nothing = libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if nothing < 0 {
            return;
        }
        for slot in &LOCKS {
            let lock = slot.swap(NONE, Ordering::Relaxed);
            if lock != NONE {
                libc::dup3(nothing, lock, libc::O_CLOEXEC);
            }
        }
        libc::close(nothing);
    }
}
