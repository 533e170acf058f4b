//! The sampling thread and its interval.

use std::{io, time::Duration};

use super::{gpu::Gpus, host::Host, means::Means};
use crate::{
    mlflow::{invalid::Invalid, key::Key, rewind::SYSTEM_METRICS},
    os::{
        clock::now_ms,
        run_thread::{RunThread, StopSignal},
    },
};

/// Prefix of the keys of all system metrics.
pub(crate) const PREFIX: &str = SYSTEM_METRICS;

const INTERVAL: &str = "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL";
const SAMPLES: &str = "MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING";
const NODE: &str = "MLFLOW_SYSTEM_METRICS_NODE_ID";

/// Settings of a sampler.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Time between two samples; 10 s by default.
    pub interval: Duration,
    /// Number of samples of a point; 1 by default.
    pub samples_before_logging: u32,
    /// Name of this machine, which the keys have behind `system/`; none by default.
    pub node_id: Option<String>,
    /// Step of the first point.
    pub first_step: i64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            samples_before_logging: 1,
            node_id: None,
            first_step: 0,
        }
    }
}

impl Config {
    /// Reads MLflow's environment variables.
    ///
    /// # Errors
    /// [`Invalid::Setting`] for a number that is not valid, and for a node id that no key can contain.
    pub(crate) fn from_env() -> Result<Self, Invalid> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Invalid> {
        let given = |name| variable(name).filter(|text| !text.is_empty());
        let mut config = Self::default();
        // MLflow treats 0 as not given.
        if let Some(text) = given(INTERVAL) {
            let seconds = text.trim().parse().ok();
            let interval = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            let invalid = || Invalid::setting(INTERVAL, &text, "it must be a number of seconds");
            match interval.ok_or_else(invalid)? {
                Duration::ZERO => {}
                interval => config.interval = interval,
            }
        }
        if let Some(text) = given(SAMPLES) {
            let invalid = |_| Invalid::setting(SAMPLES, &text, "it must be a number of samples");
            match text.trim().parse().map_err(invalid)? {
                0 => {}
                samples => config.samples_before_logging = samples,
            }
        }
        config.node_id = given(NODE);
        if let Some(node) = &config.node_id {
            // This is the longest name that occurs.
            config.key("gpu_999_memory_usage_percentage").map_err(|_| {
                let reason =
                    "metric keys cannot have it: use letters, digits, dots, dashes and underscores";
                Invalid::setting(NODE, node, reason)
            })?;
        }
        Ok(config)
    }

    fn key(&self, name: &str) -> Result<Key, Invalid> {
        let key = match &self.node_id {
            None => format!("{PREFIX}{name}"),
            Some(node) => format!("{PREFIX}{node}/{name}"),
        };
        Key::parse("system metric", &key)
    }
}

/// A running sampler; dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Sampler {
    _thread: RunThread,
}

impl Sampler {
    /// Starts the thread. The thread calls `sink` with the values of a point, its step and its time in milliseconds
    /// since 1970, and never after the sampler is dropped.
    ///
    /// # Errors
    /// An error when the system gives no thread.
    pub(crate) fn start(
        config: Config,
        sink: impl Fn(Vec<(Key, f64)>, i64, i64) + Send + 'static,
    ) -> io::Result<Self> {
        let work = move |stop_signal: &StopSignal| look(&config, stop_signal, sink);
        let thread = RunThread::start("heimdall-system", work)?;
        Ok(Self { _thread: thread })
    }
}

