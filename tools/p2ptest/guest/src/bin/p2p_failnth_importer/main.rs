// SPDX-License-Identifier: GPL-2.0
//! Tests of what exporters do for importers while memory runs out, as `p2p_failnth` has
//! them of ioctls: the GPU's driver, and the helper for simple devices.

mod simple;

use p2pguest::failnth::{SIZE, What, exhaust, exhaust_and_check};
use p2pguest::gpu::Placement;
use p2pguest::igt::{self, Subtest};
use p2pguest::importer::{Attach, Direction, Importer, Kind};
use p2pguest::pattern::Pattern;
use p2pguest::rig::{Exported, RESERVED, Rig};
use p2pguest::setting::Setting;
use p2pguest::subtests;
use p2pguest::sys::uapi::*;
use simple::*;
use std::process::ExitCode;

const SUBTESTS: &[Subtest] = subtests![
    /// Attaching importers of all kinds.
    attach,
    /// Mapping for a peer: through slots, in system memory, and falling back to it.
    map,
    /// Mapping for an importer that the core pins for.
    map_static,
    /// Mapping for a peer that needs the slots of another one.
    map_takes_slots,
    /// Pinning, where the object is and in system memory.
    pin,
    /// Unmapping, unpinning and detaching: they need nothing.
    let_go,
    /// What else the test importer can be asked for.
    ask_importer,
    /// Exporting a simple device's BAR, a range and pages to come.
    simple_export,
    /// mmap of a simple device's file, and touching a page there.
    simple_mmap,
    /// Mapping pages of a simple device, by dma-buf and by address.
    simple_map,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

/// How importers attach that may be peers of GPU 0.
fn peer(rig: &Rig) -> Attach {
    Attach::peer(rig.nic[0].pci())
}

/// An exported object with an importer.
#[track_caller]
fn attached(rig: &Rig, placement: Placement, how: Attach) -> (Importer, Exported<'_>) {
    let exported = rig.export(0, SIZE, placement);
    exported.bo.fill(Pattern(1));
    (Importer::attach(&exported.fd, how), exported)
}

/// Whatever became of a call, the bytes are those that were there.
#[track_caller]
fn assert_safe((_, exported): &(Importer, Exported<'_>)) {
    exported.bo.assert_holds(Pattern(1));
}

fn attach() {
    let rig = Rig::open();
    for how in [
        peer(&rig),
        peer(&rig).no_peer(),
        peer(&rig).kind(Kind::Static),
        peer(&rig).kind(Kind::Static).software(),
    ] {
        exhaust(
            &format!("ATTACH {how:?}"),
            || (rig.export(0, SIZE, Placement::Vram), Importer::open()),
            |(exported, importer)| importer.__attach_to(&exported.fd, how),
        );
    }
}

/// Tries all failures of MAP.
#[track_caller]
fn map_as(rig: &Rig, placement: Placement, how: Attach) {
    exhaust_and_check(
        What::All,
        &format!("MAP in {placement:?} for {how:?}"),
        || attached(rig, placement, how),
        |(importer, _)| importer.__map(Direction::Both),
        |held, _| assert_safe(held),
    );
}

fn map() {
    let rig = Rig::open();
    for placement in Placement::ALL {
        map_as(&rig, placement, peer(&rig));
    }
    map_as(&rig, Placement::Vram, peer(&rig).no_peer());
    // No slots are left.
    let all = rig.gpu[0].create(rig.gpu[0].aperture(), Placement::Vram);
    all.set_peer(RESERVED);
    map_as(&rig, Placement::Vram, peer(&rig));
}

fn map_static() {
    let rig = Rig::open();
    let how = peer(&rig).kind(Kind::Static);
    for placement in Placement::ALL {
        map_as(&rig, placement, how);
    }
    map_as(&rig, Placement::Vram, how.software());
}

fn map_takes_slots() {
    let rig = Rig::open();
    let gpu = &rig.gpu[0];
    let pages = SIZE / gpu.page;
    let _squeeze = rig.hold_slots(0, gpu.slots - pages);
    igt::require(
        gpu.param(P2PGPU_PARAM_SLOTS_AVAILABLE) == pages,
        "a peer-to-peer route",
    );
    // Nobody is left alone, however fast the machine is.
    let grace = Setting::new(gpu.pci(), "peer_grace_ms");
    grace.write("0");
    let lent = || {
        let (other, bo) = attached(&rig, Placement::Vram, peer(&rig));
        other.map(Direction::Both);
        let (importer, exported) = attached(&rig, Placement::Vram, peer(&rig));
        (importer, exported, other, bo)
    };
    exhaust_and_check(
        What::All,
        "MAP that takes slots",
        lent,
        |(importer, ..)| importer.__map(Direction::Both),
        |(_, exported, _, bo), _| {
            exported.bo.assert_holds(Pattern(1));
            bo.bo.assert_holds(Pattern(1));
        },
    );
}

fn pin() {
    let rig = Rig::open();
    for how in [peer(&rig), peer(&rig).no_peer()] {
        exhaust_and_check(
            What::All,
            &format!("PIN for {how:?}"),
            || attached(&rig, Placement::Vram, how),
            |(importer, _)| importer.__pin(),
            |held, _| assert_safe(held),
        );
    }
}

/// Lets go of all that an importer has, with a failure at each step.
fn let_go() {
    let rig = Rig::open();
    for how in [peer(&rig), peer(&rig).kind(Kind::Static)] {
        let held = || {
            let held = attached(&rig, Placement::Vram, how);
            held.0.map(Direction::Both);
            held
        };
        exhaust(&format!("UNMAP of {how:?}"), held, |(importer, _)| {
            importer.__unmap(0)
        });
        exhaust(&format!("UNMAP, DETACH of {how:?}"), held, |held| {
            held.0.__unmap(0)?;
            held.0.__detach()
        });
    }
    let pinned = || {
        let pinned = attached(&rig, Placement::Vram, peer(&rig));
        pinned.0.pin();
        pinned
    };
    // The first thing that can fail is a copy.
    exhaust("UNPIN, INFO", pinned, |(importer, _)| {
        importer.__unpin()?;
        importer.__info()
    });
}

fn ask_importer() {
    let rig = Rig::open();
    let mapped = || {
        let mapped = attached(&rig, Placement::Vram, peer(&rig));
        mapped.0.map(Direction::Both);
        mapped
    };
    exhaust("RANGES", mapped, |(importer, _)| importer.__ranges(0));
    exhaust("START_ACCESS", mapped, |(importer, _)| {
        importer.__start_access()
    });
    exhaust("CYCLE", mapped, |(importer, _)| {
        importer.__cycle(Direction::Both, 2)
    });
}
