// SPDX-License-Identifier: GPL-2.0
//! What jobs and evictions take, and how long peers are without an object that moves.

use serde::Serialize;

use super::quantile;
use super::sharing::value;

/// What one kind of work took in all rounds.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Work {
    /// "submission", "eviction" or "move".
    topic: String,
    /// How it was done.
    case: String,
    /// Bytes that it was done with, if that matters.
    bytes: u64,
    /// Importers that had mapped them.
    importers: u64,
    /// Register accesses, each time.
    accesses: Option<f64>,
    /// Number of rounds.
    rounds: usize,
    /// Nanoseconds: the median of the rounds.
    median_ns: f64,
    /// A quarter of the rounds took less.
    lower_quartile_ns: f64,
    /// A quarter of the rounds took more.
    upper_quartile_ns: f64,
}

impl Work {
    /// `topic=eviction case=copy bytes=65536 ns=1,2,3`
    fn of_line(line: &str) -> Option<Self> {
        let number = |name| value(line, name).map_or(Some(0), |text| text.parse().ok());
        let times: Result<Vec<f64>, _> = value(line, "ns")?.split(',').map(str::parse).collect();
        let mut times = times.ok()?;
        times.sort_by(f64::total_cmp);
        Some(Self {
            topic: value(line, "topic")?.to_owned(),
            case: value(line, "case")?.to_owned(),
            bytes: number("bytes")?,
            importers: number("importers")?,
            accesses: value(line, "accesses").and_then(|text| text.parse().ok()),
            rounds: times.len(),
            median_ns: quantile(&times, 2)?,
            lower_quartile_ns: quantile(&times, 1)?,
            upper_quartile_ns: quantile(&times, 3)?,
        })
    }
}

/// What `p2pbench` told of jobs.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Jobs(Vec<Work>);

impl Jobs {
    /// From the lines that the program printed.
    pub fn new(lines: &[String]) -> Self {
        Self(lines.iter().filter_map(|l| Work::of_line(l)).collect())
    }

    /// The figures for people. Beside what evictions take alone is the ratio to a copy of as many
    /// bytes; beside a submission, how many there are in a second.
    pub fn table(&self) -> String {
        let mut text = String::from(
            "jobs, evictions and moves, microseconds: median (quartiles)\n\
             topic       case        KiB    importers  time\n",
        );
        for w in &self.0 {
            let beside = |case| {
                let same = |o: &&Work| (&o.topic, o.bytes) == (&w.topic, w.bytes) && o.case == case;
                self.0.iter().find(same).map(|o| o.median_ns)
            };
            let mut more = match (w.case.as_str(), beside("copy")) {
                ("alone", Some(copy)) => format!("{:.2} of a copy", w.median_ns / copy),
                _ => String::new(),
            };
            if let Some(accesses) = w.accesses {
                more = format!(
                    "{:.0}/s, {accesses:.2} register accesses",
                    1e9 / w.median_ns
                );
            }
            let time = format!(
                "{:.1} ({:.1}-{:.1})",
                w.median_ns / 1e3,
                w.lower_quartile_ns / 1e3,
                w.upper_quartile_ns / 1e3
            );
            let line = format!(
                "{:<11} {:<11} {:<6} {:<10} {time:<28} {more}",
                w.topic,
                w.case,
                w.bytes >> 10,
                w.importers
            );
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_program() {
        let jobs = Jobs::new(&[
            "topic=eviction case=eviction bytes=65536 ns=3000,1000,2500".to_owned(),
            "topic=eviction case=alone bytes=65536 ns=2000".to_owned(),
            "topic=eviction case=copy bytes=65536 ns=1000".to_owned(),
            "topic=submission case=queued accesses=0.50 ns=50000".to_owned(),
            "topic=move case=remapped bytes=4096 importers=2 ns=7000".to_owned(),
            "topic=move case=remapped bytes=x ns=7000".to_owned(),
            "bytes=8192 layout=scattered accesses=2".to_owned(),
        ]);
        assert_eq!(jobs.0.len(), 5);
        let table = jobs.table();
        let lines: Vec<_> = table.lines().skip(2).collect();
        assert!(lines[1].ends_with("2.00 of a copy"), "{table}");
        assert!(lines[2].ends_with("1.0 (1.0-1.0)"), "{table}");
        assert!(
            lines[3].ends_with("20000/s, 0.50 register accesses"),
            "{table}"
        );
        assert_eq!((jobs.0[4].importers, jobs.0[4].bytes), (2, 4096));
    }
}
