//! The environment in which a run was started: Python, its packages, the state of the source, the command line, the
//! machine.
//!
//! This is off unless the user asks for it. The tags that are known without reading a disk go with the start of the
//! run. A separate thread, without the GIL, finds the rest (packages, git, machine) and hands it over part by part. The
//! end of the run waits for that thread, for a bounded time; parts that it has not found by then are not recorded.
//!
//! Secrets stay out: environment variables are not read; arguments and URLs go through [`secrets`], and so does the
//! difference to the last commit, which omits files that are known to hold keys.

pub(crate) mod capture;
pub(crate) mod git;
pub(crate) mod packages;
pub(crate) mod run_tags;
pub(crate) mod secrets;
