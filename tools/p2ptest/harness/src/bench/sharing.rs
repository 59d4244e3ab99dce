// SPDX-License-Identifier: GPL-2.0
//! What it takes an importer to map a dma-buf: of p2pgpu, and of vfio-pci beside it.

use serde::Serialize;

use super::quantile;

/// What `p2pbench` told.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Sharing {
    times: Vec<Time>,
    accesses: Vec<Accesses>,
}

/// What a kind of work took in all rounds.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Time {
    /// Size of the dma-buf.
    bytes: u64,
    /// "contiguous": one range; "scattered": one for each page.
    layout: String,
    /// The work: "map", "unmap" and so on.
    what: String,
    /// The exporter: "p2pgpu" or "vfio-pci".
    who: String,
    /// Number of rounds.
    rounds: usize,
    /// Nanoseconds: the median of the rounds.
    median_ns: f64,
    /// A quarter of the rounds took less.
    lower_quartile_ns: f64,
    /// A quarter of the rounds took more.
    upper_quartile_ns: f64,
}

/// Register accesses that the first mapping of an object took at most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Accesses {
    bytes: u64,
    layout: String,
    accesses: u64,
}

/// The value of `name=value` in a line.
pub fn value<'l>(line: &'l str, name: &str) -> Option<&'l str> {
    line.split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

impl Time {
    /// `bytes=4096 layout=contiguous what=map+unmap who=p2pgpu ns=1,2,3`
    fn of_line(line: &str) -> Option<Self> {
        let times: Result<Vec<f64>, _> = value(line, "ns")?.split(',').map(str::parse).collect();
        let mut times = times.ok()?;
        times.sort_by(f64::total_cmp);
        Some(Self {
            bytes: value(line, "bytes")?.parse().ok()?,
            layout: value(line, "layout")?.to_owned(),
            what: value(line, "what")?.to_owned(),
            who: value(line, "who")?.to_owned(),
            rounds: times.len(),
            median_ns: quantile(&times, 2)?,
            lower_quartile_ns: quantile(&times, 1)?,
            upper_quartile_ns: quantile(&times, 3)?,
        })
    }
}

impl Accesses {
    /// `bytes=4096 layout=contiguous accesses=3`
    fn of_line(line: &str) -> Option<Self> {
        Some(Self {
            accesses: value(line, "accesses")?.parse().ok()?,
            bytes: value(line, "bytes")?.parse().ok()?,
            layout: value(line, "layout")?.to_owned(),
        })
    }
}

impl Sharing {
    /// From the lines that the program printed.
    pub fn new(lines: &[String]) -> Self {
        Self {
            times: lines.iter().filter_map(|l| Time::of_line(l)).collect(),
            accesses: lines.iter().filter_map(|l| Accesses::of_line(l)).collect(),
        }
    }

    /// The figures for people, with the ratio to vfio-pci's where it does the same.
    pub fn table(&self) -> String {
        let mut text = String::from(
            "work on a dma-buf, microseconds: median (quartiles)\n\
             layout      KiB   what              who       time                         /vfio-pci\n",
        );
        for t in &self.times {
            let theirs = self.times.iter().find(|o| {
                (o.bytes, &o.layout, &o.what) == (t.bytes, &t.layout, &t.what)
                    && o.who == "vfio-pci"
            });
            let ratio =
                theirs.map_or_else(String::new, |o| format!("{:.2}", t.median_ns / o.median_ns));
            let time = format!(
                "{:.2} ({:.2}-{:.2})",
                t.median_ns / 1e3,
                t.lower_quartile_ns / 1e3,
                t.upper_quartile_ns / 1e3
            );
            text += &format!(
                "{:<11} {:<5} {:<17} {:<9} {time:<28} {ratio:>9}\n",
                t.layout,
                t.bytes >> 10,
                t.what,
                t.who
            );
        }
        for a in &self.accesses {
            text += &format!(
                "{:<11} {:<5} cold: at most {} register accesses\n",
                a.layout,
                a.bytes >> 10,
                a.accesses
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_program() {
        let sharing = Sharing::new(&[
            "bytes=8192 layout=scattered what=cold-map who=p2pgpu ns=7000,5000,9000".to_owned(),
            "bytes=8192 layout=scattered what=cold-map who=vfio-pci ns=3500".to_owned(),
            "bytes=8192 layout=scattered accesses=2".to_owned(),
            "p2pbench: something".to_owned(),
            "bytes=x layout=scattered accesses=2".to_owned(),
        ]);
        assert_eq!((sharing.times.len(), sharing.accesses.len()), (2, 1));
        let first = &sharing.times[0];
        assert_eq!((first.rounds, first.median_ns), (3, 7000.0));
        assert_eq!(first.what, "cold-map");
        let table = sharing.table();
        let line = table.lines().nth(2).unwrap_or_default();
        let words: Vec<_> = line.split_whitespace().collect();
        let time = ["7.00", "(5.00-7.00)", "2.00"];
        assert_eq!(words[..4], ["scattered", "8", "cold-map", "p2pgpu"]);
        assert_eq!(words[4..], time);
        assert!(table.contains("cold: at most 2 register accesses"));
    }
}
