// SPDX-License-Identifier: GPL-2.0

//! Requests between two NICs: what moves, what is refused, how it completes.

mod common;

use common::{At, Done, Host, PEER, pattern};
use proptest::prelude::*;
use vnic::{Counter, regs};

const ALL: u32 = regs::LOCAL_WRITE | regs::REMOTE_READ | regs::REMOTE_WRITE;

#[test]
fn write_read_and_send_move_bytes() {
    let (mut a, mut b) = Host::paired();
    let (src, dst) = (a.region(1, ALL, 300_000), b.region(2, ALL, 300_000));
    let data = pattern(1, 300_000);
    a.memory.put(src, &data);
    a.post(0, regs::WRITE, 10, At(1, 5), At(2, 9), 200_000);
    assert_eq!(
        a.poll(0),
        Done {
            id: 10,
            status: 0,
            opcode: regs::WRITE,
            length: 200_000
        }
    );
    assert_eq!(b.memory.get(dst + 9, 200_000), data[5..200_005]);
    assert_eq!(b.memory.get(dst, 9), [0; 9]);

    let back = pattern(2, 300_000);
    b.memory.put(dst, &back);
    a.post(0, regs::READ, 11, At(1, 100), At(2, 7), 150_001);
    assert_eq!(
        a.poll(0),
        Done {
            id: 11,
            status: 0,
            opcode: regs::READ,
            length: 150_001
        }
    );
    assert_eq!(a.memory.get(src + 100, 150_001), back[7..150_008]);

    b.post_recv(0, 77, At(2, 50), 100_000);
    a.post(0, regs::SEND, 12, At(1, 0), At(0, 0), 70_000);
    assert_eq!(
        a.poll(0),
        Done {
            id: 12,
            status: 0,
            opcode: regs::SEND,
            length: 70_000
        }
    );
    assert_eq!(
        b.poll(0),
        Done {
            id: 77,
            status: 0,
            opcode: regs::RECV,
            length: 70_000
        }
    );
    assert_eq!(b.memory.get(dst + 50, 70_000), a.memory.get(src, 70_000));
    assert_eq!(a.memory.interrupts(regs::VECTOR_COMPLETIONS), 3);
    assert_eq!(a.counter(Counter::RamReadBytes), 270_000);
    assert_eq!(a.counter(Counter::PeerReadBytes), 0);
}

#[test]
fn send_waits_for_a_receive_entry() {
    let (mut a, mut b) = Host::paired();
    a.region(1, 0, 4096);
    b.region(2, ALL, 4096);
    a.post(0, regs::SEND, 1, At(1, 0), At(0, 0), 4096);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(a.try_poll(0), None);
    b.post_recv(0, 2, At(2, 0), 4096);
    assert_eq!(a.poll(0).status, 0);
    assert_eq!(b.poll(0).length, 4096);
}

#[test]
fn requests_of_length_zero_complete() {
    let (mut a, mut b) = Host::paired();
    a.region(1, ALL, 4096);
    b.region(2, ALL, 4096);
    b.post_recv(0, 1, At(2, 0), 0);
    for opcode in [regs::WRITE, regs::READ, regs::SEND] {
        let remote = if opcode == regs::SEND { 0 } else { 2 };
        a.post(0, opcode, 9, At(1, 0), At(remote, 0), 0);
        assert_eq!(
            a.poll(0),
            Done {
                id: 9,
                status: 0,
                opcode,
                length: 0
            }
        );
    }
    assert_eq!(b.poll(0).status, 0);
}

