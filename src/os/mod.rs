//! The operating system: clock, threads, file locks, forks, SIGTERM and copies of files.

pub mod clock;
pub mod copy_file;
pub mod file_lock;
pub mod fork;
pub mod run_thread;
pub mod sigterm;
