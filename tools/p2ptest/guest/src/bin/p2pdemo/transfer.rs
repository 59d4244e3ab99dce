// SPDX-License-Identifier: GPL-2.0
//! Moves one piece of the file from GPU 0 to GPU 1, while its destination is
//! migrated to system memory and back.

use anyhow::{Context, Result, ensure};
use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::nic::{Qp, Region, TIMEOUT, status_name};
use p2pguest::rig::{Exported, Rig, request};
use p2pguest::sys::uapi::*;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What the transfers of a run met.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Requests
    pub requests: u64,
    /// Times that the destination went to system memory and back
    pub round_trips: u64,
    /// Times that a NIC was told to let go of a mapping
    pub invalidations: u64,
    /// Those of them that met a transfer in flight
    pub met_in_flight: u64,
    /// Most slots that peers held at once, of GPU 0 and of GPU 1
    pub slots: [u32; 2],
    /// Mappings that NICs were given through an aperture
    pub peer_maps: u64,
    /// Mappings that NICs were given in guest memory
    pub system_maps: u64,
    /// Time from a piece's registration to its completion, in all
    pub time: Duration,
}

/// What both NICs count, added up. Fields as in the uapi.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    pub peer_read_bytes: u64,
    pub peer_write_bytes: u64,
    pub ram_read_bytes: u64,
    pub ram_write_bytes: u64,
    pub parked: u64,
    pub resumed: u64,
    pub invalidations_busy: u64,
}

impl Counts {
    /// Reads the counters of both NICs.
    pub fn read(rig: &Rig) -> Result<Self> {
        let mut sum = Self::default();
        for nic in &rig.nic {
            let query = nic.__query().context("p2pnic QUERY")?;
            sum.peer_read_bytes += query.peer_read_bytes;
            sum.peer_write_bytes += query.peer_write_bytes;
            sum.ram_read_bytes += query.ram_read_bytes;
            sum.ram_write_bytes += query.ram_write_bytes;
            sum.parked += query.parked;
            sum.resumed += query.resumed;
            sum.invalidations_busy += query.invalidations_busy;
        }
        Ok(sum)
    }

    /// What was added since then.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            peer_read_bytes: self.peer_read_bytes - before.peer_read_bytes,
            peer_write_bytes: self.peer_write_bytes - before.peer_write_bytes,
            ram_read_bytes: self.ram_read_bytes - before.ram_read_bytes,
            ram_write_bytes: self.ram_write_bytes - before.ram_write_bytes,
            parked: self.parked - before.parked,
            resumed: self.resumed - before.resumed,
            invalidations_busy: self.invalidations_busy - before.invalidations_busy,
        }
    }
}

/// A part of the file: where it is, and where it goes.
pub struct Piece<'r> {
    source: Exported<'r>,
    target: Exported<'r>,
    /// Bytes of the file
    pub size: u64,
}

/// A new object in VRAM that peers may map.
fn exported(gpu: &Gpu, size: u64) -> Result<Exported<'_>> {
    let bo = gpu.__create(size, Placement::Vram).context("GEM_CREATE")?;
    bo.__set_peer(P2PGPU_PEER_EXPORTABLE)
        .context("GEM_SET_PEER")?;
    let fd = bo.__export().context("PRIME export")?;
    Ok(Exported { bo, fd })
}

impl<'r> Piece<'r> {
    /// Puts bytes into GPU 0's VRAM with its copy engine, and makes room for
    /// them in GPU 1's.
    pub fn load(rig: &'r Rig, bytes: &[u8]) -> Result<Self> {
        let size = bytes.len() as u64;
        let room = size.next_multiple_of(rig.gpu[0].page);
        let source = exported(&rig.gpu[0], room)?;
        let staging = rig.gpu[0]
            .__create(room, Placement::System)
            .context("GEM_CREATE")?;
        staging
            .__map()
            .context("mmap of the staging buffer")?
            .write(0, bytes);
        staging
            .__copy_to(&source.bo, room)
            .context("GEM_COPY to VRAM")?;
        let target = exported(&rig.gpu[1], room)?;
        Ok(Self {
            source,
            target,
            size,
        })
    }

    /// What the destination's VRAM holds, read by GPU 1's copy engine.
    pub fn read_back(&self, gpu: &Gpu) -> Result<Vec<u8>> {
        let target = &self.target.bo;
        let placement = target.__info().context("GEM_INFO")?.placement;
        ensure!(
            placement == P2PGPU_PLACEMENT_VRAM,
            "the destination is not in VRAM"
        );
        let staging = gpu
            .__create(target.size, Placement::System)
            .context("GEM_CREATE")?;
        target
            .__copy_to(&staging, target.size)
            .context("GEM_COPY from VRAM")?;
        let mut bytes = vec![0; usize::try_from(self.size)?];
        staging
            .__map()
            .context("mmap of the staging buffer")?
            .read(0, &mut bytes);
        Ok(bytes)
    }
}

/// Sends a piece once.
pub fn send(rig: &Rig, piece: &Piece<'_>, migrations: u32, delivery: &mut Delivery) -> Result<()> {
    Flight::new(rig, piece)?.run(1, migrations, delivery)
}

/// Sends a piece as many times as the queue holds, one after the other.
pub fn send_often(
    rig: &Rig,
    piece: &Piece<'_>,
    migrations: u32,
    delivery: &mut Delivery,
) -> Result<()> {
    Flight::new(rig, piece)?.run(QUEUE, migrations, delivery)
}

