// SPDX-License-Identifier: GPL-2.0
//! Where things are, and what the user set: read once from the environment that
//! `scripts/inside` prepares.

use std::num::NonZero;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context as _, Result, bail};

use crate::variable::text;

/// Guests at the same time unless GUESTS says otherwise, at most: each takes a gigabyte of
/// memory and more.
const GUESTS: usize = 4;

/// The folders and settings of this run.
#[derive(Debug, Clone)]
pub struct Context {
    /// The checkout.
    pub top: PathBuf,
    /// The cache folder, shared by checkouts.
    pub cache: PathBuf,
    /// A user's own Linux tree, if one was named.
    pub kernel_source: Option<PathBuf>,
    /// Parallel jobs of a build.
    pub jobs: usize,
    /// Guests that run tests at the same time, at most, if the user says.
    pub guests: Option<usize>,
    /// How often the chosen tests run.
    pub repeat: u32,
    /// Whether runs that were stopped go on.
    pub resume: bool,
    /// Which of these runs this is, if there are many.
    pub run: Option<u32>,
    /// Multiplies every timeout.
    pub timeout_scale: f64,
    /// How often a test that repeats itself does, if the user says.
    pub cycles: Option<u32>,
    /// Which accelerator QEMU is asked for.
    pub accel: AccelChoice,
    /// The interactive guests' devices.
    pub setup: Setup,
    /// What the demo shows.
    pub act: Act,
    /// The only kernel that tests run on; `None` if the user does not say.
    pub only: Option<Flavour>,
}

/// What a kernel is configured for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flavour {
    /// For speed.
    Release,
    /// To find defects: KASAN, lockdep, kmemleak, DMA-API debugging and more.
    Debug,
    /// To count how often each line of what is ours is reached.
    Coverage,
}

impl Flavour {
    /// All, in the order in which they are built and tested.
    pub const ALL: [Self; 3] = [Self::Release, Self::Debug, Self::Coverage];

    /// What the names of its files and of its tests start with.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Release => "",
            Self::Debug => "debug-",
            Self::Coverage => "coverage-",
        }
    }

    /// How much longer everything in the guest may take.
    pub fn slowness(self) -> f64 {
        match self {
            Self::Release => 1.0,
            Self::Debug => 4.0,
            Self::Coverage => 1.5,
        }
    }

    /// How often a test that repeats itself does: few times, as each takes a moment without
    /// KVM. The debug kernel takes ten times as long, and tells of leaks at once.
    pub fn cycles(self) -> u32 {
        match self {
            Self::Release | Self::Coverage => 12,
            Self::Debug => 4,
        }
    }

    /// Memory of a test's guest, MiB: KASAN takes an eighth, and keeps freed memory.
    pub fn memory(self) -> u64 {
        match self {
            Self::Release | Self::Coverage => 1024,
            Self::Debug => 1536,
        }
    }

    /// Kernel parameters of all its guests: each report of KASAN counts, not only
    /// the first one, and the log has room for a few. With checks the slab allocator
    /// keeps no arrays of objects: what was allocated last would still be listed
    /// there, and so be no leak to kmemleak.
    pub fn parameters(self) -> &'static str {
        match self {
            Self::Release | Self::Coverage => "",
            Self::Debug => " kasan_multi_shot log_buf_len=2M slab_debug=F",
        }
    }
}

impl Context {
    /// Guests that run tests at the same time on this kernel, at most: one waits for a part of
    /// its time, which another on the same processor uses. On the debug kernel they rarely
    /// wait, and take long to boot.
    pub fn guests(&self, flavour: Flavour) -> usize {
        self.guests.unwrap_or_else(|| {
            let processors = thread::available_parallelism().map_or(1, NonZero::get);
            GUESTS.min(match flavour {
                Flavour::Release | Flavour::Coverage => 2 * processors,
                Flavour::Debug => processors,
            })
        })
    }
}

/// The user's wish for an accelerator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccelChoice {
    /// KVM where it works, else TCG.
    Auto,
    /// KVM without a probe.
    Kvm,
    /// TCG.
    Tcg,
}

/// The GPU's aperture mode (hardware.rst, "Modes").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// QEMU maps the slots' memory.
    Mapped,
    /// Every access is a message.
    Trapped,
}

impl Mode {
    /// Both, in the order in which they run.
    pub const ALL: [Self; 2] = [Self::Mapped, Self::Trapped];

    /// The name in test ids and on the model's command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mapped => "mapped",
            Self::Trapped => "trapped",
        }
    }
}

/// What the demo shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// A file goes from GPU to GPU.
    File,
    /// Two GPUs sum up their vectors.
    Allreduce,
}

/// How the four devices hang on the root complex, and what the kernel then says of a
/// route from one to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topology {
    /// All behind one PCIe switch, no IOMMU: by bus address.
    Switch,
    /// A root port each, below a host bridge that the kernel trusts to forward.
    Bridge,
    /// As bridge, behind an IOMMU.
    Iommu,
    /// As bridge, but the kernel does not trust the host bridge: no route.
    None,
}

impl Topology {
    /// All, in the order in which they run.
    pub const ALL: [Self; 4] = [Self::Switch, Self::Bridge, Self::Iommu, Self::None];

    /// The name in test ids, in TOPOLOGY= and on the guest's command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Switch => "switch",
            Self::Bridge => "bridge",
            Self::Iommu => "iommu",
            Self::None => "none",
        }
    }
}

