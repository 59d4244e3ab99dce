// SPDX-License-Identifier: GPL-2.0

//! A machine without a CPU: memory, interrupts, and the software's side of the contract.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use p2p_vfio_user::bus::{Bus, BusError, Interrupts, Target};
use vgpu::regions::Regions;
use vgpu::regs::{self, Global, Register, RingReg};
use vgpu::state::{Core, Mode, Parameters};
use vgpu::worker::Workers;

/// First address of memory, and its size; the last `PEER` bytes of it belong to a peer.
pub const RAM: u64 = 0x1_0000;
pub const RAM_SIZE: u64 = 4 << 20;
pub const PEER: u64 = 0x1000;
/// Where things lie in memory.
pub const RING: [u64; 2] = [RAM, RAM + 0x2000];
pub const STATUS: [u64; 2] = [RAM + 0x4000, RAM + 0x4040];
pub const ROOT: u64 = RAM + 0x5000;
pub const LEAVES: u64 = RAM + 0x6000;
pub const LISTS: [u64; 2] = [RAM + 0x10_0000, RAM + 0x18_0000];
pub const DATA: u64 = RAM + 0x20_0000;
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct FakeBus {
    ram: Mutex<Vec<u8>>,
    /// Closed: each DMA waits, as one by message may.
    gate: Mutex<(bool, usize)>,
    moved: Condvar,
    /// Reads from the peer: address, bytes, and ring 0's DONE at that time.
    pub reads: Mutex<Vec<(u64, usize, u64)>>,
}

impl FakeBus {
    fn range(addr: u64, len: usize) -> Result<std::ops::Range<usize>, BusError> {
        let start = addr.checked_sub(RAM).ok_or(BusError::Unmapped)?;
        let end = start.checked_add(len as u64).ok_or(BusError::Unmapped)?;
        if end > RAM_SIZE {
            Err(BusError::Unmapped)
        } else {
            Ok(start as usize..end as usize)
        }
    }

    fn target(addr: u64) -> Target {
        if addr >= RAM + RAM_SIZE - PEER {
            Target::Peer
        } else {
            Target::Ram
        }
    }

    fn pass(&self) {
        let mut gate = self.gate.lock().unwrap();
        gate.1 += 1;
        self.moved.notify_all();
        drop(self.moved.wait_while(gate, |gate| gate.0).unwrap());
    }

    pub fn close(&self) {
        *self.gate.lock().unwrap() = (true, 0);
    }

    pub fn open(&self) {
        self.gate.lock().unwrap().0 = false;
        self.moved.notify_all();
    }

    /// Waits until a DMA stands before the gate.
    pub fn await_dma(&self) {
        let gate = self.gate.lock().unwrap();
        let waited = self
            .moved
            .wait_timeout_while(gate, PATIENCE, |gate| gate.1 == 0)
            .unwrap();
        assert!(!waited.1.timed_out(), "no DMA");
    }
}

impl Bus for FakeBus {
    fn read(&self, addr: u64, data: &mut [u8]) -> Result<Target, BusError> {
        self.pass();
        let ram = self.ram.lock().unwrap();
        data.copy_from_slice(&ram[Self::range(addr, data.len())?]);
        if Self::target(addr) == Target::Peer {
            let done = ram[Self::range(STATUS[0], 8)?]
                .try_into()
                .map_or(0, u64::from_le_bytes);
            self.reads.lock().unwrap().push((addr, data.len(), done));
        }
        Ok(Self::target(addr))
    }

    fn write(&self, addr: u64, data: &[u8]) -> Result<Target, BusError> {
        self.pass();
        self.ram.lock().unwrap()[Self::range(addr, data.len())?].copy_from_slice(data);
        Ok(Self::target(addr))
    }
}

#[derive(Default)]
pub struct FakeInterrupts(pub Mutex<[usize; regs::VECTORS]>);

impl Interrupts for FakeInterrupts {
    fn raise(&self, vector: u16) {
        self.0.lock().unwrap()[usize::from(vector)] += 1;
    }
}

/// A command to be written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cmd {
    pub op: u16,
    pub flags: u16,
    pub count: u32,
    pub list: u64,
    pub value: u64,
}

impl Cmd {
    pub fn bytes(&self, fence: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.op.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.count.to_le_bytes());
        bytes.extend(fence.to_le_bytes());
        bytes.extend(self.list.to_le_bytes());
        bytes.extend(self.value.to_le_bytes());
        bytes.resize(64, 0);
        bytes
    }
}

