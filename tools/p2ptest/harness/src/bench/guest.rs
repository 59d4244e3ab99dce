// SPDX-License-Identifier: GPL-2.0
//! What is measured in a guest. The slots in its kernel, and drm_mm and the GPU buddy allocator
//! beside them: the module `p2pgpu_bench` measures them when it is loaded. And the mapping of
//! dma-bufs, of p2pgpu and of vfio-pci, by the program `p2pbench`.

use std::time::Duration;

use anyhow::{Result, bail};
use p2p_init::Status;

use super::Figure;
use super::jobs::Jobs;
use super::sharing::{Sharing, value};
use crate::cargo;
use crate::context::{Context, Flavour};
use crate::initrd::{self, BENCHMARK, in_guest};
use crate::kernel;
use crate::processors::Processors;
use crate::qemu::Accel;
use crate::select::Filter;
use crate::session::{End, Parts, Session};

/// Filling the allocators with a million pages takes a minute under TCG.
const LIMIT: Duration = Duration::from_secs(900);

/// Spaces times layouts times allocators.
const FIGURES: usize = 3 * 2 * 4;

/// What was measured in a guest.
#[derive(Default)]
pub struct InGuest {
    pub slots: Vec<Figure>,
    pub sharing: Option<Sharing>,
    pub jobs: Option<Jobs>,
}

/// Boots a guest and measures what `filter` takes in it.
pub fn measure(ctx: &Context, filter: &Filter) -> Result<InGuest> {
    let slots = filter.takes("guest/slots");
    let (mappings, jobs) = (filter.takes("guest/mappings"), filter.takes("guest/jobs"));
    if !(slots || mappings || jobs) {
        return Ok(InGuest::default());
    }
    let kernel = kernel::ensure(ctx, Flavour::Release)?;
    let programs = cargo::programs(ctx)?;
    let parts = Parts {
        ctx,
        flavour: kernel.flavour,
        initrd: initrd::build(ctx, &kernel, &programs)?,
        accel: Accel::choose(ctx, &kernel.image)?,
        image: kernel.image,
        programs: &programs,
        // The allocators' own tables take 600 MiB.
        memory: 2 * kernel.flavour.memory(),
        counters: None,
        processors: Processors::new(),
    };
    eprintln!("p2ptest: benchmarks in a guest, which take some minutes");
    let mut session = Session::start(&parts, ctx.setup, "bench", "kunit.enable=0")?;
    let mut found = InGuest::default();
    if mappings || jobs {
        let mut argv = vec![in_guest(&programs.bench)];
        argv.extend(mappings.then(|| "mappings".to_owned()));
        argv.extend(jobs.then(|| "jobs".to_owned()));
        let output = run(&mut session, argv)?;
        found.sharing = mappings.then(|| Sharing::new(&output));
        found.jobs = jobs.then(|| Jobs::new(&output));
    }
    if slots {
        let script = format!("insmod {BENCHMARK} && dmesg | grep -o 'fill=.* ns=.*'");
        let argv = ["/bin/sh", "-c", &script].map(str::to_owned).to_vec();
        let output = run(&mut session, argv)?;
        found.slots = output.iter().filter_map(|l| figure(l)).collect();
    }
    let console = session.console_path.display().to_string();
    if let Some(finding) = session.power_off()?.first() {
        bail!("kernel log: {finding} (console: {console})");
    }
    if slots && found.slots.len() != FIGURES {
        bail!(
            "the benchmark told {} of {FIGURES} figures (console: {console})",
            found.slots.len()
        );
    }
    Ok(found)
}

/// Runs a program to its end and returns what it printed.
fn run(session: &mut Session, argv: Vec<String>) -> Result<Vec<String>> {
    let outcome = session.run("bench", argv, LIMIT, &mut |_| {})?;
    let console = session.console_path.display().to_string();
    match outcome.end {
        End::Told(Status::Exit(0)) => {}
        End::Told(status) => {
            let said = outcome.output.join("\n");
            bail!("the benchmark failed: {status:?} (console: {console})\n{said}")
        }
        End::Crash(why) => bail!("{why} (console: {console})"),
    }
    if let Some(finding) = outcome.findings.first() {
        bail!("kernel log: {finding} (console: {console})");
    }
    Ok(outcome.output)
}

/// A line of the module: `fill=95 layout=scattered who=slots ns=1,2,3`.
fn figure(line: &str) -> Option<Figure> {
    let value = |name| value(line, name);
    let times: Result<Vec<f64>, _> = value("ns")?.split(',').map(str::parse).collect();
    Figure::new(
        "guest",
        value("who")?,
        value("layout")?,
        value("fill")?.parse().ok()?,
        times.ok()?,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_module() {
        let found = figure("fill=95 layout=scattered who=drm_mm ns=7,5,9").unwrap();
        assert_eq!(
            (found.who.as_str(), found.layout.as_str(), found.fill),
            ("drm_mm", "scattered", 95)
        );
        assert_eq!((found.rounds, found.median_ns), (3, 7.0));
        for line in [
            "",
            "fill=95 layout=x who=y ns=",
            "fill=x layout=x who=y ns=1",
        ] {
            assert_eq!(figure(line), None, "{line}");
        }
    }
}