/// What a guest's devices are and how they are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setup {
    /// How the devices are connected.
    pub topology: Topology,
    /// The GPUs' aperture mode.
    pub mode: Mode,
}

impl Setup {
    /// All, in the order in which they run.
    pub fn all() -> impl Iterator<Item = Self> {
        Topology::ALL
            .into_iter()
            .flat_map(|topology| Mode::ALL.map(|mode| Self { topology, mode }))
    }

    /// The first part of a test's id: the mode, after the topology unless it is
    /// switch, where all tests run.
    pub fn name(self) -> String {
        match self.topology {
            Topology::Switch => self.mode.name().to_owned(),
            other => format!("{}-{}", other.name(), self.mode.name()),
        }
    }
}

impl Context {
    /// Reads the environment.
    ///
    /// # Errors
    ///
    /// When a variable of `scripts/inside` is missing or a user's one is malformed.
    pub fn from_env() -> Result<Self> {
        let folder = |name: &str| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .with_context(|| format!("{name} is not set: start this through make"))
        };

        let jobs = match text("JOBS") {
            Some(v) => match v.parse() {
                Ok(n) if n > 0 => n,
                _ => bail!("JOBS={v} is not a number of jobs"),
            },
            None => std::thread::available_parallelism().map_or(1, |n| n.get()),
        };
        let guests = match text("GUESTS") {
            Some(v) => match v.parse() {
                Ok(n) if n > 0 => Some(n),
                _ => bail!("GUESTS={v} is not a number of guests"),
            },
            None => None,
        };
        let repeat = match text("REPEAT") {
            Some(v) => match v.parse() {
                Ok(n) if n > 0 => n,
                _ => bail!("REPEAT={v} is not a number of runs"),
            },
            None => 1,
        };
        let resume = match text("RESUME").as_deref() {
            None | Some("0") => false,
            Some("1") => true,
            Some(v) => bail!("RESUME={v}: expected 0 or 1"),
        };
        let timeout_scale = match text("TIMEOUT_SCALE") {
            Some(v) => match v.parse::<f64>() {
                Ok(n) if n.is_finite() && n > 0.0 => n,
                _ => bail!("TIMEOUT_SCALE={v} is not a positive number"),
            },
            None => 1.0,
        };
        let cycles = match text("CYCLES") {
            Some(v) => match v.parse() {
                Ok(n) if n > 0 => Some(n),
                _ => bail!("CYCLES={v} is not a number of cycles"),
            },
            None => None,
        };
        let accel = match text("ACCEL").as_deref() {
            None | Some("auto") => AccelChoice::Auto,
            Some("kvm") => AccelChoice::Kvm,
            Some("tcg") => AccelChoice::Tcg,
            Some(v) => bail!("ACCEL={v}: expected auto, kvm or tcg"),
        };
        let mode = match text("MODE").as_deref() {
            None | Some("mapped") => Mode::Mapped,
            Some("trapped") => Mode::Trapped,
            Some(v) => bail!("MODE={v}: expected mapped or trapped"),
        };
        let topology = match text("TOPOLOGY") {
            None => Topology::Switch,
            Some(v) => Topology::ALL
                .into_iter()
                .find(|topology| topology.name() == v)
                .with_context(|| format!("TOPOLOGY={v}: expected switch, bridge, iommu or none"))?,
        };
        let act = match text("ACT").as_deref() {
            None | Some("file") => Act::File,
            Some("allreduce") => Act::Allreduce,
            Some(v) => bail!("ACT={v}: expected file or allreduce"),
        };
        let only = match text("DEBUG").as_deref() {
            None => None,
            Some("0") => Some(Flavour::Release),
            Some("1") => Some(Flavour::Debug),
            Some(v) => bail!("DEBUG={v}: expected 0 or 1"),
        };
        Ok(Self {
            top: folder("P2PGPU_TOP")?,
            cache: folder("P2PGPU_CACHE")?,
            kernel_source: text("KERNEL_SOURCE").map(PathBuf::from),
            jobs,
            guests,
            repeat,
            resume,
            run: None,
            timeout_scale,
            cycles,
            accel,
            setup: Setup { topology, mode },
            act,
            only,
        })
    }

    /// The kernel of the commands that use one only.
    pub fn flavour(&self) -> Flavour {
        self.only.unwrap_or(Flavour::Release)
    }

    /// What this checkout builds.
    pub fn build(&self) -> PathBuf {
        self.top.join("build")
    }

    /// Full logs of the long steps.
    pub fn logs(&self) -> PathBuf {
        self.build().join("logs")
    }

    /// One of the runs, which has its results beside those of the others.
    pub fn with_run(self, number: u32) -> Self {
        Self {
            run: Some(number),
            ..self
        }
    }

    /// Reports and consoles of the last run, or of this one of many.
    pub fn results(&self) -> PathBuf {
        let all = self.build().join("results");
        match self.run {
            Some(number) => all.join(format!("run-{number}")),
            None => all,
        }
    }

    /// The cargo workspace.
    pub fn workspace(&self) -> PathBuf {
        self.top.join("tools/p2ptest")
    }

    /// The kernel's config fragments and what it needs to know of patches.
    pub fn kernel_files(&self) -> PathBuf {
        self.workspace().join("kernel")
    }
}
