//! Locks that hold between two copies of SQLite in one process.
//!
//! Python's `sqlite3`, which the stock client uses, has a copy of SQLite of its own. SQLite locks files with POSIX
//! locks, which belong to the process: neither copy would see the locks of the other copy, and a reader would take the
//! rollback journal of our transaction for the journal of a dead process and roll our transaction back while it runs
//! (SQLite, "How To Corrupt An SQLite Database File", section 2.2.1). So our copy takes locks of the open file
//! description (fcntl(2), `F_OFD_SETLK`): these exclude POSIX locks of all processes, this one included, and closing
//! another descriptor of the file does not drop them.
//!
//! SQLite counts its locks per file and process, and sets each lock through any of its descriptors. Here all locks of
//! one file go through one descriptor that is kept for them, so that all of them have the same owner.
//!
//! A fork inherits the descriptors. It closes those that own locks: the locks would otherwise be held for as long as
//! the fork lives, even where its parent is dead. A fork also inherits SQLite's counts, with the locks that the parent
//! held at that moment and that nobody releases in the fork; so the fork sees every file under a device number of its
//! own, and SQLite counts anew. A fork inherits SQLite's mutexes too, so no other thread may hold a mutex while the
//! process forks.
#![allow(unsafe_code, reason = "SQLite takes C functions")]

#[cfg(target_os = "linux")]
pub(crate) use linux::install;

