// SPDX-License-Identifier: GPL-2.0

//! The protocol as somebody else understood it: the client of the crate `vfio_user`.

mod common;

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use common::model::{self, DST, GO, ID, ID_VALUE, LEN, RESETS, RESULT, SRC, STATUS, WINDOW};
use common::{Served, get, guest_memory, pattern, put};
use p2p_vfio_user::{Backing, SharedMemory};
use rustix::event::{EventfdFlags, eventfd};
use vfio_user::Client;

const CONFIG: u32 = 7;
const MSIX: u32 = 2;
const EVENTFD_TRIGGER: u32 = 4 | 32;
const NONE_TRIGGER: u32 = 1 | 32;

fn read32(client: &mut Client, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    client.region_read(0, offset, &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

fn enable(client: &mut Client) {
    client.region_write(CONFIG, 4, &[6, 0]).unwrap();
    client.region_write(CONFIG, 0x82, &[0, 0x80]).unwrap();
}

fn count(event: &OwnedFd) -> u64 {
    let mut bytes = [0; 8];
    rustix::io::read(event, &mut bytes).map_or(0, |_| u64::from_ne_bytes(bytes))
}

#[test]
fn regions_and_interrupts_are_described() {
    let served = Served::trapped();
    let mut client = Client::new(&served.path()).unwrap();
    let sizes: Vec<u64> = (0..9)
        .map(|index| client.region(index).unwrap().size)
        .collect();
    assert_eq!(sizes, [4096, 0, WINDOW, 0, 4096, 0, 0, 4096, 0]);
    assert!((0..9).all(|index| client.region(index).unwrap().file_offset.is_none()));
    assert_eq!(client.get_irq_info(MSIX).unwrap().count, 2);
    assert_eq!(client.get_irq_info(0).unwrap().count, 0);
}

#[test]
fn registers_answer_once_memory_is_enabled() {
    let served = Served::trapped();
    let mut client = Client::new(&served.path()).unwrap();
    assert_eq!(read32(&mut client, ID), u32::MAX);
    enable(&mut client);
    assert_eq!(read32(&mut client, ID), ID_VALUE);
}

#[test]
fn a_mapped_bar_is_the_same_memory_on_both_sides() {
    let memory = Arc::new(SharedMemory::new(WINDOW).unwrap());
    let served = Served::new(Backing::Mapped(Arc::clone(&memory)));
    let mut client = Client::new(&served.path()).unwrap();
    let region = client.region(2).unwrap();
    assert_eq!(region.flags, 7);
    let file = region.file_offset.as_ref().unwrap().file();
    let file = OwnedFd::from(file.try_clone().unwrap());
    put(&file, WINDOW - 5, b"there");
    let mut data = [0; 5];
    memory.read(WINDOW - 5, &mut data).unwrap();
    assert_eq!(data, *b"there");
    memory.write(100, b"back").unwrap();
    assert_eq!(get(&file, 100, 4), *b"back");
    // Messages reach it too.
    enable(&mut client);
    client.region_write(2, 200, b"message").unwrap();
    assert_eq!(get(&file, 200, 7), *b"message");
}

#[test]
fn dma_and_its_interrupt() {
    let served = Served::trapped();
    let mut client = Client::new(&served.path()).unwrap();
    enable(&mut client);
    let ram = guest_memory(1 << 20);
    client
        .dma_map(0, 0x10_0000, 1 << 20, ram.as_raw_fd())
        .unwrap();
    let event = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    client
        .set_irqs(MSIX, EVENTFD_TRIGGER, 0, 1, &[event.as_raw_fd()])
        .unwrap();
    let data = pattern(5000);
    put(&ram, 0, &data);
    client
        .region_write(0, SRC, &0x10_0000_u64.to_le_bytes())
        .unwrap();
    client
        .region_write(0, DST, &0x10_8000_u64.to_le_bytes())
        .unwrap();
    client
        .region_write(0, LEN, &5000_u32.to_le_bytes())
        .unwrap();
    client.region_write(0, GO, &[1, 0, 0, 0]).unwrap();
    while count(&event) == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(
        (read32(&mut client, STATUS), read32(&mut client, RESULT)),
        (1, 0)
    );
    assert!(get(&ram, 0x8000, 5000) == data);
    client.set_irqs(MSIX, NONE_TRIGGER, 0, 0, &[]).unwrap();
    client.dma_unmap(0x10_0000, 1 << 20).unwrap();
}

#[test]
fn resets_of_both_kinds_reach_the_device() {
    let served = Served::trapped();
    let mut client = Client::new(&served.path()).unwrap();
    enable(&mut client);
    let before = read32(&mut client, RESETS);
    client.reset().unwrap();
    assert_eq!(read32(&mut client, ID), u32::MAX);
    enable(&mut client);
    client.region_write(CONFIG, 0x48, &[0x10, 0x80]).unwrap();
    enable(&mut client);
    assert_eq!(read32(&mut client, RESETS), before + 2);
}

#[test]
fn clients_follow_one_another() {
    let served = Served::trapped();
    for round in 0..5 {
        let mut client = Client::new(&served.path()).unwrap();
        assert_eq!(
            read32(&mut client, ID),
            u32::MAX,
            "configuration space is new"
        );
        enable(&mut client);
        assert_eq!(
            read32(&mut client, RESETS),
            round,
            "one for each client that went"
        );
        client.shutdown().unwrap();
    }
    served.finish();
}

#[test]
fn a_taken_path_is_refused_and_left_alone() {
    let served = Served::trapped();
    let config = model::config(Backing::Trapped);
    assert!(p2p_vfio_user::Server::bind(served.path(), config).is_err());
    assert!(Client::new(&served.path()).is_ok());
}
