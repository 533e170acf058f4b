//! Which process this is: a fork has its parent's memory and none of its threads.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    sync::{
        Once,
        atomic::{AtomicI32, AtomicU32, Ordering},
    },
};

/// Forks between the process that loaded this library and this one.
static FORKS: AtomicU32 = AtomicU32::new(0);
static WATCHED: Once = Once::new();

/// A number that is another one in every fork. Costs one load.
pub fn generation() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// Counts forks from now on, whoever makes them.
pub(crate) fn watch_forks() {
    WATCHED.call_once(|| {
        // SAFETY: the handler is a function of this library, which is never unloaded, and does one thing that is
        // allowed between a fork and whatever comes next.
        #[cfg(target_os = "linux")]
        #[allow(unsafe_code)]
        unsafe {
            libc::pthread_atfork(None, None, Some(in_child));
        }
    });
}

#[cfg(target_os = "linux")]
extern "C" fn in_child() {
    forked();
    // The descriptors of locks point to nothing here: a lock lasts as long as any process has it, and it is to last as
    // long as the parent.
    // SAFETY: these calls are allowed between a fork and whatever comes next; the descriptors stay open, so that
    // whoever closes them closes these and no others.
    #[allow(unsafe_code)]
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

/// Descriptors of the locks of this process. One that finds no slot lasts as long as the forks do.
static LOCKS: [AtomicI32; 1024] = [const { AtomicI32::new(NONE) }; 1024];
const NONE: i32 = -1;

/// Sees to it that a lock ends with this process, whatever forks of it live on.
pub(crate) fn keep_from_forks(lock: &File) {
    let descriptor = lock.as_raw_fd();
    for slot in &LOCKS {
        let taken = slot.compare_exchange(NONE, descriptor, Ordering::Relaxed, Ordering::Relaxed);
        if taken.is_ok() {
            return;
        }
    }
}

/// A locked file whose lock ends with this process, whatever forks of it live on.
#[derive(Debug)]
pub(crate) struct KeptLock(File);

impl KeptLock {
    /// Locks a file.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where another process has it locked, and those of the file system.
    pub fn take(file: File) -> io::Result<Self> {
        // Before it is locked: a fork may come at any time.
        keep_from_forks(&file);
        let kept = Self(file);
        kept.0.try_lock()?;
        Ok(kept)
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.0
    }
}

impl Drop for KeptLock {
    fn drop(&mut self) {
        no_longer_kept(&self.0);
    }
}

/// The lock is about to be closed.
pub(crate) fn no_longer_kept(lock: &File) {
    let descriptor = lock.as_raw_fd();
    for slot in &LOCKS {
        let _ = slot.compare_exchange(descriptor, NONE, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Notes that this is a fork.
pub(crate) fn forked() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    crate::signals::in_child();
}