/// Does nothing: only Linux has documented locks of open file descriptions.
#[cfg(not(target_os = "linux"))]
pub fn install() {}

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        cell::RefCell,
        ffi::CString,
        mem,
        sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    };

    use libc::{c_char, c_int, c_short, flock, off_t};
    use libsqlite3_sys::{
        SQLITE_MUTEX_STATIC_LRU, SQLITE_MUTEX_STATIC_MAIN, SQLITE_MUTEX_STATIC_MEM,
        SQLITE_MUTEX_STATIC_OPEN, SQLITE_MUTEX_STATIC_PMEM, SQLITE_MUTEX_STATIC_PRNG,
        SQLITE_MUTEX_STATIC_VFS1, SQLITE_MUTEX_STATIC_VFS2, SQLITE_MUTEX_STATIC_VFS3,
        sqlite3_mutex_alloc, sqlite3_mutex_enter, sqlite3_mutex_leave, sqlite3_syscall_ptr,
        sqlite3_vfs_find,
    };

    /// A file that was locked in this process.
    struct LockedFile {
        device: libc::dev_t,
        inode: libc::ino_t,
        /// Descriptor that owns all locks of the file; it is opened for this purpose only.
        owner: c_int,
        /// Descriptors that wait to be closed.
        parked: Vec<c_int>,
    }

    static FILES: Mutex<Vec<LockedFile>> = Mutex::new(Vec::new());

    /// The mutexes that connections share, outer ones first: SQLite allocates while it holds any other.
    const SHARED_MUTEXES: [c_int; 9] = [
        SQLITE_MUTEX_STATIC_MAIN,
        SQLITE_MUTEX_STATIC_VFS1,
        SQLITE_MUTEX_STATIC_VFS2,
        SQLITE_MUTEX_STATIC_VFS3,
        SQLITE_MUTEX_STATIC_OPEN,
        SQLITE_MUTEX_STATIC_PRNG,
        SQLITE_MUTEX_STATIC_LRU,
        SQLITE_MUTEX_STATIC_PMEM,
        SQLITE_MUTEX_STATIC_MEM,
    ];

    thread_local! {
        /// Guard that a thread holds while it forks.
        static HELD: RefCell<Option<MutexGuard<'static, Vec<LockedFile>>>> = const { RefCell::new(None) };
    }

    /// The process that loaded SQLite; its forks have another id.
    static FIRST: OnceLock<u32> = OnceLock::new();

    /// Makes the SQLite of this process use these locks. Must be called before SQLite opens its first file.
    pub(crate) fn install() {
        FIRST.get_or_init(|| {
            type Fcntl = unsafe extern "C" fn(c_int, c_int, *mut flock) -> c_int;
            type Stat = unsafe extern "C" fn(*const c_char, *mut libc::stat) -> c_int;
            type Fstat = unsafe extern "C" fn(c_int, *mut libc::stat) -> c_int;
            type Close = unsafe extern "C" fn(c_int) -> c_int;
            // SAFETY: the default VFS of SQLite on Linux is `unix`, which has these system calls and keeps the pointers
            // for ever; functions live as long. The VFS calls each function with the arguments of the system call of
            // the same name. It calls `fcntl` as a variadic function, with two arguments and a third one that is an
            // int, a pointer or missing; on Linux the first three integers of a variadic call are passed where a
            // function of three arguments reads them.
            unsafe {
                let vfs = sqlite3_vfs_find(std::ptr::null());
                if let Some(set) = vfs.as_ref().and_then(|vfs| vfs.xSetSystemCall) {
                    let fcntl = mem::transmute::<Fcntl, sqlite3_syscall_ptr>(fcntl);
                    let stat = mem::transmute::<Stat, sqlite3_syscall_ptr>(stat);
                    let fstat = mem::transmute::<Fstat, sqlite3_syscall_ptr>(fstat);
                    let close = mem::transmute::<Close, sqlite3_syscall_ptr>(close);
                    set(vfs, c"fcntl".as_ptr(), fcntl);
                    set(vfs, c"stat".as_ptr(), stat);
                    set(vfs, c"fstat".as_ptr(), fstat);
                    set(vfs, c"close".as_ptr(), close);
                }
                libc::pthread_atfork(Some(before_fork), Some(after_fork), Some(begin_fork));
            }
            std::process::id()
        });
    }

    unsafe extern "C" fn before_fork() {
        for mutex in SHARED_MUTEXES {
            // SAFETY: SQLite has these mutexes from its start, and this thread is not inside SQLite now.
            unsafe { sqlite3_mutex_enter(sqlite3_mutex_alloc(mutex)) };
        }
        HELD.set(Some(files()));
    }

    /// Closes the parent's descriptors and releases the mutexes. Runs in the child, in its only thread.
    unsafe extern "C" fn begin_fork() {
        HELD.with_borrow_mut(|files| {
            for file in files.iter_mut().flat_map(|files| files.drain(..)) {
                // SAFETY: the descriptor is ours, a copy of the parent's, and nothing else uses it.
                unsafe { libc::close(file.owner) };
            }
        });
        // SAFETY: this thread is the copy of the thread that has called `before_fork`.
        unsafe { after_fork() };
    }

    /// Releases the mutexes. Runs in the parent, in the thread that has forked.
    unsafe extern "C" fn after_fork() {
        HELD.take();
        for mutex in SHARED_MUTEXES.into_iter().rev() {
            // SAFETY: this thread, or the thread of the parent that this one is a copy of, has entered the mutex.
            unsafe { sqlite3_mutex_leave(sqlite3_mutex_alloc(mutex)) };
        }
    }

    fn files() -> MutexGuard<'static, Vec<LockedFile>> {
        FILES.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn identity(descriptor: c_int) -> Option<libc::stat> {
        // SAFETY: a `stat` of zero bytes is valid, and the pointer leads to one for the time of the call.
        unsafe {
            let mut stat = mem::zeroed();
            (libc::fstat(descriptor, &raw mut stat) == 0).then_some(stat)
        }
    }

    fn find<'a>(files: &'a mut [LockedFile], stat: &libc::stat) -> Option<&'a mut LockedFile> {
        files
            .iter_mut()
            .find(|file| (file.device, file.inode) == (stat.st_dev, stat.st_ino))
    }

    /// Does `stat`, with another device number in a fork than in its parent: SQLite identifies a file by the device
    /// number and the inode.
    unsafe extern "C" fn stat(path: *const c_char, stat: *mut libc::stat) -> c_int {
        // SAFETY: the arguments of SQLite are passed on unchanged.
        unsafe { device_of_this_fork(libc::stat(path, stat), stat) }
    }

    /// Does `fstat`, with another device number in a fork than in its parent.
    unsafe extern "C" fn fstat(descriptor: c_int, stat: *mut libc::stat) -> c_int {
        // SAFETY: the arguments of SQLite are passed on unchanged.
        unsafe { device_of_this_fork(libc::fstat(descriptor, stat), stat) }
    }

    /// Gives `stat` the device number of this fork.
    ///
    /// # Safety
    /// The caller must have filled `stat` in where `answer` is 0.
    unsafe fn device_of_this_fork(answer: c_int, stat: *mut libc::stat) -> c_int {
        let pid = std::process::id();
        if answer == 0 && FIRST.get() != Some(&pid) {
            // SAFETY: the caller guarantees that `stat` has been filled in.
            unsafe { (*stat).st_dev ^= libc::dev_t::from(pid) << 32 };
        }
        answer
    }

    /// Does `fcntl` with locks of the open file description instead of POSIX locks.
    unsafe extern "C" fn fcntl(descriptor: c_int, command: c_int, lock: *mut flock) -> c_int {
        let command = match command {
            libc::F_SETLK => libc::F_OFD_SETLK,
            libc::F_SETLKW => libc::F_OFD_SETLKW,
            libc::F_GETLK => libc::F_OFD_GETLK,
            // SAFETY: the arguments of SQLite are passed on unchanged.
            _ => return unsafe { libc::fcntl(descriptor, command, lock) },
        };
        let mut files = files();
        let owner = owner(&mut files, descriptor).unwrap_or(descriptor);
        // SAFETY: with a lock command SQLite passes a pointer to its own `flock`. The pid in it must be 0 for these
        // locks.
        let (answer, errno) = unsafe {
            (*lock).l_pid = 0;
            let answer = libc::fcntl(owner, command, lock);
            (answer, *libc::__errno_location())
        };
        drop(files);
        // SAFETY: the location belongs to this thread. SQLite reads errno next, and the unlocking may have changed it.
        unsafe { *libc::__errno_location() = errno };
        answer
    }

    /// Returns the descriptor that owns the locks of a file.
    fn owner(files: &mut Vec<LockedFile>, descriptor: c_int) -> Option<c_int> {
        let stat = identity(descriptor)?;
        if let Some(file) = find(files, &stat) {
            return Some(file.owner);
        }
        let path = CString::new(format!("/proc/self/fd/{descriptor}")).ok()?;
        // SAFETY: the path ends with a NUL and lives during the call, and the descriptor is open. The new descriptor
        // stays open. Where there is no /proc, it is a duplicate, which makes a difference only in a fork of a killed
        // parent.
        let owner = unsafe {
            match libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) {
                owner if owner >= 0 => owner,
                _ => libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 3),
            }
        };
        (owner >= 0).then(|| {
            files.push(LockedFile {
                device: stat.st_dev,
                inode: stat.st_ino,
                owner,
                parked: Vec::new(),
            });
            owner
        })
    }

    /// Does `close` without dropping the POSIX locks that the other SQLite of this process holds on the file: the
    /// kernel drops them when the process closes any descriptor of the file.
    unsafe extern "C" fn close(descriptor: c_int) -> c_int {
        let mut files = files();
        let file = identity(descriptor).and_then(|stat| Some((find(&mut files, &stat)?, stat)));
        let Some((file, stat)) = file else {
            drop(files);
            // SAFETY: SQLite gives up this descriptor.
            return unsafe { libc::close(descriptor) };
        };
        file.parked.push(descriptor);
        let deleted = stat.st_nlink == 0;
        if deleted {
            file.parked.push(file.owner);
        }
        if deleted || !is_locked_by_others_here(file.owner) {
            for parked in file.parked.drain(..) {
                // SAFETY: SQLite has given up this descriptor, or the descriptor is ours and its file is gone.
                unsafe { libc::close(parked) };
            }
        }
        if deleted {
            files.retain(|file| (file.device, file.inode) != (stat.st_dev, stat.st_ino));
        }
        0
    }

    /// Returns true where this process holds a POSIX lock on the file; such a lock is not ours.
    fn is_locked_by_others_here(owner: c_int) -> bool {
        let mut from: off_t = 0;
        loop {
            // SAFETY: a `flock` is a plain struct of integers; with zeros it means the whole file from its start.
            let mut lock: flock = unsafe { mem::zeroed() };
            lock.l_type = libc::F_WRLCK as c_short;
            lock.l_start = from;
            // SAFETY: the descriptor is open, and the pointer leads to a `flock` for the time of the call.
            let asked = unsafe { libc::fcntl(owner, libc::F_OFD_GETLK, &raw mut lock) };
            if asked != 0 || lock.l_type == libc::F_UNLCK as c_short {
                return false;
            }
            if u32::try_from(lock.l_pid) == Ok(std::process::id()) {
                return true;
            }
            // The lock belongs to another process: the search continues after it.
            match lock.l_start.checked_add(lock.l_len) {
                Some(end) if lock.l_len > 0 && end > from => from = end,
                _ => return false,
            }
        }
    }
}
