// SPDX-License-Identifier: GPL-2.0
//! Requests that end with an error, or wait for what they need.

use crate::PAGE;
use nix::errno::Errno;
use p2pguest::binding::wait_until;
use p2pguest::gpu::Placement;
use p2pguest::igt;
use p2pguest::nic::{ACCESS_ALL, Nic, TIMEOUT};
use p2pguest::pattern::Pattern;
use p2pguest::rig::{Registered, Rig, Wire, request, send_request};
use p2pguest::setting::Setting;
use p2pguest::sys::uapi::*;
use p2pguest::{must, refused};
use std::time::Duration;

/// Posts one request on a queue pair of its own and asserts how it ends.
#[track_caller]
fn assert_ends(rig: &Rig, post: p2pnic_post_send, status: u32) {
    let wire = rig.connect(4);
    wire.near.post_send(post);
    let done = wire.near.expect(status);
    assert_eq!(done.opcode, post.opcode);
}

pub fn range_past_end() {
    let rig = Rig::open();
    let (near, far) = (
        rig.register(0, 2 * PAGE, Placement::Vram),
        rig.register(1, 2 * PAGE, Placement::Vram),
    );
    far.bo.fill(Pattern(8));
    let end = 2 * PAGE;
    for opcode in [P2PNIC_OP_WRITE, P2PNIC_OP_READ] {
        for (offset, size) in [
            (0, end + 1),
            (1, end),
            (end, 1),
            (u64::MAX, 2),
            (1 << 63, PAGE),
        ] {
            let (local, remote) = (&near.region, &far.region);
            let bad_local = request(opcode, (local, offset), (remote, 0), size.min(PAGE));
            let size_fits = offset
                .checked_add(size.min(PAGE))
                .is_some_and(|last| last <= end);
            if !size_fits {
                assert_ends(&rig, bad_local, P2PNIC_STATUS_LOCAL_ACCESS);
                let bad_remote = request(opcode, (local, 0), (remote, offset), size.min(PAGE));
                assert_ends(&rig, bad_remote, P2PNIC_STATUS_REMOTE_ACCESS);
            }
            if offset < end {
                let both = request(opcode, (local, offset), (remote, 0), size);
                assert_ends(&rig, both, P2PNIC_STATUS_LOCAL_ACCESS);
            }
        }
    }
    far.bo.assert_holds(Pattern(8));
}

pub fn unknown_keys() {
    let rig = Rig::open();
    let (near, far) = (
        rig.register(0, PAGE, Placement::Vram),
        rig.register(1, PAGE, Placement::Vram),
    );
    for key in [
        0xffff_ffff,
        near.region.key ^ 0x0100_0000,
        near.region.key ^ 0x0080_0000,
    ] {
        let good = request(P2PNIC_OP_WRITE, (&near.region, 0), (&far.region, 0), 8);
        let bad = p2pnic_post_send {
            local_key: key,
            ..good
        };
        assert_ends(&rig, bad, P2PNIC_STATUS_LOCAL_ACCESS);
    }
    for key in [
        0xffff_ffff,
        far.region.key ^ 0x0100_0000,
        far.region.key ^ 0x0080_0000,
    ] {
        let good = request(P2PNIC_OP_WRITE, (&near.region, 0), (&far.region, 0), 8);
        let bad = p2pnic_post_send {
            remote_key: key,
            ..good
        };
        assert_ends(&rig, bad, P2PNIC_STATUS_REMOTE_ACCESS);
    }
}

pub fn rights_are_checked() {
    let rig = Rig::open();
    let near = rig.export(0, PAGE, Placement::Vram);
    let far = rig.export(1, PAGE, Placement::Vram);
    far.bo.fill(Pattern(9));
    let (ok, local_error, remote_error) = (
        P2PNIC_STATUS_OK,
        P2PNIC_STATUS_LOCAL_ACCESS,
        P2PNIC_STATUS_REMOTE_ACCESS,
    );
    let (local_write, remote_read, remote_write) = (
        P2PNIC_ACCESS_LOCAL_WRITE,
        P2PNIC_ACCESS_REMOTE_READ,
        P2PNIC_ACCESS_REMOTE_WRITE,
    );
    let table = [
        (P2PNIC_OP_READ, local_write, remote_read, ok),
        (
            P2PNIC_OP_READ,
            ACCESS_ALL & !local_write,
            remote_read,
            local_error,
        ),
        (
            P2PNIC_OP_READ,
            local_write,
            ACCESS_ALL & !remote_read,
            remote_error,
        ),
        (P2PNIC_OP_WRITE, 0, ACCESS_ALL & !remote_write, remote_error),
    ];
    for (opcode, near_access, far_access, status) in table {
        let local = rig.nic[0].register(&near.fd, near_access, PAGE);
        let remote = rig.nic[1].register(&far.fd, far_access, PAGE);
        assert_ends(&rig, request(opcode, (&local, 0), (&remote, 0), 64), status);
    }
    far.bo.assert_holds(Pattern(9));
    let (local, remote) = (
        rig.nic[0].register(&near.fd, 0, PAGE),
        rig.nic[1].register(&far.fd, remote_write, PAGE),
    );
    assert_ends(
        &rig,
        request(P2PNIC_OP_WRITE, (&local, 0), (&remote, 0), 64),
        ok,
    );

    // A message needs the right to write where it arrives.
    let wire = rig.connect(4);
    let room = rig.nic[1].register(&far.fd, ACCESS_ALL & !local_write, PAGE);
    must(wire.far.__post_recv(1, &room), format_args!("POST_RECV"));
    wire.near.post_send(send_request(&local, 0, 64));
    wire.far.expect(local_error);
}

