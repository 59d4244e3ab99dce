// SPDX-License-Identifier: GPL-2.0
//! The second act: each of two GPUs holds a vector of numbers, and both end with the sum.
//!
//! As in a ring of two: each NIC sends the half that the other GPU is to sum up, GPU to
//! GPU, in chunks; the GPUs add what has come to what they have; then each sends its half
//! of the sum to the other. Meanwhile a third client uses more VRAM than is left, so that
//! chunks are evicted, and come back when a GPU or a NIC needs them.

use crate::report::{self, Progress};
use crate::transfer::Counts;
use crate::{Digest256, fault_counts};
use anyhow::{Context as _, Result, ensure};
use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::nic::{ACCESS_ALL, Nic, Qp, Region, TIMEOUT, status_name};
use p2pguest::rig::{Rig, request};
use p2pguest::submit::{Context, Op, between, binary, fill};
use p2pguest::syncobj::{PATIENCE, Syncobj};
use p2pguest::sys::uapi::*;
use sha2::{Digest, Sha256};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// Bytes of a vector.
const VECTOR: u64 = 64 * MIB;
/// Bytes that are exported, registered, sent and added at a time.
const CHUNK: u64 = 4 * MIB;
/// Chunks of a vector: GPU 0 sums up the first half of them, GPU 1 the rest.
const CHUNKS: usize = (VECTOR / CHUNK) as usize;
const HALF: usize = CHUNKS / 2;
/// Bytes that the third client uses in turns, more than the vectors leave.
const PRESSURE: u64 = 96 * MIB;
/// How much of that has room.
const ROOM: u64 = 32 * MIB;

/// Number `index` of the vector of a GPU. Its sums depend on each bit, and none is exact.
fn element(gpu: usize, index: u64) -> f32 {
    let word = index
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(17 + gpu as u32)
        >> 40;
    word as f32 * if gpu == 0 { 0.1 } else { 0.003 } - 100.0
}

/// The bytes of chunk `chunk`, of numbers that `number` makes.
fn bytes(chunk: usize, number: impl Fn(u64) -> f32) -> Vec<u8> {
    let count = CHUNK / 4;
    let first = chunk as u64 * count;
    (first..first + count)
        .flat_map(|index| number(index).to_le_bytes())
        .collect()
}

/// An object that may be evicted and that peers may map, registered.
struct Piece<'r> {
    // Field order: the region goes first.
    region: Region<'r>,
    bo: Bo<'r>,
}

impl<'r> Piece<'r> {
    fn new(gpu: &'r Gpu, nic: &'r Nic) -> Result<Self> {
        let bo = gpu.__create_evictable(CHUNK).context("GEM_CREATE")?;
        bo.__set_peer(P2PGPU_PEER_EXPORTABLE)
            .context("GEM_SET_PEER")?;
        let fd = bo.__export().context("PRIME export")?;
        let region = nic
            .__register(fd.as_raw_fd(), ACCESS_ALL, 0, CHUNK)
            .context("REG_REGION")?;
        Ok(Self { region, bo })
    }
}

/// A GPU with its NIC.
struct Side<'r> {
    gpu: &'r Gpu,
    chunks: Vec<Piece<'r>>,
    /// What comes from the other GPU, in turns.
    inbox: [Piece<'r>; 2],
    context: Context<'r>,
    added: [Option<Syncobj<'r>>; 2],
    qp: Qp<'r>,
}

impl<'r> Side<'r> {
    fn new(rig: &'r Rig, index: usize) -> Result<Self> {
        let (gpu, nic) = (&rig.gpu[index], &rig.nic[index]);
        let piece = || Piece::new(gpu, nic);
        let staging = gpu
            .__create(CHUNK, Placement::System)
            .context("GEM_CREATE")?;
        let map = staging.__map().context("mmap of the staging buffer")?;
        let mut load = Progress::new(["load GPU 0", "load GPU 1"][index], VECTOR);
        let mut chunks = Vec::new();
        for chunk in 0..CHUNKS {
            let piece = piece()?;
            map.write(0, &bytes(chunk, |at| element(index, at)));
            staging.__copy_to(&piece.bo, CHUNK).context("GEM_COPY")?;
            chunks.push(piece);
            load.advance(CHUNK);
        }
        Ok(Self {
            gpu,
            chunks,
            inbox: [piece()?, piece()?],
            context: Context::__new(gpu).context("CONTEXT_CREATE")?,
            added: [None, None],
            qp: nic.__create_qp(16, 4).context("CREATE_QP")?,
        })
    }

    /// Posts the sending of a chunk to a piece of the other side.
    fn send(&self, chunk: usize, to: &Piece<'_>) -> Result<()> {
        let from = &self.chunks[chunk].region;
        let write = request(P2PNIC_OP_WRITE, (from, 0), (&to.region, 0), CHUNK);
        self.qp.__post_send(write).context("POST_SEND")
    }

    /// Waits until what was sent is there.
    fn sent(&self) -> Result<()> {
        for done in self.qp.__poll(1, TIMEOUT).context("POLL")? {
            ensure!(
                done.status == P2PNIC_STATUS_OK && done.size == CHUNK,
                "a transfer ended with {} after {} bytes",
                status_name(done.status),
                done.size
            );
        }
        Ok(())
    }

    /// Has the GPU add what has come to a chunk.
    fn add(&mut self, turn: usize, chunk: usize) -> Result<()> {
        let (from, to) = (&self.inbox[turn].bo, &self.chunks[chunk].bo);
        let done = Syncobj::__new(self.gpu, 0).context("SYNCOBJ_CREATE")?;
        let op: Op = between(P2PGPU_OP_ADD_F32, from, to, CHUNK);
        self.context
            .__submit(&[op], &[], &[binary(&done)])
            .context("SUBMIT")?;
        self.added[turn] = Some(done);
        Ok(())
    }

    /// Waits until the GPU needs what came in this turn no more.
    fn wait(&mut self, turn: usize) -> Result<()> {
        if let Some(done) = self.added[turn].take() {
            done.__wait(PATIENCE, 0).context("SYNCOBJ_WAIT")?;
        }
        Ok(())
    }

    /// The digest of all chunks, as they are after their way through system memory.
    fn look(&self) -> Result<Digest256> {
        let staging = self
            .gpu
            .__create(CHUNK, Placement::System)
            .context("GEM_CREATE")?;
        let map = staging.__map().context("mmap of the staging buffer")?;
        let mut hash = Sha256::new();
        let mut found = vec![0; CHUNK as usize];
        for piece in &self.chunks {
            piece.bo.__copy_to(&staging, CHUNK).context("GEM_COPY")?;
            map.read(0, &mut found);
            hash.update(&found);
        }
        Ok(hash.finalize().into())
    }

    fn pieces(&self) -> impl Iterator<Item = &Piece<'r>> {
        self.chunks.iter().chain(&self.inbox)
    }
}

