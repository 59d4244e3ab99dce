// SPDX-License-Identifier: GPL-2.0

//! The smallest device with an engine: it copies memory by DMA, then raises vector 0.
//!
//! BAR0 holds the registers below, BAR2 is plain memory, trapped or mapped.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use p2p_vfio_user::bus::{Bus, BusError, Interrupts, Target};
use p2p_vfio_user::{Backing, Bar, Config, Device, SharedMemory};

/// Bytes of BAR2.
pub const WINDOW: u64 = 1 << 20;

/// `ID`, RO.
pub const ID: u64 = 0x00;
/// What `ID` reads as: "MOVE".
pub const ID_VALUE: u32 = 0x4d4f_5645;
/// `STATUS`, RO: jobs that ended.
pub const STATUS: u64 = 0x04;
/// `SRC` and `DST`, 64 bits: DMA addresses.
pub const SRC: u64 = 0x08;
/// See [`SRC`].
pub const DST: u64 = 0x10;
/// `LEN`, 32 bits: bytes, at most 16 MiB.
pub const LEN: u64 = 0x18;
/// `GO`, WO: starts a job.
pub const GO: u64 = 0x1c;
/// `RESETS`, RO: how often the device was reset.
pub const RESETS: u64 = 0x20;
/// `RESULT`, RO: of the last job, see [`result_code`].
pub const RESULT: u64 = 0x24;

/// A job's result as a number: 0 read and written in RAM, 1 a peer was involved, else an error.
pub fn result_code(result: Result<Target, BusError>) -> u32 {
    match result {
        Ok(Target::Ram) => 0,
        Ok(Target::Peer) => 1,
        Err(BusError::NotMaster) => 2,
        Err(BusError::Unmapped) => 3,
        Err(BusError::Disconnected) => 4,
        Err(BusError::Refused(errno)) => 0x100 + errno,
    }
}

/// How the device describes itself.
pub fn config(window: Backing) -> Config {
    let bar = |size, is_64bit, backing| {
        Some(Bar {
            size,
            is_64bit,
            prefetchable: is_64bit,
            backing,
        })
    };
    Config {
        vendor: 0x1234,
        device: 0x2fff,
        class: 0xff_00_00,
        revision: 1,
        bars: [
            bar(4096, false, Backing::Trapped),
            None,
            bar(WINDOW, true, window),
            None,
            None,
            None,
        ],
        msix_vectors: 2,
    }
}

struct Job {
    src: u64,
    dst: u64,
    len: u32,
}

#[derive(Default)]
struct Shared {
    ended: AtomicU32,
    result: AtomicU32,
}

/// The device.
pub struct Mover {
    src: u64,
    dst: u64,
    len: u32,
    resets: u32,
    window: SharedMemory,
    jobs: Sender<Job>,
    shared: Arc<Shared>,
    /// Sizes of the writes to BAR2 that came as messages.
    pub writes: Arc<Mutex<Vec<usize>>>,
}

impl Mover {
    /// Starts its engine, which ends with the device.
    pub fn new(bus: Arc<dyn Bus>, interrupts: Arc<dyn Interrupts>) -> std::io::Result<Self> {
        let (jobs, work) = channel();
        let shared = Arc::<Shared>::default();
        let engine = Arc::clone(&shared);
        thread::spawn(move || run(&work, &*bus, &*interrupts, &engine));
        Ok(Self {
            src: 0,
            dst: 0,
            len: 0,
            resets: 0,
            window: SharedMemory::new(WINDOW)?,
            jobs,
            shared,
            writes: Arc::default(),
        })
    }

    fn register(&self, offset: u64) -> u64 {
        match offset {
            ID => ID_VALUE.into(),
            STATUS => self.shared.ended.load(SeqCst).into(),
            SRC => self.src,
            DST => self.dst,
            LEN => self.len.into(),
            RESETS => self.resets.into(),
            RESULT => self.shared.result.load(SeqCst).into(),
            _ => u64::MAX,
        }
    }
}

fn run(work: &Receiver<Job>, bus: &dyn Bus, interrupts: &dyn Interrupts, shared: &Shared) {
    for job in work {
        let mut data = vec![0; job.len as usize];
        let result = bus.read(job.src, &mut data).and_then(|from| {
            let to = bus.write(job.dst, &data)?;
            Ok(if from == Target::Peer { from } else { to })
        });
        shared.result.store(result_code(result), SeqCst);
        shared.ended.fetch_add(1, SeqCst);
        interrupts.raise(0);
    }
}

impl Device for Mover {
    fn read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        if bar == 2 {
            // The server keeps the range inside the BAR, which has the memory's size.
            let _ = self.window.read(offset, data);
        } else if data.len() <= 8 {
            let value = self.register(offset).to_le_bytes();
            data.copy_from_slice(&value[..data.len()]);
        }
    }

    fn write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        if bar == 2 {
            let _ = self.window.write(offset, data);
            if let Ok(mut writes) = self.writes.lock() {
                writes.push(data.len());
            }
            return;
        }
        let mut bytes = [0; 8];
        let Some(front) = bytes.get_mut(..data.len()) else {
            return;
        };
        front.copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        let low = value as u32; // what a 32-bit register takes of it
        match offset {
            SRC => self.src = value,
            DST => self.dst = value,
            LEN => self.len = low.min(16 << 20),
            GO => {
                let job = Job {
                    src: self.src,
                    dst: self.dst,
                    len: self.len,
                };
                // The engine lives as long as the device.
                let _ = self.jobs.send(job);
            }
            _ => {}
        }
    }

    fn reset(&mut self) {
        (self.src, self.dst, self.len) = (0, 0, 0);
        self.resets += 1;
    }
}
