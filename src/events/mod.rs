//! Events for logs: what the threads of the tracker report through `tracing`.
//!
//! An event waits in a queue until a thread of the caller takes it and hands it to Python's `logging`: a thread of ours
//! never enters the interpreter. Where no level is enabled, an event costs one comparison.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Mutex, Once, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
};

use tracing::{
    Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
    subscriber::Interest,
};

use crate::mlflow::invalid::Invalid;

/// Targets of events begin with this, and so do the names of the loggers.
const TARGET: &str = "heimdall_tracking";
/// Greatest number of events that wait; the oldest are dropped first, and counted.
const MAX_WAITING: usize = 10_000;

static QUEUE: Mutex<VecDeque<Event>> = Mutex::new(VecDeque::new());
static ARE_WAITING: AtomicBool = AtomicBool::new(false);
static DROPPED: AtomicU64 = AtomicU64::new(0);
/// The enabled level: 0 for none, 1 for errors, up to 4 for debugging.
static ENABLED: AtomicU8 = AtomicU8::new(0);
static SUBSCRIBE: Once = Once::new();

/// An event that waits for a thread of the caller.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// `debug`, `info`, `warning` or `error`.
    pub level: &'static str,
    /// Name of the logger, for example `heimdall_tracking.delivery`.
    pub logger: &'static str,
    /// Name of the event, for example `upload_finished`.
    pub name: &'static str,
    /// Fields by their names.
    pub fields: Vec<(&'static str, Value)>,
}

/// Value of a field.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A whole number.
    Integer(i64),
    /// A text.
    Text(String),
}

/// Enables events from a level on: `debug`, `info`, `warning` or `error`. The lowest level that was enabled counts.
///
/// # Errors
/// [`Invalid::Setting`] for another word.
pub fn enable(level: &str) -> Result<(), Invalid> {
    let number = match level.trim().to_ascii_lowercase().as_str() {
        "debug" => 4,
        "info" => 3,
        "warning" | "warn" => 2,
        "error" => 1,
        _ => {
            let reason = "it must be debug, info, warning or error";
            return Err(Invalid::setting("HEIMDALL_LOG", level, reason));
        }
    };
    ENABLED.fetch_max(number, Ordering::Relaxed);
    SUBSCRIBE.call_once(|| {
        // No other subscriber can be in the way: the library has a copy of `tracing` of its own.
        let _ = tracing::subscriber::set_global_default(Collector);
    });
    tracing::callsite::rebuild_interest_cache();
    Ok(())
}

/// Returns true where events wait. Costs one load.
pub fn are_waiting() -> bool {
    ARE_WAITING.load(Ordering::Relaxed)
}

/// Takes the events that wait, the oldest first, and the number of events that were dropped before them.
pub fn take() -> (Vec<Event>, u64) {
    let mut queue = QUEUE.lock().unwrap_or_else(PoisonError::into_inner);
    ARE_WAITING.store(false, Ordering::Relaxed);
    (
        queue.drain(..).collect(),
        DROPPED.swap(0, Ordering::Relaxed),
    )
}

fn enabled() -> LevelFilter {
    match ENABLED.load(Ordering::Relaxed) {
        0 => LevelFilter::OFF,
        1 => LevelFilter::ERROR,
        2 => LevelFilter::WARN,
        3 => LevelFilter::INFO,
        _ => LevelFilter::DEBUG,
    }
}

/// Collects events into the queue.
struct Collector;

impl Subscriber for Collector {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
            && metadata.target().starts_with(TARGET)
            && *metadata.level() <= enabled()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(enabled())
    }

    fn new_span(&self, _span: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}

    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut fields = Fields(Vec::new());
        event.record(&mut fields);
        let metadata = event.metadata();
        let event = Event {
            level: word(*metadata.level()),
            logger: metadata.target(),
            name: metadata.name(),
            fields: fields.0,
        };
        let mut queue = QUEUE.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() >= MAX_WAITING {
            queue.pop_front();
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        queue.push_back(event);
        ARE_WAITING.store(true, Ordering::Relaxed);
    }

    fn enter(&self, _span: &span::Id) {}

    fn exit(&self, _span: &span::Id) {}
}

fn word(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        _ => "debug",
    }
}

/// The fields of an event.
struct Fields(Vec<(&'static str, Value)>);

impl Visit for Fields {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.push((field.name(), Value::Integer(value)));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        self.0.push((field.name(), Value::Integer(value)));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), Value::Text(value.to_owned())));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0
            .push((field.name(), Value::Text(format!("{value:?}"))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_waits_with_its_fields_and_other_libraries_are_left_out() {
        assert!(enable("loud").is_err());
        enable("debug").unwrap();
        tracing::debug!(name: "tried", target: "heimdall_tracking.tests", size = 3_u64, path = %"a/b");
        tracing::debug!(name: "theirs", target: "hyper", size = 3_u64);
        let (events, _) = take();
        let mut of_test = events
            .into_iter()
            .filter(|event| event.logger.ends_with("tests"));
        let event = of_test.next().unwrap();
        assert_eq!((event.level, event.name), ("debug", "tried"));
        assert_eq!(
            event.fields,
            [
                ("size", Value::Integer(3)),
                ("path", Value::Text("a/b".into()))
            ]
        );
        assert!(of_test.all(|event| event.name != "theirs"));
    }
}
