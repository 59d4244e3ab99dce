// SPDX-License-Identifier: GPL-2.0

//! What a client must not send ends in an errno or in the end of its connection: never in a
//! panic, a hang, or harm to the next client.

mod common;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use common::model::{ID, ID_VALUE};
use common::{Client, Served, guest_memory, header};
use proptest::prelude::*;

const EINVAL: u32 = 22;

/// The server still serves.
fn check_alive(served: &Served) {
    let mut client = Client::new(&served.path()).enable();
    assert_eq!(client.read32(0, ID), ID_VALUE);
}

#[test]
fn bad_headers_end_the_connection() {
    let served = Served::trapped();
    for (size, flags) in [
        (0, 0),
        (15, 0),
        (u32::MAX, 0),
        (70_000, 0),
        (16, 2),
        (16, 0x40),
        (16, 0x20),
        (16, 1),
    ] {
        let mut client = Client::new(&served.path());
        client.send(&header(1, 4, size, flags, 0));
        assert!(client.is_cut_off(), "size {size} flags {flags:#x}");
    }
    check_alive(&served);
}

#[test]
fn the_version_comes_first_and_once() {
    let served = Served::trapped();
    for (command, payload) in [
        (4, &[16u8; 16][..]),
        (1, &[1, 0, 0, 0]),
        (1, b"\0\0\0\0{\0"),
    ] {
        let mut client = Client::connect(&served.path());
        assert_eq!(client.call(command, payload), Err(EINVAL));
        assert!(client.is_cut_off());
    }
    let mut client = Client::new(&served.path());
    assert_eq!(client.call(1, &[0; 4]), Err(EINVAL));
    drop(client);
    check_alive(&served);
}

#[test]
fn unknown_and_unsupported_commands_are_told_apart() {
    let served = Served::trapped();
    let mut client = Client::new(&served.path());
    for command in [0, 16, 999, u16::MAX] {
        assert_eq!(client.call(command, &[]), Err(38), "{command}");
    }
    assert_eq!(client.call(6, &[0; 16]), Err(95));
    assert_eq!(client.call(14, &[0; 16]), Err(95));
    assert_eq!(client.call(11, &[0; 16]), Err(EINVAL));
}

#[test]
fn accesses_outside_are_refused() {
    let served = Served::trapped();
    let mut client = Client::new(&served.path()).enable();
    let window = common::model::WINDOW;
    for (region, offset, count) in [
        (0, 4093, 4),
        (0, 4096, 1),
        (0, u64::MAX, 1),
        (0, u64::MAX - 3, 4),
        (0, 0, 0),
        (2, window - 1, 2),
        (2, 0, 65537),
        (2, 0, u32::MAX),
        (1, 0, 1),
        (3, 0, 1),
        (4, 4095, 2),
        (6, 0, 1),
        (7, 4094, 4),
        (8, 0, 1),
        (9, 0, 1),
        (u32::MAX, 0, 1),
        (256, 0, 1),
    ] {
        assert_eq!(
            client.read(region, offset, count),
            Err(EINVAL),
            "{region} {offset} {count}"
        );
        let data = vec![0; count.min(65536) as usize];
        if data.len() == count as usize {
            assert_eq!(
                client.write(region, offset, &data),
                Err(EINVAL),
                "{region} {offset}"
            );
        }
    }
    let lying = fields![0u64, 2u32, 8u32, 0u32];
    assert_eq!(client.call(10, &lying), Err(EINVAL));
    assert_eq!(client.read(2, 0, 65536).map(|data| data.len()), Ok(65536));
}

#[test]
fn a_write_with_no_reply_gets_none_even_if_bad() {
    let served = Served::trapped();
    let mut client = Client::new(&served.path()).enable();
    for offset in [0u64, u64::MAX] {
        let payload = fields![offset, 2u32, 4u32, 0x1234_5678u32];
        client.send(&[header(900, 10, 36, 0x10, 0), payload].concat());
    }
    assert_eq!(client.read32(2, 0), 0x1234_5678);
}

