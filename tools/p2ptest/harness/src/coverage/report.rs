// SPDX-License-Identifier: GPL-2.0
//! What was reached: how many lines of each file, and which never were.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// Kind of a region that is code, and no gap, branch or expansion of a macro.
const CODE: u64 = 0;

/// Files of the checkout by path.
#[derive(Debug, Default)]
pub struct Reached(BTreeMap<PathBuf, File>);

#[derive(Debug, Default)]
struct File {
    /// How often each line was reached that has code.
    lines: BTreeMap<u64, u64>,
    /// The same of parts of one line: start and end column.
    parts: BTreeMap<(u64, u64, u64), u64>,
}

/// A summary of one file, or of several.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Summary {
    /// Lines that have code.
    lines: usize,
    /// Those of them that were reached.
    reached: usize,
    /// In percent.
    percent: f64,
}

/// One file in the JSON report.
#[derive(Debug, Serialize)]
struct FileReport {
    #[serde(flatten)]
    summary: Summary,
    /// First and last line of each run of lines that were never reached.
    unreached: Vec<(u64, u64)>,
    /// Line and column of what was never reached in a line that was: mostly the way out
    /// of a `?`.
    unreached_parts: Vec<(u64, u64)>,
}

/// One group of files in the JSON report.
#[derive(Debug, Serialize)]
pub struct Report {
    #[serde(flatten)]
    all: Summary,
    folders: BTreeMap<String, Summary>,
    files: BTreeMap<PathBuf, FileReport>,
}

#[derive(Deserialize)]
struct Export {
    data: Vec<ExportData>,
}

#[derive(Deserialize)]
struct ExportData {
    functions: Vec<Function>,
}

#[derive(Deserialize)]
struct Function {
    filenames: Vec<PathBuf>,
    /// Line and column of start and end, count, file, file that it expands to, kind.
    regions: Vec<[u64; 8]>,
}

impl Summary {
    fn new(lines: usize, reached: usize) -> Self {
        Self {
            lines,
            reached,
            percent: 100.0 * reached as f64 / lines.max(1) as f64,
        }
    }

    fn add(&mut self, other: &Self) {
        *self = Self::new(self.lines + other.lines, self.reached + other.reached);
    }

    fn row(&self, table: &mut String, name: &str) {
        let Self {
            lines,
            reached,
            percent,
        } = self;
        let _ = writeln!(table, "{percent:5.1} % {reached:6} of {lines:6} {name}");
    }
}

impl File {
    fn summary(&self) -> Summary {
        let reached = self.lines.values().filter(|count| **count > 0).count();
        Summary::new(self.lines.len(), reached)
    }

    fn report(&self) -> FileReport {
        let missed: Vec<u64> = self
            .lines
            .iter()
            .filter(|(_, count)| **count == 0)
            .map(|(line, _)| *line)
            .collect();
        let unreached = missed
            .chunk_by(|a, b| a + 1 == *b)
            .filter_map(|run| Some((*run.first()?, *run.last()?)))
            .collect();
        let line_was = |line| self.lines.get(line).is_some_and(|count| *count > 0);
        let unreached_parts = self
            .parts
            .iter()
            .filter(|((line, ..), count)| **count == 0 && line_was(line))
            .map(|((line, start, _), _)| (*line, *start))
            .collect();
        FileReport {
            summary: self.summary(),
            unreached,
            unreached_parts,
        }
    }
}

impl Reached {
    /// The files of an lcov trace that `ours` takes, as it calls them. A line that
    /// several programs hold was reached if one of them did. Tests do not count as
    /// something that is to be tested.
    pub fn of_lines(trace: &str, ours: &dyn Fn(&Path) -> Option<PathBuf>) -> Self {
        let mut files: BTreeMap<PathBuf, File> = BTreeMap::new();
        let mut current = None;
        for line in trace.lines() {
            if let Some(path) = line.strip_prefix("SF:") {
                let path = ours(Path::new(path)).filter(|path| !is_test(path));
                current = path.map(|path| files.entry(path).or_default());
            } else if let Some(data) = line.strip_prefix("DA:")
                && let Some(file) = &mut current
                && let Some((number, count)) = data.split_once(',')
                && let (Ok(number), Ok(count)) = (number.parse(), count.parse::<u64>())
            {
                let reached = file.lines.entry(number).or_insert(0);
                *reached = (*reached).max(count);
            }
        }
        files.retain(|_, file| !file.lines.is_empty());
        Self(files)
    }

    /// Adds what the JSON export of the same profile says of parts of lines.
    ///
    /// # Errors
    ///
    /// When it is no such export.
    pub fn add_regions(
        &mut self,
        export: &str,
        ours: &dyn Fn(&Path) -> Option<PathBuf>,
    ) -> Result<()> {
        let export: Export = serde_json::from_str(export).context("the export of llvm-cov")?;
        for function in export.data.iter().flat_map(|data| &data.functions) {
            let names: Vec<_> = function.filenames.iter().map(|path| ours(path)).collect();
            for [line, start, last, end, count, file, _, kind] in &function.regions {
                if *kind != CODE || line != last {
                    continue;
                }
                let name = usize::try_from(*file).ok().and_then(|at| names.get(at));
                if let Some(Some(name)) = name
                    && let Some(file) = self.0.get_mut(name)
                {
                    let reached = file.parts.entry((*line, *start, *end)).or_insert(0);
                    *reached = (*reached).max(*count);
                }
            }
        }
        Ok(())
    }

