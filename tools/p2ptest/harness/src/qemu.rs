// SPDX-License-Identifier: GPL-2.0
//! QEMU's command line, and which accelerator works here.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::Result;
use nix::unistd::{AccessFlags, access};

use crate::context::{AccelChoice, Context, Topology};
use crate::stop;
use crate::tsc;

const PROGRAM: &str = "qemu-system-x86_64";
/// A stock device whose BAR 2 is memory, behind a port of its own after the models'. Its
/// memory is not sealed, so that the models reach it as a BAR, and not as the guest's.
const SIMPLE: [&str; 2] = [
    "memory-backend-memfd,id=simple-memory,size=4M,share=on,seal=off",
    "ivshmem-plain,id=simple,memdev=simple-memory",
];
/// A guest without a root file system panics and ends within a second or two.
const PROBE_LIMIT: Duration = Duration::from_secs(20);

/// How fast the guests' clock runs under TCG: as the host's.
static TSC_KHZ: LazyLock<Option<u64>> = LazyLock::new(tsc::khz);

/// What runs the guest's processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The host's processors.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl Accel {
    /// Chooses, and says in one line what and why.
    ///
    /// # Errors
    ///
    /// When the probe cannot be started.
    pub fn choose(ctx: &Context, image: &Path) -> Result<Self> {
        let (accel, why) = match ctx.accel {
            AccelChoice::Kvm => (Self::Kvm, "asked for"),
            AccelChoice::Tcg => (Self::Tcg, "asked for"),
            AccelChoice::Auto => {
                let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
                if !has_virtualization(&flags) {
                    (Self::Tcg, "the processor shows neither vmx nor svm")
                } else if access("/dev/kvm", AccessFlags::R_OK | AccessFlags::W_OK).is_err() {
                    (Self::Tcg, "/dev/kvm cannot be opened")
                } else if !probe(image)? {
                    (Self::Tcg, "a probe boot with KVM did not end")
                } else {
                    (Self::Kvm, "a probe boot ended")
                }
            }
        };
        eprintln!("p2ptest: guests run on {accel:?} ({why})");
        Ok(accel)
    }
}

fn has_virtualization(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.strip_prefix("flags"))
        .any(|flags| flags.split_whitespace().any(|f| f == "vmx" || f == "svm"))
}

fn probe(image: &Path) -> Result<bool> {
    let mut command = Command::new(PROGRAM);
    command
        .args([
            "-machine",
            "q35",
            "-accel",
            "kvm",
            "-cpu",
            "host",
            "-m",
            "256M",
            "-nodefaults",
        ])
        .args([
            "-display",
            "none",
            "-no-reboot",
            "-append",
            "panic=-1",
            "-kernel",
        ])
        .arg(image)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = stop::spawn(&mut command)?;
    Ok(child
        .wait_for(PROBE_LIMIT)?
        .is_some_and(|status| status.success()))
}

/// A guest to start.
#[derive(Debug, Clone)]
pub struct Guest {
    /// What runs its processors.
    pub accel: Accel,
    /// How the devices are connected.
    pub topology: Topology,
    /// The kernel.
    pub image: PathBuf,
    /// The file system.
    pub initrd: PathBuf,
    /// Memory, MiB.
    pub memory: u64,
    /// Kernel parameters besides the console's.
    pub parameters: String,
    /// The models, in the order of the ports.
    pub devices: Vec<Device>,
    /// The first serial port.
    pub console: Console,
    /// A socket that the second serial port connects to.
    pub agent: Option<PathBuf>,
    /// Where QEMU listens for commands.
    pub qmp: Option<PathBuf>,
}

/// One of the guest's devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name here and in QEMU: "gpu0".
    pub name: String,
    /// Where its model listens.
    pub socket: PathBuf,
}

/// Where the guest's console is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// QEMU's stdout.
    Output,
    /// The user's terminal.
    Terminal,
}

