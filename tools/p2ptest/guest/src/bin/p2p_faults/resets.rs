// SPDX-License-Identifier: GPL-2.0
//! Devices that do not come back from a reset: nobody waits for them for ever,
//! another reset brings them back, and so does binding them again.

use crate::assert_works;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use p2pguest::binding::{Unbound, gpu_is_there, nics, wait_until};
use p2pguest::drm::PciAddress;
use p2pguest::gpu::{Gpu, Placement};
use p2pguest::host;
use p2pguest::igt::{self, Outcome};
use p2pguest::map::Mapping;
use p2pguest::nic::{ACCESS_ALL, TIMEOUT};
use p2pguest::pattern::Pattern;
use p2pguest::refused;
use p2pguest::rig::{Registered, Rig, Wire};
use p2pguest::setting::Setting;
use p2pguest::stray::Log;
use p2pguest::submit::{Context, binary, fill};
use p2pguest::swsync::Timeline;
use p2pguest::syncobj::{PATIENCE, Syncobj};
use p2pguest::sys::uapi::*;
use serde_json::json;
use std::os::fd::AsRawFd;
use std::{fs, thread};

/// Resets of a device do not end while this is there.
struct Hang(&'static str);

impl Hang {
    #[track_caller]
    fn new(model: &'static str) -> Self {
        host::control(model, json!({"cmd": "inject", "what": "hang-reset"}));
        Self(model)
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        // What stays shows in the tests that follow.
        let end = match self.0.starts_with("gpu") {
            true => json!({"cmd": "clear"}),
            false => json!({"cmd": "inject", "what": "hang-reset", "count": 0}),
        };
        let _ = host::__control(self.0, end);
    }
}

/// Binds a device again if the test fails, for those that follow.
struct Rescue(&'static str, PciAddress);

impl Drop for Rescue {
    fn drop(&mut self) {
        if thread::panicking()
            && let Err(error) = Unbound::__new(self.0, self.1)
        {
            println!("{} is lost: {error}", self.1);
        }
    }
}

/// What the driver grants a device for a reset, in milliseconds.
const RESET_TIMEOUT: &str = "reset_timeout_ms";
/// Soon over, where a reset does not end.
const SHORT: &str = "500";

/// Has the kernel reset a device.
#[track_caller]
fn reset(pci: PciAddress) {
    let path = pci.sysfs().join("reset");
    if let Err(error) = fs::write(&path, "1") {
        panic!("{}: {error}", path.display());
    }
}

/// Whether a device may do DMA: bit 2 of the command register.
#[track_caller]
fn is_bus_master(pci: PciAddress) -> bool {
    let config = fs::read(pci.sysfs().join("config")).expect("a configuration space");
    config[4] & 1 << 2 != 0
}

/// Resets a device, whose driver says that it does not come back and keeps it off the bus.
#[track_caller]
fn lose(pci: PciAddress) {
    let short = Setting::new(pci, RESET_TIMEOUT);
    short.write(SHORT);
    let mut log = Log::from_now();
    reset(pci);
    assert!(log.has("does not come back from a reset"), "silence");
    assert!(!is_bus_master(pci));
}

/// Unbinds a device; it is not bound again while its reset hangs.
#[track_caller]
fn rebind(driver: &'static str, pci: PciAddress, hang: Hang) {
    // What is bound again has the time that it had at first.
    fs::write(pci.sysfs().join(RESET_TIMEOUT), SHORT).expect("a file in sysfs");
    let unbound = Unbound::new(driver, pci);
    let refusal = unbound.__bind().map_err(|error| error.raw_os_error());
    assert_eq!(refusal, Err(Some(Errno::ETIMEDOUT as i32)));
    assert!(!is_bus_master(pci));
    drop(hang);
    drop(unbound);
}

/// What the owner of a GPU and of a NIC has while the GPU goes.
struct Held<'r> {
    source: Registered<'r>,
    target: Registered<'r>,
    wire: Wire<'r>,
    /// Of `source`.
    map: Mapping,
    /// Of an object in system memory.
    system_map: Mapping,
}

impl<'r> Held<'r> {
    #[track_caller]
    fn new(rig: &'r Rig) -> Self {
        let size = 4 * rig.gpu[0].page;
        let source = rig.register(0, size, Placement::Vram);
        let target = rig.register(1, size, Placement::System);
        source.bo.fill(Pattern(1));
        let wire = rig.connect(4);
        wire.write(&source.region, &target.region);
        let map = source.bo.map();
        assert_eq!(map.load(0), Pattern(1).word(0));
        let system_map = rig.gpu[0].create(size, Placement::System).map();
        system_map.store(0, 1);
        Self {
            source,
            target,
            wire,
            map,
            system_map,
        }
    }

    /// GPU 0 has not come back: whoever needs it is told, and nobody waits.
    #[track_caller]
    fn assert_lost(&self, rig: &Rig) {
        let (gpu, bo) = (&rig.gpu[0], &self.source.bo);
        refused(gpu.__create(gpu.page, Placement::Vram), Errno::EIO);
        refused(bo.__move_to(Placement::System), Errno::EIO);
        refused(bo.__checksum(0, gpu.page), Errno::EIO);
        assert_eq!(gpu.param(P2PGPU_PARAM_SLOTS_AVAILABLE), 0);
        let verdict = bo.query(rig.nic[0].pci()).verdict;
        assert_eq!(verdict, P2PGPU_PEER_NO_SLOTS);
        assert_eq!(bo.info().placement, Placement::Vram as u32);
        let touch = igt::fork(|| {
            self.map.load(0);
        });
        assert_eq!(touch.outcome(), Outcome::Killed(Signal::SIGBUS));
        assert_eq!(self.system_map.load(0), 1);
        let context = Context::new(gpu);
        let done = Syncobj::new(gpu);
        context.submit(&[fill(bo, 7, gpu.page)], &[], &[binary(&done)]);
        assert_eq!(done.__wait(PATIENCE, 0), Ok(()));
        assert_eq!(context.query().state, P2PGPU_CONTEXT_ERROR);
    }

    /// A NIC that wants an object of GPU 0 is refused, and says so.
    #[track_caller]
    fn assert_not_mapped(&self) {
        self.wire
            .start_write(&self.source.region, &self.target.region);
        self.wire.near.expect(P2PNIC_STATUS_REVOKED);
        assert_eq!(self.source.region.info().last_error, Errno::EIO as u32);
    }
}

pub fn gpu_that_does_not_come_back() {
    let rig = Rig::open();
    let pci = rig.gpu[0].pci();
    let held = Held::new(&rig);
    let _rescue = Rescue("p2pgpu", pci);
    let hang = Hang::new("gpu0");
    lose(pci);
    held.assert_lost(&rig);
    held.assert_not_mapped();
    // Nothing gets worse.
    lose(pci);
    held.assert_lost(&rig);

    rebind("p2pgpu", pci, hang);
    wait_until("the GPU comes back", || gpu_is_there(pci));
    refused(held.source.bo.__info(), Errno::ENODEV);
    assert_works(&Gpu::open(0));
}

pub fn gpu_that_comes_back_by_another_reset() {
    let rig = Rig::open();
    let gpu = &rig.gpu[0];
    let _rescue = Rescue("p2pgpu", gpu.pci());
    let held = Held::new(&rig);
    let hang = Hang::new("gpu0");
    // A job that is queued meanwhile.
    let context = Context::new(gpu);
    let (gate, done) = (Syncobj::new(gpu), Syncobj::new(gpu));
    let timeline = Timeline::new();
    gate.import_sync_file(&timeline.fence(1));
    let scratch = gpu.create(gpu.page, Placement::Vram);
    let job = [fill(&scratch, 7, gpu.page)];
    context.submit(&job, &[binary(&gate)], &[binary(&done)]);
    lose(gpu.pci());
    held.assert_lost(&rig);
    timeline.advance(1);
    assert_eq!(done.__wait(PATIENCE, 0), Ok(()));
    assert_eq!(context.query().state, P2PGPU_CONTEXT_ERROR);

    drop(hang);
    reset(gpu.pci());
    held.wire
        .start_write(&held.source.region, &held.target.region);
    held.wire.near.expect(P2PNIC_STATUS_OK);
    held.target.bo.assert_holds(Pattern(1));
    held.source.bo.assert_holds(Pattern(1));
    assert_eq!(held.map.load(8), Pattern(1).word(1));
    assert_eq!(held.system_map.load(0), 1);
    held.source.bo.move_to(Placement::System);
    held.source.bo.assert_holds(Pattern(1));
    Context::new(gpu).run(&job);
    assert_works(gpu);
}

/// NIC 0 has not come back: its files find it gone, and exporters do not wait for it.
#[track_caller]
fn assert_nic_lost(rig: &Rig, held: &Held<'_>) {
    let (nic, size) = (&rig.nic[0], held.source.bo.size);
    let fd = held.source.fd.as_raw_fd();
    refused(nic.__query().map(drop), Errno::ENODEV);
    refused(nic.__create_qp(4, 4).map(drop), Errno::ENODEV);
    refused(nic.__register(fd, 0, 0, size).map(drop), Errno::ENODEV);
    refused(held.wire.near.__poll(1, TIMEOUT), Errno::ENODEV);
    assert_eq!(held.source.bo.info().importers, 0);
    held.source.bo.move_to(Placement::System);
    held.source.bo.move_to(Placement::Vram);
    held.source.bo.assert_holds(Pattern(1));
}

pub fn nic_that_does_not_come_back() {
    let rig = Rig::open();
    let (pci, count) = (rig.nic[0].pci(), nics());
    let _rescue = Rescue("p2pnic", pci);
    let held = Held::new(&rig);
    let hang = Hang::new("nic0");
    lose(pci);
    assert_nic_lost(&rig, &held);
    lose(pci);
    assert_nic_lost(&rig, &held);

    rebind("p2pnic", pci, hang);
    wait_until("the NIC comes back", || nics() == count);
    refused(rig.nic[0].__query().map(drop), Errno::ENODEV);
    Rig::open().assert_works();
}

pub fn nic_that_comes_back_by_another_reset() {
    let rig = Rig::open();
    let pci = rig.nic[0].pci();
    let _rescue = Rescue("p2pnic", pci);
    let held = Held::new(&rig);
    let hang = Hang::new("nic0");
    lose(pci);
    assert_nic_lost(&rig, &held);
    drop(hang);
    reset(pci);
    // The file is as good as a new one.
    let bo = &held.source.bo;
    let region = rig.nic[0].register(&held.source.fd, ACCESS_ALL, bo.size);
    rig.wait_for_wire();
    rig.connect(4).write(&region, &held.target.region);
    held.target.bo.assert_holds(Pattern(1));
}
