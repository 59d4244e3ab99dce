// SPDX-License-Identifier: GPL-2.0
//! Builds the guest, boots it with the device models, runs the tests and reports.
//! Runs in the toolchain folder; `scripts/run` starts it.

mod bench;
mod cargo;
mod content;
mod context;
mod coverage;
mod cpio;
mod fuzz;
mod host;
mod igt;
mod initrd;
mod interactive;
mod kernel;
mod ktap;
mod lock;
mod models;
mod packages;
mod pool;
mod processors;
mod qemu;
mod qmp;
mod repeat;
mod results;
mod select;
mod series;
mod session;
mod splat;
mod step;
mod stop;
mod suites;
mod test;
mod tsc;
mod variable;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::context::{Context, Flavour};
use crate::select::Filter;

/// The command line; make's variables reach it through the environment.
#[derive(Debug, Parser)]
#[command(about)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Command {
    /// Measures what the aperture's slots cost.
    Bench,
    /// Sends a file from one GPU's memory to the other's.
    Demo,
    /// Reports the lines that the tests reach.
    Coverage,
    /// Runs random calls of both drivers in a guest.
    Fuzz,
    /// Fuzzes the device models.
    FuzzModels,
    /// Builds the guest's kernel.
    Kernel,
    /// Lists the chosen tests.
    List,
    /// Writes what is added to the kernel as a series of mails.
    Series,
    /// Starts an interactive guest.
    Shell,
    /// Runs the chosen tests.
    Test,
    /// Shows the apertures of a guest under load.
    Top,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(options.command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("p2ptest: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<bool> {
    stop::install()?;
    let ctx = Context::from_env()?;
    let optional = ctx.flavour().prefix();
    let chosen = || variable::text("T");
    let filter = || Filter::new(chosen().as_deref(), optional);
    match command {
        Command::Bench => bench::run(&ctx, &filter()?).map(|()| true),
        Command::Demo => interactive::demo(&ctx),
        Command::Coverage => {
            let ctx = Context {
                only: Some(Flavour::Coverage),
                ..ctx
            };
            let optional = Flavour::Coverage.prefix();
            coverage::run(&ctx, &Filter::new(chosen().as_deref(), optional)?)
        }
        Command::Fuzz => fuzz::guest::run(&ctx),
        Command::FuzzModels => fuzz::models::run(&ctx),
        Command::Series => series::run(&ctx),
        Command::Shell => interactive::shell(&ctx).map(|()| true),
        Command::Top => interactive::top(&ctx),
        Command::List => test::list(&ctx, &filter()?).map(|()| true),
        Command::Test if ctx.repeat > 1 => repeat::run(&ctx, &filter()?),
        Command::Test => Ok(test::run(&ctx, &filter()?)?.counts().good()),
        Command::Kernel => {
            let kernel = kernel::ensure(&ctx, ctx.flavour())?;
            println!("{}", kernel.image.display());
            for module in &kernel.modules {
                println!("{}", module.display());
            }
            Ok(true)
        }
    }
}
