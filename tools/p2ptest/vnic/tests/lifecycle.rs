// SPDX-License-Identifier: GPL-2.0

//! The device's life: mailbox errors, reset, the wire going and coming, queue pairs going.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::Duration;

use common::{At, Host};
use vnic::{Counter, Mode, regs};

const ALL: u32 = regs::LOCAL_WRITE | regs::REMOTE_READ | regs::REMOTE_WRITE;

fn link_is_up(host: &Host) -> bool {
    host.read32(regs::STATUS) & regs::STATUS_LINK_UP != 0
}

#[test]
fn registers_read_as_documented() {
    let h = Host::new(false);
    assert_eq!(h.read32(regs::ID), 0x4e50_3250);
    assert_eq!(h.read32(regs::VERSION), 0x1_0000);
    assert_eq!(h.read32(regs::FEATURES), 0);
    assert_eq!(h.read32(regs::STATUS), regs::STATUS_READY);
    assert_eq!(h.read32(regs::MAX_REGIONS), 4096);
    assert_eq!(h.read32(regs::MAX_QUEUE_PAIRS), 64);
    assert_eq!(h.read32(regs::MAX_SEGMENTS), 65536);
    assert_eq!(h.read32(regs::CONTROL), 0);
    assert_eq!(h.read64(regs::ID), u64::MAX, "wrong size");
    assert_eq!(h.read32(0x44), u32::MAX, "no register");
    assert_eq!(h.read32(regs::DOORBELLS + 12), u32::MAX, "no register");
    assert_eq!(h.read32(regs::DOORBELLS + 64 * 16), u32::MAX, "no register");
    h.write32(regs::MAILBOX_ADDR, 0);
    assert_ne!(
        h.read64(regs::MAILBOX_ADDR),
        0,
        "a store of the wrong size is ignored"
    );
    let reads = h.counter(Counter::RegReads);
    let writes = h.counter(Counter::RegWrites);
    h.read32(regs::ID);
    h.write32(regs::ID, 0);
    assert_eq!(h.counter(Counter::RegReads), reads + 1);
    assert_eq!(h.counter(Counter::RegWrites), writes + 1);
}

#[test]
fn mailbox_refuses_what_is_malformed() {
    let mut h = Host::new(true);
    let page = h.alloc(4096);
    let region = h.region(7, ALL, 4096);
    h.create_qp(1, 2);
    let bad = |h: &mut Host, op, index, arg32, args: &[u64], status| {
        assert_eq!(
            h.command(op, index, arg32, args),
            status,
            "{op} {index:#x} {arg32:#x} {args:x?}"
        );
    };
    bad(&mut h, 99, 0, 0, &[], regs::BAD_COMMAND);
    bad(&mut h, 0, 0, 0, &[], regs::BAD_COMMAND);
    bad(&mut h, regs::MR_CREATE, 8, 0, &[4096, 1], regs::BAD_COMMAND);
    bad(
        &mut h,
        regs::MR_CREATE,
        8,
        0,
        &[4096, 0, 0, 0, 0, 0, 1],
        regs::BAD_COMMAND,
    );
    bad(&mut h, regs::MR_CREATE, 4096, 0, &[4096], regs::BAD_INDEX);
    bad(
        &mut h,
        regs::MR_CREATE,
        0x0100_0007,
        0,
        &[4096],
        regs::BAD_INDEX,
    );
    bad(&mut h, regs::MR_CREATE, 8, 8, &[4096], regs::BAD_ARGUMENT);
    bad(&mut h, regs::MR_CREATE, 8, 0, &[0], regs::BAD_ARGUMENT);
    bad(&mut h, regs::MR_MAP, 8, 1, &[page], regs::BAD_INDEX);
    bad(&mut h, regs::MR_MAP, 7, 1, &[page], regs::BAD_ARGUMENT);
    bad(&mut h, regs::MR_INVALIDATE, 7, 1, &[], regs::BAD_COMMAND);
    bad(
        &mut h,
        regs::MR_INVALIDATE,
        0x0100_0007,
        0,
        &[],
        regs::BAD_INDEX,
    );
    bad(&mut h, regs::MR_INVALIDATE, 7, 0, &[], 0);
    bad(&mut h, regs::MR_MAP, 7, 0, &[page], regs::BAD_ARGUMENT);
    bad(&mut h, regs::MR_MAP, 7, 65537, &[page], regs::BAD_ARGUMENT);
    bad(
        &mut h,
        regs::MR_MAP,
        7,
        65536,
        &[u64::MAX - 5],
        regs::MAILBOX_DMA_ERROR,
    );
    bad(
        &mut h,
        regs::MR_MAP,
        7,
        1,
        &[0xdead_0000_0000],
        regs::MAILBOX_DMA_ERROR,
    );
    assert_eq!(h.map(7, &[(region, 4095)]), regs::BAD_ARGUMENT);
    assert_eq!(h.map(7, &[(region, 4096), (region, 0)]), regs::BAD_ARGUMENT);
    assert_eq!(h.map(7, &[(u64::MAX, 4096)]), regs::BAD_ARGUMENT);
    bad(
        &mut h,
        regs::QP_CREATE,
        64,
        0x02_0202,
        &[page, page, page],
        regs::BAD_INDEX,
    );
    bad(
        &mut h,
        regs::QP_CREATE,
        1,
        0x02_0202,
        &[page, page, page],
        regs::BAD_INDEX,
    );
    bad(
        &mut h,
        regs::QP_CREATE,
        2,
        0x01_0202,
        &[page, page, page],
        regs::BAD_ARGUMENT,
    );
    bad(
        &mut h,
        regs::QP_CREATE,
        2,
        0x0d_0202,
        &[page, page, page],
        regs::BAD_ARGUMENT,
    );
    bad(
        &mut h,
        regs::QP_CREATE,
        2,
        0x0102_0202,
        &[page, page, page],
        regs::BAD_ARGUMENT,
    );
    bad(
        &mut h,
        regs::QP_CREATE,
        2,
        0x02_0202,
        &[page, page + 8, page],
        regs::BAD_ARGUMENT,
    );
    let nowhere = 0xdead_0000_0000;
    bad(
        &mut h,
        regs::QP_CREATE,
        2,
        0x02_0202,
        &[page, page, nowhere],
        regs::MAILBOX_DMA_ERROR,
    );
    bad(&mut h, regs::QP_CONNECT, 2, 0, &[], regs::BAD_INDEX);
    bad(&mut h, regs::QP_CONNECT, 1, 64, &[], regs::BAD_ARGUMENT);
    bad(&mut h, regs::QP_DESTROY, 2, 0, &[], regs::BAD_INDEX);
    bad(&mut h, regs::QP_DESTROY, 1, 0, &[], 0);
}

