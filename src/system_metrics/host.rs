//! Processor, memory, disk and network.

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, Networks, System};

use super::means::{Name, Value};

/// Bytes of a megabyte in MLflow.
const MEGABYTE: f64 = 1e6;

/// The parts of the machine that this process may read.
#[derive(Debug)]
pub(crate) struct Host {
    system: System,
    networks: Networks,
    received: u64,
    transmitted: u64,
}

impl Host {
    /// Begins to count traffic and to watch the processor.
    pub(crate) fn new() -> Self {
        let mut system = System::new();
        system.refresh_cpu_specifics(CpuRefreshKind::nothing().with_cpu_usage());
        Self {
            system,
            networks: Networks::new_with_refreshed_list(),
            received: 0,
            transmitted: 0,
        }
    }

    /// Takes a sample of the machine.
    pub(crate) fn sample(&mut self) -> Vec<(Name, Value)> {
        let mut sample = Vec::with_capacity(8);
        self.system
            .refresh_cpu_specifics(CpuRefreshKind::nothing().with_cpu_usage());
        let cpu = f64::from(self.system.global_cpu_usage());
        sample.push(("cpu_utilization_percentage".into(), Value::Level(cpu)));

        self.system
            .refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        let (used, total) = (self.system.used_memory(), self.system.total_memory());
        let used = used as f64;
        sample.extend([
            (
                "system_memory_usage_megabytes".into(),
                Value::Level(used / MEGABYTE),
            ),
            (
                "system_memory_usage_percentage".into(),
                Value::Level(used / total as f64 * 100.0),
            ),
        ]);

        // Only the root's file system is read, as in MLflow. Reading all file systems would block on a dead network
        // share.
        if let Ok(root) = rustix::fs::statvfs("/") {
            sample.extend(disk(
                root.f_frsize,
                root.f_blocks,
                root.f_bfree,
                root.f_bavail,
            ));
        }

        // Traffic is summed by its increase since the last sample, because an interface that disappears takes its
        // counters with it.
        self.networks.refresh(true);
        for interface in self.networks.values() {
            self.received += interface.received();
            self.transmitted += interface.transmitted();
        }
        sample.extend([
            (
                "network_receive_megabytes".into(),
                Value::Total(self.received as f64 / MEGABYTE),
            ),
            (
                "network_transmit_megabytes".into(),
                Value::Total(self.transmitted as f64 / MEGABYTE),
            ),
        ]);
        sample
    }
}

/// Returns the usage of a file system, as `psutil.disk_usage` counts it: space that is reserved for the administrator
/// is neither used nor available.
fn disk(block: u64, blocks: u64, free: u64, available: u64) -> [(Name, Value); 3] {
    let bytes = |blocks: u64| blocks as f64 * block as f64;
    let (used, available) = (bytes(blocks.saturating_sub(free)), bytes(available));
    [
        (
            "disk_usage_percentage".into(),
            Value::Level(used / (used + available) * 100.0),
        ),
        ("disk_usage_megabytes".into(), Value::Level(used / MEGABYTE)),
        (
            "disk_available_megabytes".into(),
            Value::Level(available / MEGABYTE),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_reserved_for_the_administrator_are_neither_used_nor_available() {
        let [percentage, used, available] = disk(1_000, 10_000, 6_000, 4_000);
        assert_eq!(used.1, Value::Level(4.0));
        assert_eq!(available.1, Value::Level(4.0));
        assert_eq!(percentage.1, Value::Level(50.0));
    }

    #[test]
    fn a_look_at_this_machine_is_plausible() {
        let sample = Host::new().sample();
        assert_eq!(sample.len(), 8);
        for (name, value) in sample {
            let (Value::Level(value) | Value::Total(value)) = value;
            assert!(value >= 0.0, "{name} is {value}");
            assert!(
                !name.ends_with("percentage") || value <= 100.0,
                "{name} is {value}"
            );
        }
    }
}