#[test]
fn many_writes_in_one_message_are_checked_each() {
    let served = Served::trapped();
    let mut client = Client::new(&served.path()).enable();
    let one = |offset: u64, count: u32| fields![offset, 2u32, count, 0x1122_3344_5566_7788u64];
    let multi = |count: u64, writes: &[Vec<u8>]| [fields![count], writes.concat()].concat();
    assert!(client.call(15, &multi(2, &[one(0, 4), one(8, 8)])).is_ok());
    assert_eq!(
        (client.read32(2, 0), client.read32(2, 12)),
        (0x5566_7788, 0x1122_3344)
    );
    assert_eq!(client.read32(2, 4), 0);
    assert_eq!(client.call(15, &multi(1, &[one(0, 9)])), Err(EINVAL));
    assert_eq!(
        client.call(15, &multi(3, &[one(0, 4), one(8, 8)])),
        Err(EINVAL)
    );
    assert_eq!(client.call(15, &multi(u64::MAX, &[one(0, 4)])), Err(EINVAL));
    assert_eq!(client.call(15, &multi(1, &[one(u64::MAX, 8)])), Err(EINVAL));
}

#[test]
fn descriptors_where_none_belong_are_refused() {
    let served = Served::trapped();
    let mut client = Client::new(&served.path());
    let fd = guest_memory(4096);
    let map = fields![32u32, 3u32, 0u64, 0u64, 4096u64];
    assert_eq!(client.call_with(2, &map, &[fd.as_fd(); 2]), Err(EINVAL));
    assert_eq!(client.call_with(13, &[], &[fd.as_fd()]), Err(EINVAL));
    let irqs = fields![20u32, 0x24u32, 2u32, 0u32, 2u32];
    assert_eq!(client.call_with(8, &irqs, &[fd.as_fd(); 16]), Err(EINVAL));
    client.send_with(&header(0, 13, 16, 0, 0), &[fd.as_fd(); 40]);
    assert!(client.is_cut_off());
    check_alive(&served);
}

#[test]
fn half_messages_end_with_their_sender() {
    let served = Served::trapped();
    for half in [
        &header(0, 4, 32, 0, 0)[..],
        &header(0, 4, 32, 0, 0)[..7],
        &[],
    ] {
        let mut client = Client::new(&served.path());
        client.send(half);
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(client.is_cut_off());
        let mut silent = Client::connect(&served.path());
        silent.send(half);
    }
    check_alive(&served);
}

#[test]
fn slow_messages_end_the_connection() {
    let served = Served::trapped();
    let mut client = Client::new(&served.path());
    let start = Instant::now();
    client.send(&header(0, 4, 32, 0, 0));
    assert!(client.is_cut_off());
    assert!(start.elapsed() > Duration::from_secs(5));
    check_alive(&served);
}

#[test]
fn a_client_that_reads_nothing_does_not_hold_the_server() {
    let served = Served::trapped();
    let mut client = Client::new(&served.path()).enable();
    client
        .stream
        .set_write_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let read = [header(0, 9, 32, 0, 0), fields![0u64, 2u32, 65536u32]].concat();
    use std::io::Write;
    while client.stream.write_all(&read).is_ok() {}
    check_alive(&served);
}

#[test]
fn stop_ends_a_server_in_the_middle_of_a_message() {
    let served = Served::trapped();
    let mut client = Client::new(&served.path());
    client.send(&header(0, 4, 32, 0, 0));
    let start = Instant::now();
    served.finish();
    // Before a message takes too long.
    assert!(start.elapsed() < Duration::from_secs(9));
}

#[test]
fn disconnect_leaves_the_server_for_the_next_client() {
    let served = Served::trapped();
    let mut client = Client::new(&served.path());
    served.stop().disconnect();
    assert!(client.is_cut_off());
    check_alive(&served);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_payload_of_any_command_is_survived(
        messages in prop::collection::vec((0u16..18, any::<bool>(), prop::collection::vec(
            prop_oneof![Just(0u8), Just(1), Just(2), Just(4), Just(0xff), any::<u8>()], 0..80)), 1..20)
    ) {
        // One server for all cases would do, but its thread must end with the test.
        let served = Served::trapped();
        let mut client = Client::new(&served.path()).enable();
        for (command, silent, payload) in messages {
            let flags = if silent { 0x10 } else { 0 };
            let head = header(7, command, payload.len() as u32 + 16, flags, 0);
            client.send(&[head, payload].concat());
            if !silent {
                let reply = client.receive().unwrap();
                prop_assert_eq!((reply.id, reply.command, reply.flags & 0xf), (7, command, 1));
            }
        }
        prop_assert!(client.read(7, 0, 4).is_ok());
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let served = Served::trapped();
        let mut client = Client::connect(&served.path());
        client.send(&bytes);
        drop(client);
        check_alive(&served);
    }
}
