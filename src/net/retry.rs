//! Attempts that are repeated, with exponential back-off and jitter.

use std::time::Duration;

/// Repeats an attempt until it succeeds, or until `pause` returns `None` for its error. `pause` returns the time to
/// wait before the next attempt.
///
/// # Errors
/// The error of the last attempt.
pub(crate) async fn retry<T, E, F>(
    mut attempt: impl FnMut() -> F,
    mut pause: impl FnMut(&E) -> Option<Duration>,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    loop {
        let outcome = attempt().await;
        let Err(error) = &outcome else {
            return outcome;
        };
        match pause(error) {
            Some(pause) => tokio::time::sleep(pause).await,
            None => return outcome,
        }
    }
}

/// Repeats an attempt as [`retry`] does, at most `attempts` times in all, where waiting may help by `is_transient`.
///
/// # Errors
/// The error of the last attempt.
pub(crate) async fn retry_transient<T, E, F>(
    attempts: u32,
    mut backoff: Backoff,
    attempt: impl FnMut() -> F,
    is_transient: impl Fn(&E) -> bool,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    retry(attempt, |error| {
        let goes_on = is_transient(error) && backoff.attempts() + 1 < attempts;
        goes_on.then(|| backoff.pause())
    })
    .await
}

/// The pauses between the attempts at one task.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    attempts: u32,
}

impl Backoff {
    /// Returns pauses that double from `first` to `longest`.
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            attempts: 0,
        }
    }

    /// Returns the number of pauses so far.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Returns the next pause: a random time between half of the pause and the whole pause, so that many clients of a
    /// store that is available again do not connect at the same time.
    pub(crate) fn pause(&mut self) -> Duration {
        let whole = self
            .first
            .saturating_mul(1 << self.attempts.min(16))
            .min(self.longest);
        self.attempts += 1;
        whole.mul_f64(rand::random_range(0.5..=1.0))
    }
}

impl Default for Backoff {
    /// Returns the pauses of a delivery: from 0.1 s to 30 s.
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(30))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut backoff = Backoff::default();
        let mut whole = backoff.first;
        for _ in 0..40 {
            let pause = backoff.pause();
            assert!(
                pause >= whole / 2 && pause <= whole,
                "{pause:?} for {whole:?}"
            );
            whole = (whole * 2).min(backoff.longest);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_is_repeated_until_it_succeeds_or_is_given_up() {
        let mut attempts = 0;
        let third = |attempts: &mut u32| {
            *attempts += 1;
            std::future::ready(if *attempts < 3 {
                Err(*attempts)
            } else {
                Ok(())
            })
        };
        let pause = Some(Duration::from_secs(1));
        let outcome = retry(|| third(&mut attempts), |_: &u32| pause).await;
        assert_eq!((outcome, attempts), (Ok(()), 3));
        let mut attempts = 0;
        let outcome = retry(
            || third(&mut attempts),
            |error| pause.filter(|_| *error < 2),
        )
        .await;
        assert_eq!((outcome, attempts), (Err(2), 2));
    }
    #[tokio::test(start_paused = true)]
    async fn only_transient_errors_are_tried_again_and_only_so_often() {
        for (is_transient, expected) in [(true, 4), (false, 1)] {
            let mut attempts = 0;
            let fail = || {
                attempts += 1;
                std::future::ready(Err::<(), ()>(()))
            };
            let outcome = retry_transient(4, Backoff::default(), fail, |()| is_transient).await;
            assert_eq!((outcome, attempts), (Err(()), expected));
        }
    }
}
