// SPDX-License-Identifier: GPL-2.0
//! Random calls of both drivers in a guest, made by `p2pfuzz`. A sequence fails if the
//! program says so or does not end, if the guest dies, or if its kernel's log or a device
//! finds something wrong. It is then run again in fresh guests, with steps left out, until
//! none can be left out any more.
//!
//! Where the kernel tells which points of the drivers' code are reached, sequences go on
//! from those that reached something new.

use std::fmt::{self, Display, Formatter};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use p2p_init::{Sequence, Status};

use super::corpus::{Corpus, News};
use super::{duration, given, minimise, setting};
use crate::cargo;
use crate::context::Context;
use crate::initrd::{self, in_guest};
use crate::kernel;
use crate::processors::Processors;
use crate::qemu::Accel;
use crate::session::{End, Outcome, Parts, Session};
use crate::stop;

/// Steps of a sequence, unless STEPS says otherwise.
const STEPS: usize = 150;
/// Processes, unless PROCESSES says otherwise.
const PROCESSES: u64 = 2;
/// A sequence takes a second; some calls wait for others to let go.
const LIMIT: Duration = Duration::from_secs(180);
/// Where a guest keeps which points its sequences have reached.
const POINTS: &str = "/tmp/points";
/// A failure that depends on the moment is tried so often before steps are left out.
const TRIES: usize = 3;
/// Without a terminal, progress is a line at most this often.
const PLAIN_EVERY: Duration = Duration::from_secs(15);

/// What went wrong, in the words of whoever found it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Failure {
    /// The guest died, or hangs.
    Dead(String),
    /// The kernel's log or a device.
    Found(String),
    /// The program: a call ended wrongly, a promise was broken, something was left.
    Wrong(String),
}

impl Failure {
    /// What is wrong with the end of a sequence, if anything is.
    fn of(outcome: &Outcome) -> Option<Self> {
        let last = || outcome.output.last().cloned().unwrap_or_default();
        // A process says more than the one that waited for it.
        let step = || {
            outcome
                .output
                .iter()
                .find(|l| l.starts_with("step "))
                .cloned()
        };
        match (&outcome.end, outcome.findings.first()) {
            (End::Crash(why), _) => Some(Self::Dead(why.clone())),
            (End::Told(Status::Stuck), _) => Some(Self::Dead("the kernel holds it".into())),
            (End::Told(_), Some(finding)) => Some(Self::Found(finding.clone())),
            (End::Told(Status::Exit(0)), None) => None,
            (End::Told(Status::Exit(98)), None) => Some(Self::Wrong(step().unwrap_or_else(last))),
            (End::Told(status), None) => Some(Self::Dead(format!("{status:?}: {}", last()))),
        }
    }

    /// Whether two failures may have one cause: what they say names other numbers, and
    /// the last lines of a dead guest other things.
    fn is_like(&self, other: &Self) -> bool {
        let same = std::mem::discriminant(self) == std::mem::discriminant(other);
        same && (matches!(self, Self::Dead(_)) || shape(self.text()) == shape(other.text()))
    }

    fn text(&self) -> &str {
        match self {
            Self::Dead(text) | Self::Found(text) | Self::Wrong(text) => text,
        }
    }
}

