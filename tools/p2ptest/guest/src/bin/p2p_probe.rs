// SPDX-License-Identifier: GPL-2.0
//! Tests that the devices are there, say what they are, and come and go.

use nix::errno::Errno;
use nix::sys::signal::Signal;
use p2pguest::binding::{Unbound, gpu_is_there, nics, wait_until};
use p2pguest::debugfs::Debugfs;
use p2pguest::drm;
use p2pguest::gpu::{Gpu, Placement};
use p2pguest::igt::{self, Outcome, Subtest};
use p2pguest::nic::Nic;
use p2pguest::rig::Rig;
use p2pguest::sys::uapi::*;
use p2pguest::{refused, subtests};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

const SUBTESTS: &[Subtest] = subtests![
    /// Render nodes of p2pgpu are there, named by the driver and on PCI.
    gpu_nodes,
    /// The parameters agree with each other and with the PCI BAR.
    gpu_params,
    /// Two GPUs share no VRAM.
    gpus_are_apart,
    /// Opening and closing the node many times leaves nothing behind.
    gpu_open_and_close,
    /// Two NICs are there and wired to each other.
    nic_nodes,
    /// Opening and closing the NIC many times leaves nothing behind.
    nic_open_and_close,
    /// The drivers show their counters, and those of hardware.rst are there.
    debugfs_counters,
    /// The engine counts the bytes that it moves.
    engine_counter_counts,
    /// A GPU's driver can be unbound and bound again.
    gpu_unbind_and_bind,
    /// A file that is open while its GPU goes away gets ENODEV, and SIGBUS.
    gpu_unbind_while_open,
    /// A NIC's driver can be unbound and bound again.
    nic_unbind_and_bind,
    /// A file that is open while its NIC goes away gets ENODEV.
    nic_unbind_while_open,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

/// A number from a file of sysfs, as `0x1234`.
#[track_caller]
fn sysfs_hex(path: &Path) -> u32 {
    let text = fs::read_to_string(path).unwrap_or_default();
    match u32::from_str_radix(text.trim().trim_start_matches("0x"), 16) {
        Ok(number) => number,
        Err(error) => panic!("{}: {text:?}: {error}", path.display()),
    }
}

fn gpu_nodes() {
    let gpu = Gpu::open(0);
    let version = drm::version(&gpu).expect("drmGetVersion");
    assert_eq!(version.name, "p2pgpu");
    assert!(!version.description.is_empty(), "no description");
    assert!(version.number >= (1, 0, 0), "version {:?}", version.number);
    for node in Gpu::nodes().expect("the list of GPUs") {
        assert_eq!((node.vendor, node.device), (0x1234, 0x2019), "{}", node.pci);
        assert!(node.primary.is_some(), "{} has no primary node", node.pci);
    }
}

fn gpu_params() {
    let gpu = Gpu::open(0);
    assert_eq!(gpu.page, 4096, "size of a slot");
    assert!(gpu.slots.is_power_of_two(), "{} slots", gpu.slots);
    assert_eq!(gpu.vram % gpu.page, 0, "VRAM of {:#x} bytes", gpu.vram);
    assert!(
        gpu.param(P2PGPU_PARAM_MAPPED) <= 1,
        "neither mapped nor trapped"
    );
    assert_eq!(
        gpu.param(P2PGPU_PARAM_SLOTS_AVAILABLE),
        gpu.slots,
        "slots of an idle device"
    );
    let free = gpu.param(P2PGPU_PARAM_VRAM_FREE);
    assert!(
        free > 0 && free <= gpu.vram,
        "{free:#x} of {:#x} bytes are free",
        gpu.vram
    );
    let bar = fs::metadata(gpu.pci().sysfs().join("resource2")).expect("BAR2 in sysfs");
    assert_eq!(bar.len(), gpu.aperture(), "size of BAR2");
}

fn gpus_are_apart() {
    let (first, second) = (Gpu::open(0), Gpu::open(1));
    assert_ne!(first.pci(), second.pci());
    let free = second.param(P2PGPU_PARAM_VRAM_FREE);
    let _held = first.create(1 << 20, Placement::Vram);
    assert_eq!(second.param(P2PGPU_PARAM_VRAM_FREE), free);
}

fn gpu_open_and_close() {
    let gpu = Gpu::open(0);
    for _ in 0..200 {
        gpu.reopen();
    }
}

fn nic_nodes() {
    let nics = [Nic::open(0), Nic::open(1)];
    let mut places = BTreeSet::new();
    for nic in &nics {
        let query = nic.query();
        assert_eq!(
            query.flags,
            P2PNIC_LINK_UP,
            "{}: the wire is not connected",
            nic.pci()
        );
        assert_eq!(query.max_regions, 4096);
        assert_eq!(query.max_queue_pairs, 64);
        assert_eq!(sysfs_hex(&nic.pci().sysfs().join("vendor")), 0x1234);
        assert_eq!(sysfs_hex(&nic.pci().sysfs().join("device")), 0x2020);
        places.insert(nic.pci());
    }
    assert_eq!(places.len(), nics.len(), "two files of one NIC");
}

fn nic_open_and_close() {
    let nic = Nic::open(0);
    for _ in 0..200 {
        nic.reopen();
    }
}

fn debugfs_counters() {
    let rig = Rig::open();
    let debugfs = Debugfs::default();
    let expected = [
        (
            "p2pgpu",
            rig.gpu[0].pci(),
            &["flushes", "ptes_changed", "engine_bytes"][..],
        ),
        (
            "p2pnic",
            rig.nic[0].pci(),
            &["peer_read_bytes", "ram_write_bytes", "invalidations"],
        ),
    ];
    for (driver, pci, names) in expected {
        let counters = debugfs.counters(driver, pci).expect("counters");
        for name in names {
            assert!(
                counters.contains_key(*name),
                "{driver} has no counter {name}: {counters:?}"
            );
        }
    }
}

fn engine_counter_counts() {
    let gpu = Gpu::open(0);
    let bytes = || {
        let counters = Debugfs::default()
            .counters("p2pgpu", gpu.pci())
            .expect("counters");
        counters.get("engine_bytes").copied().expect("engine_bytes")
    };
    let (from, to) = (
        gpu.create(1 << 20, Placement::Vram),
        gpu.create(1 << 20, Placement::Vram),
    );
    let before = bytes();
    assert_eq!(from.__copy_to(&to, 1 << 20), Ok(()));
    let moved = bytes() - before;
    assert!(moved >= 1 << 20, "a copy of 1 MiB counted as {moved} bytes");
}

fn gpu_unbind_and_bind() {
    let pci = Gpu::open(0).pci();
    for _ in 0..3 {
        let unbound = Unbound::new("p2pgpu", pci);
        wait_until("the node goes", || !gpu_is_there(pci));
        drop(unbound);
        wait_until("the node comes back", || gpu_is_there(pci));
        let gpu = Gpu::open(0);
        assert_eq!(gpu.pci(), pci);
        let bo = gpu.create(4096, Placement::Vram);
        bo.upload(0, b"works");
        assert_eq!(bo.download(0, 5), b"works");
    }
}

fn gpu_unbind_while_open() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(8192, Placement::Vram);
    let map = bo.map();
    map.store(0, 1);
    let unbound = Unbound::new("p2pgpu", gpu.pci());
    refused(gpu.__param(P2PGPU_PARAM_VRAM_SIZE), Errno::ENODEV);
    refused(gpu.__create(4096, Placement::Vram), Errno::ENODEV);
    refused(bo.__info(), Errno::ENODEV);
    for offset in [0, 4096] {
        let child = igt::fork(|| map.store(offset, 1));
        assert_eq!(
            child.outcome(),
            Outcome::Killed(Signal::SIGBUS),
            "access to {offset:#x}"
        );
    }
    drop((map, bo, unbound));
    wait_until("the node comes back", || gpu_is_there(gpu.pci()));
    refused(gpu.__param(P2PGPU_PARAM_VRAM_SIZE), Errno::ENODEV);
}

