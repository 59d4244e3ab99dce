// SPDX-License-Identifier: GPL-2.0
//! Keeps two GPUs and two NICs busy until it is killed: what `make top` shows.
//!
//! A buffer goes from GPU 0 to GPU 1 again and again while it is migrated, the CPU
//! walks over more of GPU 0 than its aperture shows, an object with a reservation is
//! read now and then, others come and go, and one is exported that may not be.

use anyhow::{Context, Result, ensure};
use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::nic::{ACCESS_ALL, Nic, Qp, Region, TIMEOUT, status_name};
use p2pguest::rig::{Exported, Rig, request};
use p2pguest::sys::uapi::*;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

/// Between two steps of a worker: a person is to see what changes.
const PACE: Duration = Duration::from_millis(200);
/// Between two pages that the CPU touches.
const WALK_PACE: Duration = Duration::from_millis(2);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("p2pload: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns at the first failure of a worker.
fn run() -> Result<()> {
    let nodes = Gpu::nodes().context("libdrm found no devices")?;
    let paths = Nic::paths().context("the NICs could not be listed")?;
    ensure!(
        nodes.len() >= 2 && paths.len() >= 2,
        "two GPUs and two NICs are needed, found {} and {}",
        nodes.len(),
        paths.len()
    );
    let rig = Rig {
        gpu: [Gpu::__open(&nodes[0])?, Gpu::__open(&nodes[1])?],
        nic: [Nic::__open(&paths[0])?, Nic::__open(&paths[1])?],
    };
    let workers: [fn(&Rig) -> Result<()>; 5] = [transfer, walk, reserved, visitors, refused];
    thread::scope(|scope| {
        let (ended, end) = std::sync::mpsc::channel();
        for worker in workers {
            let (rig, ended) = (&rig, ended.clone());
            // The first message ends the process, and the workers with it.
            scope.spawn(move || ended.send(worker(rig)));
        }
        let error = match end.recv() {
            Ok(Err(error)) => error,
            Ok(Ok(())) | Err(_) => anyhow::anyhow!("a worker ended"),
        };
        println!("p2pload: {error:#}");
        std::process::exit(1)
    })
}

/// An object in VRAM with these flags, exported.
fn exported(gpu: &Gpu, pages: u64, flags: u32) -> Result<Exported<'_>> {
    let bo = gpu
        .__create(pages * gpu.page, Placement::Vram)
        .context("GEM_CREATE")?;
    bo.__set_peer(P2PGPU_PEER_EXPORTABLE | flags)
        .with_context(|| format!("GEM_SET_PEER of {pages} pages with flags {flags:#x}"))?;
    let fd = bo.__export().context("PRIME export")?;
    Ok(Exported { bo, fd })
}

fn register<'n>(nic: &'n Nic, end: &Exported<'_>) -> Result<Region<'n>> {
    nic.__register(end.fd.as_raw_fd(), ACCESS_ALL, 0, end.bo.size)
        .context("REG_REGION")
}

/// A queue pair at each NIC, connected.
fn connect(rig: &Rig) -> Result<(Qp<'_>, Qp<'_>)> {
    let near = rig.nic[0].__create_qp(4, 4).context("CREATE_QP")?;
    let far = rig.nic[1].__create_qp(4, 4).context("CREATE_QP")?;
    near.__connect(far.number).context("CONNECT_QP")?;
    far.__connect(near.number).context("CONNECT_QP")?;
    Ok((near, far))
}

/// Writes the start of one region into another, which maps both of them whole.
fn write(qp: &Qp<'_>, from: &Region<'_>, to: &Region<'_>, size: u64) -> Result<()> {
    qp.__post_send(request(P2PNIC_OP_WRITE, (from, 0), (to, 0), size))
        .context("POST_SEND")?;
    for done in qp.__poll(1, TIMEOUT).context("POLL")? {
        ensure!(
            done.status == P2PNIC_STATUS_OK,
            "a transfer ended with {}",
            status_name(done.status)
        );
    }
    Ok(())
}

/// To system memory or back.
fn migrate(bo: &Bo<'_>, placement: Placement) -> Result<()> {
    bo.__move_to(placement)
        .with_context(|| format!("GEM_MOVE to {placement:?}"))
}

/// The demo's transfer, without an end: the destination moves while bytes flow.
fn transfer(rig: &Rig) -> Result<()> {
    let pages = rig.gpu[0].slots.min(rig.gpu[1].slots) / 16;
    let source = exported(&rig.gpu[0], pages, 0)?;
    let target = exported(&rig.gpu[1], pages, 0)?;
    let (from, to) = (
        register(&rig.nic[0], &source)?,
        register(&rig.nic[1], &target)?,
    );
    let (near, _far) = connect(rig)?;
    loop {
        for placement in [Placement::Vram, Placement::System, Placement::Vram] {
            migrate(&target.bo, placement)?;
            write(&near, &from, &to, source.bo.size)?;
            thread::sleep(PACE);
        }
    }
}

/// Touches more pages than there are slots, one after the other.
fn walk(rig: &Rig) -> Result<()> {
    let gpu = &rig.gpu[0];
    let bo = gpu
        .__create(gpu.aperture() + gpu.aperture() / 4, Placement::Vram)
        .context("GEM_CREATE")?;
    let map = bo.__map().context("mmap")?;
    loop {
        for page in 0..bo.pages() {
            map.store(usize::try_from(page * gpu.page)?, page);
            thread::sleep(WALK_PACE);
        }
    }
}

/// Reads an object that has a reservation, and moves it now and then.
fn reserved(rig: &Rig) -> Result<()> {
    let gpu = &rig.gpu[0];
    let kept = exported(gpu, gpu.slots / 8, P2PGPU_PEER_RESERVE)?;
    let sink = exported(&rig.gpu[1], 1, 0)?;
    let (from, to) = (register(&rig.nic[0], &kept)?, register(&rig.nic[1], &sink)?);
    let (near, _far) = connect(rig)?;
    loop {
        for round in 0..20 {
            write(&near, &from, &to, gpu.page)?;
            thread::sleep(PACE);
            if round == 10 {
                migrate(&kept.bo, Placement::System)?;
                thread::sleep(PACE);
                migrate(&kept.bo, Placement::Vram)?;
            }
        }
    }
}

/// Objects of all sizes that peers map for a while.
fn visitors(rig: &Rig) -> Result<()> {
    let gpu = &rig.gpu[0];
    let sink = exported(&rig.gpu[1], 1, 0)?;
    let to = register(&rig.nic[1], &sink)?;
    let (near, _far) = connect(rig)?;
    loop {
        for part in [64, 16, 32, 8, 4] {
            let visitor = exported(gpu, gpu.slots / part, 0)?;
            let from = register(&rig.nic[0], &visitor)?;
            write(&near, &from, &to, gpu.page)?;
            thread::sleep(2 * PACE);
        }
    }
}

/// Tries now and then to export an object that is not flagged.
fn refused(rig: &Rig) -> Result<()> {
    let bo = rig.gpu[0]
        .__create(rig.gpu[0].page, Placement::Vram)
        .context("GEM_CREATE")?;
    loop {
        ensure!(
            bo.__export().is_err(),
            "an object without the flag was exported"
        );
        thread::sleep(5 * PACE);
    }
}