/// A text without its numbers.
fn shape(text: &str) -> String {
    let words = text.split_whitespace().map(|word| {
        let number = word.contains(|c: char| c.is_ascii_digit()) && !word.contains('_');
        if number { "#" } else { word }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// What the user asked for.
struct Wish {
    seed: u64,
    steps: usize,
    processes: u64,
    /// Only this sequence, without these steps.
    only: Option<(Sequence, String)>,
    /// Whether sequences may go on from others.
    guided: bool,
    duration: Duration,
}

impl Wish {
    fn new() -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let another = now.map_or(0, |time| time.as_secs());
        let only: Option<Sequence> = given("SEQUENCE")?;
        let without = setting("WITHOUT", String::new())?;
        Ok(Self {
            seed: setting("SEED", another)?,
            steps: setting("STEPS", STEPS)?,
            processes: setting("PROCESSES", PROCESSES)?,
            only: only.map(|sequence| (sequence, without)),
            guided: setting("GUIDED", 1)? != 0,
            duration: duration()?,
        })
    }
}

/// A guest that sequences run in; another one after each failure, as nothing in the old
/// one can be trusted.
struct Fuzzer<'a> {
    parts: &'a Parts<'a>,
    wish: &'a Wish,
    program: String,
    session: Option<Session>,
    boots: usize,
}

impl Fuzzer<'_> {
    /// Runs one sequence without some of its steps.
    fn run(
        &mut self,
        sequence: &Sequence,
        without: &str,
        trace: bool,
    ) -> Result<(Option<Failure>, Vec<String>)> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => {
                self.boots += 1;
                let name = format!("fuzz-{}", self.boots);
                Session::start(self.parts, self.parts.ctx.setup, &name, "kunit.enable=0")?
            }
        };
        let mut argv = vec![
            self.program.clone(),
            format!("--seed={}", self.wish.seed),
            format!("--sequence={sequence}"),
            format!("--steps={}", self.wish.steps),
            format!("--processes={}", self.wish.processes),
            format!("--without={without}"),
            format!("--points={POINTS}"),
        ];
        if trace {
            argv.push("--trace".to_owned());
        }
        let outcome = session.run(&format!("sequence {sequence}"), argv, LIMIT, &mut |_| {})?;
        let failure = Failure::of(&outcome);
        if failure.is_none() && !session.retired {
            self.session = Some(session);
        }
        Ok((failure, outcome.output))
    }

    /// Runs sequences until one fails or the time is over. Returns the one that failed.
    fn search(&mut self) -> Result<Option<(Sequence, Failure)>> {
        let start = Instant::now();
        let mut show = Show::default();
        let mut corpus = Corpus::new(self.wish.seed, self.wish.steps);
        let mut counts = Counts::default();
        for stream in 0.. {
            if start.elapsed() >= self.wish.duration {
                show.end(&format!("{stream} sequences, {counts}"));
                break;
            }
            let sequence = match self.wish.guided {
                true => corpus.next(stream),
                false => Sequence::new(stream),
            };
            let (failure, output) = self.run(&sequence, "", false)?;
            if let Some(failure) = failure {
                show.end("");
                return Ok(Some((sequence, failure)));
            }
            if let Some(news) = counts.add(&output) {
                corpus.add(sequence, news);
            }
            let seconds = start.elapsed().as_secs();
            show.line(&format!("sequence {stream}, {counts}, {seconds}s"));
        }
        if counts.points.is_none() {
            eprintln!("p2ptest: not guided by what is reached: the kernel has no KCOV (DEBUG=1)");
        }
        Ok(None)
    }

    /// Cuts a sequence down to the steps that its failure takes: what to leave out.
    fn cut(&mut self, sequence: &Sequence, failure: &Failure) -> Result<Option<String>> {
        let mut again = false;
        for _ in 0..TRIES {
            let (found, _) = self.run(sequence, "", false)?;
            again |= found.is_some_and(|found| found.is_like(failure));
            if again {
                break;
            }
        }
        if !again {
            return Ok(None);
        }
        let len = self.wish.steps;
        let mut show = Show::default();
        let mut least = len;
        let kept = minimise::minimise((0..len).collect(), |kept| {
            let without = minimise::without(len, kept);
            let (found, _) = self.run(sequence, &without, false)?;
            let fails = found.is_some_and(|found| found.is_like(failure));
            if fails {
                least = kept.len();
            }
            show.line(&format!("leaving out steps: {least} of {len} are left"));
            Ok(fails)
        })?;
        show.end(&format!("{} of {len} steps are needed", kept.len()));
        Ok(Some(minimise::without(len, &kept)))
    }
}

/// What all sequences together did.
#[derive(Default)]
struct Counts {
    worked: u64,
    done: u64,
    /// Points of the drivers' code that were reached, if the kernel tells.
    points: Option<usize>,
}

impl Counts {
    /// Adds what one of them printed. Returns what it reached, if the kernel tells.
    fn add(&mut self, output: &[String]) -> Option<News> {
        for (good, all) in output.iter().filter_map(|line| counted(line)) {
            self.worked += good;
            self.done += all;
        }
        let news = output.iter().find_map(|line| News::of(line))?;
        self.points = Some(news.all);
        Some(news)
    }
}

impl Display for Counts {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} calls worked", self.worked, self.done)?;
        match self.points {
            Some(points) => write!(f, ", {points} points reached"),
            None => Ok(()),
        }
    }
}

/// A process's last line: "12 of 40 steps worked".
fn counted(line: &str) -> Option<(u64, u64)> {
    let (good, all) = line.strip_suffix(" steps worked")?.split_once(" of ")?;
    Some((good.parse().ok()?, all.parse().ok()?))
}

/// Progress: in place on a terminal, else a line now and then.
#[derive(Default)]
struct Show {
    last: Option<Instant>,
}

impl Show {
    fn line(&mut self, text: &str) {
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K{text}");
            // Nothing is lost if it cannot be shown.
            let _ = std::io::stderr().flush();
        } else if self.last.is_none_or(|last| last.elapsed() >= PLAIN_EVERY) {
            self.last = Some(Instant::now());
            eprintln!("p2ptest: {text}");
        }
    }

    fn end(&self, text: &str) {
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
        if !text.is_empty() {
            eprintln!("p2ptest: {text}");
        }
    }
}

