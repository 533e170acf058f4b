//! The operating system: clock, threads, file locks, forks, SIGTERM and copies of files.

pub(crate) mod clock;
pub(crate) mod copy_file;
pub(crate) mod file_lock;
pub(crate) mod fork;
pub(crate) mod run_thread;
pub(crate) mod sigterm;
