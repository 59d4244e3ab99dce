// SPDX-License-Identifier: GPL-2.0

//! DMA: to mapped memory, by message, across both, and while memory comes and goes.

mod common;

use common::{Client, Served, get, guest_memory, pattern, put};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::thread;
use std::time::{Duration, Instant};

const RAM: u64 = 0x1000_0000;
const SIZE: u64 = 1 << 20;
const PEER: u64 = RAM + SIZE;

fn client(served: &Served) -> (Client, std::os::fd::OwnedFd) {
    let mut client = Client::new(&served.path()).enable();
    let ram = guest_memory(SIZE);
    client.map(&ram, 0, RAM, SIZE).unwrap();
    client.peer.base = PEER;
    client.peer.bytes = vec![0; 1 << 20];
    (client, ram)
}

#[test]
fn ram_is_copied_without_messages() {
    let served = Served::trapped();
    let (mut client, ram) = client(&served);
    let data = pattern(400_003);
    put(&ram, 5, &data);
    assert_eq!(client.copy(RAM + 5, RAM + 500_001, 400_003), 0);
    assert!(get(&ram, 500_001, data.len()) == data);
    assert!(client.peer.log.is_empty());
}

#[test]
fn offsets_of_maps_are_honoured() {
    let served = Served::trapped();
    let (mut client, ram) = client(&served);
    client.map(&ram, 0x3000, 0x5000, 0x2000).unwrap();
    put(&ram, 0x4ffe, &[1, 2]);
    assert_eq!(client.copy(0x6ffe, RAM, 2), 0);
    assert_eq!(get(&ram, 0, 2), [1, 2]);
}

#[test]
fn peers_get_messages_of_a_bounded_size() {
    let served = Served::trapped();
    let (mut client, ram) = client(&served);
    let data = pattern(300_000);
    put(&ram, 0, &data);
    assert_eq!(client.copy(RAM, PEER + 7, 300_000), 1);
    assert!(client.peer.bytes[7..300_007] == data);
    assert_eq!(client.copy(PEER + 7, RAM + 300_000, 300_000), 1);
    assert!(get(&ram, 300_000, data.len()) == data);
    assert!(client.peer.log.len() > 8);
    assert!(client.peer.log.iter().all(|&(_, _, count)| count <= 65536));
}

#[test]
fn the_clients_limit_is_kept() {
    let served = Served::trapped();
    let mut client = Client::with_limit(&served.path(), 100).enable();
    client.peer.bytes = vec![1; 1000];
    assert_eq!(client.copy(0, 500, 450), 1);
    assert!(client.peer.log.iter().all(|&(_, _, count)| count <= 100));
}

#[test]
fn a_transfer_across_the_end_of_ram_is_split() {
    let served = Served::trapped();
    let (mut client, ram) = client(&served);
    let data = pattern(10_000);
    put(&ram, 0, &data);
    assert_eq!(client.copy(RAM, PEER - 4000, 10_000), 1);
    assert!(get(&ram, SIZE - 4000, 4000) == data[..4000]);
    assert!(client.peer.bytes[..6000] == data[4000..]);
    assert_eq!(client.peer.log, [(12, PEER, 6000)]);
    // And from a peer below into RAM.
    client.peer.base = RAM - 3000;
    client.peer.bytes = vec![9; 3000];
    assert_eq!(client.copy(RAM - 3000, RAM + 500_000, 5000), 1);
    assert!(get(&ram, 500_000, 3000) == [9; 3000]);
    assert!(get(&ram, 503_000, 2000) == data[..2000]);
}

#[test]
fn refusals_tell_why() {
    let served = Served::trapped();
    let (mut client, _ram) = client(&served);
    assert_eq!(client.copy(RAM, 0x10, 8), 3, "ENODEV of the client");
    assert_eq!(client.copy(u64::MAX - 3, RAM, 8), 3, "wraps");
    client.write(7, 4, &[2, 0]).unwrap();
    assert_eq!(client.copy(RAM, RAM + 64, 8), 2, "no bus master");
}

#[test]
fn unmapped_memory_is_not_touched_again() {
    let served = Served::trapped();
    let (mut client, ram) = client(&served);
    assert_eq!(client.unmap(RAM, SIZE), Ok(SIZE));
    assert_eq!(client.copy(RAM, RAM + 64, 8), 3);
    // The same address again, elsewhere in the file.
    client.map(&ram, 0x1000, RAM, 0x1000).unwrap();
    put(&ram, 0x1000, b"there");
    assert_eq!(client.copy(RAM, RAM + 64, 5), 0);
    assert_eq!(get(&ram, 0x1040, 5), *b"there");
}