fn look(config: &Config, stop_signal: &StopSignal, sink: impl Fn(Vec<(Key, f64)>, i64, i64)) {
    // This happens on the thread, because a driver may need time to start.
    let (mut host, gpus) = (Host::new(), Gpus::find());
    let mut means = Means::default();
    for step in config.first_step.. {
        for _ in 0..config.samples_before_logging {
            if !stop_signal.wait(config.interval) {
                return;
            }
            means.add(host.sample());
            means.add(gpus.as_ref().map(Gpus::sample).unwrap_or_default());
        }
        let point = means.take().into_iter();
        let point = point.filter_map(|(name, value)| Some((config.key(&name).ok()?, value)));
        let point = point.collect();
        if !stop_signal.hand_over(|| sink(point, step, now_ms())) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::mpsc::channel};

    use super::*;

    fn quick() -> Config {
        Config {
            interval: Duration::from_millis(1),
            ..Config::default()
        }
    }

    fn config(variables: &[(&str, &str)]) -> Result<Config, Invalid> {
        Config::from_variables(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn points_have_the_names_of_mlflow_and_steps_one_by_one() {
        let (sender, points) = channel();
        let resumed = Config {
            first_step: 7,
            ..quick()
        };
        let _sampler = Sampler::start(resumed, move |values, step, at| {
            let _ = sender.send((values, step, at));
        });
        let begun = now_ms();
        for expected in 7..10 {
            let (values, step, at) = points.recv().unwrap();
            assert_eq!(step, expected);
            assert!((at - begun).abs() < 60_000);
            let keys: BTreeSet<_> = values.iter().map(|(key, _)| key.as_str()).collect();
            for name in [
                "system/cpu_utilization_percentage",
                "system/disk_available_megabytes",
                "system/disk_usage_megabytes",
                "system/disk_usage_percentage",
                "system/network_receive_megabytes",
                "system/network_transmit_megabytes",
                "system/system_memory_usage_megabytes",
                "system/system_memory_usage_percentage",
            ] {
                assert!(keys.contains(name), "{name} is not in {keys:?}");
            }
        }
    }

    #[test]
    fn a_sampler_that_waits_for_its_next_look_ends_at_once() {
        let (sender, points) = channel();
        let patient = Config {
            interval: Duration::from_secs(3600),
            ..Config::default()
        };
        let sampler = Sampler::start(patient, move |_, step, _| {
            let _ = sender.send(step);
        });
        drop(sampler.unwrap());
        assert!(points.recv().is_err(), "its sink is gone, and had nothing");
    }

    #[test]
    fn a_node_is_named_behind_the_prefix() {
        let (sender, points) = channel();
        let on_a_node = Config {
            node_id: Some("node-1".into()),
            ..quick()
        };
        let _sampler = Sampler::start(on_a_node, move |values, _, _| {
            let _ = sender.send(values);
        });
        let values = points.recv().unwrap();
        let prefix = "system/node-1/";
        assert!(
            values
                .iter()
                .all(|(key, _)| key.as_str().starts_with(prefix))
        );
    }

    #[test]
    fn the_environment_says_how_often_and_where() {
        let config = config(&[(INTERVAL, "0.5"), (SAMPLES, "3"), (NODE, "gpu-box")]).unwrap();
        assert_eq!(config.interval, Duration::from_millis(500));
        assert_eq!(config.samples_before_logging, 3);
        assert_eq!(config.node_id.as_deref(), Some("gpu-box"));
    }

    #[test]
    fn nothing_and_nought_are_the_defaults_of_mlflow() {
        for variables in [vec![], vec![(INTERVAL, "0"), (SAMPLES, "0"), (NODE, "")]] {
            let config = config(&variables).unwrap();
            assert_eq!(config.interval, Duration::from_secs(10));
            assert_eq!((config.samples_before_logging, config.node_id), (1, None));
        }
    }

    #[test]
    fn what_is_no_number_and_no_part_of_a_key_is_refused() {
        for wrong in [
            (INTERVAL, "soon"),
            (INTERVAL, "-1"),
            (INTERVAL, "nan"),
            (SAMPLES, "1.5"),
            (SAMPLES, "-1"),
            (NODE, "a#b"),
            (NODE, "/etc"),
            (NODE, ".."),
        ] {
            let error = config(&[wrong]).unwrap_err().to_string();
            assert!(
                error.starts_with(wrong.0) && error.contains(wrong.1),
                "{error}"
            );
        }
    }
}
