//! Shows the progress of the training: a bar on a terminal, and a line for each epoch.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{BatchEnd, Callback, Epoch, Flow, MONITOR, Plan, Snapshot};
use crate::error::Result;

/// Receiver of the lines.
pub trait Printer {
    /// Prints a line.
    fn print(&mut self, line: &str) -> Result<()>;
}

/// A bar on standard error if that is a terminal, and a line for each epoch.
#[derive(Debug)]
pub struct Progress<P> {
    printer: P,
    bar: ProgressBar,
    epochs: usize,
    best: f64,
}

impl<P: Printer> Progress<P> {
    /// Makes a display that is drawn when the training starts.
    pub fn new(printer: P) -> Self {
        Self {
            printer,
            bar: ProgressBar::hidden(),
            epochs: 0,
            best: f64::INFINITY,
        }
    }
}

impl<P: Printer> Callback for Progress<P> {
    fn on_fit_start(&mut self, plan: &Plan) -> Result<()> {
        self.epochs = plan.epochs;
        let batches = plan.batches_per_epoch;
        self.bar = ProgressBar::with_draw_target(
            batches.map(|batches| (plan.epochs * batches) as u64),
            ProgressDrawTarget::stderr_with_hz(10),
        );
        if let Ok(style) =
            ProgressStyle::with_template("{wide_bar:.cyan/dim} step {pos}/{len}, {eta} left, {msg}")
        {
            self.bar.set_style(style);
        }
        Ok(())
    }

    fn on_train_batch_end(&mut self, _batch: &BatchEnd, _snapshot: &Snapshot<'_>) -> Result<()> {
        self.bar.inc(1);
        Ok(())
    }

    fn on_epoch_end(&mut self, epoch: &mut Epoch, _snapshot: &Snapshot<'_>) -> Result<Flow> {
        let metric = |name: &str| epoch.metric(name).unwrap_or(f64::NAN);
        let loss = metric(MONITOR);
        let better = loss < self.best;
        self.best = self.best.min(loss);
        let line = format!(
            "epoch {:>3}/{}  train loss {:>7.4} error {:>4.0} m | val loss {:>7.4} error {:>4.0} m sigma {:>4.0} m | \
             lr {:.1e}{}",
            epoch.index + 1,
            self.epochs,
            metric("train/loss"),
            metric("train/position_error_mean"),
            loss,
            metric("val/position_error_mean"),
            metric("val/sigma_mean"),
            epoch.lr,
            if better { "  best" } else { "" },
        );
        self.bar.set_message(format!("val loss {loss:.4}"));
        let printer = &mut self.printer;
        self.bar.suspend(|| printer.print(&line))?;
        Ok(Flow::Continue)
    }

    fn on_fit_end(&mut self) -> Result<()> {
        self.bar.finish_and_clear();
        Ok(())
    }
}

impl<P> Drop for Progress<P> {
    fn drop(&mut self) {
        // A training that ended with an error leaves no half-drawn bar.
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::callbacks::tests::run;

    impl Printer for Vec<String> {
        fn print(&mut self, line: &str) -> Result<()> {
            self.push(line.to_owned());
            Ok(())
        }
    }

    #[test]
    fn each_epoch_has_a_line_and_the_better_ones_are_marked() {
        let mut progress = Progress::new(Vec::new());
        run(&mut progress, &[0.5, 0.7, 0.25]);
        let lines = &progress.printer;
        assert_eq!(lines.len(), 3);
        assert!(
            lines[0].starts_with("epoch   1/3 ") && lines[0].contains("val loss  0.5000"),
            "{}",
            lines[0]
        );
        assert_eq!(
            [0, 1, 2].map(|line: usize| lines[line].ends_with("best")),
            [true, false, true]
        );
    }
}