#[test]
fn peer_writes_are_home_when_they_complete() {
    let (mut a, mut b) = Host::paired();
    let src = a.region(1, ALL, 100_000);
    b.region_at(2, ALL, PEER + 0x3000, 100_000);
    a.region_at(3, ALL, PEER, 100_000);
    let data = pattern(3, 100_000);
    a.memory.put(src, &data);
    a.post(0, regs::WRITE, 1, At(1, 0), At(2, 0), 100_000);
    assert_eq!(a.poll(0).status, 0);
    assert_eq!(
        b.memory.get(PEER + 0x3000, 100_000),
        data,
        "WRITE: posted bytes did not land"
    );
    a.post(0, regs::READ, 2, At(3, 0), At(2, 0), 100_000);
    assert_eq!(a.poll(0).status, 0);
    assert_eq!(
        a.memory.get(PEER, 100_000),
        data,
        "READ: posted bytes did not land"
    );
    b.post_recv(0, 3, At(2, 1), 50_000);
    a.post(0, regs::SEND, 4, At(1, 9), At(0, 0), 50_000);
    assert_eq!(b.poll(0).status, 0);
    assert_eq!(
        b.memory.get(PEER + 0x3001, 50_000),
        data[9..50_009],
        "RECV: bytes did not land"
    );
    assert_eq!(b.counter(Counter::PeerWriteBytes), 150_000);
    assert_eq!(b.counter(Counter::PeerReadBytes), 100_000);
    assert_eq!(b.counter(Counter::RamWriteBytes), 0);
}

/// Runs one request on a fresh pair; its status at the requester.
fn status_of(access: (u32, u32), opcode: u32, local: At, remote: At, length: u64) -> u32 {
    let (mut a, mut b) = Host::paired();
    a.region(1, access.0, 4096);
    b.region(2, access.1, 4096);
    b.post_recv(0, 5, At(2, 0), 1000);
    a.post(0, opcode, 1, local, remote, length);
    a.post(0, opcode, 2, local, remote, length);
    let (first, second) = (a.poll(0), a.poll(0));
    if first.status != 0 && first.status != regs::LINK_DOWN {
        assert_eq!(
            second.status,
            regs::FLUSHED,
            "what follows an error is flushed"
        );
    }
    first.status
}

#[test]
fn access_rights_and_ranges_are_checked() {
    let (lw, rr, rw) = (regs::LOCAL_WRITE, regs::REMOTE_READ, regs::REMOTE_WRITE);
    let (write, read) = (regs::WRITE, regs::READ);
    let cases = [
        ((0, rw), write, At(1, 0), At(2, 0), 4096, regs::OK),
        (
            (0, lw | rr),
            write,
            At(1, 0),
            At(2, 0),
            8,
            regs::REMOTE_ACCESS,
        ),
        ((lw, rr), read, At(1, 0), At(2, 0), 4096, regs::OK),
        (
            (rr | rw, rr),
            read,
            At(1, 0),
            At(2, 0),
            8,
            regs::LOCAL_ACCESS,
        ),
        (
            (lw, lw | rw),
            read,
            At(1, 0),
            At(2, 0),
            8,
            regs::REMOTE_ACCESS,
        ),
        (
            (lw, rw),
            write,
            At(1, 1),
            At(2, 0),
            4096,
            regs::LOCAL_ACCESS,
        ),
        (
            (lw, rw),
            write,
            At(1, 0),
            At(2, 1),
            4096,
            regs::REMOTE_ACCESS,
        ),
        (
            (lw, rw),
            write,
            At(1, u64::MAX),
            At(2, 0),
            2,
            regs::LOCAL_ACCESS,
        ),
        (
            (lw, rw),
            write,
            At(1, 0),
            At(2, u64::MAX),
            2,
            regs::REMOTE_ACCESS,
        ),
        (
            (lw, rw),
            write,
            At(0x0100_0001, 0),
            At(2, 0),
            2,
            regs::LOCAL_ACCESS,
        ),
        (
            (lw, rw),
            write,
            At(1, 0),
            At(0x0100_0002, 0),
            2,
            regs::REMOTE_ACCESS,
        ),
        (
            (lw, rw),
            write,
            At(1, 0),
            At(2, 0),
            (1 << 31) + 1,
            regs::BAD_REQUEST,
        ),
        ((lw, rw), 9, At(1, 0), At(2, 0), 8, regs::BAD_REQUEST),
        (
            (lw, lw),
            regs::SEND,
            At(1, 0),
            At(7, 0),
            8,
            regs::BAD_REQUEST,
        ),
        ((lw, lw), regs::SEND, At(1, 0), At(0, 0), 1001, regs::LENGTH),
        (
            (lw, rw),
            regs::SEND,
            At(1, 0),
            At(0, 0),
            8,
            regs::REMOTE_ACCESS,
        ),
    ];
    for (i, (access, opcode, local, remote, length, expected)) in cases.into_iter().enumerate() {
        assert_eq!(
            status_of(access, opcode, local, remote, length),
            expected,
            "case {i}"
        );
    }
}

