// SPDX-License-Identifier: GPL-2.0
//! `make test` and `make list`: the chosen tests of all groups, in order of cost.

use std::fs;

use anyhow::Result;

use crate::cargo;
use crate::context::{Context, Setup};
use crate::initrd;
use crate::kernel;
use crate::qemu::Accel;
use crate::results::{Counts, Results};
use crate::select::Filter;
use crate::session::Parts;
use crate::stop;
use crate::suites::{checks, guest, host, kunit};

/// Memory of a test's guest, MiB.
pub const MEMORY: u64 = 1024;

/// Everything that was chosen.
struct Plan {
    programs: Option<cargo::Programs>,
    checks: Vec<checks::Check>,
    host: Vec<host::Suite>,
    kunit: Vec<String>,
    cases: Vec<guest::Case>,
    ids: Vec<String>,
}

impl Plan {
    fn new(ctx: &Context, filter: &Filter) -> Result<Self> {
        let may_boot = boot_prefixes().iter().any(|p| filter.may_take(p));
        let mut checks = if filter.may_take(checks::PREFIX) {
            checks::list(ctx)?
        } else {
            Vec::new()
        };
        checks.retain(|check| filter.takes(&check.id(&ctx.top)));
        let host = if filter.may_take(host::PREFIX) {
            host::list(ctx)?
        } else {
            Vec::new()
        };
        let programs = if may_boot {
            Some(cargo::programs(ctx)?)
        } else {
            None
        };
        let mut kunit = kunit::list(&ctx.top)?;
        kunit.retain(|id| filter.takes(id));
        if !kunit.is_empty() && !kunit.iter().any(|id| id == kunit::BOOT) {
            kunit.push(kunit::BOOT.to_owned());
        }
        let cases = programs
            .as_ref()
            .map_or_else(|| Ok(Vec::new()), guest::list)?;
        let (cases, guest_ids) = guest::choose(cases, filter);

        let mut ids: Vec<String> = checks.iter().map(|c| c.id(&ctx.top)).collect();
        ids.extend(
            host.iter()
                .flat_map(host::ids)
                .filter(|id| filter.takes(id)),
        );
        ids.extend(kunit.iter().cloned());
        ids.extend(guest_ids);
        Ok(Self {
            programs,
            checks,
            host,
            kunit,
            cases,
            ids,
        })
    }

    fn boots(&self) -> bool {
        let prefixes = boot_prefixes();
        let boots = |id: &String| prefixes.iter().any(|p| id.starts_with(p));
        self.ids.iter().any(boots)
    }
}

/// How the ids of tests that need a guest begin.
fn boot_prefixes() -> Vec<String> {
    let guests = Setup::all().map(|setup| format!("{}/", setup.name()));
    guests.chain([kunit::PREFIX.to_owned()]).collect()
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

/// Runs the chosen tests and reports.
///
/// # Errors
///
/// When something that has to be built fails, or the user stops the run; what ran
/// until then is reported all the same.
pub fn run(ctx: &Context, filter: &Filter) -> Result<Counts> {
    let plan = Plan::new(ctx, filter)?;
    let folder = ctx.results();
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let mut results = Results::new(std::io::stdout().lock(), plan.ids.iter().cloned())?;
    let ran = run_plan(ctx, &plan, &mut results);
    let why = match &ran {
        Ok(()) => "it did not run".to_owned(),
        Err(e) => format!("it did not run: {e:#}"),
    };
    if let Err(e) = &ran {
        eprintln!("p2ptest: {e:#}");
    }
    let counts = results.finish(&folder, &why)?;
    Ok(counts)
}

fn run_plan(
    ctx: &Context,
    plan: &Plan,
    results: &mut Results<std::io::StdoutLock<'_>>,
) -> Result<()> {
    for suite in &plan.host {
        stop::check()?;
        host::run(ctx, suite, results)?;
    }
    let needs_tree = plan.checks.iter().any(checks::Check::needs_tree);
    let kernel = if plan.boots() || needs_tree {
        Some(kernel::ensure(ctx))
    } else {
        None
    };
    // Without a kernel the checks that do not need one still tell something.
    match &kernel {
        Some(Ok(kernel)) => {
            let built = checks::Built {
                tree: &kernel.tree,
                objects: &kernel.objects,
                modules: &kernel.modules,
            };
            checks::run(ctx, built, &plan.checks, results)?;
        }
        _ => {
            let nothing = checks::Built {
                tree: &ctx.top,
                objects: &ctx.top,
                modules: &[],
            };
            let rest: Vec<_> = plan.checks.iter().filter(|c| !c.needs_tree()).collect();
            checks::run(ctx, nothing, rest, results)?;
        }
    }
    let (Some(kernel), Some(programs)) = (kernel.transpose()?, &plan.programs) else {
        return Ok(());
    };
    if !plan.boots() {
        return Ok(());
    }
    let parts = Parts {
        ctx,
        initrd: initrd::build(ctx, &kernel, programs)?,
        accel: Accel::choose(ctx, &kernel.image)?,
        image: kernel.image,
        programs,
        memory: MEMORY,
    };
    kunit::run(&parts, &plan.kunit, results)?;
    guest::run(&parts, &plan.cases, results)
}
