// SPDX-License-Identifier: GPL-2.0
//! Finds few steps that still fail, by leaving others out.

use anyhow::Result;

/// Steps that are enough for the failure: leaving out any one of them ends it, unless
/// `fails` answers differently at different times. `fails` is told which steps remain.
///
/// # Errors
///
/// Those of `fails`.
pub fn minimise(
    mut steps: Vec<usize>,
    mut fails: impl FnMut(&[usize]) -> Result<bool>,
) -> Result<Vec<usize>> {
    let mut part = steps.len().div_ceil(2);
    while part > 0 {
        let before = steps.len();
        let mut at = 0;
        while at < steps.len() {
            let mut rest = steps.clone();
            rest.drain(at..(at + part).min(steps.len()));
            if fails(&rest)? {
                steps = rest;
            } else {
                at += part;
            }
        }
        // What was needed by a step that is gone now may not be any more.
        if part > 1 || steps.len() == before {
            part /= 2;
        }
    }
    Ok(steps)
}

/// Of `len` steps those that are not kept, as WITHOUT takes them.
pub fn without(len: usize, kept: &[usize]) -> String {
    let left_out: Vec<usize> = (0..len).filter(|at| !kept.contains(at)).collect();
    left_out
        .chunk_by(|a, b| a + 1 == *b)
        .filter_map(|run| Some((run.first()?, run.last()?)))
        .map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        })
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn of(needed: &[usize], len: usize) -> (Vec<usize>, usize) {
        let tries = Cell::new(0);
        let fails = |steps: &[usize]| {
            tries.set(tries.get() + 1);
            Ok(needed.iter().all(|step| steps.contains(step)))
        };
        (minimise((0..len).collect(), fails).unwrap(), tries.get())
    }

    #[test]
    fn only_what_is_needed_is_left() {
        for needed in [&[][..], &[0], &[149], &[3, 4], &[0, 70, 71, 149]] {
            let (found, tries) = of(needed, 150);
            assert_eq!(found, needed);
            assert!(tries < 120, "{tries}");
        }
        assert_eq!(of(&[0], 1).0, [0]);
    }

    #[test]
    fn a_step_goes_with_the_one_that_needed_it() {
        // Step 1 is in the way unless step 5 is gone too.
        let fails = |steps: &[usize]| {
            let has = |step| steps.contains(&step);
            Ok(has(7) && (has(1) || !has(5)))
        };
        assert_eq!(minimise((0..8).collect(), fails).unwrap(), [7]);
    }

    #[test]
    fn an_error_ends_it() {
        let broken = |_: &[usize]| anyhow::bail!("the user stopped it");
        assert!(minimise(vec![0, 1], broken).is_err());
    }

    #[test]
    fn left_out_steps_are_ranges() {
        assert_eq!(without(10, &[3, 7, 9]), "0-2,4-6,8");
        assert_eq!(without(3, &[0, 1, 2]), "");
    }
}
