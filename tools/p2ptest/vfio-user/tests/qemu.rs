// SPDX-License-Identifier: GPL-2.0

//! The example device under the stock QEMU, driven through QEMU's qtest protocol: no guest code.
//!
//! `P2P_QEMU_ROOT` names a folder with QEMU 11.1 in it (entered by chroot), or `/`:
//! `P2P_QEMU_ROOT=/ cargo test --test qemu -- --ignored`

#[path = "../examples/mover/model.rs"]
mod model;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use model::{DST, GO, ID, ID_VALUE, LEN, Mover, RESETS, RESULT, SRC, STATUS, WINDOW};
use p2p_vfio_user::{Backing, Server, SharedMemory, Stop};
use tempfile::TempDir;

const RAM: u64 = 0x0100_0000;
const BAR0: u64 = 0xe000_0000;
const BAR2: u64 = 0xe200_0000;
const BAR4: u64 = 0xe010_0000;
/// From one device's BARs to the next one's.
const STRIDE: u64 = 0x0040_0000;

/// A served device and its thread.
struct Served {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
    writes: Arc<Mutex<Vec<usize>>>,
}

impl Served {
    fn new(path: &Path, window: Backing) -> Self {
        let mut server = Server::bind(path, model::config(window)).unwrap();
        let stop = server.stop_handle();
        let mut device = Mover::new(server.bus(), server.interrupts()).unwrap();
        let writes = Arc::clone(&device.writes);
        let thread = Some(thread::spawn(move || server.run(&mut device).unwrap()));
        Self {
            stop,
            thread,
            writes,
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.stop();
        self.thread.take().unwrap().join().unwrap();
    }
}

struct Qemu {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    served: Vec<Served>,
    _folder: TempDir,
}

impl Qemu {
    /// Two devices, each below a root port of its own (buses 1 and 2), with BARs and bus mastering
    /// set up.
    fn new(windows: [Backing; 2]) -> Self {
        let root = PathBuf::from(std::env::var_os("P2P_QEMU_ROOT").expect("P2P_QEMU_ROOT"));
        let folder = tempfile::tempdir_in(root.join("tmp")).unwrap();
        let inside = Path::new("/").join(folder.path().strip_prefix(&root).unwrap());
        let mut command = if root == Path::new("/") {
            Command::new("qemu-system-x86_64")
        } else {
            let mut command = Command::new("chroot");
            command.arg(&root).arg("qemu-system-x86_64");
            command
        };
        command
            .args([
                "-machine",
                "q35,memory-backend=ram",
                "-accel",
                "qtest",
                "-qtest",
                "stdio",
            ])
            .args(["-object", "memory-backend-memfd,id=ram,size=256M,share=on"])
            .args(["-nodefaults", "-display", "none"]);
        let mut served = Vec::new();
        for (index, window) in windows.into_iter().enumerate() {
            let name = format!("{index}.sock");
            served.push(Served::new(&folder.path().join(&name), window));
            let path = inside.join(&name);
            command.args([
                "-device",
                &format!(
                    "pcie-root-port,id=p{index},bus=pcie.0,addr={:#x},chassis={}",
                    port_slot(index as u64),
                    index + 1
                ),
                "-device",
                &format!(
                    r#"{{"driver":"vfio-user-pci","bus":"p{index}","rombar":0,"socket":{{"path":"{}","type":"unix"}}}}"#,
                    path.display()
                ),
            ]);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("QEMU");
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut qemu = Self {
            child,
            input,
            output,
            served,
            _folder: folder,
        };
        for device in 0..2 {
            qemu.set_up(device);
        }
        qemu
    }

    fn command(&mut self, text: &str) -> String {
        writeln!(self.input, "{text}").unwrap();
        loop {
            let mut line = String::new();
            assert_ne!(
                self.output.read_line(&mut line).unwrap(),
                0,
                "QEMU ended at: {text}"
            );
            if let Some(rest) = line.trim_end().strip_prefix("OK") {
                return rest.trim_start().to_owned();
            }
            assert!(
                !line.starts_with("FAIL") && !line.starts_with("ERR"),
                "{text}: {line}"
            );
        }
    }

    fn number(&mut self, text: &str) -> u64 {
        let answer = self.command(text);
        u64::from_str_radix(answer.trim_start_matches("0x"), 16).unwrap()
    }

    fn read32(&mut self, address: u64) -> u32 {
        self.number(&format!("readl {address:#x}")) as u32
    }

    fn write32(&mut self, address: u64, value: u32) {
        self.command(&format!("writel {address:#x} {value:#x}"));
    }

    fn write64(&mut self, address: u64, value: u64) {
        self.command(&format!("writeq {address:#x} {value:#x}"));
    }

    fn bytes(&mut self, address: u64, len: usize) -> Vec<u8> {
        let text = self.command(&format!("read {address:#x} {len:#x}"));
        let text = text.trim_start_matches("0x");
        let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
        (0..text.len()).step_by(2).map(byte).collect()
    }

    fn set_bytes(&mut self, address: u64, data: &[u8]) {
        let text: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
        self.command(&format!("write {address:#x} {:#x} 0x{text}", data.len()));
    }

    /// Points the configuration ports at a register of (bus, device).
    fn point(&mut self, (bus, device): (u64, u64), offset: u64) {
        let address = 1 << 31 | bus << 16 | device << 11 | offset & 0xfc;
        self.command(&format!("outl 0xcf8 {address:#x}"));
    }

    fn config32(&mut self, place: (u64, u64), offset: u64) -> u32 {
        self.point(place, offset);
        self.number("inl 0xcfc") as u32
    }

    fn set_config32(&mut self, place: (u64, u64), offset: u64, value: u32) {
        self.point(place, offset);
        self.command(&format!("outl 0xcfc {value:#x}"));
    }

    fn set_config16(&mut self, place: (u64, u64), offset: u64, value: u16) {
        self.point(place, offset);
        self.command(&format!("outw {:#x} {value:#x}", 0xcfc + (offset & 2)));
    }

    fn set_up(&mut self, device: u64) {
        let port = (0, port_slot(device));
        let bus = device + 1;
        self.set_config32(port, 0x18, (bus << 16 | bus << 8) as u32);
        let (base, window) = (BAR0 + device * STRIDE, BAR2 + device * STRIDE);
        let limits = |first: u64, last: u64| (first >> 16 & 0xfff0 | last & 0xfff0_0000) as u32;
        self.set_config32(port, 0x20, limits(base, base + STRIDE - 1));
        self.set_config32(
            port,
            0x24,
            limits(window, window + STRIDE - 1) | 0x0001_0001,
        );
        self.set_config32(port, 0x28, 0);
        self.set_config32(port, 0x2c, 0);
        self.set_config16(port, 0x04, 0x6);
        self.set_up_device(device);
    }

    fn set_up_device(&mut self, device: u64) {
        let endpoint = (device + 1, 0);
        let at = device * STRIDE;
        for (bar, value) in [
            (0x10, BAR0 + at),
            (0x18, BAR2 + at),
            (0x1c, 0),
            (0x20, BAR4 + at),
        ] {
            self.set_config32(endpoint, bar, value as u32);
        }
        self.set_config16(endpoint, 0x04, 0x6);
    }

    /// Has a device copy, waits for the end and returns the result.
    fn copy(&mut self, device: u64, src: u64, dst: u64, len: u32) -> u32 {
        let base = BAR0 + device * STRIDE;
        let before = self.read32(base + STATUS);
        self.write64(base + SRC, src);
        self.write64(base + DST, dst);
        self.write32(base + LEN, len);
        self.write32(base + GO, 1);
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.read32(base + STATUS) == before {
            assert!(Instant::now() < deadline, "the copy does not end");
            thread::sleep(Duration::from_millis(1));
        }
        self.read32(base + RESULT)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where on the root bus a device's port is.
fn port_slot(device: u64) -> u64 {
    device << 4 | 8
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + (at >> 8)) as u8).collect()
}

fn trapped() -> [Backing; 2] {
    [Backing::Trapped, Backing::Trapped]
}

fn mapped() -> ([Backing; 2], [Arc<SharedMemory>; 2]) {
    let memory = [(); 2].map(|()| Arc::new(SharedMemory::new(WINDOW).unwrap()));
    (memory.clone().map(Backing::Mapped), memory)
}

#[test]
#[ignore = "needs QEMU: P2P_QEMU_ROOT"]
fn device_is_found_with_its_bars() {
    let mut qemu = Qemu::new(trapped());
    for device in 0..2 {
        assert_eq!(qemu.config32((device + 1, 0), 0), 0x2fff_1234);
        assert_eq!(qemu.config32((device + 1, 0), 8), 0xff00_0001);
        assert_eq!(qemu.read32(BAR0 + device * STRIDE + ID), ID_VALUE);
    }
    qemu.set_config32((1, 0), 0x18, u32::MAX);
    assert_eq!(qemu.config32((1, 0), 0x18), !(WINDOW as u32 - 1) | 0xc);
}

#[test]
#[ignore = "needs QEMU: P2P_QEMU_ROOT"]
fn dma_reaches_guest_memory() {
    let mut qemu = Qemu::new(trapped());
    let data = pattern(300_001);
    qemu.set_bytes(RAM + 3, &data);
    assert_eq!(qemu.copy(0, RAM + 3, 2 * RAM + 1, 300_001), 0);
    assert!(qemu.bytes(2 * RAM + 1, data.len()) == data);
}

#[test]
#[ignore = "needs QEMU: P2P_QEMU_ROOT"]
fn dma_reaches_a_trapped_peer() {
    let mut qemu = Qemu::new(trapped());
    let data = pattern(200_000);
    qemu.set_bytes(RAM, &data);
    assert_eq!(qemu.copy(0, RAM, BAR2 + STRIDE + 16, 200_000), 1);
    assert_eq!(qemu.copy(0, BAR2 + STRIDE + 16, 2 * RAM, 200_000), 1);
    assert!(qemu.bytes(2 * RAM, data.len()) == data);
    assert!(!qemu.served[1].writes.lock().unwrap().is_empty());
}

#[test]
#[ignore = "needs QEMU: P2P_QEMU_ROOT"]
fn dma_reaches_a_mapped_peer_without_messages() {
    let (windows, memory) = mapped();
    let mut qemu = Qemu::new(windows);
    let data = pattern(WINDOW as usize);
    qemu.set_bytes(RAM, &data);
    assert_eq!(qemu.copy(0, RAM, BAR2 + STRIDE, WINDOW as u32), 1);
    let mut there = vec![0; data.len()];
    memory[1].read(0, &mut there).unwrap();
    assert!(there == data);
    assert_eq!(qemu.read32(BAR2 + STRIDE + 4).to_le_bytes(), data[4..8]);
    qemu.write32(BAR2 + STRIDE + 8, 0x1234_5678);
    let mut word = [0; 4];
    memory[1].read(8, &mut word).unwrap();
    assert_eq!(u32::from_le_bytes(word), 0x1234_5678);
    assert!(qemu.served[1].writes.lock().unwrap().is_empty());
}

#[test]
#[ignore = "needs QEMU: P2P_QEMU_ROOT"]
fn posted_writes_all_arrive_in_order() {
    let mut qemu = Qemu::new(trapped());
    let data = pattern(WINDOW as usize);
    qemu.set_bytes(BAR2, &data);
    assert!(qemu.bytes(BAR2, data.len()) == data);
}

#[test]
#[ignore = "needs QEMU: P2P_QEMU_ROOT"]
fn unclaimed_address_is_unmapped() {
    let mut qemu = Qemu::new(trapped());
    assert_eq!(qemu.copy(0, RAM, 0xd000_0000, 64), 3);
    assert_eq!(qemu.copy(0, 0xd000_0000, RAM, 64), 3);
}

#[test]
#[ignore = "needs QEMU: P2P_QEMU_ROOT"]
fn dma_needs_the_bus_master_bit() {
    let mut qemu = Qemu::new(trapped());
    qemu.set_config16((1, 0), 0x04, 0x2);
    assert_eq!(qemu.copy(0, RAM, 2 * RAM, 64), 2);
    qemu.set_config16((1, 0), 0x04, 0x6);
    assert_eq!(qemu.copy(0, RAM, 2 * RAM, 64), 0);
}

#[test]
#[ignore = "needs QEMU: P2P_QEMU_ROOT"]
fn msix_is_delivered_also_after_a_function_level_reset() {
    let mut qemu = Qemu::new(trapped());
    // An MSI is a write: this one goes to memory, where it can be seen.
    let message = 3 * RAM;
    for round in 0..2u32 {
        let value = 0xabcd + round;
        qemu.write64(BAR4, message);
        qemu.write32(BAR4 + 8, value);
        qemu.write32(BAR4 + 12, 0);
        qemu.set_config16((1, 0), 0x82, 0x8000);
        assert_eq!(qemu.copy(0, RAM, 2 * RAM, 64), 0);
        let deadline = Instant::now() + Duration::from_secs(60);
        while qemu.read32(message) != value {
            assert!(Instant::now() < deadline, "no interrupt in round {round}");
            thread::sleep(Duration::from_millis(1));
        }
        let resets = qemu.read32(BAR0 + RESETS);
        qemu.set_config16((1, 0), 0x48, 0x8000);
        assert_eq!(
            qemu.read32(BAR0 + RESETS),
            u32::MAX,
            "the memory bit is clear"
        );
        qemu.set_up_device(0);
        assert_eq!(qemu.read32(BAR0 + RESETS), resets + 1);
    }
}

#[test]
#[ignore = "needs QEMU: P2P_QEMU_ROOT"]
fn machine_reset_resets_the_device() {
    let mut qemu = Qemu::new(trapped());
    let resets = qemu.read32(BAR0 + RESETS);
    // The reset control register of the chipset: a hard reset.
    qemu.command("outb 0xcf9 0x6");
    // It forgets where the device's registers are: nothing answers there.
    assert!(![0, u32::MAX].contains(&resets));
    let deadline = Instant::now() + Duration::from_secs(60);
    while qemu.read32(BAR0 + RESETS) == resets {
        assert!(Instant::now() < deadline, "the machine is not reset");
        thread::sleep(Duration::from_millis(1));
    }
    for device in 0..2 {
        qemu.set_up(device);
    }
    assert!(qemu.read32(BAR0 + RESETS) > resets);
    assert_eq!(qemu.copy(0, RAM, 2 * RAM, 4096), 0);
}