impl Guest {
    /// The command that starts it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(self.arguments());
        command
    }

    /// The same as one line for a shell.
    pub fn line(&self) -> String {
        let mut line = PROGRAM.to_owned();
        for argument in self.arguments() {
            let _ = write!(line, " {}", quoted(&argument));
        }
        line
    }

    /// What QEMU is told of the device with this name.
    pub fn device(&self, name: &str) -> Option<serde_json::Value> {
        let port = self.devices.iter().position(|d| d.name == name)?;
        let device = self.devices.get(port)?;
        Some(serde_json::json!({
            "driver": "vfio-user-pci",
            "id": device.name,
            "bus": format!("port{port}"),
            "rombar": 0,
            "socket": { "path": device.socket, "type": "unix" },
        }))
    }

    fn arguments(&self) -> Vec<String> {
        let mut args = Vec::new();
        let mut push = |words: &[&str]| args.extend(words.iter().map(|w| (*w).to_owned()));
        // The models map the guest's memory: it has to be a shared file.
        let memory = format!("memory-backend-memfd,id=ram,size={}M,share=on", self.memory);
        let iommu = self.topology == Topology::Iommu;
        // KVM's own interrupt controller cannot remap.
        let machine = match self.accel {
            Accel::Kvm if iommu => "q35,memory-backend=ram,kernel-irqchip=split",
            Accel::Kvm | Accel::Tcg => "q35,memory-backend=ram",
        };
        push(&["-machine", machine, "-object", &memory]);
        match self.accel {
            Accel::Kvm => push(&["-accel", "kvm"]),
            Accel::Tcg => push(&["-accel", "tcg,thread=multi"]),
        }
        push(&["-cpu", self.processor()]);
        push(&["-smp", "2", "-nodefaults", "-display", "none", "-no-reboot"]);
        match self.console {
            Console::Output => push(&["-serial", "stdio"]),
            Console::Terminal => push(&["-serial", "mon:stdio"]),
        }
        if let Some(path) = &self.agent {
            let port = format!("socket,id=agent,path={}", path.display());
            push(&["-chardev", &port, "-serial", "chardev:agent"]);
        }
        if let Some(path) = &self.qmp {
            let socket = format!("unix:{},server=on,wait=off", path.display());
            push(&["-qmp", &socket]);
        }
        push(&[
            "-kernel",
            &self.image.to_string_lossy(),
            "-initrd",
            &self.initrd.to_string_lossy(),
        ]);
        push(&["-append", &self.kernel_parameters(*TSC_KHZ)]);
        match self.topology {
            Topology::Switch => {
                push(&["-device", "pcie-root-port,id=root,chassis=1"]);
                push(&["-device", "x3130-upstream,id=up,bus=root"]);
                for i in 0..=self.devices.len() {
                    let port = format!("xio3130-downstream,id=port{i},bus=up,chassis={}", i + 2);
                    push(&["-device", &port]);
                }
            }
            Topology::Bridge | Topology::Iommu | Topology::None => {
                if iommu {
                    // With caching mode QEMU sees mappings as they are made, and tells
                    // the models, which reach guest memory through them.
                    push(&["-device", "intel-iommu,caching-mode=on"]);
                }
                for i in 0..=self.devices.len() {
                    let port = format!("pcie-root-port,id=port{i},chassis={0},slot={0}", i + 1);
                    push(&["-device", &port]);
                }
            }
        }
        for device in &self.devices {
            if let Some(device) = self.device(&device.name) {
                push(&["-device", &device.to_string()]);
            }
        }
        let [memory, simple] = SIMPLE;
        let simple = format!("{simple},bus=port{}", self.devices.len());
        push(&["-object", memory, "-device", &simple]);
        args
    }
}

impl Guest {
    /// All of the kernel's parameters, on a host whose time stamp counter runs at `tsc_khz`.
    fn kernel_parameters(&self, tsc_khz: Option<u64>) -> String {
        // A guest that waits for a processor misses the ticks that the kernel looks for when
        // it finds out how the timer is wired, and panics; and it takes its clock for a slower
        // one than it is, sees seconds pass in one, and tells of lockups.
        let clock = match (self.accel, tsc_khz) {
            (Accel::Tcg, Some(khz)) => format!(" tsc_early_khz={khz}"),
            (Accel::Tcg, None) | (Accel::Kvm, _) => String::new(),
        };
        let iommu = match self.topology {
            Topology::Iommu => " intel_iommu=on",
            Topology::Switch | Topology::Bridge | Topology::None => "",
        };
        let parameters = format!(
            "console=ttyS0 panic=-1 printk.devkmsg=on no_timer_check {}={}{iommu}{clock} {}",
            p2p_init::TOPOLOGY_PARAMETER,
            self.topology.name(),
            self.parameters
        );
        parameters.trim_end().to_owned()
    }

