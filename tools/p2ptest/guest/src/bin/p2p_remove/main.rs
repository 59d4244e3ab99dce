// SPDX-License-Identifier: GPL-2.0
//! Tests that devices can go away at any time: while NICs transfer, CPUs touch
//! mappings and processes hold files; and that they come back and work.

mod kept;
mod load;

use kept::*;
use load::Load;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use p2pguest::binding::{__unload, Removed, Unbound, Unloaded, gpu_is_there, nics, wait_until};
use p2pguest::drm::PciAddress;
use p2pguest::gpu::{Gpu, Placement};
use p2pguest::host;
use p2pguest::igt::{self, Outcome, Subtest};
use p2pguest::map::Mapping;
use p2pguest::pattern::Pattern;
use p2pguest::rig::{Registered, Rig, Wire, send_request};
use p2pguest::sys::uapi::*;
use p2pguest::{refused, subtests};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::process::ExitCode;
use std::time::Duration;

const SUBTESTS: &[Subtest] = subtests![
    /// A GPU is unbound under load and with a transfer in flight.
    gpu_unbind_under_load,
    /// A NIC is unbound under load and with a transfer in flight.
    nic_unbind_under_load,
    /// Both GPUs are unbound while NICs hold objects of theirs.
    both_gpus_unbind,
    /// Devices are unbound and bound again many times under load: nothing is leaked.
    unbind_cycles,
    /// A driver that is in use is not unloaded; one that is not is, and comes back.
    driver_unload,
    /// An importer that never unmaps: unbinding ends all the same, says so, and leaves
    /// it what it has; the device comes back when the importer has let go.
    importer_never_unmaps,
    /// A GPU is removed from the bus under load, and found again.
    gpu_unplug,
    /// A NIC is removed from the bus under load, and found again.
    nic_unplug,
    /// An access that never ends: unmapping ends all the same, and nobody else gets its
    /// slots and pages before the driver is loaded anew.
    access_never_ends,
    /// A GPU is pulled out under load: it does not answer any more.
    gpu_surprise_removal,
    /// A NIC is pulled out in a transfer: it does not answer any more.
    nic_surprise_removal,
    /// A GPU is reset under load and in a transfer: nothing is lost.
    gpu_reset,
    /// A NIC is reset under load: what its files had made is gone, and they go on.
    nic_reset,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

/// Files, objects, a mapping and a region with DMA addresses, as processes hold
/// them while a device goes.
#[track_caller]
fn held(rig: &Rig, run: impl FnOnce(&Held<'_>)) {
    let size = 8 * rig.gpu[0].page;
    let source = rig.register(0, size, Placement::Vram);
    let target = rig.register(1, size, Placement::Vram);
    source.bo.fill(Pattern(1));
    let wire = rig.connect(4);
    wire.write(&source.region, &target.region);
    target.bo.assert_holds(Pattern(1));
    let map = source.bo.map();
    assert_eq!(map.load(0), Pattern(1).word(0));
    let system = rig.gpu[0].create(size, Placement::System);
    let system_map = system.map();
    system_map.store(0, 1);
    run(&Held {
        rig,
        source,
        target,
        wire,
        map,
        system_map,
    });
}

struct Held<'r> {
    rig: &'r Rig,
    source: Registered<'r>,
    target: Registered<'r>,
    wire: Wire<'r>,
    map: Mapping,
    system_map: Mapping,
}

impl Held<'_> {
    /// GPU 0 is gone: everything that its files can be asked for says so.
    #[track_caller]
    fn assert_gpu_gone(&self) {
        let gpu = &self.rig.gpu[0];
        let bo = &self.source.bo;
        refused(gpu.__param(P2PGPU_PARAM_VRAM_SIZE), Errno::ENODEV);
        refused(gpu.__create(4096, Placement::Vram), Errno::ENODEV);
        refused(gpu.__create(4096, Placement::System), Errno::ENODEV);
        refused(bo.__info(), Errno::ENODEV);
        refused(bo.__set_peer(0), Errno::ENODEV);
        refused(bo.__mmap_offset(), Errno::ENODEV);
        refused(bo.__move_to(Placement::System), Errno::ENODEV);
        refused(bo.__checksum(0, 4096), Errno::ENODEV);
        refused(bo.__export(), Errno::ENODEV);
        // Pages that were mapped, and pages that were not.
        for map in [&self.map, &self.system_map] {
            for offset in [0, 4096] {
                let child = igt::fork(|| {
                    map.load(offset);
                });
                let found = child.outcome();
                assert_eq!(found, Outcome::Killed(Signal::SIGBUS), "{offset:#x}");
            }
        }
        // Who wants the buffer from here on is refused, and holds nothing.
        let again = self.rig.nic[1].__register(raw(&self.source.fd), 0, 0, 4096);
        refused(again, Errno::ENODEV);
    }

    /// NIC 0 is gone.
    #[track_caller]
    fn assert_nic_gone(&self) {
        let (qp, region) = (&self.wire.near, &self.source.region);
        refused(self.rig.nic[0].__query(), Errno::ENODEV);
        refused(region.__info(), Errno::ENODEV);
        refused(qp.__poll(1, Duration::ZERO), Errno::ENODEV);
        refused(qp.__post_recv(1, region), Errno::ENODEV);
        refused(self.rig.nic[0].__create_qp(4, 4), Errno::ENODEV);
        let again = self.rig.nic[0].__register(raw(&self.source.fd), 0, 0, 4096);
        refused(again, Errno::ENODEV);
        // The other end is told.
        let far = &self.wire.far;
        let probe = send_request(&self.target.region, 0, 8);
        far.post_send(probe);
        far.expect(P2PNIC_STATUS_LINK_DOWN);
        // The object has no importer any more, and can go where it likes.
        assert_eq!(self.source.bo.info().importers, 0);
        assert_eq!(self.source.bo.info().peer_slots, 0);
        self.source.bo.move_to(Placement::System);
        assert_eq!(self.map.load(0), Pattern(1).word(0));
    }

    /// A transfer that the removal of its source ends, in one way or another.
    #[track_caller]
    fn expect_end(&self) {
        let done = self.wire.near.wait();
        let statuses = [
            P2PNIC_STATUS_OK,
            P2PNIC_STATUS_REVOKED,
            P2PNIC_STATUS_DMA_ERROR,
        ];
        assert!(statuses.contains(&done.status), "{done:?}");
    }
}