#[test]
fn bad_maps_are_refused() {
    let served = Served::trapped();
    let (mut client, ram) = client(&served);
    assert_eq!(client.map(&ram, 0, RAM, 4096), Err(17), "overlap");
    assert_eq!(
        client.map(&ram, 0, RAM - 4096, 8192),
        Err(17),
        "overlap at the end"
    );
    assert_eq!(
        client.map(&ram, 0, RAM - 4096, SIZE * 8),
        Err(17),
        "overlap of all"
    );
    assert_eq!(client.map(&ram, 0, 0, 0), Err(22), "empty");
    assert_eq!(client.map(&ram, 0, u64::MAX - 4095, 8192), Err(22), "wraps");
    assert_eq!(
        client.map(&ram, 4096, 0, SIZE),
        Err(22),
        "past the end of the file"
    );
    assert_eq!(client.map(&ram, u64::MAX, 0, 4096), Err(22), "offset wraps");
    assert_eq!(client.unmap(RAM, 4096), Err(22), "a part");
    assert_eq!(client.unmap(RAM + 4096, SIZE), Err(22), "a part at the end");
    assert_eq!(client.unmap(0, 0), Err(22), "empty");
    assert_eq!(client.unmap(0, RAM), Ok(0), "nothing there");
    assert_eq!(
        client.call(2, &fields![32u32, 4u32, 0u64, 0u64, 4096u64]),
        Err(22),
        "flags"
    );
    assert_eq!(
        client.copy(RAM, RAM + 64, 8),
        0,
        "and what was mapped still is"
    );
}

#[test]
fn a_file_that_may_shrink_goes_by_message() {
    let served = Served::trapped();
    let (mut client, _ram) = client(&served);
    let file = memfd_create("unsealed", MemfdFlags::empty()).unwrap();
    ftruncate(&file, 1 << 20).unwrap();
    client.map(&file, 0, PEER, 1 << 20).unwrap();
    ftruncate(&file, 0).unwrap();
    assert_eq!(client.copy(PEER, RAM, 4096), 1);
    assert_eq!(client.peer.log.len(), 1);
}

#[test]
fn maps_are_bounded_in_number() {
    let served = Served::trapped();
    let mut client = Client::new(&served.path());
    let map = |page: u64| fields![32u32, 3u32, 0u64, page * 4096, 4096u64];
    for page in 0..65535 {
        assert_eq!(client.call(2, &map(page)), Ok(vec![]));
    }
    assert_eq!(client.call(2, &map(65535)), Err(28));
    let all = fields![24u32, 4u32, 0u64, 0u64];
    assert!(client.call(3, &all).is_ok());
    assert_eq!(client.call(2, &map(65535)), Ok(vec![]));
}

#[test]
fn a_client_that_goes_ends_the_wait_of_its_dma() {
    let served = Served::trapped();
    let (mut client, _ram) = client(&served);
    client.hold = true;
    client.start(RAM, PEER, 8);
    let request = client.next_dma();
    assert_eq!((request.command, request.flags), (12, 0));
    drop(client);
    let gone = Instant::now();
    let mut client = Client::new(&served.path()).enable();
    while client.read32(0, common::model::STATUS) == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    // Well before the wait would end by itself.
    assert!(gone.elapsed() < Duration::from_secs(25));
    assert_eq!(client.read32(0, common::model::RESULT), 4);
    assert_eq!(
        client.copy(RAM, RAM + 64, 8),
        3,
        "the other client's memory is gone"
    );
}

#[test]
fn requests_are_served_while_a_dma_waits() {
    let served = Served::trapped();
    let (mut client, _ram) = client(&served);
    client.hold = true;
    client.start(RAM, PEER, 8);
    let request = client.next_dma();
    for _ in 0..100 {
        assert_eq!(client.read32(0, common::model::STATUS), 0);
    }
    client.serve(&request);
    while client.read32(0, common::model::STATUS) == 0 {}
    assert_eq!(client.read32(0, common::model::RESULT), 1);
}

#[test]
fn malformed_answers_fail_the_dma_or_the_connection() {
    let served = Served::trapped();
    let (mut client, _ram) = client(&served);
    client.hold = true;
    client.start(PEER, RAM, 8);
    let request = client.next_dma();
    let short = [
        common::header(request.id, 11, 16 + 16 + 4, 1, 0),
        request.payload,
        vec![0; 4],
    ];
    client.send(&short.concat());
    while client.read32(0, common::model::STATUS) == 0 {}
    assert_eq!(client.read32(0, common::model::RESULT), 0x100 + 71);
    client.send(&common::header(request.id, 11, 16, 1, 0));
    assert!(client.is_cut_off(), "a reply to nothing");
}