/// A segment to be written: (space, place) each.
#[derive(Clone, Copy, Debug)]
pub struct Seg {
    pub src: (u32, u64),
    pub dst: (u32, u64),
    pub len: u64,
}

pub fn segments(list: &[Seg]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for seg in list {
        bytes.extend(seg.src.1.to_le_bytes());
        bytes.extend(seg.dst.1.to_le_bytes());
        bytes.extend(seg.len.to_le_bytes());
        bytes.extend(seg.src.0.to_le_bytes());
        bytes.extend(seg.dst.0.to_le_bytes());
    }
    bytes
}

pub struct Machine {
    pub core: Arc<Core>,
    pub regions: Regions,
    pub bus: Arc<FakeBus>,
    pub interrupts: Arc<FakeInterrupts>,
    tails: [u32; 2],
    fence: u64,
    workers: Option<Workers>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Workers are joined next: a test that failed may have left them at the gate, or for ever.
        self.bus.open();
        if std::thread::panicking() {
            std::mem::forget(self.workers.take());
        }
    }
}

impl Machine {
    /// A machine with its device started as the contract says.
    pub fn new(mode: Mode, vram: u64, aperture: u64) -> Self {
        let core = Core::new(&Parameters {
            vram,
            aperture,
            mode,
        })
        .unwrap();
        let bus = Arc::new(FakeBus {
            ram: Mutex::new(vec![0; RAM_SIZE as usize]),
            gate: Mutex::new((false, 0)),
            moved: Condvar::new(),
            reads: Mutex::default(),
        });
        let interrupts = Arc::new(FakeInterrupts::default());
        let (dyn_bus, dyn_interrupts): (Arc<dyn Bus>, Arc<dyn Interrupts>) =
            (bus.clone(), interrupts.clone());
        let mut machine = Self {
            regions: Regions::new(Arc::clone(&core)),
            workers: Some(Workers::start(&core, &dyn_bus, &dyn_interrupts).unwrap()),
            core,
            bus,
            interrupts,
            tails: [0; 2],
            fence: 0,
        };
        machine.start();
        machine
    }

    /// Root, leaves and rings, from a reset device.
    pub fn start(&mut self) {
        for leaf in 0..512 {
            self.poke(ROOT + leaf * 8, &(LEAVES + leaf * 4096).to_le_bytes());
        }
        self.set(Register::Global(Global::PtRoot), ROOT);
        self.enable(0);
        self.enable(1);
    }

    pub fn enable(&mut self, ring: usize) {
        self.poke(STATUS[ring], &[0; 64]);
        self.set(Register::Ring(ring, RingReg::Base), RING[ring]);
        self.set(Register::Ring(ring, RingReg::StatusAddr), STATUS[ring]);
        self.set(Register::Ring(ring, RingReg::Size), 4);
        self.set(Register::Ring(ring, RingReg::Control), 1);
        self.tails[ring] = 0;
    }

    pub fn poke(&self, addr: u64, data: &[u8]) {
        let range = FakeBus::range(addr, data.len()).unwrap();
        self.bus.ram.lock().unwrap()[range].copy_from_slice(data);
    }

    pub fn peek(&self, addr: u64, len: usize) -> Vec<u8> {
        self.bus.ram.lock().unwrap()[FakeBus::range(addr, len).unwrap()].to_vec()
    }

    pub fn peek64(&self, addr: u64) -> u64 {
        u64::from_le_bytes(self.peek(addr, 8).try_into().unwrap())
    }

    pub fn get(&self, register: Register) -> u64 {
        let (offset, bytes) = place(register);
        let mut value = [0; 8];
        self.regions.register_read(offset, &mut value[..bytes]);
        u64::from_le_bytes(value)
    }

    pub fn set(&self, register: Register, value: u64) {
        let (offset, bytes) = place(register);
        self.regions
            .register_write(offset, &value.to_le_bytes()[..bytes]);
    }

    pub fn state(&self, ring: usize) -> u64 {
        self.get(Register::Ring(ring, RingReg::State))
    }

    pub fn done(&self, ring: usize) -> u64 {
        self.peek64(STATUS[ring])
    }

    /// (ERROR, ERROR_FENCE)
    pub fn error(&self, ring: usize) -> (u32, u64) {
        let error = self.peek64(STATUS[ring] + 8);
        (
            u32::try_from(error).unwrap(),
            self.peek64(STATUS[ring] + 16),
        )
    }

