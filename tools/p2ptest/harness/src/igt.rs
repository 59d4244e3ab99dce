// SPDX-License-Identifier: GPL-2.0
//! What IGT's test programs write, read as `igt_runner` does: it knows what came of a
//! subtest by lines of the program's output.

use std::path::PathBuf;

/// Exit status: all subtests passed or were skipped, and not all were skipped.
pub const EXIT_SUCCESS: i32 = 0;
/// Exit status: all were skipped.
pub const EXIT_SKIP: i32 = 77;
/// Exit status: one failed.
pub const EXIT_FAIL: i32 = 98;

/// What a folder of test programs lists them in.
pub const TEST_LIST: &str = "test-list.txt";

const VERSION: &str = "IGT-Version: ";
const START: &str = "Starting subtest: ";
const RESULT: &str = "Subtest ";
const REQUIREMENT: &str = "Test requirement: ";

/// The content of [`TEST_LIST`].
pub fn test_list(programs: &[PathBuf]) -> String {
    let names = programs.iter().filter_map(|path| path.file_name());
    let names: Vec<_> = names.map(|name| name.to_string_lossy()).collect();
    format!("TESTLIST\n{}\nEND TESTLIST\n", names.join(" "))
}

/// The result that a program tells of its only subtest: "SUCCESS", "SKIP" or "FAIL".
///
/// # Errors
///
/// What of the protocol is missing.
pub fn result<'a>(output: &'a [String], subtest: &str) -> Result<&'a str, String> {
    if !output.iter().any(|line| line.starts_with(VERSION)) {
        return Err(format!("no line with \"{VERSION}\""));
    }
    let started = output.iter().filter_map(|line| line.strip_prefix(START));
    let started: Vec<_> = started.collect();
    if started != [subtest] {
        return Err(format!("the subtests that start are {started:?}"));
    }
    let results = output.iter().filter_map(|line| line.strip_prefix(RESULT));
    let results: Vec<_> = results.collect();
    let [line] = results[..] else {
        return Err(format!("the results are {results:?}"));
    };
    let told = line
        .strip_prefix(subtest)
        .and_then(|rest| rest.strip_prefix(": "))
        .and_then(|rest| rest.split_once(" ("));
    let Some((result, time)) = told else {
        return Err(format!("the result is \"{line}\""));
    };
    match time.strip_suffix("s)").map(str::parse::<f64>) {
        Some(Ok(_)) => Ok(result),
        _ => Err(format!("the time is \"{time}\"")),
    }
}

/// What is wrong with the end of a program that ran one subtest, as IGT has it.
pub fn contradiction(output: &[String], subtest: &str, status: i32) -> Option<String> {
    let expected = match status {
        EXIT_SUCCESS => "SUCCESS",
        EXIT_SKIP => "SKIP",
        EXIT_FAIL => "FAIL",
        _ => return None,
    };
    match result(output, subtest) {
        Ok(result) if result == expected => None,
        Ok(result) => Some(format!("exit status {status}, but the result is {result}")),
        Err(why) => Some(why),
    }
}

/// Why a program skipped: what it requires, or else its last words.
pub fn requirement(output: &[String]) -> String {
    let required = output
        .iter()
        .rev()
        .find_map(|line| line.strip_prefix(REQUIREMENT));
    let last = || output.last().map(String::as_str).unwrap_or_default();
    required.unwrap_or_else(last).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    const GOOD: &str = "IGT-Version: 1\nStarting subtest: a\nx\nSubtest a: SUCCESS (0.001s)\n";

    #[test]
    fn results_of_a_subtest() {
        assert_eq!(result(&lines(GOOD), "a"), Ok("SUCCESS"));
        for (from, to) in [
            ("IGT-Version: ", "Version: "),
            ("Starting subtest: a", "Starting subtest: b"),
            ("Starting subtest: a\n", ""),
            ("Subtest a: SUCCESS (0.001s)", ""),
            ("Subtest a: ", "Subtest b: "),
            ("x\n", "Subtest a: FAIL (0.0s)\n"),
            (" (0.001s)", ""),
            ("0.001s", "soon"),
        ] {
            let broken = GOOD.replace(from, to);
            assert!(result(&lines(&broken), "a").is_err(), "{broken}");
        }
    }

    #[test]
    fn status_and_result_agree() {
        let output = lines(GOOD);
        assert_eq!(contradiction(&output, "a", 0), None);
        assert!(contradiction(&output, "a", 77).is_some());
        assert!(contradiction(&output, "a", 98).is_some());
        assert!(contradiction(&output, "b", 0).is_some());
        // It did not come to its end: there need be no result.
        assert_eq!(contradiction(&[], "a", 101), None);
    }

    #[test]
    fn reasons_to_skip() {
        let skipped = "Test requirement: two NICs\nSubtest a: SKIP (0.000s)";
        assert_eq!(requirement(&lines(skipped)), "two NICs");
        assert_eq!(requirement(&lines("x\ny")), "y");
        assert_eq!(requirement(&[]), "");
    }

    #[test]
    fn lists_of_programs() {
        let programs = ["/x/p2p_a", "/x/p2p_b"].map(PathBuf::from);
        assert_eq!(
            test_list(&programs),
            "TESTLIST\np2p_a p2p_b\nEND TESTLIST\n"
        );
    }
}