/// Runs sequences, or the one that the user names; says whether all was well.
///
/// # Errors
///
/// When something cannot be built, a guest does not come up, or the user stops it.
pub fn run(ctx: &Context) -> Result<bool> {
    let wish = Wish::new()?;
    let kernel = kernel::ensure(ctx, ctx.flavour())?;
    let programs = cargo::programs(ctx)?;
    let program = programs
        .tools
        .iter()
        .find(|tool| tool.ends_with("p2pfuzz"))
        .context("the workspace builds no p2pfuzz")?;
    let parts = Parts {
        ctx,
        flavour: kernel.flavour,
        initrd: initrd::build(ctx, &kernel, &programs)?,
        accel: Accel::choose(ctx, &kernel.image)?,
        image: kernel.image,
        programs: &programs,
        memory: kernel.flavour.memory(),
        counters: None,
        processors: Processors::new(),
    };
    let mut fuzzer = Fuzzer {
        parts: &parts,
        wish: &wish,
        program: in_guest(program),
        session: None,
        boots: 0,
    };
    eprintln!("p2ptest: SEED={}", wish.seed);
    let good = match &wish.only {
        Some((sequence, without)) => replay(&mut fuzzer, sequence, without)?,
        None => match fuzzer.search()? {
            None => true,
            Some((sequence, failure)) => {
                println!("sequence {sequence} failed: {}", failure.text());
                report(&mut fuzzer, &sequence, &failure)?;
                false
            }
        },
    };
    if let Some(session) = fuzzer.session.take() {
        let findings = session.power_off()?;
        for finding in &findings {
            println!("when the guest ended: {finding}");
        }
        return Ok(good && findings.is_empty());
    }
    Ok(good)
}

/// Runs one sequence and shows its steps.
fn replay(fuzzer: &mut Fuzzer<'_>, sequence: &Sequence, without: &str) -> Result<bool> {
    let (failure, output) = fuzzer.run(sequence, without, true)?;
    for line in &output {
        println!("{line}");
    }
    match failure {
        None => println!("sequence {sequence} passed"),
        Some(failure) => {
            println!("sequence {sequence} failed: {}", failure.text());
            return Ok(false);
        }
    }
    Ok(true)
}

/// Tells how to see a failure again, with as few steps as can be.
fn report(fuzzer: &mut Fuzzer<'_>, sequence: &Sequence, failure: &Failure) -> Result<()> {
    stop::check()?;
    let wish = fuzzer.wish;
    let mut again = format!(
        "make fuzz SEED={} SEQUENCE={sequence} STEPS={} PROCESSES={}",
        wish.seed, wish.steps, wish.processes
    );
    match fuzzer.cut(sequence, failure)? {
        None => println!("it did not fail again alone, {TRIES} times"),
        Some(without) => {
            again.push_str(&format!(" WITHOUT={without}"));
            replay(fuzzer, sequence, &without)?;
        }
    }
    println!("again: {again}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(end: End, findings: &[&str]) -> Outcome {
        Outcome {
            end,
            output: vec!["failed: x".into()],
            findings: findings.iter().map(|s| (*s).to_owned()).collect(),
            time: Duration::ZERO,
        }
    }

    #[test]
    fn what_is_a_failure() {
        let told = |status| outcome(End::Told(status), &[]);
        assert_eq!(Failure::of(&told(Status::Exit(0))), None);
        let wrong = Failure::of(&told(Status::Exit(98)));
        assert_eq!(wrong, Some(Failure::Wrong("failed: x".into())));
        for status in [Status::Timeout, Status::Stuck, Status::Exit(1)] {
            let failure = Failure::of(&told(status));
            assert!(matches!(failure, Some(Failure::Dead(_))));
        }
        let warned = outcome(End::Told(Status::Exit(0)), &["WARNING: y"]);
        let found = Failure::Found("WARNING: y".into());
        assert_eq!(Failure::of(&warned), Some(found.clone()));
        let crash = outcome(End::Crash("z".into()), &["WARNING: y"]);
        assert!(!Failure::of(&crash).unwrap().is_like(&found));
    }

    #[test]
    fn numbers_do_not_tell_failures_apart() {
        let wrong = |text: &str| Failure::Wrong(text.to_owned());
        let one = wrong("step 0/12: IOCTL_P2 works, but pad is 0x1");
        assert!(one.is_like(&wrong("step 1/7: IOCTL_P2 works, but pad is 0x80")));
        assert!(!one.is_like(&wrong("step 1/7: IOCTL_P2 works, but flags is 0x80")));
    }

    #[test]
    fn what_processes_count() {
        assert_eq!(counted("12 of 40 steps worked"), Some((12, 40)));
        assert_eq!(counted("failed: 12 of 40"), None);
        assert_eq!(counted("3 of 40 points are new, the last by step 7"), None);
    }
}