#[test]
fn a_broken_wire_ends_what_is_under_way() {
    let (mut a, mut b) = (Host::new(false), Host::new(false));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("wire");
    a.nic.wire(Mode::Connect(path.clone())).unwrap();
    b.nic.wire(Mode::Listen(path.clone())).unwrap();
    a.until("link", link_is_up);
    for host in [&mut a, &mut b] {
        host.create_qp(0, 4);
        host.connect(0, 0);
    }
    a.region(1, ALL, 4096);
    b.create_region(2, ALL, 4096);
    a.post(0, regs::WRITE, 1, At(1, 0), At(2, 0), 64);
    a.post(0, regs::WRITE, 2, At(1, 0), At(2, 0), 64);
    b.event(true);
    // Resetting a NIC takes its end of the wire down.
    b.reset();
    assert_eq!(a.poll(0).status, regs::LINK_DOWN);
    assert_eq!(a.poll(0).status, regs::FLUSHED);
    // It comes back by itself, and new queue pairs connect.
    a.until("link", link_is_up);
    b.until("link", link_is_up);
    for host in [&mut a, &mut b] {
        host.create_qp(5, 4);
        host.connect(5, 5);
    }
    b.region(3, ALL, 4096);
    a.post(5, regs::WRITE, 9, At(1, 0), At(3, 0), 64);
    assert_eq!(a.poll(5).status, 0);
    drop(b);
    assert!(!path.exists(), "the socket is left behind");
    a.until("link down", |h| !link_is_up(h));
}

#[test]
fn a_posted_receive_learns_that_the_wire_broke() {
    let (mut a, mut b) = Host::paired();
    a.region(1, ALL, 4096);
    b.region(2, ALL, 4096);
    b.post_recv(0, 1, At(2, 0), 64);
    a.post(0, regs::SEND, 1, At(1, 0), At(0, 0), 64);
    assert_eq!(b.poll(0).status, 0);
    b.post_recv(0, 2, At(2, 0), 64);
    assert_eq!(a.command(regs::QP_DESTROY, 0, 0, &[]), 0);
    let done = b.poll(0);
    assert_eq!(
        (done.id, done.status, done.opcode),
        (2, regs::LINK_DOWN, regs::RECV)
    );
}

#[test]
fn numbers_of_queue_pairs_are_used_again_at_once() {
    let (mut a, mut b) = Host::paired();
    a.region(1, ALL, 4096);
    b.region(2, ALL, 4096);
    for round in 0..20 {
        // What the ones before said to each other may still be under way.
        for _ in 0..3 {
            for host in [&mut a, &mut b] {
                assert_eq!(host.command(regs::QP_DESTROY, 0, 0, &[]), 0);
            }
            for host in [&mut a, &mut b] {
                host.create_qp(0, 2);
                host.connect(0, 0);
            }
        }
        a.post(0, regs::WRITE, round, At(1, 0), At(2, 0), 64);
        assert_eq!(a.poll(0).status, 0, "round {round}");
    }
}

#[test]
fn requests_wait_for_the_wire_to_come_up() {
    let (mut a, mut b) = (Host::new(false), Host::new(false));
    for host in [&mut a, &mut b] {
        host.region(1, ALL, 4096);
        host.create_qp(0, 2);
        host.connect(0, 0);
    }
    a.post(0, regs::WRITE, 1, At(1, 0), At(1, 0), 64);
    sleep(Duration::from_millis(20));
    assert_eq!(a.try_poll(0), None);
    let (left, right) = UnixStream::pair().unwrap();
    a.nic.attach(left).unwrap();
    b.nic.attach(right).unwrap();
    assert_eq!(a.poll(0).status, 0);
}