pub fn message_too_long() {
    let rig = Rig::open();
    let (near, far) = (
        rig.register(0, 2 * PAGE, Placement::Vram),
        rig.register(1, PAGE, Placement::Vram),
    );
    far.bo.fill(Pattern(10));
    let wire = rig.connect(4);
    must(
        wire.far.__post_recv(1, &far.region),
        format_args!("POST_RECV"),
    );
    wire.near.post_send(send_request(&near.region, 0, PAGE + 1));
    wire.far.expect(P2PNIC_STATUS_LENGTH);
    wire.near.expect(P2PNIC_STATUS_LENGTH);
    far.bo.assert_holds(Pattern(10));
}

pub fn flushed_after_error() {
    let rig = Rig::open();
    let (near, far) = (
        rig.register(0, PAGE, Placement::Vram),
        rig.register(1, PAGE, Placement::Vram),
    );
    far.bo.fill(Pattern(11));
    let wire = rig.connect(8);
    let good = request(P2PNIC_OP_WRITE, (&near.region, 0), (&far.region, 0), PAGE);
    wire.near.post_send(p2pnic_post_send {
        id: 0,
        local_key: 0xffff_ffff,
        ..good
    });
    for id in 1..4 {
        wire.near.post_send(p2pnic_post_send { id, ..good });
    }
    assert_eq!(wire.near.expect(P2PNIC_STATUS_LOCAL_ACCESS).id, 0);
    for id in 1..4 {
        assert_eq!(wire.near.expect(P2PNIC_STATUS_FLUSHED).id, id);
    }
    wire.near.post_send(p2pnic_post_send { id: 4, ..good });
    assert_eq!(
        wire.near.expect(P2PNIC_STATUS_FLUSHED).id,
        4,
        "posted after the error"
    );
    far.bo.assert_holds(Pattern(11));
}

pub fn send_waits_for_receive() {
    let rig = Rig::open();
    let (near, far) = (
        rig.register(0, PAGE, Placement::Vram),
        rig.register(1, PAGE, Placement::Vram),
    );
    near.bo.fill(Pattern(12));
    let wire = rig.connect(4);
    wire.near.post_send(send_request(&near.region, 0, PAGE));
    refused(
        wire.near.__poll(1, Duration::from_millis(100)),
        Errno::ETIMEDOUT,
    );
    must(
        wire.far.__post_recv(1, &far.region),
        format_args!("POST_RECV"),
    );
    wire.far.expect(P2PNIC_STATUS_OK);
    wire.near.expect(P2PNIC_STATUS_OK);
    far.bo.assert_holds(Pattern(12));
}

pub fn region_after_deregistration() {
    let rig = Rig::open();
    let (near, far) = (
        rig.register(0, PAGE, Placement::Vram),
        rig.register(1, PAGE, Placement::Vram),
    );
    far.bo.fill(Pattern(13));
    let write = request(P2PNIC_OP_WRITE, (&near.region, 0), (&far.region, 0), PAGE);
    let key = far.region.key;
    far.region.deregister();
    assert_ends(&rig, write, P2PNIC_STATUS_REMOTE_ACCESS);
    refused(rig.nic[1].__deregister(key), Errno::ENOENT);
    let again = rig.nic[1].register(&far.fd, ACCESS_ALL, PAGE);
    assert_ends(&rig, write, P2PNIC_STATUS_REMOTE_ACCESS);
    let key = near.region.key;
    near.region.deregister();
    let write = p2pnic_post_send {
        local_key: key,
        remote_key: again.key,
        ..write
    };
    assert_ends(&rig, write, P2PNIC_STATUS_LOCAL_ACCESS);
    far.bo.assert_holds(Pattern(13));
}

