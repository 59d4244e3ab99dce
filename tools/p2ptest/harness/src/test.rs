// SPDX-License-Identifier: GPL-2.0
//! `make test` and `make list`: the chosen tests of all groups.

use std::fs;
use std::io;
use std::sync::Arc;
use std::thread;

use anyhow::Result;

use crate::cargo;
use crate::context::{Context, Flavour, Setup};
use crate::coverage::counters::Counters;
use crate::initrd;
use crate::kernel::{self, Kernel};
use crate::pool;
use crate::processors::Processors;
use crate::qemu::Accel;
use crate::results::{Counts, Outcome, Results};
use crate::select::Filter;
use crate::session::Parts;
use crate::stop;
use crate::suites::{checks, conformance, guest, host, kunit};

/// Everything that was chosen.
struct Plan {
    programs: Option<cargo::Programs>,
    checks: Vec<checks::Check>,
    host: Vec<host::Suite>,
    kunit: Vec<(Flavour, kunit::Chosen)>,
    /// On the only kernel, or else on the normal one.
    conformance: conformance::Chosen,
    cases: Vec<guest::Case>,
    ids: Vec<String>,
}

/// What the ids of tests start with that run in this kernel's guests.
fn guests(flavour: Flavour) -> impl Iterator<Item = String> {
    let places = Setup::all().map(|setup| setup.name() + "/");
    let names = places.chain([kunit::NAME, conformance::NAME].map(str::to_owned));
    names.map(move |name| format!("{}{name}", flavour.prefix()))
}

impl Plan {
    fn new(ctx: &Context, filter: &Filter) -> Result<Self> {
        let flavours = Flavour::ALL
            .into_iter()
            .filter(|flavour| match (flavour, ctx.only) {
                (flavour, Some(only)) => *flavour == only,
                (Flavour::Release | Flavour::Debug, None) => true,
                (Flavour::Coverage, None) => false,
            });
        let may_boot = flavours
            .clone()
            .flat_map(guests)
            .any(|prefix| filter.may_take(&prefix));
        // What meets no kernel is no other test with another one.
        let everywhere = matches!(ctx.only, None | Some(Flavour::Release));
        let mut checks = if everywhere && filter.may_take(checks::PREFIX) {
            checks::list(ctx)?
        } else {
            Vec::new()
        };
        checks.retain(|check| filter.takes(&check.id(&ctx.top)));
        let host = if everywhere && filter.may_take(host::PREFIX) {
            host::list(ctx)?
        } else {
            Vec::new()
        };
        let programs = if may_boot {
            Some(cargo::programs(ctx)?)
        } else {
            None
        };
        let mut kunit = Vec::new();
        for flavour in flavours {
            kunit.push((flavour, kunit::choose(&ctx.top, flavour, filter)?));
        }
        let conformance = match &programs {
            Some(programs) => conformance::choose(ctx, programs, ctx.flavour(), filter)?,
            None => conformance::Chosen::default(),
        };
        let cases = programs
            .as_ref()
            .map_or_else(|| Ok(Vec::new()), |p| guest::list(p, ctx.only))?;
        let (cases, guest_ids) = guest::choose(cases, filter);

        let mut ids: Vec<String> = checks.iter().map(|c| c.id(&ctx.top)).collect();
        ids.extend(
            host.iter()
                .flat_map(host::ids)
                .filter(|id| filter.takes(id)),
        );
        ids.extend(kunit.iter().flat_map(|(_, chosen)| chosen.ids()).cloned());
        ids.extend(conformance.ids().iter().cloned());
        ids.extend(guest_ids);
        Ok(Self {
            programs,
            checks,
            host,
            kunit,
            conformance,
            cases,
            ids,
        })
    }

    fn boots(&self, flavour: Flavour) -> bool {
        guests(flavour).any(|prefix| self.ids.iter().any(|id| id.starts_with(&prefix)))
    }
}

/// Prints the ids of the chosen tests.
///
/// # Errors
///
/// When something that has to be built for that fails.
pub fn list(ctx: &Context, filter: &Filter) -> Result<()> {
    for id in Plan::new(ctx, filter)?.ids {
        println!("{id}");
    }
    Ok(())
}

/// What came of a run.
#[derive(Debug)]
pub struct Ran {
    /// The tests' results.
    pub outcomes: Vec<Outcome>,
    /// How often the lines of the kernel that counts them were reached.
    pub counters: Option<Arc<Counters>>,
}

impl Ran {
    /// The results, counted.
    pub fn counts(&self) -> Counts {
        Counts::of(&self.outcomes)
    }
}