    pub fn raised(&self, vector: usize) -> usize {
        self.interrupts.0.lock().unwrap()[vector]
    }

    pub fn pte(&self, slot: u32, entry: u64) {
        self.poke(LEAVES + u64::from(slot) * 8, &entry.to_le_bytes());
    }

    /// Posts a command; its fence.
    pub fn post(&mut self, ring: usize, cmd: Cmd) -> u64 {
        self.fence += 1;
        let place = u64::from(self.tails[ring] % 16) * 64;
        self.poke(RING[ring] + place, &cmd.bytes(self.fence));
        self.tails[ring] = self.tails[ring].wrapping_add(1);
        self.set(
            Register::Ring(ring, RingReg::Doorbell),
            self.tails[ring].into(),
        );
        self.fence
    }

    /// Waits for a fence, or for the ring to halt: the error, 0 if none.
    pub fn wait(&self, ring: usize, fence: u64) -> u32 {
        until(|| self.done(ring) == fence || self.state(ring) == 2);
        let (error, error_fence) = self.error(ring);
        assert!(error == 0 || error_fence == fence || error_fence == 0);
        error
    }

    pub fn run(&mut self, ring: usize, cmd: Cmd) -> u32 {
        let fence = self.post(ring, cmd);
        self.wait(ring, fence)
    }

    pub fn flush_command(&self, ring: usize, ranges: &[(u32, u32)]) -> Cmd {
        let bytes: Vec<u8> = ranges
            .iter()
            .flat_map(|(a, b)| [a.to_le_bytes(), b.to_le_bytes()])
            .flatten()
            .collect();
        self.poke(LISTS[ring], &bytes);
        let count = ranges.len() as u32;
        Cmd {
            op: regs::OP_FLUSH,
            count,
            list: LISTS[ring],
            ..Cmd::default()
        }
    }

    pub fn flush(&mut self, ring: usize, ranges: &[(u32, u32)]) -> u32 {
        let cmd = self.flush_command(ring, ranges);
        self.run(ring, cmd)
    }

    pub fn list_command(&self, ring: usize, op: u16, list: &[Seg], value: u64) -> Cmd {
        self.poke(LISTS[ring], &segments(list));
        Cmd {
            op,
            count: list.len() as u32,
            list: LISTS[ring],
            value,
            flags: 0,
        }
    }

    pub fn list(&mut self, ring: usize, op: u16, list: &[Seg], value: u64) -> u32 {
        let cmd = self.list_command(ring, op, list, value);
        self.run(ring, cmd)
    }

    pub fn vram(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.core.aperture.vram_read(offset, &mut data).unwrap();
        data
    }

    pub fn bar(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.core.aperture.bar_read(offset, &mut data);
        data
    }

    pub fn reset(&mut self) {
        self.set(Register::Global(Global::Control), 1);
        until(|| self.get(Register::Global(Global::Status)) & 2 == 0);
    }

    /// Kinds, slots and addresses of the log, which is empty afterwards.
    pub fn faults(&self) -> Vec<(u8, u32, u64)> {
        let mut faults = Vec::new();
        while self.get(Register::Global(Global::Status)) & 4 != 0 {
            let info = self.get(Register::Global(Global::FaultInfo));
            let addr = self.get(Register::Global(Global::FaultAddr));
            faults.push((info as u8, (info >> 32) as u32, addr));
            self.set(Register::Global(Global::FaultAck), 0);
        }
        faults
    }
}

/// Offset and bytes of a register.
fn place(register: Register) -> (u64, usize) {
    match register {
        Register::Global(register) => {
            let row = Global::ALL
                .iter()
                .find(|row| row.register == register)
                .unwrap();
            (row.offset, row.bits as usize / 8)
        }
        Register::Ring(ring, register) => {
            let row = RingReg::ALL
                .iter()
                .find(|row| row.register == register)
                .unwrap();
            (
                0x80 + 0x20 * ring as u64 + row.offset,
                row.bits as usize / 8,
            )
        }
        Register::Counter(counter) => (0x100 + 8 * counter as u64, 8),
    }
}

/// Waits until something holds.
pub fn until(holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "it never happens");
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// The page-table entry that names a page.
pub fn entry(page: u64) -> u64 {
    page << 12 | 1
}