fn nic_unbind_and_bind() {
    let rig = Rig::open();
    let (count, pci) = (nics(), rig.nic[0].pci());
    drop(rig);
    for _ in 0..3 {
        let unbound = Unbound::new("p2pnic", pci);
        wait_until("the file goes", || nics() == count - 1);
        drop(unbound);
        wait_until("the file comes back", || nics() == count);
    }
    let nic = Nic::open(0);
    assert_eq!(nic.pci(), pci);
    wait_until("the wire connects", || nic.query().flags == P2PNIC_LINK_UP);
}

fn nic_unbind_while_open() {
    let rig = Rig::open();
    let exported = rig.export(0, 4096, Placement::Vram);
    let nic = rig.nic[0].reopen();
    let count = nics();
    let region = nic.register(&exported.fd, 0, 4096);
    let qp = nic.create_qp(4, 4);
    let unbound = Unbound::new("p2pnic", nic.pci());
    refused(nic.__query(), Errno::ENODEV);
    refused(region.__info(), Errno::ENODEV);
    refused(qp.__poll(1, Duration::ZERO), Errno::ENODEV);
    drop((region, qp, unbound));
    wait_until("the file comes back", || nics() == count);
    assert_eq!(
        exported.bo.info().importers,
        0,
        "the importer did not detach"
    );
    let again = rig.nic[1].query();
    assert_eq!(again.regions, 0, "the other NIC was not touched");
}
