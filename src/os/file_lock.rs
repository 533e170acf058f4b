//! File locks that end with this process, whatever forks of it live on.
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
    /// [`TryLockError::WouldBlock`] where another process has locked it, and those of the file system.
    pub fn take(file: File) -> Result<Self, TryLockError> {
        // It is listed before it is locked: a fork may come at any time.
        list(&file);
        let lock = Self(Arc::new(file));
        lock.0.try_lock()?;
        Ok(lock)
    }

    /// The locked file.
    pub fn file(&self) -> &Arc<File> {
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

/// Lets go, in a fork, of the locks of its parent: their descriptors lead to `/dev/null` here.
#[cfg(target_os = "linux")]
pub(crate) fn release_in_fork() {
    // SAFETY: these calls are allowed between a fork and whatever comes next; the descriptors stay open, so that
    // whoever closes them closes these and no others.
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
