//! NVIDIA's GPUs, read through the library of their driver; without the library there are none.

use nvml_wrapper::Nvml;

use super::means::{Name, Value};

/// The GPUs of this machine. As in MLflow, these are all GPUs, whatever `CUDA_VISIBLE_DEVICES` says.
#[derive(Debug)]
pub(crate) struct Gpus {
    nvml: Nvml,
    count: u32,
}

/// The readings of one GPU; a value that the driver does not report is `None`.
#[derive(Debug, Default)]
struct Reading {
    /// Used and total memory, in bytes.
    memory: Option<(u64, u64)>,
    /// Share of the time in which the GPU computed, in percent.
    utilization: Option<u32>,
    /// Power that is drawn, and power that is permitted, in milliwatts.
    power: Option<(u32, u32)>,
}

impl Gpus {
    /// Loads the library and looks for GPUs; may take as long as the driver needs to start.
    pub(crate) fn find() -> Option<Self> {
        let nvml = Nvml::init().ok()?;
        let count = nvml.device_count().ok()?;
        Some(Self { nvml, count })
    }

    /// Takes a sample of each GPU.
    pub(crate) fn sample(&self) -> Vec<(Name, Value)> {
        (0..self.count)
            .flat_map(|index| values(index, &self.read(index)))
            .collect()
    }

    fn read(&self, index: u32) -> Reading {
        let Ok(device) = self.nvml.device_by_index(index) else {
            return Reading::default();
        };
        Reading {
            // Memory that the driver keeps for itself counts as used, as in the call that MLflow makes.
            memory: device
                .memory_info()
                .ok()
                .map(|it| (it.total.saturating_sub(it.free), it.total)),
            utilization: device.utilization_rates().ok().map(|it| it.gpu),
            power: device
                .power_usage()
                .ok()
                .zip(device.enforced_power_limit().ok()),
        }
    }

    /// Returns the name and the memory in megabytes of each GPU.
    pub(crate) fn models(&self) -> Vec<(String, f64)> {
        let of = |index| {
            let device = self.nvml.device_by_index(index).ok()?;
            Some((
                device.name().ok()?,
                device.memory_info().ok()?.total as f64 / 1e6,
            ))
        };
        (0..self.count).filter_map(of).collect()
    }

    /// Returns the version of the driver.
    pub(crate) fn driver(&self) -> Option<String> {
        self.nvml.sys_driver_version().ok()
    }
}

/// Returns a reading under MLflow's names.
fn values(index: u32, reading: &Reading) -> Vec<(Name, Value)> {
    let mut values = Vec::with_capacity(5);
    let mut level = |name: &str, value: f64| {
        values.push((format!("gpu_{index}_{name}").into(), Value::Level(value)));
    };
    if let Some((used, total)) = reading.memory {
        let percentage = used as f64 / total as f64 * 100.0;
        level(
            "memory_usage_percentage",
            (percentage * 10.0).round() / 10.0,
        );
        level("memory_usage_megabytes", used as f64 / 1e6);
    }
    if let Some(utilization) = reading.utilization {
        level("utilization_percentage", f64::from(utilization));
    }
    if let Some((drawn, permitted)) = reading.power {
        level("power_usage_watts", f64::from(drawn) / 1000.0);
        level(
            "power_usage_percentage",
            f64::from(drawn) / f64::from(permitted) * 100.0,
        );
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_has_the_names_and_units_of_mlflow() {
        let reading = Reading {
            memory: Some((2_000_000_000, 8_000_000_000)),
            utilization: Some(97),
            power: Some((150_000, 300_000)),
        };
        let expected = [
            ("gpu_3_memory_usage_percentage", 25.0),
            ("gpu_3_memory_usage_megabytes", 2000.0),
            ("gpu_3_utilization_percentage", 97.0),
            ("gpu_3_power_usage_watts", 150.0),
            ("gpu_3_power_usage_percentage", 50.0),
        ]
        .map(|(name, value)| (Name::from(name), Value::Level(value)));
        assert_eq!(values(3, &reading), expected);
    }

    #[test]
    fn what_a_driver_does_not_tell_is_left_out() {
        let reading = Reading {
            utilization: Some(0),
            ..Reading::default()
        };
        let names: Vec<_> = values(0, &reading).into_iter().map(|it| it.0).collect();
        assert_eq!(names, ["gpu_0_utilization_percentage"]);
    }
}
