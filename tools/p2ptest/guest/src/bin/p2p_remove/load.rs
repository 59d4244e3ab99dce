// SPDX-License-Identifier: GPL-2.0
//! What goes on while a device goes away: processes that transfer between the
//! NICs, and processes that touch mappings. They start again whenever a device
//! is gone, and end only when they see a byte that is wrong.

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid};
use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::igt::{self, Child, Outcome};
use p2pguest::nic::{ACCESS_ALL, Nic};
use p2pguest::pattern::Pattern;
use p2pguest::rig::request;
use p2pguest::sys::uapi::*;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

/// What a load of a device that was pulled out returns.
const ALL_ONES: u64 = u64::MAX;
const PAUSE: Duration = Duration::from_millis(5);
const POLL: Duration = Duration::from_secs(10);
/// Pages of the objects.
const PAGES: u64 = 16;

/// The processes.
#[derive(Debug)]
pub struct Load(Vec<Child>);

impl Load {
    /// Starts them. Call it while no other thread runs.
    ///
    /// `pulled`: a device is going to be off the bus, where loads return all ones.
    #[track_caller]
    pub fn start(pulled: bool) -> Self {
        let children = vec![
            igt::fork(|| again_and_again(|| in_child(transfer))),
            igt::fork(move || again_and_again(|| in_child(|| touch(0, pulled)))),
            igt::fork(move || again_and_again(|| in_child(|| touch(1, pulled)))),
        ];
        Self(children)
    }

    /// Asserts that none has seen a wrong byte.
    #[track_caller]
    pub fn assert_good(&self) {
        self.0.iter().for_each(Child::assert_runs);
    }

    /// Ends them.
    #[track_caller]
    pub fn stop(self) {
        self.assert_good();
        self.0.into_iter().for_each(Child::kill);
    }
}

fn again_and_again(run: impl Fn()) {
    loop {
        run();
        thread::sleep(PAUSE);
    }
}

/// In a child, as SIGBUS may end it; it goes when this process does. How far `run` came is not told.
fn in_child<T>(run: impl FnOnce() -> T) {
    let parent = getpid();
    let child = igt::fork(|| {
        let set = set_pdeathsig(Signal::SIGKILL);
        // It may have gone before.
        if set.is_ok() && getppid() == parent {
            run();
        }
    });
    match child.outcome() {
        Outcome::Passed | Outcome::Killed(Signal::SIGBUS) => {}
        outcome => panic!("a process that uses the devices: {outcome:?}"),
    }
}

/// One end of a transfer.
struct End {
    gpu: Gpu,
    nic: Nic,
}

fn open(index: usize) -> Option<End> {
    let node = Gpu::nodes().ok()?.into_iter().nth(index)?;
    Some(End {
        gpu: Gpu::__open(&node).ok()?,
        nic: Nic::__open(Nic::paths().ok()?.get(index)?).ok()?,
    })
}

fn all_devices() -> bool {
    Gpu::nodes().is_ok_and(|n| n.len() == 2) && Nic::paths().is_ok_and(|n| n.len() == 2)
}

/// Transfers until something fails, and compares what arrived.
fn transfer() -> Option<()> {
    if !all_devices() {
        return None;
    }
    let (near, far) = (open(0)?, open(1)?);
    let size = PAGES * near.gpu.page;
    let object = |end: &End| -> Option<(u32, OwnedFd)> {
        let bo = end.gpu.__create(size, Placement::Vram).ok()?;
        bo.__set_peer(P2PGPU_PEER_EXPORTABLE).ok()?;
        let fd = bo.__export().ok()?;
        Some((bo.into_handle(), fd))
    };
    let (source, target) = (object(&near)?, object(&far)?);
    let from = near
        .nic
        .__register(source.1.as_raw_fd(), ACCESS_ALL, 0, size)
        .ok()?;
    let to = far
        .nic
        .__register(target.1.as_raw_fd(), ACCESS_ALL, 0, size)
        .ok()?;
    let qp = near.nic.__create_qp(4, 4).ok()?;
    let other = far.nic.__create_qp(4, 4).ok()?;
    qp.__connect(other.number).ok()?;
    other.__connect(qp.number).ok()?;
    let digest = |end: &End, handle: u32| {
        let mut arg = drm_p2pgpu_gem_checksum {
            handle,
            size,
            ..Default::default()
        };
        end.gpu.__ioctl(&mut arg).ok().map(|()| arg.digest)
    };
    // Something to tell apart from zeros.
    let staging = near.gpu.__create(size, Placement::System).ok()?;
    for seed in 1.. {
        fill(&near, &staging, source.0, Pattern(seed))?;
        qp.__post_send(request(P2PNIC_OP_WRITE, (&from, 0), (&to, 0), size))
            .ok()?;
        let done = qp.__poll(1, POLL).ok()?;
        if done.first()?.status != P2PNIC_STATUS_OK {
            return None;
        }
        let (sent, arrived) = (digest(&near, source.0)?, digest(&far, target.0)?);
        assert_eq!(sent, arrived, "a transfer that worked was wrong");
    }
    None
}

fn fill(end: &End, staging: &Bo<'_>, handle: u32, pattern: Pattern) -> Option<()> {
    let map = staging.__map().ok()?;
    map.store(0, pattern.word(0));
    end.gpu
        .__copy(drm_p2pgpu_gem_copy {
            src_handle: staging.handle,
            dst_handle: handle,
            src_offset: 0,
            dst_offset: 0,
            size: staging.size,
        })
        .ok()
}

/// Stores and loads until the device is gone.
fn touch(index: usize, pulled: bool) -> Option<()> {
    let node = Gpu::nodes().ok()?.into_iter().nth(index)?;
    let gpu = Gpu::__open(&node).ok()?;
    let bo = gpu.__create(PAGES * gpu.page, Placement::Vram).ok()?;
    let map = bo.__map().ok()?;
    for round in 0.. {
        for page in 0..PAGES {
            let offset = usize::try_from(page * gpu.page).ok()?;
            let value = Pattern(round).word(page);
            map.store(offset, value);
            let found = map.load(offset);
            let right = found == value || pulled && found == ALL_ONES;
            assert!(right, "stored {value:#x}, found {found:#x}");
        }
        // Faults again, and not just loads.
        bo.__move_to([Placement::System, Placement::Vram][usize::from(round % 2 == 0)])
            .ok()?;
    }
    None
}
