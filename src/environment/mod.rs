//! What a run was started with: Python, its packages, the state of the source, the command line, the machine.
//!
//! Off unless asked for. The tags that are known without a look at a disk go with the start of the run; a thread
//! of its own, without the GIL, finds the rest (packages, git, machine) and hands it over as it comes. The end of
//! the run waits for that thread, for a bounded time; what it has not found by then is not recorded.
//!
//! Secrets stay out: environment variables are not read, arguments and URLs go through [`secrets`], and so does
//! the difference to the last commit, from which files that are known to hold keys are left out.

pub mod capture;
pub mod git;
pub mod packages;
pub mod run_tags;
pub mod secrets;
