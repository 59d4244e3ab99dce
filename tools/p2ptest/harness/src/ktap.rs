// SPDX-License-Identifier: GPL-2.0
//! Reading KTAP, as KUnit writes it (Documentation/dev-tools/ktap.rst).

use crate::results::Verdict;

/// One result line with the diagnostics before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The suite that it stands in; empty at the top.
    pub suite: String,
    /// The test.
    pub name: String,
    /// What came of it.
    pub verdict: Verdict,
    /// Diagnostics since the result before.
    pub output: Vec<String>,
}

/// The results of tests that stand directly in a suite, in order. Results of suites
/// and of a test's parameters are passed over: both say nothing that the tests'
/// own results do not.
pub fn tests(text: &str) -> Vec<Line> {
    let mut results = Vec::new();
    let mut suite = String::new();
    let mut output = Vec::new();
    for line in text.lines() {
        let depth = line.chars().take_while(|c| *c == ' ').count() / 4;
        let body = line.trim();
        if depth == 1
            && let Some(name) = body.strip_prefix("# Subtest:")
        {
            suite = name.trim().to_owned();
            output.clear();
        } else if let Some((name, verdict)) = result(body) {
            if depth == 1 {
                let output = std::mem::take(&mut output);
                results.push(Line {
                    suite: suite.clone(),
                    name,
                    verdict,
                    output,
                });
            } else if depth > 1 && matches!(verdict, Verdict::Fail(_)) {
                output.push(body.to_owned());
            }
        } else if let Some(diagnostic) = body.strip_prefix("# ") {
            output.push(diagnostic.to_owned());
        }
    }
    results
}

/// "ok 1 name", "not ok 2 - name # SKIP why".
fn result(line: &str) -> Option<(String, Verdict)> {
    let (ok, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, line.strip_prefix("ok ")?),
    };
    let (number, rest) = rest.split_once(' ')?;
    number.parse::<u64>().ok()?;
    let rest = rest.strip_prefix("- ").unwrap_or(rest);
    let (name, directive) = match rest.split_once('#') {
        Some((name, directive)) => (name.trim(), directive.trim()),
        None => (rest.trim(), ""),
    };
    let verdict = match directive.split_once(' ').unwrap_or((directive, "")) {
        (word, why) if word.eq_ignore_ascii_case("skip") => Verdict::Skip(why.trim().to_owned()),
        _ if ok => Verdict::Pass,
        _ => Verdict::Fail("a KUnit expectation failed".to_owned()),
    };
    Some((name.to_owned(), verdict))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_and_tests() {
        let text = "\
KTAP version 1
1..1
    KTAP version 1
    # Subtest: rust_dma_buf
    # module: kernel
    1..4
    ok 1 maps
    # unmaps: ASSERTION FAILED at rust/kernel/dma_buf.rs:10
    # unmaps: expected true
    not ok 2 unmaps
    ok 3 moves # SKIP no device
        KTAP version 1
        # Subtest: with_parameters
        ok 1 a
        not ok 2 b
    not ok 4 - with_parameters
# rust_dma_buf: pass:1 fail:2 skip:1 total:4
not ok 1 rust_dma_buf
";
        let found = tests(text);
        let names: Vec<_> = found
            .iter()
            .map(|l| (l.suite.as_str(), l.name.as_str()))
            .collect();
        let s = "rust_dma_buf";
        assert_eq!(
            names,
            [
                (s, "maps"),
                (s, "unmaps"),
                (s, "moves"),
                (s, "with_parameters")
            ]
        );
        assert_eq!(found[0].verdict, Verdict::Pass);
        assert!(matches!(found[1].verdict, Verdict::Fail(_)));
        assert_eq!(found[1].output.len(), 2);
        assert_eq!(found[2].verdict, Verdict::Skip("no device".into()));
        assert!(matches!(found[3].verdict, Verdict::Fail(_)));
        assert!(found[3].output.contains(&"not ok 2 b".to_owned()));
    }

    #[test]
    fn other_lines_are_no_results() {
        for line in ["ok", "ok then", "ok x name", "not okay 1 x", "okay 1 x"] {
            assert_eq!(result(line), None, "{line}");
        }
    }
}
