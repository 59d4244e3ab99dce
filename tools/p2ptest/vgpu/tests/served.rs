// SPDX-License-Identifier: GPL-2.0

//! The binary as it is served: an independent vfio-user client does what a driver does.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use std::{io::BufRead, io::BufReader, io::Write, os::unix::net::UnixStream};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use vfio_user::Client;

const CONFIG_REGION: u32 = 7;
const IOVA: u64 = 0x10_0000;
const RAM: u64 = 1 << 20;

struct Served {
    dir: TempDir,
    child: Child,
}

impl Served {
    fn new(mode: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_vgpu"))
            .args(["--vram", "1M", "--aperture", "64K", "--mode", mode])
            .arg("--socket")
            .arg(dir.path().join("gpu"))
            .arg("--control")
            .arg(dir.path().join("control"))
            .spawn()
            .unwrap();
        let served = Self { dir, child };
        until(|| served.path("control").exists());
        served
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn control(&self, line: &str) -> serde_json::Value {
        let mut stream = UnixStream::connect(self.path("control")).unwrap();
        writeln!(stream, "{line}").unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    fn terminate(&mut self) {
        kill(
            Pid::from_raw(self.child.id().cast_signed()),
            Signal::SIGTERM,
        )
        .unwrap();
        assert!(self.child.wait().unwrap().success());
        for name in ["gpu", "control"] {
            assert!(!self.path(name).exists(), "{name} is left");
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Both fail if the test ended the child itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn until(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "it never happens");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Connects, and lets the device answer and master the bus.
fn connect(served: &Served) -> Client {
    let mut client = Client::new(&served.path("gpu")).unwrap();
    enable(&mut client);
    client
}

fn enable(client: &mut Client) {
    client.region_write(CONFIG_REGION, 4, &[6, 0]).unwrap();
}

/// Memory as QEMU shares it: sealed, so that the server may map it.
fn guest_memory() -> File {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let ram = File::from(memfd_create("ram", flags).unwrap());
    ram.set_len(RAM).unwrap();
    fcntl(
        &ram,
        FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW),
    )
    .unwrap();
    ram
}

fn load(client: &mut Client, offset: u64, len: usize) -> u64 {
    let mut data = [0; 8];
    client.region_read(0, offset, &mut data[..len]).unwrap();
    u64::from_le_bytes(data)
}

fn store(client: &mut Client, offset: u64, len: usize, value: u64) {
    client
        .region_write(0, offset, &value.to_le_bytes()[..len])
        .unwrap();
}

/// Starts ring 1 with one FLUSH of all slots, slot 1 showing page 9; waits for its fence.
fn flush(client: &mut Client, ram: &File) {
    ram.write_all_at(&(IOVA + 0x1000).to_le_bytes(), 0).unwrap();
    ram.write_all_at(&(9u64 << 12 | 1).to_le_bytes(), 0x1008)
        .unwrap();
    ram.write_all_at(&16u32.to_le_bytes(), 0x2004).unwrap();
    let mut command = [0; 64];
    command[0] = 4;
    command[4] = 1;
    command[8] = 77;
    command[0x10..0x18].copy_from_slice(&(IOVA + 0x2000).to_le_bytes());
    ram.write_all_at(&command, 0x3000).unwrap();

    store(client, 0x28, 8, IOVA);
    store(client, 0xa0, 8, IOVA + 0x3000);
    store(client, 0xa8, 8, IOVA + 0x4000);
    store(client, 0xb0, 4, 4);
    store(client, 0xb4, 4, 1);
    store(client, 0xb8, 4, 1);
    until(|| {
        let mut done = [0];
        ram.read_exact_at(&mut done, 0x4000).unwrap();
        done == [77]
    });
}

fn a_driver_finds_its_page(mode: &str) {
    let mut served = Served::new(mode);
    let mut client = connect(&served);
    let mut id = [0; 4];
    client.region_read(CONFIG_REGION, 0, &mut id).unwrap();
    assert_eq!(id, [0x34, 0x12, 0x19, 0x20]);
    assert_eq!(load(&mut client, 0, 4), 0x4750_3250);
    assert_eq!(load(&mut client, 0x18, 8), 64 << 10);

    let ram = guest_memory();
    client.dma_map(0, IOVA, RAM, ram.as_raw_fd()).unwrap();
    flush(&mut client, &ram);
    assert_eq!(
        served.control(r#"{"cmd":"aperture"}"#)["runs"],
        serde_json::json!([[1, 9, 1]])
    );

    let window = client.region(2).unwrap().file_offset.clone();
    assert_eq!(window.is_some(), mode == "mapped");
    let mut bytes = [0; 8];
    match window {
        Some(window) => {
            window.file().write_all_at(b"to page9", 0x1000).unwrap();
            window.file().read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(bytes, [0xa5; 8]);
        }
        None => {
            client.region_write(2, 0x1000, b"to page9").unwrap();
            client.region_read(2, 0, &mut bytes).unwrap();
            assert_eq!(bytes, [0xff; 8]);
            let faults = served.control(r#"{"cmd":"faults"}"#);
            assert_eq!(faults["log"][0]["kind"], "INVALID_SLOT");
        }
    }
    client.region_read(2, 0x1000, &mut bytes).unwrap();
    assert_eq!(&bytes, b"to page9");

    client.reset().unwrap();
    enable(&mut client);
    until(|| load(&mut client, 0xc, 4) == 1);
    assert_eq!(load(&mut client, 0x28, 8), 0);
    assert_eq!(served.control(r#"{"cmd":"aperture"}"#)["installed"], 0);
    served.terminate();
}

#[test]
fn a_driver_finds_its_page_trapped() {
    a_driver_finds_its_page("trapped");
}

#[test]
fn a_driver_finds_its_page_mapped() {
    a_driver_finds_its_page("mapped");
}

#[test]
fn a_removed_device_is_gone_and_still_tells_what_it_counted() {
    let mut served = Served::new("trapped");
    let mut client = connect(&served);
    load(&mut client, 0, 4);
    assert_eq!(served.control(r#"{"cmd":"remove"}"#)["ok"], true);
    until(|| client.region_read(0, 0, &mut [0; 4]).is_err());
    until(|| !served.path("gpu").exists());
    let counters = served.control(r#"{"cmd":"counters"}"#);
    assert!(counters["counters"]["REG_READS"].as_u64().unwrap() >= 1);
    served.terminate();
}

#[test]
fn the_next_machine_finds_the_device_as_at_power_on() {
    let mut served = Served::new("trapped");
    let ram = guest_memory();
    let mut client = connect(&served);
    client.dma_map(0, IOVA, RAM, ram.as_raw_fd()).unwrap();
    flush(&mut client, &ram);
    client.shutdown().unwrap();
    drop(client);

    let mut client = connect(&served);
    until(|| load(&mut client, 0xc, 4) == 1);
    assert_eq!(
        (load(&mut client, 0x28, 8), load(&mut client, 0xbc, 4)),
        (0, 0)
    );
    assert_eq!(load(&mut client, 0x130, 8), 0, "counters begin anew");
    served.terminate();
}
