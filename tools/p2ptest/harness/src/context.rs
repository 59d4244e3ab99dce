// SPDX-License-Identifier: GPL-2.0
//! Where things are, and what the user set: read once from the environment that
//! `scripts/inside` prepares.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

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
    /// Multiplies every timeout.
    pub timeout_scale: f64,
    /// Which accelerator QEMU is asked for.
    pub accel: AccelChoice,
    /// Aperture mode of the interactive guests.
    pub mode: Mode,
    /// How the devices are connected.
    pub topology: Topology,
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

/// How the four devices hang on the root complex.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// All behind one PCIe switch, no IOMMU.
    Switch,
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
        let text = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());

        let jobs = match text("JOBS") {
            Some(v) => match v.parse() {
                Ok(n) if n > 0 => n,
                _ => bail!("JOBS={v} is not a number of jobs"),
            },
            None => std::thread::available_parallelism().map_or(1, |n| n.get()),
        };
        let timeout_scale = match text("TIMEOUT_SCALE") {
            Some(v) => match v.parse::<f64>() {
                Ok(n) if n.is_finite() && n > 0.0 => n,
                _ => bail!("TIMEOUT_SCALE={v} is not a positive number"),
            },
            None => 1.0,
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
        let topology = match text("TOPOLOGY").as_deref() {
            None | Some("switch") => Topology::Switch,
            Some(v) => bail!("TOPOLOGY={v}: expected switch"),
        };
        Ok(Self {
            top: folder("P2PGPU_TOP")?,
            cache: folder("P2PGPU_CACHE")?,
            kernel_source: text("KERNEL_SOURCE").map(PathBuf::from),
            jobs,
            timeout_scale,
            accel,
            mode,
            topology,
        })
    }

    /// What this checkout builds.
    pub fn build(&self) -> PathBuf {
        self.top.join("build")
    }

    /// Full logs of the long steps.
    pub fn logs(&self) -> PathBuf {
        self.build().join("logs")
    }

    /// Reports and consoles of the last run.
    pub fn results(&self) -> PathBuf {
        self.build().join("results")
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