fn raw(fd: &impl std::os::fd::AsRawFd) -> i32 {
    fd.as_raw_fd()
}

/// The devices are all there and work, with one another.
#[track_caller]
fn assert_works() {
    wait_until("all GPUs are there", || {
        Gpu::nodes().is_ok_and(|nodes| nodes.len() == 2)
    });
    wait_until("all NICs are there", || nics() == 2);
    Rig::open().assert_works();
}

fn gpu_unbind_under_load() {
    let load = Load::start(false);
    let rig = Rig::open();
    held(&rig, |held| {
        held.wire
            .start_write(&held.source.region, &held.target.region);
        let unbound = Unbound::new("p2pgpu", rig.gpu[0].pci());
        held.assert_gpu_gone();
        held.expect_end();
        // The other GPU was not touched.
        let bo = rig.gpu[1].create(4096, Placement::Vram);
        bo.map().store(0, 1);
        drop(unbound);
        wait_until("the GPU comes back", || gpu_is_there(rig.gpu[0].pci()));
        // Old files and mappings stay what they are.
        held.assert_gpu_gone();
        assert_works();
    });
    load.stop();
}

fn nic_unbind_under_load() {
    let load = Load::start(false);
    let rig = Rig::open();
    held(&rig, |held| {
        held.wire
            .start_write(&held.source.region, &held.target.region);
        let unbound = Unbound::new("p2pnic", rig.nic[0].pci());
        held.assert_nic_gone();
        drop(unbound);
        wait_until("the NIC comes back", || nics() == 2);
        refused(rig.nic[0].__query(), Errno::ENODEV);
        assert_works();
    });
    load.stop();
}

