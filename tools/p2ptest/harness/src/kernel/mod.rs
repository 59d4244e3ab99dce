// SPDX-License-Identifier: GPL-2.0
//! The guest's kernel: source, our files and patches, configuration, build.

pub mod config;
pub mod overlay;
pub mod source;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::content::{Key, Stamp, read_optional, write_atomic, write_if_changed};
use crate::context::{Context, Flavour};
use crate::lock;
use crate::step::Step;

/// Lines of a build from nothing, until a build on this machine told better.
const BUILD_LINES: u64 = 1850;
/// In the fragments' folder, one over the other.
const RELEASE: &str = "release.config";
const DEBUG: &str = "debug.config";

/// What counts how often its lines are reached: all that is ours. Parts of the kernel
/// itself, and the modules' own parts, by the name that kbuild's variables for the flags
/// of one object have.
const COUNTED_BUILTIN: [&str; 4] = [
    "rust/kernel.o",
    "mm/p2p_vma.o",
    "drivers/dma-buf/p2p_bar.o",
    "drivers/dma-buf/p2p_bar_vma.o",
];
const COUNTED: [&str; 8] = [
    "RUSTFLAGS_kernel.o",
    "RUSTFLAGS_p2pgpu_main.o",
    "RUSTFLAGS_p2pnic.o",
    "RUSTFLAGS_p2p_importer_test.o",
    "RUSTFLAGS_rust_p2p_simple.o",
    "CFLAGS_p2p_vma.o",
    "CFLAGS_p2p_bar.o",
    "CFLAGS_p2p_bar_vma.o",
];
/// A kernel has no library that would write the counters to a file.
const COUNT_RUST: &str = "-Cinstrument-coverage -Zno-profiler-runtime";
const COUNT_C: &str = "-fprofile-instr-generate -fcoverage-mapping";
/// The compilers give each function sections of its own, in groups: a module's are put
/// together.
const COUNT_MODULES: &str = "--force-group-allocation";
/// Where the counters are in the kernel itself.
const COUNT_LAYOUT: &str = "coverage.lds.h";

/// What a guest boots, in the checkout's own build folder.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// What it was configured for.
    pub flavour: Flavour,
    /// The kernel image.
    pub image: PathBuf,
    /// Modules in an order in which they can be loaded.
    pub modules: Vec<PathBuf>,
    /// What counts in it, if something does.
    pub counting: Option<Counting>,
    /// The prepared source tree; another checkout may change it.
    pub tree: PathBuf,
    /// Where it was built; another checkout may change it.
    pub objects: PathBuf,
}

/// What counts in the kernel itself.
#[derive(Debug, Clone)]
pub struct Counting {
    /// The kernel as it was linked: where the counters are.
    pub vmlinux: PathBuf,
    /// What it was linked from: what they count.
    pub objects: Vec<PathBuf>,
}

/// Builds what is stale and copies the results into the checkout's build folder.
///
/// # Errors
///
/// When a step fails; its log is named.
pub fn ensure(ctx: &Context, flavour: Flavour) -> Result<Kernel> {
    let folder = ctx.cache.join("kernel");
    fs::create_dir_all(&folder)?;
    // The tree and its objects are one for all checkouts.
    let _lock = lock::take(&ctx.cache.join("kernel.lock"), "builds the kernel")?;
    let (tree, origin) = source::ensure(ctx)?;
    let made_for = fs::read_to_string(ctx.kernel_files().join("made-for"))
        .context("reading kernel/made-for")?;
    let overlay = tree.apply(&ctx.top, made_for.trim())?;

    // "linux.build" and "linux-debug.build" beside one tree, "linux".
    let suffix = match flavour {
        Flavour::Release => ".build",
        Flavour::Debug => "-debug.build",
        Flavour::Coverage => "-coverage.build",
    };
    let build = Build {
        ctx,
        flavour,
        source: tree.dir.clone(),
        out: with_suffix(&tree.dir, suffix),
    };
    let fragment = build.fragment()?;
    let toolchain = read_optional(Path::new("/.p2pgpu-key"))?.unwrap_or_default();
    let key = {
        let mut key = Key::default();
        key.add(&toolchain)
            .add(&origin)
            .add(&overlay.all)
            .add(&fragment);
        if flavour == Flavour::Coverage {
            key.add(fs::read(ctx.kernel_files().join(COUNT_LAYOUT))?);
            build.counted().for_each(|variable| {
                key.add(variable);
            });
        }
        key.hex()
    };
    let stamp_path = with_suffix(&build.out, ".stamp");
    let stamp = Stamp(&stamp_path);
    if !stamp.holds(&key) {
        stamp.clear()?;
        build.start_over_unless(&[&toolchain, origin.as_bytes()])?;
        build.configure(&fragment, &overlay.configuration)?;
        build.compile()?;
        stamp.set(&key)?;
    }
    build.collect()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

struct Build<'a> {
    ctx: &'a Context,
    flavour: Flavour,
    source: PathBuf,
    out: PathBuf,
}

