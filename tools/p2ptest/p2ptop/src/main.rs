// SPDX-License-Identifier: GPL-2.0
//! The command line.

#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use p2ptop::json::Report;
use p2ptop::live::{self, Settings};
use p2ptop::rates::{self, Rates};
use p2ptop::source::{DEBUGFS, Sample, Source};
use p2ptop::terminal::{Environment, stated_size};
use p2ptop::text;
use p2ptop::view::View;
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

const AFTER_HELP: &str = "\
Slots: . free, c shows a page that CPUs may map, L lent to peers, R held by peers of an
object with a reservation, P of a pinned one, d draining (waits for peers to let go).
Flags of objects: E exportable, R reserve, S strict, O peers may only read.
Keys: q quit, left/right device, +/- interval, p pause.";

/// Shows who has which slots of the aperture of p2pgpu devices, and what goes on.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP)]
struct Options {
    /// Print one picture of each device and exit
    #[arg(long)]
    once: bool,
    /// With --once: print JSON
    #[arg(long, requires = "once")]
    json: bool,
    /// Only this device, or this one first: a PCI address
    #[arg(long, value_name = "PCI")]
    device: Option<String>,
    /// Seconds between two looks; with --once and 0 there is one look, and no rates
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    interval: f64,
    /// No colours (also: NO_COLOR in the environment)
    #[arg(long)]
    no_color: bool,
    /// Where debugfs is mounted
    #[arg(long, value_name = "DIR", default_value = DEBUGFS)]
    debugfs: PathBuf,
}

/// Shortest interval of the live picture, and longest of both, in seconds.
const LIMITS: (f64, f64) = (0.1, 3600.0);

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("p2ptop: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let (least, most) = LIMITS;
    let good =
        (least..=most).contains(&options.interval) || options.once && options.interval == 0.0;
    ensure!(good, "--interval must be {least} to {most} seconds");
    let source = Source::new(&options.debugfs);
    let environment = Environment::of_process();
    if options.once {
        return once(options, &source, &environment);
    }
    let device = match &options.device {
        Some(wanted) => source.find(wanted)?,
        None => source.devices()?.swap_remove(0),
    };
    // What is wrong with the files is said once, and not on a screen of its own.
    source.sample(&device)?;
    let settings = Settings {
        interval: options.interval,
        device,
        color: environment.color() && !options.no_color,
    };
    live::run(source, &settings, environment.kind(stated_size()))
}

fn once(options: &Options, source: &Source, environment: &Environment) -> Result<()> {
    let all = source.devices()?;
    let devices = match &options.device {
        Some(wanted) => vec![source.find(wanted)?],
        None => all.clone(),
    };
    let look =
        || -> Result<Vec<Sample>> { devices.iter().map(|pci| Ok(source.sample(pci)?)).collect() };
    let mut samples = look()?;
    let mut rates: Vec<Option<Rates>> = vec![None; samples.len()];
    if options.interval > 0.0 {
        thread::sleep(Duration::from_secs_f64(options.interval));
        let now = look()?;
        rates = samples
            .iter()
            .zip(&now)
            .map(|(before, now)| rates::between(before, now))
            .collect();
        samples = now;
    }
    let found = samples.iter().zip(rates.iter().map(Option::as_ref));
    let text = if options.json {
        serde_json::to_string_pretty(&Report::new(found))? + "\n"
    } else {
        let (width, _) = environment.size(stated_size());
        let pictures = found.map(|(sample, rates)| {
            let at = all.iter().position(|pci| *pci == sample.pci);
            let view = View {
                sample,
                rates,
                place: (at.unwrap_or(0), all.len()),
                status: "",
                keys: "",
            };
            text::picture(&view, width.into())
        });
        pictures.collect::<Vec<_>>().join("\n")
    };
    match io::stdout().write_all(text.as_bytes()) {
        // Who reads has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("writing the picture"),
    }
}
