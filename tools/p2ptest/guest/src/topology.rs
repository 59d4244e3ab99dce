// SPDX-License-Identifier: GPL-2.0
//! How the devices of this guest are connected, as the harness says on the
//! kernel's command line, and what follows for peers.

use crate::sys::uapi::*;
use std::fs;

/// How the devices are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// Behind one PCIe switch
    Switch,
    /// A root port each, below a host bridge that forwards
    Bridge,
    /// As bridge, behind an IOMMU
    Iommu,
    /// As bridge, but the kernel does not trust the host bridge
    None,
}

/// The word of the command line; its values are those of [`Topology::named`].
const PARAMETER: &str = "p2p.topology";

impl Topology {
    /// That of this guest.
    ///
    /// # Panics
    ///
    /// Where the command line does not tell: a test that guesses proves nothing.
    #[track_caller]
    pub fn current() -> Self {
        let line = fs::read_to_string("/proc/cmdline").expect("the kernel's command line");
        match Self::of_command_line(&line) {
            Some(topology) => topology,
            None => panic!("no {PARAMETER}= in {line:?}"),
        }
    }

    fn of_command_line(line: &str) -> Option<Self> {
        line.split_whitespace()
            .filter_map(|word| word.split_once('='))
            .find(|(name, _)| *name == PARAMETER)
            .and_then(|(_, value)| Self::named(value))
    }

    fn named(name: &str) -> Option<Self> {
        match name {
            "switch" => Some(Self::Switch),
            "bridge" => Some(Self::Bridge),
            "iommu" => Some(Self::Iommu),
            "none" => Some(Self::None),
            _ => None,
        }
    }

    /// The route between any two of our devices, `P2PGPU_ROUTE_*`.
    pub fn route(self) -> u32 {
        match self {
            Self::Switch => P2PGPU_ROUTE_SWITCH,
            Self::Bridge => P2PGPU_ROUTE_HOST_BRIDGE,
            Self::Iommu => P2PGPU_ROUTE_IOMMU,
            Self::None => P2PGPU_ROUTE_NONE,
        }
    }

    /// Whether one of our devices can reach another's BAR.
    pub fn has_route(self) -> bool {
        self != Self::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines() {
        let found = |line| Topology::of_command_line(line);
        assert_eq!(
            found("console=ttyS0 p2p.topology=iommu x\n"),
            Some(Topology::Iommu)
        );
        assert_eq!(found("p2p.topology=ring"), None);
        assert_eq!(found("xp2p.topology=switch"), None);
        assert_eq!(found(""), None);
    }
}
