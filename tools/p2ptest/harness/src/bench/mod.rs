// SPDX-License-Identifier: GPL-2.0
//! `make bench`: what the aperture's slots cost, on the host and beside the kernel's own
//! allocators in a guest; what it takes an importer to map a dma-buf, beside vfio-pci's; and what
//! jobs, evictions and moves take. The figures are printed and kept; no test depends on them.

mod guest;
mod host;
mod jobs;
mod sharing;

use std::fs;

use anyhow::Result;
use serde::Serialize;

use crate::content::write_atomic;
use crate::context::Context;
use crate::select::Filter;

/// What one of those measured took in all rounds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// "host" or "guest".
    pub place: &'static str,
    /// What was measured.
    pub who: String,
    /// "scattered" or "contiguous" pages.
    pub layout: String,
    /// How much was in use, percent.
    pub fill: u32,
    /// Number of rounds.
    pub rounds: usize,
    /// Nanoseconds to take and return 256 pages: the median of the rounds.
    pub median_ns: f64,
    /// A quarter of the rounds took less.
    pub lower_quartile_ns: f64,
    /// A quarter of the rounds took more.
    pub upper_quartile_ns: f64,
}

impl Figure {
    /// From the times of all rounds; `None` if there are none.
    fn new(
        place: &'static str,
        who: &str,
        layout: &str,
        fill: u32,
        mut times: Vec<f64>,
    ) -> Option<Self> {
        times.sort_by(f64::total_cmp);
        Some(Self {
            place,
            who: who.to_owned(),
            layout: layout.to_owned(),
            fill,
            rounds: times.len(),
            median_ns: quantile(&times, 2)?,
            lower_quartile_ns: quantile(&times, 1)?,
            upper_quartile_ns: quantile(&times, 3)?,
        })
    }
}

/// The value below which so many quarters of the sorted `times` are.
fn quantile(times: &[f64], quarters: usize) -> Option<f64> {
    times
        .get((times.len().saturating_sub(1) * quarters) / 4)
        .copied()
}

/// Measures what `filter` takes of `host/slots`, `guest/slots`, `guest/mappings` and `guest/jobs`;
/// prints it and writes it to `build/results/bench*.json`.
///
/// # Errors
///
/// When something cannot be built or does not run to its end.
pub fn run(ctx: &Context, filter: &Filter) -> Result<()> {
    fs::create_dir_all(ctx.results())?;
    let mut figures = Vec::new();
    if filter.takes("host/slots") {
        figures = host::measure(ctx)?;
    }
    let in_guest = guest::measure(ctx, filter)?;
    figures.extend(in_guest.slots);
    if !figures.is_empty() {
        show(ctx, "bench.json", &table(&figures), &figures)?;
    }
    if let Some(sharing) = in_guest.sharing {
        show(ctx, "bench-sharing.json", &sharing.table(), &sharing)?;
    }
    if let Some(jobs) = in_guest.jobs {
        show(ctx, "bench-jobs.json", &jobs.table(), &jobs)?;
    }
    Ok(())
}

/// Prints figures as a table, and keeps them in a file.
fn show(ctx: &Context, name: &str, table: &str, figures: &impl Serialize) -> Result<()> {
    let path = ctx.results().join(name);
    write_atomic(&path, &serde_json::to_vec_pretty(figures)?)?;
    println!("{table}{}\n", path.display());
    Ok(())
}

/// The figures for people: a line each, with the ratio to the empty space of the same, and to the
/// slots in the same space.
fn table(figures: &[Figure]) -> String {
    let mut text = String::from(
        "take and return 256 of 1,048,576 pages, microseconds: median (quartiles)\n\
         where  layout      fill  who          time                         /empty  /slots\n",
    );
    for f in figures {
        let ratio = |fill: u32, who: &str| {
            figures
                .iter()
                .find(|o| {
                    (o.place, &o.layout, o.fill) == (f.place, &f.layout, fill) && o.who == who
                })
                .map_or_else(String::new, |o| format!("{:.2}", f.median_ns / o.median_ns))
        };
        let time = format!(
            "{:.2} ({:.2}-{:.2})",
            f.median_ns / 1e3,
            f.lower_quartile_ns / 1e3,
            f.upper_quartile_ns / 1e3
        );
        text += &format!(
            "{:<6} {:<11} {:>3}%  {:<12} {time:<28} {:>7} {:>7}\n",
            f.place,
            f.layout,
            f.fill,
            f.who,
            ratio(0, &f.who),
            ratio(f.fill, "slots")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles() {
        let times = (1..=101).rev().map(f64::from).collect();
        let f = Figure::new("host", "slots", "scattered", 0, times).unwrap();
        assert_eq!((f.rounds, f.median_ns), (101, 51.0));
        assert_eq!((f.lower_quartile_ns, f.upper_quartile_ns), (26.0, 76.0));
        assert_eq!(
            Figure::new("host", "slots", "scattered", 0, Vec::new()),
            None
        );
    }

    #[test]
    fn ratios() {
        let figure =
            |who, fill, time| Figure::new("guest", who, "scattered", fill, vec![time; 3]).unwrap();
        let text = table(&[
            figure("slots", 0, 1000.0),
            figure("slots", 95, 2500.0),
            figure("drm_mm", 95, 10_000.0),
        ]);
        let lines: Vec<Vec<_>> = text
            .lines()
            .skip(2)
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[1][4..], ["2.50", "(2.50-2.50)", "2.50", "1.00"]);
        // There is no empty one to compare with.
        assert_eq!(lines[2][4..], ["10.00", "(10.00-10.00)", "4.00"]);
    }
}