/// What the CPU says that a chunk is in the end.
fn sums(chunk: usize) -> Vec<u8> {
    bytes(chunk, |at| element(0, at) + element(1, at))
}

/// What became of the objects of one kind.
#[derive(Default)]
struct Fate {
    evictions: u64,
    invalidations: u64,
    maps: [u64; 2],
}

impl Fate {
    fn add(&mut self, bo: &Bo<'_>) -> Result<()> {
        let info = bo.__info().context("GEM_INFO")?;
        self.evictions += u64::from(info.evictions);
        self.invalidations += info.invalidations;
        self.maps[0] += info.peer_maps;
        self.maps[1] += info.system_maps;
        Ok(())
    }
}

/// Uses more VRAM than is left, until it is told to stop. Returns how often its objects
/// were evicted; an error if one of them is not as it was left.
fn third_client(gpu: &Gpu, stop: &AtomicBool) -> Result<u64> {
    let client = Gpu::__open(gpu.node()).context("opening a GPU once more")?;
    let context = Context::__new(&client).context("CONTEXT_CREATE")?;
    let mut set = Vec::new();
    for _ in 0..PRESSURE / CHUNK {
        set.push(client.__create_evictable(CHUNK).context("GEM_CREATE")?);
    }
    let digest = |round: u32, at: usize| -> Digest256 {
        let word = (round << 8 | at as u32).to_le_bytes();
        Sha256::digest(word.repeat(CHUNK as usize / 4)).into()
    };
    let mut round = 0;
    while !stop.load(Ordering::Acquire) {
        round += 1;
        for (at, bo) in set.iter().enumerate() {
            let value = round << 8 | at as u32;
            context
                .__submit(&[fill(bo, value, CHUNK)], &[], &[])
                .context("SUBMIT")?;
            // Not as fast as it could: the others are to get on.
            thread::sleep(Duration::from_millis(5));
        }
        let at = round as usize % set.len();
        let found = set[at].__checksum(0, CHUNK).context("GEM_CHECKSUM")?;
        ensure!(
            found == digest(round, at),
            "an object of the third client is not as it was left"
        );
    }
    let mut fate = Fate::default();
    for bo in &set {
        fate.add(bo)?;
    }
    Ok(fate.evictions)
}