#[test]
fn destroying_a_queue_pair_waits_for_its_dma() {
    let (mut a, mut b) = Host::paired();
    let src = a.region(1, ALL, 4096);
    b.region(2, ALL, 4096);
    a.memory.set_gate(Some((src, src + 1)));
    a.post(0, regs::WRITE, 1, At(1, 0), At(2, 0), 64);
    a.memory.wait_for_gate();
    a.begin(regs::QP_DESTROY, 0, 0, &[]);
    sleep(Duration::from_millis(30));
    assert!(!a.is_answered());
    a.memory.set_gate(None);
    assert_eq!(a.answer(), 0);
    sleep(Duration::from_millis(20));
    assert_eq!(a.try_poll(0), None, "a completion after QP_DESTROY");
}

#[test]
fn reset_waits_for_dma_and_forgets_all() {
    let (mut a, mut b) = Host::paired();
    let src = a.region(1, ALL, 4096);
    b.region(2, ALL, 4096);
    a.memory.set_gate(Some((src, src + 1)));
    a.post(0, regs::WRITE, 1, At(1, 0), At(2, 0), 64);
    a.memory.wait_for_gate();
    // A mailbox command that waits does not hold the reset up.
    a.begin(regs::MR_INVALIDATE, 1, 0, &[]);
    a.write32(regs::CONTROL, regs::CONTROL_RESET);
    sleep(Duration::from_millis(20));
    assert_eq!(
        a.read32(regs::STATUS) & regs::STATUS_RESETTING,
        regs::STATUS_RESETTING
    );
    a.memory.set_gate(None);
    a.until("end of reset", |h| {
        h.read32(regs::STATUS) & regs::STATUS_RESETTING == 0
    });
    assert!(!a.is_answered());
    assert_eq!(a.read64(regs::MAILBOX_ADDR), 0);
    assert_eq!(a.read64(regs::EVENT_ADDR), 0);
    assert_eq!(a.read32(regs::EVENT_SIZE), 0);
    a.start();
    assert_eq!(a.command(regs::MR_INVALIDATE, 1, 0, &[]), regs::BAD_INDEX);
    assert_eq!(a.command(regs::QP_DESTROY, 0, 0, &[]), regs::BAD_INDEX);
}

#[test]
fn reset_that_hangs_ends_with_the_rule() {
    let (mut a, _b) = Host::paired();
    a.region(1, ALL, 4096);
    let resetting = |h: &Host| h.read32(regs::STATUS) & regs::STATUS_RESETTING != 0;
    a.nic.shared().inject(vnic::What::HangReset, 1, 0);
    a.write32(regs::CONTROL, regs::CONTROL_RESET);
    sleep(Duration::from_millis(20));
    assert!(resetting(&a));
    // Its count is not used up.
    a.write32(regs::CONTROL, regs::CONTROL_RESET);
    sleep(Duration::from_millis(20));
    assert!(resetting(&a));
    a.nic.shared().inject(vnic::What::HangReset, 0, 0);
    a.until("end of reset", |h| !resetting(h));
    a.start();
    assert_eq!(a.command(regs::MR_INVALIDATE, 1, 0, &[]), regs::BAD_INDEX);
}

#[test]
fn nonsense_on_the_wire_ends_it() {
    let inputs: [&[u8]; 3] = [&[0xff; 4096], &[0; 56], b"hello"];
    for input in inputs {
        let h = Host::new(false);
        let (ours, theirs) = UnixStream::pair().unwrap();
        h.nic.attach(theirs).unwrap();
        let mut ours = ours;
        ours.set_read_timeout(Some(common::PATIENCE)).unwrap();
        ours.write_all(input).unwrap();
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        // Its hello, then the end.
        let mut answer = Vec::new();
        // A reset by the other end is an end, too.
        let _ = ours.read_to_end(&mut answer);
        assert!(answer.len() <= 56);
        assert!(!link_is_up(&h));
    }
}

#[test]
fn a_misplaced_message_ends_the_wire() {
    let mut h = Host::new(false);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    h.nic.attach(theirs).unwrap();
    ours.set_read_timeout(Some(common::PATIENCE)).unwrap();
    let mut hello = [0; 56];
    ours.read_exact(&mut hello).unwrap();
    ours.write_all(&hello).unwrap();
    h.until("link", link_is_up);
    h.create_qp(0, 2);
    h.connect(0, 0);
    let mut connect = [0; 56];
    ours.read_exact(&mut connect).unwrap();
    // It answers the message: the serial is the same.
    connect.copy_within(40..48, 48);
    ours.write_all(&connect).unwrap();
    // An answer to nothing.
    let mut answer = [0; 56];
    answer[0] = 7;
    ours.write_all(&answer).unwrap();
    h.until("link down", |h| !link_is_up(h));
}