/// Entries of a queue.
const QUEUE: u32 = 256;

/// A piece on its way: registered at both NICs.
struct Flight<'a> {
    rig: &'a Rig,
    piece: &'a Piece<'a>,
    from: Region<'a>,
    to: Region<'a>,
    near: Qp<'a>,
    /// Never read: the other end of the connection must be there
    _far: Qp<'a>,
}

impl<'a> Flight<'a> {
    fn new(rig: &'a Rig, piece: &'a Piece<'a>) -> Result<Self> {
        let register = |index: usize, end: &Exported<'_>, access| {
            rig.nic[index]
                .__register(end.fd.as_raw_fd(), access, 0, end.bo.size)
                .with_context(|| format!("NIC {index} could not register its chunk"))
        };
        let from = register(0, &piece.source, 0)?;
        let to = register(1, &piece.target, P2PNIC_ACCESS_REMOTE_WRITE)?;
        let near = rig.nic[0]
            .__create_qp(QUEUE, 4)
            .context("CREATE_QP at NIC 0")?;
        let far = rig.nic[1].__create_qp(4, 4).context("CREATE_QP at NIC 1")?;
        near.__connect(far.number).context("CONNECT_QP at NIC 0")?;
        far.__connect(near.number).context("CONNECT_QP at NIC 1")?;
        Ok(Self {
            rig,
            piece,
            from,
            to,
            near,
            _far: far,
        })
    }

    /// Posts the requests, migrates the destination while they run, and waits.
    fn run(self, requests: u32, migrations: u32, delivery: &mut Delivery) -> Result<()> {
        let start = Instant::now();
        let before = Counts::read(self.rig)?;
        let maps = self.maps()?;
        let write = request(
            P2PNIC_OP_WRITE,
            (&self.from, 0),
            (&self.to, 0),
            self.piece.size,
        );
        for _ in 0..requests {
            self.near.__post_send(write).context("POST_SEND")?;
        }
        let done = AtomicBool::new(false);
        let round_trips = thread::scope(|scope| {
            let migrating = scope.spawn(|| self.migrate(migrations, &done, delivery));
            let waited = self.wait(requests);
            done.store(true, Ordering::Release);
            let migrated = migrating
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            waited.and(migrated)
        })?;
        delivery.requests += u64::from(requests);
        delivery.round_trips += round_trips;
        delivery.time += start.elapsed();
        let after = Counts::read(self.rig)?.since(&before);
        delivery.met_in_flight += after.invalidations_busy;
        for region in [&self.from, &self.to] {
            delivery.invalidations += region.__info().context("REGION_INFO")?.invalidations;
        }
        let maps_after = self.maps()?;
        delivery.peer_maps += maps_after.0 - maps.0;
        delivery.system_maps += maps_after.1 - maps.1;
        Ok(())
    }

    /// Mappings given so far, through the apertures and in guest memory.
    fn maps(&self) -> Result<(u64, u64)> {
        let info = |bo: &Bo<'_>| bo.__info().context("GEM_INFO");
        let (from, to) = (info(&self.piece.source.bo)?, info(&self.piece.target.bo)?);
        Ok((
            from.peer_maps + to.peer_maps,
            from.system_maps + to.system_maps,
        ))
    }

    /// Waits for the completions.
    fn wait(&self, requests: u32) -> Result<()> {
        let mut left = requests;
        while left > 0 {
            let found = self
                .near
                .__poll(left, TIMEOUT)
                .context("POLL for completions")?;
            for completion in &found {
                ensure!(
                    completion.status == P2PNIC_STATUS_OK && completion.size == self.piece.size,
                    "a transfer ended with {} after {} bytes",
                    status_name(completion.status),
                    completion.size
                );
            }
            left = left.saturating_sub(u32::try_from(found.len())?);
        }
        Ok(())
    }

    /// Moves the destination to system memory and back, as many times as it
    /// is told or until the transfer is done; it ends in VRAM.
    fn migrate(&self, times: u32, done: &AtomicBool, delivery: &mut Delivery) -> Result<u64> {
        let target = &self.piece.target.bo;
        let mut round_trips = 0;
        for _ in 0..times {
            self.wait_mapped(done)?;
            for (most, bo) in delivery
                .slots
                .iter_mut()
                .zip([&self.piece.source.bo, target])
            {
                *most = (*most).max(bo.__info().context("GEM_INFO")?.peer_slots);
            }
            if done.load(Ordering::Acquire) {
                break;
            }
            target
                .__move_to(Placement::System)
                .context("GEM_MOVE to system memory")?;
            self.wait_mapped(done)?;
            target
                .__move_to(Placement::Vram)
                .context("GEM_MOVE to VRAM")?;
            round_trips += 1;
        }
        Ok(round_trips)
    }

    /// Waits until the destination is mapped, so that bytes flow to where it
    /// is now. Not for ever: the transfer may be over, or parked elsewhere.
    fn wait_mapped(&self, done: &AtomicBool) -> Result<()> {
        let start = Instant::now();
        while !done.load(Ordering::Acquire) && start.elapsed() < Duration::from_millis(500) {
            if self.to.__info().context("REGION_INFO")?.mapped != 0 {
                return Ok(());
            }
            thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }
}
