//! The operating system: clock, threads, file locks, forks, signals, exit codes and copies of files.

pub(crate) mod clock;
pub(crate) mod copy_file;
pub(crate) mod exit_code;
pub(crate) mod file_lock;
pub(crate) mod fork;
pub(crate) mod run_thread;
#[cfg_attr(
    not(feature = "python"),
    allow(dead_code, reason = "the binding alone watches for Ctrl-C")
)]
pub(crate) mod sigint;
pub(crate) mod sigterm;