#[test]
fn receive_entries_complete_with_errors() {
    let (mut a, mut b) = Host::paired();
    a.region(1, ALL, 4096);
    b.region(2, ALL, 4096);
    b.post_recv(0, 5, At(2, 0), 10);
    b.post_recv(0, 6, At(2, 0), 10);
    a.post(0, regs::SEND, 1, At(1, 0), At(0, 0), 11);
    assert_eq!(a.poll(0).status, regs::LENGTH);
    let first = b.poll(0);
    assert_eq!(
        (first.id, first.status, first.opcode),
        (5, regs::LENGTH, regs::RECV)
    );
    let second = b.poll(0);
    assert_eq!((second.id, second.status), (6, regs::FLUSHED));
}

#[test]
fn reserved_bits_in_a_request_are_refused() {
    let (mut a, _b) = Host::paired();
    let mut entry = [0; 64];
    entry[0] = 1;
    entry[63] = 1;
    a.post_raw(0, &entry);
    assert_eq!(a.poll(0).status, regs::BAD_REQUEST);
}

#[test]
fn refused_dma_ends_the_request() {
    let (mut a, mut b) = Host::paired();
    a.region(1, ALL, 4096);
    b.region_at(2, ALL, 0xdead_0000_0000, 4096);
    a.post(0, regs::WRITE, 1, At(1, 0), At(2, 0), 64);
    assert_eq!(a.poll(0).status, regs::DMA_ERROR);
    let (mut a, mut b2) = Host::paired();
    a.region_at(1, ALL, 0xdead_0000_0000, 4096);
    b2.region(2, ALL, 4096);
    a.post(0, regs::WRITE, 1, At(1, 0), At(2, 0), 64);
    assert_eq!(a.poll(0).status, regs::DMA_ERROR);
    assert_eq!(b2.counter(Counter::RamWriteBytes), 0);
}

#[test]
fn injected_faults_happen() {
    let (mut a, mut b) = Host::paired();
    a.region(1, ALL, 4096);
    b.region(2, ALL, 4096);
    a.nic.shared().injector.set(vnic::What::DropInterrupt, 1, 0);
    let before = a.memory.interrupts(regs::VECTOR_COMPLETIONS);
    a.post(0, regs::WRITE, 1, At(1, 0), At(2, 0), 64);
    assert_eq!(a.poll(0).status, 0);
    a.post(0, regs::WRITE, 2, At(1, 0), At(2, 0), 64);
    assert_eq!(a.poll(0).status, 0);
    a.until("interrupt", |h| {
        h.memory.interrupts(regs::VECTOR_COMPLETIONS) == before + 1
    });
    b.nic.shared().injector.set(vnic::What::DmaError, 1, 0);
    a.post(0, regs::WRITE, 3, At(1, 0), At(2, 0), 64);
    assert_eq!(a.poll(0).status, regs::DMA_ERROR);
}

#[test]
fn loopback_pairs_two_queue_pairs_or_one_with_itself() {
    let mut h = Host::new(true);
    let (src, dst) = (h.region(1, ALL, 100_000), h.region(2, ALL, 100_000));
    let data = pattern(5, 100_000);
    h.memory.put(src, &data);
    for qp in [3, 4, 9] {
        h.create_qp(qp, 3);
    }
    h.connect(3, 4);
    h.post(3, regs::WRITE, 1, At(1, 0), At(2, 0), 100_000);
    std::thread::sleep(std::time::Duration::from_millis(10));
    assert_eq!(h.try_poll(3), None, "one end alone does not run");
    h.connect(4, 3);
    assert_eq!(h.poll(3).status, 0);
    assert_eq!(h.memory.get(dst, 100_000), data);
    h.connect(9, 9);
    h.post(9, regs::READ, 1, At(2, 0), At(1, 50_000), 50_000);
    assert_eq!(h.poll(9).status, 0);
    assert_eq!(h.memory.get(dst, 50_000), data[50_000..]);
}

