//! Locks that hold between two copies of SQLite in one process.
//!
//! Python's `sqlite3`, and with it the stock client, brings a SQLite of its own. SQLite locks files with POSIX
//! locks, which belong to the process: neither copy would see the other's, and a reader would take the rollback
//! journal of our transaction for that of a dead process and roll it back, under our feet (SQLite, "How To
//! Corrupt An SQLite Database File", section 2.2.1). So this copy takes locks of the open file description
//! (fcntl(2), `F_OFD_SETLK`): they exclude POSIX locks of all processes, this one included, and no `close` of
//! somebody else's descriptor drops them.
//!
//! SQLite counts its locks per file and process, and sets each through whichever descriptor is at hand. Here
//! all those of one file go through one descriptor that is kept for them, so that they stay those of one owner.
//!
//! A fork inherits the descriptors: it closes those that own locks, which else would be held for as long as it
//! lives, its parent dead or not. It inherits SQLite's count, with what its parent held at that moment and will
//! never release there; so it sees every file under a device number of its own, and counts anew. And it inherits
//! SQLite's mutexes, so nobody else may hold one while the process forks.
#![allow(unsafe_code, reason = "SQLite takes C functions")]

#[cfg(target_os = "linux")]
pub use linux::install;

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
        /// The owner of all locks, opened for nothing else.
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
        /// Held by a thread while it forks.
        static HELD: RefCell<Option<MutexGuard<'static, Vec<LockedFile>>>> = const { RefCell::new(None) };
    }

    /// The process that loaded SQLite; its forks have another id.
    static FIRST: OnceLock<u32> = OnceLock::new();

    /// Makes this process' SQLite lock so, before it opens its first file.
    pub fn install() {
        FIRST.get_or_init(|| {
            type Fcntl = unsafe extern "C" fn(c_int, c_int, *mut flock) -> c_int;
            type Stat = unsafe extern "C" fn(*const c_char, *mut libc::stat) -> c_int;
            type Fstat = unsafe extern "C" fn(c_int, *mut libc::stat) -> c_int;
            type Close = unsafe extern "C" fn(c_int) -> c_int;
            // SAFETY: the default VFS of SQLite on Linux is its own `unix`, which has these system calls and keeps
            // the pointers for ever, as functions live. It calls them with the arguments of their namesakes;
            // `fcntl` with two and a third that is an int, a pointer or missing: as the variadic function that
            // it is, which on Linux passes the first three integers where a function of three takes them.
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
            // SAFETY: SQLite has these mutexes from its start, and this is a thread outside of it.
            unsafe { sqlite3_mutex_enter(sqlite3_mutex_alloc(mutex)) };
        }
        HELD.set(Some(files()));
    }

    /// In the child, by its only thread.
    unsafe extern "C" fn begin_fork() {
        HELD.with_borrow_mut(|files| {
            for file in files.iter_mut().flat_map(|files| files.drain(..)) {
                // SAFETY: our own descriptor, here a copy of the parent's, that nothing else uses.
                unsafe { libc::close(file.owner) };
            }
        });
        // SAFETY: this thread is the copy of the one that has called `before_fork`.
        unsafe { after_fork() };
    }

    /// In the parent, by the thread that has forked.
    unsafe extern "C" fn after_fork() {
        HELD.take();
        for mutex in SHARED_MUTEXES.into_iter().rev() {
            // SAFETY: this thread, or the one in the parent that it is the copy of, has entered it.
            unsafe { sqlite3_mutex_leave(sqlite3_mutex_alloc(mutex)) };
        }
    }

    fn files() -> MutexGuard<'static, Vec<LockedFile>> {
        FILES.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn identity(descriptor: c_int) -> Option<libc::stat> {
        // SAFETY: all bytes zero is a valid `stat`, and the pointer is to one for the time of the call.
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

    /// `stat` that tells a fork of another device than its parent; SQLite knows a file by that and the inode.
    unsafe extern "C" fn stat(path: *const c_char, stat: *mut libc::stat) -> c_int {
        // SAFETY: what SQLite passed goes on as it came.
        unsafe { device_of_this_fork(libc::stat(path, stat), stat) }
    }

    /// The same for an open file.
    unsafe extern "C" fn fstat(descriptor: c_int, stat: *mut libc::stat) -> c_int {
        // SAFETY: what SQLite passed goes on as it came.
        unsafe { device_of_this_fork(libc::fstat(descriptor, stat), stat) }
    }

    /// # Safety
    /// With an answer of 0, `stat` has been filled in.
    unsafe fn device_of_this_fork(answer: c_int, stat: *mut libc::stat) -> c_int {
        let pid = std::process::id();
        if answer == 0 && FIRST.get() != Some(&pid) {
            // SAFETY: filled in, as the caller has promised.
            unsafe { (*stat).st_dev ^= libc::dev_t::from(pid) << 32 };
        }
        answer
    }

    /// `fcntl` with locks of the open file description in the place of POSIX locks.
    unsafe extern "C" fn fcntl(descriptor: c_int, command: c_int, lock: *mut flock) -> c_int {
        let command = match command {
            libc::F_SETLK => libc::F_OFD_SETLK,
            libc::F_SETLKW => libc::F_OFD_SETLKW,
            libc::F_GETLK => libc::F_OFD_GETLK,
            // SAFETY: what SQLite passed goes on as it came.
            _ => return unsafe { libc::fcntl(descriptor, command, lock) },
        };
        let mut files = files();
        let owner = owner(&mut files, descriptor).unwrap_or(descriptor);
        // SAFETY: with a lock command SQLite passes a pointer to its own `flock`. Its pid must be 0 for these.
        let (answer, errno) = unsafe {
            (*lock).l_pid = 0;
            let answer = libc::fcntl(owner, command, lock);
            (answer, *libc::__errno_location())
        };
        drop(files);
        // SAFETY: the location is this thread's. SQLite reads it next, and unlocking may have changed it.
        unsafe { *libc::__errno_location() = errno };
        answer
    }

    /// The descriptor that owns the locks of a file.
    fn owner(files: &mut Vec<LockedFile>, descriptor: c_int) -> Option<c_int> {
        let stat = identity(descriptor)?;
        if let Some(file) = find(files, &stat) {
            return Some(file.owner);
        }
        let path = CString::new(format!("/proc/self/fd/{descriptor}")).ok()?;
        // SAFETY: a path that ends with a NUL, for the time of the call, and an open descriptor. What comes of it
        // stays open. Where there is no /proc, it is a duplicate: that differs in a fork of a killed parent only.
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

    /// `close` that leaves alone the POSIX locks which the other SQLite of this process holds on the file: the
    /// kernel drops them with the first descriptor of the file that the process closes, whoever's it is.
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
                // SAFETY: SQLite has given up this descriptor, or it is our own of a file that is gone.
                unsafe { libc::close(parked) };
            }
        }
        if deleted {
            files.retain(|file| (file.device, file.inode) != (stat.st_dev, stat.st_ino));
        }
        0
    }

    /// Whether this process holds a POSIX lock on the file, which then is not ours.
    fn is_locked_by_others_here(owner: c_int) -> bool {
        let mut from: off_t = 0;
        loop {
            // SAFETY: a plain struct of integers, for which zero is the whole file from its start.
            let mut lock: flock = unsafe { mem::zeroed() };
            lock.l_type = libc::F_WRLCK as c_short;
            lock.l_start = from;
            // SAFETY: an open descriptor and a pointer to a `flock` for the time of the call.
            let asked = unsafe { libc::fcntl(owner, libc::F_OFD_GETLK, &raw mut lock) };
            if asked != 0 || lock.l_type == libc::F_UNLCK as c_short {
                return false;
            }
            if u32::try_from(lock.l_pid) == Ok(std::process::id()) {
                return true;
            }
            // That one is of another process: look behind it.
            match lock.l_start.checked_add(lock.l_len) {
                Some(end) if lock.l_len > 0 && end > from => from = end,
                _ => return false,
            }
        }
    }
}