pub fn revoked_by_exporter() {
    let rig = Rig::open();
    for end in 0..2 {
        let ends = [0, 1].map(|index| rig.register(index, PAGE, Placement::Vram));
        let [near, far] = &ends;
        far.bo.fill(Pattern(14));
        // Registered with the flag, but not mapped yet.
        ends[end].bo.set_exportable(false);
        let wire = rig.connect(4);
        let parked = rig.nic[end].query().parked;
        wire.start_write(&near.region, &far.region);
        assert_eq!(wire.near.expect(P2PNIC_STATUS_REVOKED).size, 0);
        assert_eq!(rig.nic[end].query().parked, parked + 1);
        let region = ends[end].region.info();
        assert_eq!(
            (region.maps, region.last_error),
            (0, Errno::EPERM as u32),
            "the region at end {end}"
        );
        let status = [P2PNIC_STATUS_LOCAL_ACCESS, P2PNIC_STATUS_REMOTE_ACCESS][end];
        let write = request(P2PNIC_OP_WRITE, (&near.region, 0), (&far.region, 0), PAGE);
        assert_ends(&rig, write, status);
        far.bo.assert_holds(Pattern(14));
    }
}

/// Takes all slots of GPU 0 for NIC 0.
#[track_caller]
fn take_all_slots(rig: &Rig) -> Registered<'_> {
    let held = rig.hold_slots(0, rig.gpu[0].slots);
    igt::require(held.bo.info().peer_maps == 1, "a peer-to-peer route");
    assert_eq!(rig.gpu[0].param(P2PGPU_PARAM_SLOTS_AVAILABLE), 0);
    held
}

/// Lets NIC 0 try for so long to map what cannot be mapped for now.
#[track_caller]
fn patience(rig: &Rig, time: Duration) -> Setting {
    let setting = Setting::new(rig.nic[0].pci(), "map_timeout_ms");
    setting.write(&time.as_millis().to_string());
    setting
}

/// Starts a write of a region that cannot be mapped for now, and sees it wait.
#[track_caller]
fn start_waiting<'r>(rig: &'r Rig, near: &Registered<'_>, far: &Registered<'_>) -> Wire<'r> {
    // It would be moved to system memory otherwise.
    near.bo
        .set_peer(P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_STRICT);
    let wire = rig.connect(4);
    let parked = rig.nic[0].query().parked;
    wire.start_write(&near.region, &far.region);
    wait_until("mapping fails", || near.region.info().last_error != 0);
    let region = near.region.info();
    assert_eq!(
        (region.mapped, region.last_error),
        (0, Errno::ENOSPC as u32)
    );
    assert_eq!(rig.nic[0].query().parked, parked + 1);
    wire
}

pub fn waits_for_slots() {
    let rig = Rig::open();
    let _patience = patience(&rig, TIMEOUT);
    let held = take_all_slots(&rig);
    let (near, far) = (
        rig.register(0, PAGE, Placement::Vram),
        rig.register(1, PAGE, Placement::Vram),
    );
    near.bo.fill(Pattern(15));
    let wire = start_waiting(&rig, &near, &far);
    assert_eq!(wire.near.__poll(1, Duration::ZERO), Ok(vec![]));
    held.region.deregister();
    // The slots are reserved no longer.
    held.bo.set_peer(0);
    wire.near.expect(P2PNIC_STATUS_OK);
    far.bo.assert_holds(Pattern(15));
    assert_eq!(near.region.info().last_error, 0);
}

pub fn revoked_while_waiting() {
    let rig = Rig::open();
    let _patience = patience(&rig, TIMEOUT);
    let _held = take_all_slots(&rig);
    let (near, far) = (
        rig.register(0, PAGE, Placement::Vram),
        rig.register(1, PAGE, Placement::Vram),
    );
    let wire = start_waiting(&rig, &near, &far);
    assert_eq!(wire.near.__poll(1, Duration::ZERO), Ok(vec![]));
    near.region.deregister();
    assert_eq!(wire.near.expect(P2PNIC_STATUS_REVOKED).size, 0);
}

pub fn revoked_after_waiting() {
    let rig = Rig::open();
    let patience = patience(&rig, TIMEOUT);
    let _held = take_all_slots(&rig);
    let (near, far) = (
        rig.register(0, PAGE, Placement::Vram),
        rig.register(1, PAGE, Placement::Vram),
    );
    let wire = start_waiting(&rig, &near, &far);
    patience.write("100");
    assert_eq!(wire.near.expect(P2PNIC_STATUS_REVOKED).size, 0);
    assert_eq!(near.region.info().last_error, Errno::ENOSPC as u32);
}

pub fn times_are_numbers() {
    let nic = Nic::open(0);
    for (name, expected, min) in [
        ("map_timeout_ms", 5_000, 0),
        ("answer_timeout_ms", 10_000, 1),
        ("reset_timeout_ms", 10_000, 1),
    ] {
        Setting::new(nic.pci(), name).assert_takes(expected, min..=600_000);
    }
}
