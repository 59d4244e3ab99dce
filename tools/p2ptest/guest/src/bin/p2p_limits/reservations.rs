// SPDX-License-Identifier: GPL-2.0
//! Limits of reservations.

use crate::{assert_refused, flagged};
use p2pguest::gpu::Gpu;
use p2pguest::igt;
use p2pguest::rig::RESERVED;
use p2pguest::setting::Setting;
use p2pguest::sys::uapi::*;

/// A limit of GPU 0, set to so many slots.
#[track_caller]
fn limit(gpu: &Gpu, name: &str, slots: u64) -> Setting {
    let limit = Setting::new(gpu.pci(), name);
    assert_eq!(limit.read(), format!("{}\n", u32::MAX), "none by default");
    limit.write(&slots.to_string());
    limit
}

/// Reserves objects of these sizes in another process.
#[track_caller]
fn others_reserve(gpu: &Gpu, sizes: &[u64]) {
    igt::fork(|| {
        let gpu = gpu.reopen();
        let objects: Vec<_> = sizes.iter().map(|&pages| flagged(&gpu, pages)).collect();
        objects.iter().for_each(|bo| bo.set_peer(RESERVED));
    })
    .join();
}

pub fn reservations_of_a_process() {
    let gpu = Gpu::open(0);
    let _limit = limit(&gpu, "reserve_limit_process", 10);
    let (six, five, four) = (flagged(&gpu, 6), flagged(&gpu, 5), flagged(&gpu, 4));
    six.set_peer(RESERVED);
    assert_refused(&gpu, "reserve_limit", || five.__set_peer(RESERVED));
    let info = five.info();
    assert_eq!(
        (info.peer_flags, info.refusals, info.promised_slots),
        (P2PGPU_PEER_EXPORTABLE, 1, 0)
    );
    four.set_peer(RESERVED);
    assert_eq!(gpu.param(P2PGPU_PARAM_SLOTS_RESERVED), 10);
    // Files are no processes, and processes are not this one.
    let other = gpu.reopen();
    let one = flagged(&other, 1);
    assert_refused(&gpu, "reserve_limit", || one.__set_peer(RESERVED));
    others_reserve(&gpu, &[5, 5]);
    // What was given back can be had again.
    six.set_exportable(true);
    five.set_peer(RESERVED);
    drop(four);
    six.set_peer(0);
    one.set_peer(RESERVED);
    assert_eq!(gpu.param(P2PGPU_PARAM_SLOTS_RESERVED), 6);
}

pub fn reservations_of_all() {
    let gpu = Gpu::open(0);
    let _limit = limit(&gpu, "reserve_limit", 10);
    let six = flagged(&gpu, 6);
    six.set_peer(RESERVED);
    others_reserve(&gpu, &[4]);
    igt::fork(|| {
        let gpu = gpu.reopen();
        let five = flagged(&gpu, 5);
        assert_refused(&gpu, "reserve_limit", || five.__set_peer(RESERVED));
    })
    .join();
    drop(six);
    others_reserve(&gpu, &[5, 5]);
}

pub fn reservations_outlast_limits() {
    let gpu = Gpu::open(0);
    let bo = flagged(&gpu, 8);
    bo.set_peer(RESERVED);
    for name in ["reserve_limit", "reserve_limit_process"] {
        let _limit = limit(&gpu, name, 4);
        assert_eq!(bo.info().promised_slots, 8);
        bo.set_peer(RESERVED | P2PGPU_PEER_STRICT);
        bo.set_peer(RESERVED);
        assert_eq!(bo.info().promised_slots, 8);
        let other = flagged(&gpu, 1);
        assert_refused(&gpu, "reserve_limit", || other.__set_peer(RESERVED));
    }
}