fn both_gpus_unbind() {
    let rig = Rig::open();
    held(&rig, |held| {
        let first = Unbound::new("p2pgpu", rig.gpu[0].pci());
        let second = Unbound::new("p2pgpu", rig.gpu[1].pci());
        held.assert_gpu_gone();
        held.wire
            .start_write(&held.source.region, &held.target.region);
        held.wire.near.expect(P2PNIC_STATUS_REVOKED);
        drop((first, second));
        assert_works();
    });
}

/// Memory that the kernel does not give back by itself, KiB.
#[track_caller]
fn kernel_memory() -> BTreeMap<String, u64> {
    let text = fs::read_to_string("/proc/meminfo").expect("/proc/meminfo");
    let wanted = ["SUnreclaim", "KernelStack", "VmallocUsed", "Percpu"];
    let number = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let value = rest.split_whitespace().next()?.parse().ok()?;
        wanted.contains(&name).then(|| (name.to_owned(), value))
    };
    text.lines().filter_map(number).collect()
}

/// How often, unless the kernel's command line says so.
fn cycles() -> u32 {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    p2p_init::cycles(&line).unwrap_or(12)
}

fn unbind_cycles() {
    let rig = Rig::open();
    let (gpu, nic) = (rig.gpu[0].pci(), rig.nic[0].pci());
    drop(rig);
    let run = |count: u32| {
        let load = Load::start(false);
        for cycle in 0..count {
            // Now and then both are gone at a time.
            let first = Unbound::new("p2pgpu", gpu);
            let second = (cycle % 4 == 3).then(|| Unbound::new("p2pnic", nic));
            drop((first, second));
            wait_until("the GPU comes back", || gpu_is_there(gpu));
            wait_until("the NIC comes back", || nics() == 2);
            let other = Unbound::new("p2pnic", nic);
            drop(other);
            load.assert_good();
        }
        load.stop();
        assert_works();
    };
    // What is allocated once and kept is there after these.
    run(3);
    let before = kernel_memory();
    let count = cycles();
    run(count);
    let after = kernel_memory();
    println!("{count} cycles: {before:?} became {after:?}");
    for (name, was) in before {
        let is = after[&name];
        // A page a cycle: anything that a binding keeps is larger.
        let allowed = was + 1024 + 4 * u64::from(count);
        assert!(is <= allowed, "{name} was {was} KiB, is {is} KiB");
    }
}

fn driver_unload() {
    let rig = Rig::open();
    held(&rig, |held| {
        for module in ["p2pgpu", "p2pnic"] {
            refused(__unload(module), Errno::EAGAIN);
        }
        held.wire.write(&held.source.region, &held.target.region);
    });
    // A dma-buf alone keeps its exporter: its importer has addresses of it.
    let Rig { gpu, nic } = rig;
    {
        let bo = gpu[0].create(4096, Placement::Vram);
        bo.set_exportable(true);
        let fd = bo.export();
        let region = nic[0].register(&fd, 0, 4096);
        drop(bo);
        drop(gpu);
        drop(fd);
        refused(__unload("p2pgpu"), Errno::EAGAIN);
        drop(region);
    }
    drop(nic);
    drop(Unloaded::new("p2pgpu"));
    assert_works();
    drop(Unloaded::new("p2pnic"));
    assert_works();
    let both = (Unloaded::new("p2pgpu"), Unloaded::new("p2pnic"));
    drop(both);
    assert_works();
}

fn gpu_unplug() {
    let load = Load::start(false);
    let rig = Rig::open();
    held(&rig, |held| {
        held.wire
            .start_write(&held.source.region, &held.target.region);
        let removed = Removed::new(rig.gpu[0].pci());
        held.assert_gpu_gone();
        held.expect_end();
        drop(removed);
        assert_works();
        held.assert_gpu_gone();
    });
    load.stop();
}

fn nic_unplug() {
    let load = Load::start(false);
    let rig = Rig::open();
    held(&rig, |held| {
        held.wire
            .start_write(&held.source.region, &held.target.region);
        let removed = Removed::new(rig.nic[0].pci());
        held.assert_nic_gone();
        drop(removed);
        assert_works();
        refused(rig.nic[0].__query(), Errno::ENODEV);
    });
    load.stop();
}