impl Build<'_> {
    /// All fragments that apply, as one text.  The drivers' own symbols are asked
    /// for where the tree has them.
    fn fragment(&self) -> Result<String> {
        let folder = self.ctx.kernel_files();
        let mut text = fs::read_to_string(folder.join(RELEASE))?;
        let over = match self.flavour {
            Flavour::Release | Flavour::Coverage => None,
            Flavour::Debug => Some(DEBUG),
        };
        if let Some(over) = over {
            text.push_str(&fs::read_to_string(folder.join(over))?);
        }
        for (parent, driver, line) in [
            (
                "drivers/gpu/drm/Kconfig",
                "drivers/gpu/drm/p2pgpu/Kconfig",
                "CONFIG_DRM_P2PGPU=m\nCONFIG_P2PGPU_BENCH=m\n",
            ),
            (
                "drivers/net/Kconfig",
                "drivers/net/p2pnic/Kconfig",
                "CONFIG_P2PNIC=m\n",
            ),
            (
                "drivers/dma-buf/Kconfig",
                "drivers/dma-buf/p2p_importer_test/Kconfig",
                "CONFIG_P2P_IMPORTER_TEST=m\n",
            ),
        ] {
            if fs::read_to_string(self.source.join(parent))?.contains(driver) {
                text.push_str(line);
            }
        }
        Ok(text)
    }

    fn log(&self, name: &str) -> PathBuf {
        let prefix = self.flavour.prefix();
        self.ctx.logs().join(format!("{prefix}{name}"))
    }

    fn make(&self) -> Command {
        let mut command = Command::new("make");
        command
            .arg("-C")
            .arg(&self.source)
            .arg(format!("O={}", self.out.display()));
        command.args([
            "LLVM=1",
            "KBUILD_BUILD_USER=p2pgpu",
            "KBUILD_BUILD_HOST=p2pgpu",
        ]);
        if self.flavour == Flavour::Coverage {
            command.args(self.counted());
        }
        command.env("KBUILD_BUILD_TIMESTAMP", "2026-01-01");
        // The flags are clang's, and bindgen's library may be an older one.
        command.env("BINDGEN_EXTRA_CLANG_ARGS", "-Wno-unknown-warning-option");
        command
    }

    /// The variables of make that have our objects count.
    fn counted(&self) -> impl Iterator<Item = String> {
        let objects = COUNTED.into_iter().map(|name| {
            let flags = match name.starts_with("RUST") {
                true => COUNT_RUST,
                false => COUNT_C,
            };
            format!("{name}={flags}")
        });
        let layout = self.layout();
        objects.chain([
            format!("LDFLAGS_MODULE={COUNT_MODULES}"),
            format!("CPPFLAGS_vmlinux.lds=-include {}", layout.display()),
        ])
    }

    /// A copy, as another checkout may have another one.
    fn layout(&self) -> PathBuf {
        self.out.join(COUNT_LAYOUT)
    }

    /// Objects of another compiler or another Linux are no good.
    fn start_over_unless(&self, origin: &[&[u8]]) -> Result<()> {
        let mut key = Key::default();
        for part in origin {
            key.add(part);
        }
        let stamp_path = with_suffix(&self.out, ".origin");
        let stamp = Stamp(&stamp_path);
        if !stamp.holds(&key.hex()) && self.out.exists() {
            fs::remove_dir_all(&self.out)?;
        }
        fs::create_dir_all(&self.out)?;
        stamp.set(&key.hex())
    }

    fn configure(&self, fragment: &str, kconfig: &str) -> Result<()> {
        let mut key = Key::default();
        key.add(fragment).add(kconfig);
        // In the build folder, so that it goes with it.
        let stamp_path = self.out.join("p2pgpu.configured");
        let stamp = Stamp(&stamp_path);
        if stamp.holds(&key.hex()) {
            return Ok(());
        }
        stamp.clear()?;
        let all = self.out.join("p2pgpu.config");
        write_atomic(&all, fragment.as_bytes())?;
        let log = self.log("kernel-config.log");
        let label = format!("{}kernel configuration", self.flavour.prefix());
        let step = Step {
            label: &label,
            log: &log,
            expected: None,
            unit: "lines",
        };
        let mut command = self.make();
        command.arg("allnoconfig").env("KCONFIG_ALLCONFIG", &all);
        step.run(&mut command, |_| true)?;
        let unmet = config::unmet(fragment, &fs::read_to_string(self.out.join(".config"))?);
        if !unmet.is_empty() {
            bail!(
                "the kernel's configuration does not take:\n  {}",
                unmet.join("\n  ")
            );
        }
        stamp.set(&key.hex())
    }

    fn compile(&self) -> Result<()> {
        if self.flavour == Flavour::Coverage {
            let layout = fs::read(self.ctx.kernel_files().join(COUNT_LAYOUT))?;
            write_if_changed(&self.layout(), &layout)?;
        }
        let log = self.log("kernel-build.log");
        let label = format!("{}kernel", self.flavour.prefix());
        let first = !self.out.join("vmlinux").exists();
        let lines = with_suffix(&self.out, ".lines");
        let known = fs::read_to_string(&lines).ok().and_then(|s| s.parse().ok());
        let step = Step {
            label: &label,
            log: &log,
            expected: first.then_some(known.unwrap_or(BUILD_LINES)),
            unit: "objects",
        };
        let mut command = self.make();
        command
            .arg(format!("-j{}", self.ctx.jobs))
            .args(["bzImage", "modules"]);
        let done = step.run(&mut command, is_object)?;
        if first {
            write_atomic(&lines, done.counted.to_string().as_bytes())?;
        }
        Ok(())
    }

    /// Copies the image and the modules, so that another checkout's build does
    /// not change what this one's guests boot.
    fn collect(&self) -> Result<Kernel> {
        let name = format!("{}kernel", self.flavour.prefix());
        let to = self.ctx.build().join(name);
        fs::create_dir_all(to.join("modules"))?;
        let copy = |from: &Path, to: &Path| -> Result<()> {
            let bytes = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
            write_if_changed(to, &bytes).map(|_| ())
        };
        let image = to.join("bzImage");
        copy(&self.out.join("arch/x86/boot/bzImage"), &image)?;
        let counting = match self.flavour {
            Flavour::Release | Flavour::Debug => None,
            Flavour::Coverage => Some(Counting {
                vmlinux: to.join("vmlinux"),
                objects: COUNTED_BUILTIN.map(|name| to.join(name)).to_vec(),
            }),
        };
        if let Some(counting) = &counting {
            copy(&self.out.join("vmlinux"), &counting.vmlinux)?;
            for name in COUNTED_BUILTIN {
                copy(&self.out.join(name), &to.join(name))?;
            }
        }
        let order = fs::read_to_string(self.out.join("modules.order")).unwrap_or_default();
        let mut built = Vec::new();
        for line in order.lines() {
            let object = self.out.join(line).with_extension("ko");
            let target = to
                .join("modules")
                .join(object.file_name().unwrap_or_default());
            copy(&object, &target)?;
            built.push(Module {
                needs: needs(&target)?,
                path: target,
            });
        }
        for entry in fs::read_dir(to.join("modules"))? {
            let path = entry?.path();
            if !built.iter().any(|m| m.path == path) {
                fs::remove_file(path)?;
            }
        }
        Ok(Kernel {
            flavour: self.flavour,
            image,
            modules: load_order(built)?,
            counting,
            tree: self.source.clone(),
            objects: self.out.clone(),
        })
    }
}

