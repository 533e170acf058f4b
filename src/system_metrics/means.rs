//! Means of samples, which become points.

use std::{borrow::Cow, collections::BTreeMap};

/// Name of a metric, below the prefix.
pub(crate) type Name = Cow<'static, str>;

/// A value of one sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value {
    /// A current level: the point is the mean of the samples, to one decimal place.
    Level(f64),
    /// A running total: the point is the last sample.
    Total(f64),
}

/// The samples since the last point.
#[derive(Debug, Default)]
pub(crate) struct Means(BTreeMap<Name, (Value, u32)>);

impl Means {
    /// Adds a sample. Leaves out values that are no numbers.
    pub(crate) fn add(&mut self, sample: Vec<(Name, Value)>) {
        for (name, value) in sample {
            let (Value::Level(number) | Value::Total(number)) = value;
            if !number.is_finite() {
                continue;
            }
            let (sum, samples) = self.0.entry(name).or_insert((value, 0));
            match (&mut *sum, value) {
                (Value::Level(sum), Value::Level(level)) if *samples > 0 => *sum += level,
                (sum, value) => *sum = value,
            }
            *samples += 1;
        }
    }

    /// Returns the points; the next sample begins new ones.
    pub(crate) fn take(&mut self) -> Vec<(Name, f64)> {
        let points = std::mem::take(&mut self.0);
        let point = |(value, samples)| match value {
            Value::Level(sum) => (sum / f64::from(samples) * 10.0).round() / 10.0,
            Value::Total(last) => last,
        };
        points
            .into_iter()
            .map(|(name, samples)| (name, point(samples)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_averaged_to_one_decimal_place_and_totals_are_the_last() {
        let mut means = Means::default();
        for (level, total) in [(1.0, 5.25), (2.0, 6.5), (2.0, 7.125)] {
            means.add(vec![
                ("level".into(), Value::Level(level)),
                ("total".into(), Value::Total(total)),
            ]);
        }
        let points = means.take();
        assert_eq!(points, [("level".into(), 1.7), ("total".into(), 7.125)]);
        assert!(means.take().is_empty());
    }

    #[test]
    fn a_value_that_was_missing_is_averaged_over_the_samples_that_have_it() {
        let mut means = Means::default();
        means.add(vec![("a".into(), Value::Level(4.0))]);
        means.add(vec![]);
        means.add(vec![("a".into(), Value::Level(f64::NAN))]);
        means.add(vec![("a".into(), Value::Level(2.0))]);
        assert_eq!(means.take(), [("a".into(), 3.0)]);
    }
}
