// SPDX-License-Identifier: GPL-2.0
//! Tests of each ioctl of the NIC's driver while memory runs out, as `p2p_failnth` has
//! them of the GPU's.

use p2pguest::failnth::{SIZE, What, errno, exhaust, exhaust_and_check};
use p2pguest::gpu::Placement;
use p2pguest::igt::{self, Subtest};
use p2pguest::map::Mapping;
use p2pguest::nic::{ACCESS_ALL, Nic, TIMEOUT};
use p2pguest::rig::{Rig, request};
use p2pguest::subtests;
use p2pguest::sys::uapi::*;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::Duration;

const SUBTESTS: &[Subtest] = subtests![
    /// Opening a NIC and closing it.
    nic_open,
    /// QUERY of a NIC.
    nic_query,
    /// REG_REGION: attaching to a dma-buf.
    register,
    /// REG_USER: mapping an object, in both placements, and ordinary memory.
    register_user,
    /// DEREG_REGION: the region is gone, or still there.
    deregister,
    /// REGION_INFO.
    region_info,
    /// CREATE_QP.
    create_qp,
    /// CONNECT_QP.
    connect_qp,
    /// DESTROY_QP: the queue pair is gone, or still there.
    destroy_qp,
    /// POST_SEND.
    post_send,
    /// POST_RECV.
    post_recv,
    /// POLL of an empty queue.
    poll,
    /// POLL of a completion: it is told once, however often that fails.
    poll_completion,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

fn nic_open() {
    let Some(path) = Nic::paths().ok().and_then(|paths| paths.into_iter().next()) else {
        igt::skip("needs a p2pnic device");
    };
    let open = |(): &()| File::open(&path).map_err(|e| errno(&e));
    exhaust("open", || (), open);
}

fn nic_query() {
    let nic = Nic::open(0);
    exhaust("QUERY", || (), |()| nic.__query());
}

fn register() {
    let rig = Rig::open();
    for placement in Placement::ALL {
        let exported = rig.export(0, SIZE, placement);
        exhaust(
            &format!("REG_REGION of {placement:?}"),
            || (),
            |()| rig.nic[0].__register(exported.fd.as_raw_fd(), ACCESS_ALL, 0, SIZE),
        );
    }
}

fn register_user() {
    let rig = Rig::open();
    for placement in Placement::ALL {
        let mapped = || {
            let bo = rig.gpu[0].create(SIZE, placement);
            bo.set_exportable(true);
            (bo.map(), bo)
        };
        exhaust(&format!("REG_USER of {placement:?}"), mapped, |(map, _)| {
            rig.nic[0].__register_map(map, ACCESS_ALL)
        });
    }
    let memory = || Mapping::anonymous(SIZE as usize);
    exhaust("REG_USER of memory", memory, |map| {
        rig.nic[0].__register_map(map, ACCESS_ALL)
    });
}

fn deregister() {
    let rig = Rig::open();
    let exported = rig.export(0, SIZE, Placement::Vram);
    let region = || rig.nic[0].register(&exported.fd, ACCESS_ALL, SIZE);
    exhaust_and_check(
        What::All,
        "DEREG_REGION",
        region,
        |region| rig.nic[0].__deregister(region.key),
        |region, result| {
            let again = rig.nic[0].__deregister(region.key);
            assert_eq!(again.is_ok(), result.is_err());
        },
    );
}

fn region_info() {
    let rig = Rig::open();
    let registered = rig.register(0, SIZE, Placement::Vram);
    exhaust("REGION_INFO", || (), |()| registered.region.__info());
}

fn create_qp() {
    let nic = Nic::open(0);
    exhaust("CREATE_QP", || (), |()| nic.__create_qp(4, 4));
}

fn connect_qp() {
    let rig = Rig::open();
    let pair = || (rig.nic[0].create_qp(4, 4), rig.nic[1].create_qp(4, 4));
    exhaust("CONNECT_QP", pair, |(near, far)| near.__connect(far.number));
}

fn destroy_qp() {
    let nic = Nic::open(0);
    let pair = || nic.create_qp(4, 4);
    exhaust_and_check(
        What::All,
        "DESTROY_QP",
        pair,
        |qp| nic.__destroy_qp(qp.number),
        |qp, result| assert_eq!(nic.__destroy_qp(qp.number).is_ok(), result.is_err()),
    );
}

fn post_send() {
    let rig = Rig::open();
    let source = rig.register(0, SIZE, Placement::Vram);
    let target = rig.register(1, SIZE, Placement::Vram);
    exhaust(
        "POST_SEND",
        || rig.connect(4),
        |wire| {
            wire.near.__post_send(request(
                P2PNIC_OP_WRITE,
                (&source.region, 0),
                (&target.region, 0),
                SIZE,
            ))
        },
    );
}

fn post_recv() {
    let rig = Rig::open();
    let target = rig.register(0, SIZE, Placement::Vram);
    exhaust(
        "POST_RECV",
        || rig.connect(4),
        |wire| wire.near.__post_recv(1, &target.region),
    );
}

fn poll() {
    let rig = Rig::open();
    let wire = rig.connect(4);
    exhaust("POLL", || (), |()| wire.near.__poll(1, Duration::ZERO));
}

fn poll_completion() {
    let rig = Rig::open();
    let (source, target) = (
        rig.register(0, SIZE, Placement::Vram),
        rig.register(1, SIZE, Placement::Vram),
    );
    let completed = || {
        let wire = rig.connect(4);
        wire.start_write(&source.region, &target.region);
        wire
    };
    // From the first transfer on the NICs have the regions mapped.
    completed().near.expect(P2PNIC_STATUS_OK);
    exhaust_and_check(
        What::All,
        "POLL of a completion",
        completed,
        |wire| wire.near.__poll(1, TIMEOUT),
        |wire, result| match result {
            Ok(found) => assert_eq!(found.len(), 1),
            Err(_) => {
                wire.near.expect(P2PNIC_STATUS_OK);
            }
        },
    );
}