fn gpu_surprise_removal() {
    host::retire_guest();
    let load = Load::start(true);
    let rig = Rig::open();
    igt::expect_gone(rig.gpu[0].pci());
    held(&rig, |held| {
        held.wire
            .start_write(&held.source.region, &held.target.region);
        host::control("gpu0", json!({"cmd": "remove"}));
        // Nobody has told the kernel. Who asks for work learns that there is none.
        refused(held.source.bo.__checksum(0, 4096), Errno::ENODEV);
        assert!(rig.gpu[0].__create(4096, Placement::Vram).is_err());
        load.assert_good();
        let removed = Removed::new(rig.gpu[0].pci());
        held.assert_gpu_gone();
        held.expect_end();
        // The other GPU and its NIC were not touched.
        let bo = rig.gpu[1].create(4096, Placement::Vram);
        bo.map().store(0, 7);
        assert_eq!(bo.map().load(0), 7);
        // QEMU does not let it go, but nothing answers there.
        drop(removed);
    });
    load.stop();
}

fn nic_surprise_removal() {
    host::retire_guest();
    let load = Load::start(false);
    let rig = Rig::open();
    igt::expect_gone(rig.nic[0].pci());
    held(&rig, |held| {
        // The removal meets a transfer in flight.
        host::control(
            "nic0",
            json!({"cmd": "inject", "what": "delay-chunk", "count": 1, "micros": 2_000_000}),
        );
        held.wire
            .start_write(&held.source.region, &held.target.region);
        host::control("nic0", json!({"cmd": "remove"}));
        // The exporter takes its object back all the same.
        held.source.bo.move_to(Placement::System);
        assert_eq!(held.map.load(0), Pattern(1).word(0));
        held.source.bo.move_to(Placement::Vram);
        assert_eq!(held.source.bo.info().peer_slots, 0);
        let removed = Removed::new(rig.nic[0].pci());
        held.assert_nic_gone();
        drop(removed);
    });
    load.stop();
}

/// Resets a device, as its function-level reset does.
#[track_caller]
fn reset(pci: PciAddress) {
    let path = pci.sysfs().join("reset");
    if let Err(error) = fs::write(&path, "1") {
        panic!("{}: {error}", path.display());
    }
}

fn gpu_reset() {
    let load = Load::start(false);
    let rig = Rig::open();
    held(&rig, |held| {
        for seed in 2..6 {
            held.source.bo.fill(Pattern(seed));
            held.wire
                .start_write(&held.source.region, &held.target.region);
            reset(rig.gpu[0].pci());
            // Objects keep their bytes, and transfers go on.
            held.wire.near.expect(P2PNIC_STATUS_OK);
            assert_eq!(held.map.load(8), Pattern(seed).word(1));
            assert_eq!(held.system_map.load(0), 1);
            held.target.bo.assert_holds(Pattern(seed));
        }
        // In the middle of what others do.
        reset(rig.gpu[1].pci());
        held.target.bo.assert_holds(Pattern(5));
        assert_works();
    });
    load.stop();
}

fn nic_reset() {
    let load = Load::start(false);
    let rig = Rig::open();
    held(&rig, |held| {
        held.wire
            .start_write(&held.source.region, &held.target.region);
        reset(rig.nic[0].pci());
        let (qp, region) = (&held.wire.near, &held.source.region);
        refused(region.__info(), Errno::ENOENT);
        refused(qp.__poll(1, Duration::ZERO), Errno::ENOENT);
        let probe = send_request(&held.target.region, 0, 8);
        held.wire.far.post_send(probe);
        held.wire.far.expect(P2PNIC_STATUS_LINK_DOWN);
        assert_eq!(held.source.bo.info().importers, 0);
        held.source.bo.move_to(Placement::System);
        // The files are as good as new ones.
        rig.wait_for_wire();
        let again = rig.register(0, held.source.bo.size, Placement::Vram);
        again.bo.fill(Pattern(3));
        rig.connect(4).write(&again.region, &held.target.region);
        held.target.bo.assert_holds(Pattern(3));
        assert_works();
    });
    load.stop();
}