#[test]
fn a_full_completion_queue_is_an_error_that_flushes_later() {
    let (mut a, mut b) = Host::wired();
    for host in [&mut a, &mut b] {
        host.create_qp(0, 2);
        host.connect(0, 0);
        host.region(1, ALL, 4096);
    }
    for id in 0..4 {
        a.post(0, regs::WRITE, id, At(1, 0), At(1, 0), 8);
        assert_eq!(a.peek_next(0).status, 0);
    }
    // No room: this completion is lost.
    a.post(0, regs::WRITE, 4, At(1, 0), At(1, 0), 8);
    a.post(0, regs::WRITE, 5, At(1, 0), At(1, 0), 8);
    a.until("error", |h| {
        vnic::control::queues(h.nic.shared())[0]["phase"] == "error"
    });
    assert_eq!(a.try_poll(0), None);
    a.consume(0);
    let done = a.poll(0);
    assert_eq!((done.id, done.status), (5, regs::FLUSHED));
}

fn segments() -> impl Strategy<Value = Vec<(u64, u64)>> {
    // Gaps keep the segments apart; odd lengths make pieces that meet at odd places.
    prop::collection::vec((0u64..5000, 1u64..9000), 1..40)
}

/// Lays segments out in `span` bytes from `base`, every second one from the far end.
fn lay_out(base: u64, list: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut low = base;
    let mut high = base + (1 << 20);
    list.iter()
        .enumerate()
        .map(|(i, &(gap, len))| {
            if i % 2 == 0 {
                low += gap;
                low += len;
                (low - len, len)
            } else {
                high -= gap + len;
                (high, len)
            }
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn scattered_regions_act_like_flat_ones(
        left in segments(), right in segments(), cut in any::<[u32; 3]>(), read in any::<bool>(),
        peer in any::<bool>()
    ) {
        let (mut a, mut b) = Host::paired();
        let total = |list: &[(u64, u64)]| list.iter().map(|s| s.1).sum::<u64>();
        let (ltotal, rtotal) = (total(&left), total(&right));
        let arena = a.alloc(1 << 20);
        let left = lay_out(arena, &left);
        let arena = if peer { PEER } else { b.alloc(1 << 20) };
        let right = lay_out(arena, &right);
        a.create_region(1, ALL, ltotal);
        b.create_region(2, ALL, rtotal);
        prop_assert_eq!(a.map(1, &left), 0);
        prop_assert_eq!(b.map(2, &right), 0);
        let scatter = |h: &Host, list: &[(u64, u64)], data: &[u8]| {
            let mut at = 0;
            for &(addr, len) in list {
                h.memory.put(addr, &data[at..at + len as usize]);
                at += len as usize;
            }
        };
        let gather = |h: &Host, list: &[(u64, u64)]| {
            list.iter().flat_map(|&(addr, len)| h.memory.get(addr, len as usize)).collect::<Vec<_>>()
        };
        let (mut ldata, mut rdata) = (pattern(1, ltotal as usize), pattern(99, rtotal as usize));
        scatter(&a, &left, &ldata);
        scatter(&b, &right, &rdata);
        let loff = u64::from(cut[0]) % ltotal;
        let roff = u64::from(cut[1]) % rtotal;
        let len = u64::from(cut[2]) % ((ltotal - loff).min(rtotal - roff) + 1);
        let (l, r) = (loff as usize..(loff + len) as usize, roff as usize..(roff + len) as usize);
        let opcode = if read { regs::READ } else { regs::WRITE };
        if read {
            ldata[l].copy_from_slice(&rdata[r]);
        } else {
            rdata[r].copy_from_slice(&ldata[l]);
        }
        a.post(0, opcode, 1, At(1, loff), At(2, roff), len);
        let done = a.poll(0);
        prop_assert_eq!((done.status, done.length), (0, len));
        prop_assert!(gather(&a, &left) == ldata);
        prop_assert!(gather(&b, &right) == rdata);
    }
}