    /// The kernel trusts the host bridge of an AMD processor to forward from one root
    /// port to another, and that of our machine with an Intel one not.
    fn processor(&self) -> &'static str {
        match (self.topology, self.accel) {
            (Topology::Switch, Accel::Kvm) => "host",
            (Topology::Switch | Topology::Bridge | Topology::Iommu, _) => "EPYC",
            (Topology::None, _) => "Nehalem",
        }
    }
}

/// A word as a shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
impl Guest {
    /// One GPU and one NIC.
    pub fn sample() -> Self {
        let device = |name: &str, socket: &str| Device {
            name: name.into(),
            socket: socket.into(),
        };
        Self {
            accel: Accel::Tcg,
            topology: Topology::Switch,
            image: "/k".into(),
            initrd: "/i".into(),
            memory: 1024,
            parameters: "p2p.mode=agent".into(),
            devices: vec![device("gpu0", "/s0"), device("nic0", "/s1")],
            console: Console::Output,
            agent: Some("/a".into()),
            qmp: Some("/q".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_the_processor() {
        assert!(has_virtualization("model\t: x\nflags\t\t: fpu svm sse\n"));
        assert!(has_virtualization("flags : vmx\n"));
        // "vmx flags" names features of a flag that may itself be missing.
        assert!(!has_virtualization(
            "flags\t\t: fpu hypervisor\nvmx flags\t: vnmi\n"
        ));
    }

    #[test]
    fn words_survive_a_shell() {
        for word in ["", "a b", "it's", "$x", "{\"a\":1}", "plain-1.x=/y"] {
            let out = Command::new("sh")
                .args(["-c", &format!("printf %s {}", quoted(word))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(out.stdout).unwrap(), word);
        }
    }

    fn guest(topology: Topology) -> Guest {
        Guest {
            topology,
            ..Guest::sample()
        }
    }

    fn line(topology: Topology) -> String {
        guest(topology).line()
    }

    #[test]
    fn each_device_has_a_port() {
        let switch = line(Topology::Switch);
        assert!(switch.contains("xio3130-downstream,id=port1,bus=up,chassis=3"));
        for topology in [Topology::Bridge, Topology::Iommu, Topology::None] {
            let bridge = line(topology);
            assert!(bridge.contains("pcie-root-port,id=port1,chassis=2,slot=2"));
            assert!(!bridge.contains("xio3130"));
        }
        for topology in Topology::ALL {
            let line = line(topology);
            assert!(line.contains(r#""bus":"port1""#) && line.contains(r#""path":"/s1""#));
            assert!(line.contains("-qmp unix:/q,server=on,wait=off"));
            assert!(line.contains("ivshmem-plain,id=simple,memdev=simple-memory,bus=port2"));
            assert!(line.contains("id=port2,"));
        }
    }

    #[test]
    fn the_kernel_is_told_the_topology() {
        let parameters = |topology| guest(topology).kernel_parameters(None);
        let fixed = "console=ttyS0 panic=-1 printk.devkmsg=on no_timer_check";
        assert_eq!(
            parameters(Topology::Switch),
            format!("{fixed} p2p.topology=switch p2p.mode=agent")
        );
        assert_eq!(
            parameters(Topology::Iommu),
            format!("{fixed} p2p.topology=iommu intel_iommu=on p2p.mode=agent")
        );
        for topology in Topology::ALL {
            let iommu = topology == Topology::Iommu;
            assert_eq!(line(topology).contains("intel_iommu=on"), iommu);
            assert_eq!(line(topology).contains("-device intel-iommu"), iommu);
        }
    }

    #[test]
    fn the_kernel_is_told_the_clock_where_it_would_measure_it() {
        let end = |accel, khz| {
            let guest = Guest {
                accel,
                ..Guest::sample()
            };
            let parameters = guest.kernel_parameters(khz);
            let (_, end) = parameters.split_once("p2p.topology=").unwrap();
            end.to_owned()
        };
        let told = "switch tsc_early_khz=2596145 p2p.mode=agent";
        let untold = "switch p2p.mode=agent";
        assert_eq!(end(Accel::Tcg, Some(2_596_145)), told);
        assert_eq!(end(Accel::Tcg, None), untold);
        assert_eq!(end(Accel::Kvm, Some(2_596_145)), untold);
        assert!(Guest::sample().line().contains("'console=ttyS0 "));
    }
}