    /// The report of all files, and of each folder.
    pub fn report(&self) -> Report {
        let mut report = Report {
            all: Summary::default(),
            folders: BTreeMap::new(),
            files: BTreeMap::new(),
        };
        for (path, file) in &self.0 {
            let summary = file.summary();
            report.all.add(&summary);
            let folder = report.folders.entry(folder(path)).or_default();
            folder.add(&summary);
            report.files.insert(path.clone(), file.report());
        }
        report
    }
}

impl Report {
    /// A row for each file, then one for each folder, and one for all.
    pub fn table(&self) -> String {
        let mut table = String::new();
        for (path, file) in &self.files {
            file.summary.row(&mut table, &path.display().to_string());
        }
        for (folder, summary) in &self.folders {
            summary.row(&mut table, &format!("{folder}/"));
        }
        self.all.row(&mut table, "all");
        table
    }

    /// What was never reached: "file:first-last", or "file:line:column" within a line
    /// that was, with the line's text from there on.
    pub fn unreached(&self, top: &Path) -> String {
        let mut list = String::new();
        for (path, file) in &self.files {
            let name = path.display();
            let text = fs::read_to_string(top.join(path)).unwrap_or_default();
            let line = |number: u64| {
                let at = usize::try_from(number).ok().and_then(|n| n.checked_sub(1));
                at.and_then(|at| text.lines().nth(at)).unwrap_or_default()
            };
            for (first, last) in &file.unreached {
                let _ = writeln!(list, "{name}:{first}-{last}: {}", line(*first).trim());
            }
            for (number, column) in &file.unreached_parts {
                let line = line(*number).trim();
                let _ = writeln!(list, "{name}:{number}:{column}: {line}");
            }
        }
        list
    }
}

/// What a file is a part of: the folder of a package, a driver, or the abstractions.
fn folder(path: &Path) -> String {
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    let deep = match parts.first().map(AsRef::as_ref) {
        Some("drivers") if parts.get(1).is_some_and(|p| p == "gpu") => 4,
        Some("drivers" | "tools") => 3,
        Some("rust") => 2,
        _ => 1,
    };
    let folders = parts.len().saturating_sub(1);
    parts[..deep.min(folders)].join("/")
}

fn is_test(path: &Path) -> bool {
    path.iter().any(|part| {
        ["tests", "tests.rs", "benches", "build.rs"]
            .iter()
            .any(|name| part == *name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "SF:/w/a/src/x.rs\nDA:1,5\nDA:2,0\nDA:3,0\nDA:9,0\nend_of_record\n\
                         SF:/w/a/src/x.rs\nDA:2,1\nend_of_record\nSF:/w/a/tests/y.rs\nDA:1,0\n\
                         end_of_record\nSF:/registry/z.rs\nDA:1,0\n";
    const EXPORT: &str = r#"{"data":[{"functions":[
        {"filenames":["/w/a/src/x.rs"],"regions":[
            [1,1,1,9,5,0,0,0],[1,5,1,6,0,0,0,0],[3,1,3,9,0,0,0,0],[1,7,2,1,0,0,0,0]]},
        {"filenames":["/registry/z.rs","/w/a/src/x.rs"],"regions":[
            [1,8,1,9,1,1,0,0],[1,2,1,3,0,0,0,0],[2,1,2,2,0,1,0,4]]},
        {"filenames":["/w/a/src/x.rs"],"regions":[[1,8,1,9,0,0,0,0]]}]}]}"#;

    fn ours(path: &Path) -> Option<PathBuf> {
        path.strip_prefix("/w").ok().map(Path::to_owned)
    }

    #[test]
    fn a_line_is_reached_if_one_program_reaches_it() {
        let reached = Reached::of_lines(TRACE, &ours);
        let lines: Vec<_> = reached.0[Path::new("a/src/x.rs")].lines.values().collect();
        assert_eq!(lines, [&5, &1, &0, &0]);
    }

    #[test]
    fn only_what_is_to_be_tested_is_reported() {
        let mut reached = Reached::of_lines(TRACE, &ours);
        reached.add_regions(EXPORT, &ours).unwrap();
        let report = reached.report();
        assert_eq!(
            report.unreached(Path::new("/none")),
            "a/src/x.rs:3-3: \na/src/x.rs:9-9: \na/src/x.rs:1:5: \n"
        );
        let row = " 50.0 %      2 of      4 ";
        assert_eq!(
            report.table(),
            format!("{row}a/src/x.rs\n{row}a/\n{row}all\n")
        );
    }

    #[test]
    fn folders() {
        for (path, expected) in [
            (
                "drivers/gpu/drm/p2pgpu/slots/free.rs",
                "drivers/gpu/drm/p2pgpu",
            ),
            ("drivers/net/p2pnic/nic.rs", "drivers/net/p2pnic"),
            ("drivers/dma-buf/p2p_bar.c", "drivers/dma-buf"),
            ("rust/kernel/mm/p2p.rs", "rust/kernel"),
            ("mm/p2p_vma.c", "mm"),
            ("tools/p2ptest/vgpu/src/main.rs", "tools/p2ptest/vgpu"),
        ] {
            assert_eq!(folder(Path::new(path)), expected);
        }
    }
}
