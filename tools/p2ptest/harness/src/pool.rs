// SPDX-License-Identifier: GPL-2.0
//! Jobs that run at the same time, each with a guest of its own: a guest waits for most
//! of its time.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::Result;

/// What one guest after the other is needed for.
pub type Job<'a> = Box<dyn FnOnce() -> Result<()> + Send + 'a>;

/// Runs the jobs in their order, at most `guests` at the same time.
///
/// # Errors
///
/// The first error of a job, once all that have started are over; those that the same
/// worker would have run next do not start.
pub fn run<'a>(guests: usize, jobs: impl IntoIterator<Item = Job<'a>>) -> Result<()> {
    let jobs: VecDeque<_> = jobs.into_iter().collect();
    let guests = guests.min(jobs.len());
    let jobs = Mutex::new(jobs);
    let next = || {
        let mut jobs = jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.pop_front()
    };
    let work = || -> Result<()> {
        while let Some(job) = next() {
            job()?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..guests).map(|_| scope.spawn(work)).collect();
        let ends = workers.into_iter().map(|worker| match worker.join() {
            Ok(end) => end,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        // All of them end before one that failed is told of.
        ends.fold(Ok(()), Result::and)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn each_job_runs_once() {
        let ran = AtomicUsize::new(0);
        let count = || {
            ran.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        let jobs = (0..9).map(|_| Box::new(count) as Job<'_>);
        run(2, jobs).unwrap();
        assert_eq!(ran.load(Ordering::Relaxed), 9);
        run(2, []).unwrap();
    }

    #[test]
    fn an_error_is_told() {
        let jobs = [false, true, false].map(|fails| {
            let job = move || match fails {
                true => bail!("failed"),
                false => Ok(()),
            };
            Box::new(job) as Job<'_>
        });
        assert!(run(1, jobs).is_err());
    }
}