/// Runs the chosen tests and reports.
///
/// # Errors
///
/// When something that has to be built fails, or the user stops the run; what ran
/// until then is reported all the same.
pub fn run(ctx: &Context, filter: &Filter) -> Result<Ran> {
    let plan = Plan::new(ctx, filter)?;
    let folder = ctx.results();
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let results = Results::new(io::stdout(), plan.ids.iter().cloned())?;
    let mut counters = None;
    let ran = run_plan(ctx, &plan, &results, &mut counters);
    let why = match &ran {
        Ok(()) => "it did not run".to_owned(),
        Err(e) => format!("it did not run: {e:#}"),
    };
    if let Err(e) = &ran {
        eprintln!("p2ptest: {e:#}");
    }
    let outcomes = results.finish(&folder, &why)?;
    Ok(Ran { outcomes, counters })
}

fn run_plan(
    ctx: &Context,
    plan: &Plan,
    results: &Results<io::Stdout>,
    counters: &mut Option<Arc<Counters>>,
) -> Result<()> {
    conformance::tell(&plan.conformance, results)?;
    let needs_tree = plan.checks.iter().any(checks::Check::needs_tree);
    let kernel = if plan.boots(Flavour::Release) || needs_tree {
        Some(kernel::ensure(ctx, Flavour::Release))
    } else {
        None
    };
    // What needs no kernel tells something without one too.
    let (kernel, built) = match kernel.transpose() {
        Ok(kernel) => (kernel, Ok(())),
        Err(e) => (None, Err(e)),
    };
    // A guest waits for a good part of its time.
    thread::scope(|scope| {
        let beside = scope.spawn(|| run_without_guests(ctx, plan, kernel.as_ref(), results));
        let guests =
            built.and_then(|()| run_on_kernels(ctx, plan, kernel.as_ref(), results, counters));
        match beside.join() {
            Ok(beside) => guests.and(beside),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Runs all that boots nothing.
fn run_without_guests(
    ctx: &Context,
    plan: &Plan,
    kernel: Option<&Kernel>,
    results: &Results<io::Stdout>,
) -> Result<()> {
    for suite in &plan.host {
        stop::check()?;
        host::run(ctx, suite, results)?;
    }
    match kernel {
        Some(kernel) => {
            let built = checks::Built {
                tree: &kernel.tree,
                objects: &kernel.objects,
                modules: &kernel.modules,
            };
            checks::run(ctx, built, &plan.checks, results)
        }
        None => {
            let nothing = checks::Built {
                tree: &ctx.top,
                objects: &ctx.top,
                modules: &[],
            };
            let rest: Vec<_> = plan.checks.iter().filter(|c| !c.needs_tree()).collect();
            checks::run(ctx, nothing, rest, results)
        }
    }
}

/// Runs all that boots a kernel: what is tested on each of them comes before the next one is
/// built, which may fail.
fn run_on_kernels(
    ctx: &Context,
    plan: &Plan,
    release: Option<&Kernel>,
    results: &Results<io::Stdout>,
    counters: &mut Option<Arc<Counters>>,
) -> Result<()> {
    if let Some(kernel) = release {
        run_guests(ctx, plan, kernel, results, None)?;
    }
    if plan.boots(Flavour::Debug) {
        let kernel = kernel::ensure(ctx, Flavour::Debug)?;
        run_guests(ctx, plan, &kernel, results, None)?;
    }
    if plan.boots(Flavour::Coverage) {
        let kernel = kernel::ensure(ctx, Flavour::Coverage)?;
        *counters = Some(Arc::new(Counters::of(&kernel)?));
        run_guests(ctx, plan, &kernel, results, counters.clone())?;
    }
    Ok(())
}

/// Runs all that boots this kernel.
fn run_guests(
    ctx: &Context,
    plan: &Plan,
    kernel: &Kernel,
    results: &Results<io::Stdout>,
    counters: Option<Arc<Counters>>,
) -> Result<()> {
    let flavour = kernel.flavour;
    let Some(programs) = plan.programs.as_ref().filter(|_| plan.boots(flavour)) else {
        return Ok(());
    };
    let parts = Parts {
        ctx,
        flavour,
        initrd: initrd::build(ctx, kernel, programs)?,
        accel: Accel::choose(ctx, &kernel.image)?,
        image: kernel.image.clone(),
        programs,
        memory: flavour.memory(),
        counters,
        processors: Processors::new(),
    };
    let parts = &parts;
    let suites = plan.kunit.iter().filter(|(of, _)| *of == flavour);
    let kunit = suites
        .map(|(_, chosen)| Box::new(move || kunit::run(parts, chosen, results)) as pool::Job<'_>);
    // It takes longest of all, and waits most.
    let conformance = (flavour == ctx.flavour())
        .then(|| conformance::job(parts, &plan.conformance, results))
        .flatten();
    let jobs = conformance
        .into_iter()
        .chain(kunit)
        .chain(guest::jobs(parts, &plan.cases, results));
    pool::run(ctx.guests(flavour), jobs)
}