/// Both directions of a step.
fn both(sides: &[Side<'_>; 2], chunks: [usize; 2], inbox: Option<usize>) -> Result<()> {
    for (from, chunk) in chunks.into_iter().enumerate() {
        let other = &sides[1 - from];
        let to = match inbox {
            Some(turn) => &other.inbox[turn],
            None => &other.chunks[chunk],
        };
        sides[from].send(chunk, to)?;
    }
    for side in sides {
        side.sent()?;
    }
    Ok(())
}

/// The exchange, and the additions.
fn reduce(sides: &mut [Side<'_>; 2]) -> Result<()> {
    let mut progress = Progress::new("exchange and add", 2 * VECTOR);
    for step in 0..HALF {
        let turn = step % 2;
        for side in &mut *sides {
            side.wait(turn)?;
        }
        // Each gets what it sums up.
        both(sides, [HALF + step, step], Some(turn))?;
        sides[0].add(turn, step)?;
        sides[1].add(turn, HALF + step)?;
        progress.advance(2 * CHUNK);
    }
    for side in &mut *sides {
        for turn in 0..2 {
            side.wait(turn)?;
        }
    }
    for step in 0..HALF {
        both(sides, [step, HALF + step], None)?;
        progress.advance(2 * CHUNK);
    }
    Ok(())
}

/// Runs the act; whether all went as it must.
pub fn run(rig: &Rig) -> Result<bool> {
    let start = Instant::now();
    report::print_devices(rig, CHUNK)?;
    println!(
        "Each GPU holds a vector of {} MiB of f32, in {CHUNKS} chunks. A third client uses {} \
         MiB of each GPU's VRAM, of which {} MiB have room.",
        VECTOR / MIB,
        PRESSURE / MIB,
        ROOM / MIB
    );
    let faults: u64 = fault_counts(rig)?.iter().sum();
    let counts = Counts::read(rig)?;
    let mut sides = [Side::new(rig, 0)?, Side::new(rig, 1)?];
    sides[0]
        .qp
        .__connect(sides[1].qp.number)
        .context("CONNECT_QP")?;
    sides[1]
        .qp
        .__connect(sides[0].qp.number)
        .context("CONNECT_QP")?;
    // What no client has here others do have elsewhere.
    let mut ballast = Vec::new();
    for gpu in &rig.gpu {
        let free = gpu.__param(P2PGPU_PARAM_VRAM_FREE).context("GETPARAM")?;
        let size = free.saturating_sub(ROOM) / gpu.page * gpu.page;
        ballast.push(gpu.__create(size, Placement::Vram).context("GEM_CREATE")?);
    }

    let stop = AtomicBool::new(false);
    let begun = Instant::now();
    let (reduced, theirs) = thread::scope(|scope| {
        let clients = rig
            .gpu
            .each_ref()
            .map(|gpu| scope.spawn(|| third_client(gpu, &stop)));
        let reduced = reduce(&mut sides).map(|()| begun.elapsed());
        stop.store(true, Ordering::Release);
        let theirs: Vec<Result<u64>> = clients
            .into_iter()
            .map(|client| {
                client
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect();
        (reduced, theirs)
    });
    let time = reduced?;
    let theirs: u64 = theirs.into_iter().collect::<Result<Vec<_>>>()?.iter().sum();

    let mut fate = Fate::default();
    for piece in sides.iter().flat_map(Side::pieces) {
        fate.add(&piece.bo)?;
    }
    let counts = Counts::read(rig)?.since(&counts);
    let mut cpu = Sha256::new();
    (0..CHUNKS).for_each(|chunk| cpu.update(sums(chunk)));
    let cpu: Digest256 = cpu.finalize().into();
    let found = [sides[0].look()?, sides[1].look()?];
    let faults = fault_counts(rig)?.iter().sum::<u64>() - faults;
    let moved = 2 * VECTOR;
    report::print_rows(&[
        ("bytes of a vector", report::number(VECTOR)),
        ("SHA-256 of the CPU's sum", report::hex(&cpu)),
        ("SHA-256 of GPU 0's vector", report::hex(&found[0])),
        ("SHA-256 of GPU 1's vector", report::hex(&found[1])),
        ("evictions of chunks", report::number(fate.evictions)),
        ("  of the third client's", report::number(theirs)),
        ("invalidations", report::number(fate.invalidations)),
        (
            "  that met a transfer in flight",
            report::number(counts.invalidations_busy),
        ),
        (
            "mappings, aperture / system",
            format!("{} / {}", fate.maps[0], fate.maps[1]),
        ),
        (
            "requests parked / resumed",
            format!("{} / {}", counts.parked, counts.resumed),
        ),
        (
            "bytes read from BARs",
            report::number(counts.peer_read_bytes),
        ),
        (
            "bytes written to BARs",
            report::number(counts.peer_write_bytes),
        ),
        (
            "bytes read from guest memory",
            report::number(counts.ram_read_bytes),
        ),
        (
            "bytes written to guest memory",
            report::number(counts.ram_write_bytes),
        ),
        ("device faults", report::number(faults)),
        (
            "time of the exchange",
            format!(
                "{:.2} s ({:.1} MiB/s)",
                time.as_secs_f64(),
                (moved / MIB) as f64 / time.as_secs_f64()
            ),
        ),
        (
            "time in all",
            format!("{:.2} s", start.elapsed().as_secs_f64()),
        ),
    ]);
    let complaints = [
        (
            found.iter().any(|hash| *hash != cpu),
            "a vector is not the CPU's sum",
        ),
        (fate.evictions == 0, "no chunk was evicted"),
        (
            counts.peer_write_bytes == 0,
            "nothing went through the BARs",
        ),
        (faults != 0, "the device logged faults"),
    ];
    Ok(report::print_complaints(complaints.into_iter().filter_map(
        |(wrong, complaint)| wrong.then_some(complaint),
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_different() {
        let [first, second] = [0, 1].map(|chunk| bytes(chunk, |at| element(0, at)));
        assert_eq!(first.len() as u64, CHUNK);
        assert_ne!(first, second);
        assert_ne!(first, bytes(0, |at| element(1, at)));
        assert_eq!(CHUNKS as u64 * CHUNK, VECTOR);
    }
}
