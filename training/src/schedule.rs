//! The learning rate of each step.

use crate::error::{Error, Result};

/// A learning rate for each step.
pub trait Schedule {
    /// Returns the learning rate of step `step` (from 0).
    fn lr(&self, step: usize) -> f64;
}

/// The same learning rate for all steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Constant(pub f64);

impl Schedule for Constant {
    fn lr(&self, _step: usize) -> f64 {
        self.0
    }
}

/// Learning rate by step: rises linearly to `peak` over `warmup_steps`, then falls along half a cosine to
/// `floor` at `total_steps` and stays there.
///
/// The formula is equation 5 of Loshchilov and Hutter, "SGDR", 2017, without restarts; after the warm-up it gives the
/// numbers of `torch.optim.lr_scheduler.CosineAnnealingLR`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WarmupCosine {
    /// Highest rate.
    pub peak: f64,
    /// Last rate.
    pub floor: f64,
    /// Steps of the warm-up; the first step uses `peak / warmup_steps`.
    pub warmup_steps: usize,
    /// Number of all steps.
    pub total_steps: usize,
}

impl WarmupCosine {
    /// Returns a schedule, or an error for numbers that make none.
    pub fn new(peak: f64, floor: f64, warmup_steps: usize, total_steps: usize) -> Result<Self> {
        if !(peak > 0.0 && peak.is_finite()) {
            return Err(Error::configuration(
                "lr",
                peak,
                "it must be a number above 0",
            ));
        }
        if !(0.0..=peak).contains(&floor) {
            return Err(Error::configuration(
                "min_lr",
                floor,
                format!("it must be between 0 and lr ({peak})"),
            ));
        }
        if warmup_steps > total_steps {
            let reason = format!("training has only {total_steps} steps");
            return Err(Error::configuration("warmup_steps", warmup_steps, reason));
        }
        Ok(Self {
            peak,
            floor,
            warmup_steps,
            total_steps,
        })
    }
}

impl Schedule for WarmupCosine {
    fn lr(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let falling = (self.total_steps - self.warmup_steps).max(1) as f64;
        let progress = ((step - self.warmup_steps) as f64 / falling).min(1.0);
        self.floor
            + (self.peak - self.floor) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_rates_are_those_of_torch() {
        // The numbers are those of torch.optim.lr_scheduler.CosineAnnealingLR(lr=0.1, T_max=8, eta_min=0.01), steps
        // 0…8.
        let torch = [
            0.1,
            0.096_574_578_963_007_9,
            0.086_819_805_153_394_63,
            0.072_220_754_456_429_05,
            0.055,
            0.037_779_245_543_570_96,
            0.023_180_194_846_605_363,
            0.013_425_421_036_992_097,
            0.01,
        ];
        let schedule = WarmupCosine::new(0.1, 0.01, 0, 8).unwrap();
        for (step, expected) in torch.into_iter().enumerate() {
            assert!(
                (schedule.lr(step) - expected).abs() < 1e-12,
                "step {step}: {}",
                schedule.lr(step)
            );
        }
    }

    #[test]
    fn the_warm_up_rises_in_equal_parts_to_the_peak() {
        let schedule = WarmupCosine::new(1.0, 0.0, 4, 10).unwrap();
        let rates: Vec<_> = (0..5).map(|step| schedule.lr(step)).collect();
        assert_eq!(rates, [0.25, 0.5, 0.75, 1.0, 1.0]);
    }

    #[test]
    fn numbers_that_make_no_schedule_are_refused() {
        assert!(WarmupCosine::new(0.0, 0.0, 0, 1).is_err());
        assert!(WarmupCosine::new(f64::NAN, 0.0, 0, 1).is_err());
        assert!(WarmupCosine::new(0.1, 0.2, 0, 1).is_err());
        let text = WarmupCosine::new(0.1, 0.0, 5, 4).unwrap_err().to_string();
        assert_eq!(
            text,
            "warmup_steps=5 cannot be used: training has only 4 steps"
        );
    }

    proptest! {
        #[test]
        fn a_rate_is_never_above_the_peak_nor_below_the_floor(
            warmup in 0usize..50, falling in 0usize..50, step in 0usize..200,
        ) {
            let schedule = WarmupCosine::new(1e-3, 0.0, warmup, warmup + falling).unwrap();
            prop_assert!((0.0..=1e-3).contains(&schedule.lr(step)));
        }
    }
}
