//! The thread that records the environment in which a run was started.

use std::{io, path::PathBuf, thread, time::Duration};

use serde_json::{Value, json};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, System};

use super::git::Repository;
use super::{packages, secrets};
use crate::{
    mlflow::{artifact_path::ArtifactPath, key::Key},
    os::{
        clock::now_ms,
        run_thread::{RunThread, StopSignal},
    },
    system_metrics::gpu::Gpus,
};

/// Longest time that the end of a run waits for the capture.
pub(crate) const CAPTURE_TIMEOUT: Duration = Duration::from_secs(10);
/// Folder of the files among the artifacts.
const FOLDER: &str = "environment";

/// The interpreter that runs the caller.
#[derive(Clone, Debug)]
pub struct Interpreter {
    /// Version, for example `3.11.7`.
    pub version: String,
    /// Implementation, for example `CPython`.
    pub implementation: String,
    /// Path of the program.
    pub executable: String,
    /// Folders that modules are imported from, in order.
    pub path: Vec<PathBuf>,
    /// Command line without secrets.
    command_line: Vec<String>,
}

impl Interpreter {
    /// Describes an interpreter; masks secrets in its arguments here, once.
    pub fn new(
        version: String,
        implementation: String,
        executable: String,
        path: Vec<PathBuf>,
        arguments: &[String],
    ) -> Self {
        Self {
            version,
            implementation,
            executable,
            path,
            command_line: secrets::masked_arguments(arguments),
        }
    }

    /// Returns the tags that are known at once.
    pub fn tags(&self) -> Vec<(&'static str, String)> {
        let command_line: Vec<_> = self.command_line.iter().map(|it| quoted(it)).collect();
        let mut tags = vec![
            (
                "heimdall.python",
                format!("{} {}", self.implementation, self.version),
            ),
            ("heimdall.command_line", command_line.join(" ")),
        ];
        tags.extend(System::host_name().map(|name| ("heimdall.hostname", name)));
        tags
    }
}

/// A captured part of the environment.
#[derive(Debug)]
pub(crate) enum CapturedPart {
    /// Tags of the run.
    Tags(Vec<(Key, String)>),
    /// A file for the run's artifacts.
    File {
        /// Path of the file.
        path: ArtifactPath,
        /// Content of the file.
        content: Vec<u8>,
    },
}

/// A thread that captures the environment in which a run was started; dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Capture {
    thread: RunThread,
}

impl Capture {
    /// Starts the thread. The thread calls `sink` with each part, and never after the end of this capture. Git is
    /// queried about the repository that contains `folder`.
    ///
    /// # Errors
    /// An error when the system gives no thread.
    pub(crate) fn start(
        interpreter: Interpreter,
        folder: PathBuf,
        sink: impl Fn(CapturedPart) + Send + 'static,
    ) -> io::Result<Self> {
        let work = move |stop_signal: &StopSignal| {
            find(&interpreter, folder, |found| {
                stop_signal.hand_over(|| sink(found));
            });
        };
        let thread = RunThread::start("heimdall-environment", work)?;
        Ok(Self { thread })
    }

    /// Waits until everything is captured, for at most `timeout`.
    pub(crate) fn finish(self, timeout: Duration) {
        self.thread.finish(timeout);
    }
}

fn find(interpreter: &Interpreter, folder: PathBuf, found: impl Fn(CapturedPart)) {
    let file = |name: &str, content: Vec<u8>| {
        if let Ok(path) = ArtifactPath::parse(&format!("{FOLDER}/{name}")) {
            found(CapturedPart::File { path, content });
        }
    };
    file(
        "packages.txt",
        packages::list(&interpreter.path).into_bytes(),
    );
    let repository = Repository::of(folder);
    if let Some(repository) = &repository {
        let tags = repository.tags().into_iter();
        let tags = tags.filter_map(|(key, value)| Some((Key::parse("tag key", key).ok()?, value)));
        found(CapturedPart::Tags(tags.collect()));
        if let Some(difference) = repository.difference() {
            file("git_diff.patch", difference.into_bytes());
        }
    }
    let mut machine = machine();
    machine["python"] = json!({
        "version": interpreter.version,
        "implementation": interpreter.implementation,
        "executable": interpreter.executable,
    });
    machine["command_line"] = json!(interpreter.command_line);
    machine["git"] = repository.map_or(Value::Null, |repository| repository.as_json());
    file("system.json", format!("{machine:#}\n").into_bytes());
}

/// Describes the machine: the properties that decide how fast a run is and whether it can be repeated.
fn machine() -> Value {
    let mut system = System::new();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    system.refresh_cpu_list(CpuRefreshKind::nothing());
    let gpus = Gpus::find();
    let models = gpus.as_ref().map(Gpus::models).unwrap_or_default();
    json!({
        "captured_at": now_ms(),
        "hostname": System::host_name(),
        "operating_system": System::long_os_version(),
        "kernel": System::kernel_version(),
        "architecture": System::cpu_arch(),
        "working_directory": std::env::current_dir().ok().map(|dir| dir.display().to_string()),
        "cpu": system.cpus().first().map(|cpu| cpu.brand().trim().to_owned()),
        "cpu_count": system.cpus().len(),
        // These are the processors that this process may use.
        "cpu_available": thread::available_parallelism().ok().map(usize::from),
        "memory_megabytes": system.total_memory() as f64 / 1e6,
        "gpus": models
            .into_iter()
            .map(|(name, memory)| json!({"name": name, "memory_megabytes": memory}))
            .collect::<Vec<_>>(),
        "nvidia_driver": gpus.and_then(|gpus| gpus.driver()),
    })
}

/// Quotes an argument for a shell.
fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "@%+=:,./-_*".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', r#"'"'"'"#))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    fn interpreter(arguments: &[&str]) -> Interpreter {
        let arguments: Vec<_> = arguments.iter().map(|it| (*it).to_owned()).collect();
        Interpreter::new(
            "3.11.7".into(),
            "CPython".into(),
            "/usr/bin/python3".into(),
            vec![],
            &arguments,
        )
    }

    #[test]
    fn the_command_line_reads_as_in_a_shell_and_has_no_secrets() {
        let tags =
            interpreter(&["python", "train.py", "--name", "it's mine", "--token=abc"]).tags();
        let command = &tags.iter().find(|tag| tag.0 == "heimdall.command_line");
        assert_eq!(
            command.unwrap().1,
            r#"python train.py --name 'it'"'"'s mine' --token=***"#
        );
    }

    #[test]
    fn all_is_found_by_the_time_it_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let (sender, found) = channel();
        let sink = move |it| {
            let _ = sender.send(it);
        };
        let capture = Capture::start(interpreter(&["python"]), dir.path().into(), sink);
        capture.unwrap().finish(CAPTURE_TIMEOUT);
        let files: Vec<_> = found
            .iter()
            .filter_map(|it| match it {
                CapturedPart::File { path, .. } => Some(path.as_str().to_owned()),
                CapturedPart::Tags(_) => None,
            })
            .collect();
        assert_eq!(
            files,
            ["environment/packages.txt", "environment/system.json"]
        );
    }
}