/// Whether a line of kbuild's output says that something is made: two blanks, a
/// command in capitals.
fn is_object(line: &str) -> bool {
    line.strip_prefix("  ")
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()))
}

/// A built module and the names of those it needs.
#[derive(Debug)]
struct Module {
    path: PathBuf,
    needs: Vec<String>,
}

fn needs(module: &Path) -> Result<Vec<String>> {
    let output = Command::new("modinfo")
        .args(["-F", "depends"])
        .arg(module)
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .trim()
        .split(',')
        .filter(|s| !s.is_empty())
        .map(str::to_owned)
        .collect())
}

/// Every module after those that it needs.
fn load_order(mut modules: Vec<Module>) -> Result<Vec<PathBuf>> {
    let name = |p: &Path| {
        p.file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .replace('-', "_")
    };
    let mut order: Vec<PathBuf> = Vec::new();
    while !modules.is_empty() {
        let ready = modules.iter().position(|m| {
            m.needs
                .iter()
                .all(|n| order.iter().any(|done| name(done) == n.replace('-', "_")))
        });
        match ready {
            Some(i) => order.push(modules.remove(i).path),
            None => bail!("modules need what was not built: {modules:?}"),
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_objects_only() {
        assert!(is_object("  CC      init/main.o"));
        assert!(is_object("  RUSTC L rust/core.o"));
        assert!(!is_object("make[1]: Entering directory"));
        assert!(!is_object("  warning: unused"));
        assert!(!is_object(""));
    }

    #[test]
    fn modules_come_after_what_they_need() {
        let module = |name: &str, needs: &[&str]| Module {
            path: PathBuf::from(format!("{name}.ko")),
            needs: needs.iter().map(|s| (*s).to_owned()).collect(),
        };
        let order = load_order(vec![
            module("c", &["a", "b-b"]),
            module("a", &[]),
            module("b_b", &["a"]),
        ]);
        assert_eq!(
            order.unwrap(),
            ["a.ko", "b_b.ko", "c.ko"].map(PathBuf::from)
        );
        assert!(load_order(vec![module("a", &["b"]), module("b", &["a"])]).is_err());
    }
}
