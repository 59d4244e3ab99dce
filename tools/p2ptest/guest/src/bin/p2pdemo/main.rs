// SPDX-License-Identifier: GPL-2.0
//! The main job: a file goes from GPU 0's VRAM to GPU 1's through two NICs and
//! two BARs, while the destination moves, and arrives whole.
//!
//! This file has the order of the steps and the verdict; `transfer` moves the
//! bytes, `report` prints.
//!
//! The second act, `allreduce`, is a file of its own.

mod allreduce;
mod report;
mod transfer;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use nix::errno::Errno;
use p2pguest::debugfs::Debugfs;
use p2pguest::gpu::{Gpu, Placement};
use p2pguest::nic::Nic;
use p2pguest::rig::Rig;
use p2pguest::sys::uapi::*;
use report::{Outcome, Progress};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use transfer::{Counts, Delivery, Piece};

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Act {
    /// A file goes from GPU 0's VRAM to GPU 1's
    File,
    /// Two GPUs sum up their vectors
    Allreduce,
}

/// Copies FILE from GPU 0's VRAM to GPU 1's over the NICs, and checks it.
#[derive(Debug, Parser)]
struct Options {
    /// What is shown
    #[arg(long, value_enum, default_value_t = Act::File)]
    act: Act,
    /// The file to copy
    file: Option<PathBuf>,
    /// Bytes that are exported and registered at a time, a multiple of 4096
    /// [default: a quarter of the aperture]
    #[arg(long, value_name = "BYTES")]
    chunk: Option<u64>,
    /// Times that the destination of each chunk goes to system memory and back
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    migrations: u32,
    /// Most repetitions of a transfer that no invalidation has met
    #[arg(long, value_name = "N", default_value_t = 50)]
    repeats: u32,
}

/// Fewest migrations of the destination, there and back, of a whole run.
const MIN_ROUND_TRIPS: u64 = 2;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("p2pdemo: FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all went as it must.
fn run(options: &Options) -> Result<bool> {
    let rig = open_rig()?;
    if options.act == Act::Allreduce {
        return allreduce::run(&rig);
    }
    let path = options.file.as_deref().context("FILE is missing")?;
    let file =
        File::open(path).with_context(|| format!("{} could not be opened", path.display()))?;
    let size = file.metadata().context("size of the file")?.len();
    ensure!(size > 0, "{} is empty", path.display());
    let chunk = chunk_size(&rig, options.chunk, size)?;
    report::print_setup(&rig, path, size, chunk)?;

    let start = Instant::now();
    let faults = fault_counts(&rig)?;
    let before = Counts::read(&rig)?;
    let job = Job {
        rig: &rig,
        options,
        chunk,
        size,
    };
    let (source, found, delivery) = job.copy(file)?;
    let counts = Counts::read(&rig)?.since(&before);
    let faults_after = fault_counts(&rig)?;
    let outcome = Outcome {
        bytes: size,
        source,
        found,
        delivery,
        counts,
        faults: faults_after.iter().sum::<u64>() - faults.iter().sum::<u64>(),
        elapsed: start.elapsed(),
    };
    report::print_table(&outcome);
    let refused = refused_without_flag(&rig)?;
    Ok(report::print_verdict(&outcome, refused))
}

/// Opens two GPUs and two NICs.
fn open_rig() -> Result<Rig> {
    let nodes = Gpu::nodes().context("libdrm found no devices")?;
    let paths = Nic::paths().context("the NICs could not be listed")?;
    let ([first, second, ..], [near, far, ..]) = (&nodes[..], &paths[..]) else {
        bail!(
            "two GPUs and two NICs are needed, found {} and {}",
            nodes.len(),
            paths.len()
        );
    };
    let gpu = |node| Gpu::__open(node).context("a GPU could not be opened");
    let nic = |path: &Path| Nic::__open(path).context("a NIC could not be opened");
    Ok(Rig {
        gpu: [gpu(first)?, gpu(second)?],
        nic: [nic(near)?, nic(far)?],
    })
}

/// Bytes that are exported and registered at a time.
fn chunk_size(rig: &Rig, wanted: Option<u64>, file_size: u64) -> Result<u64> {
    let aperture = rig.gpu[0].aperture().min(rig.gpu[1].aperture());
    let page = rig.gpu[0].page;
    let chunk = wanted.unwrap_or(aperture / 4);
    ensure!(
        chunk > 0 && chunk.is_multiple_of(page),
        "--chunk must be a multiple of {page}"
    );
    ensure!(
        chunk <= aperture,
        "--chunk must not be larger than the aperture, {aperture}"
    );
    Ok(chunk.min(file_size.next_multiple_of(page)))
}

fn fault_counts(rig: &Rig) -> Result<[u64; 2]> {
    let count = |gpu: &Gpu| {
        Debugfs::default()
            .faults(gpu.pci())
            .map(|faults| faults.count)
    };
    Ok([count(&rig.gpu[0])?, count(&rig.gpu[1])?])
}

/// The same as for a chunk of the file, without the flag: says how the export
/// ended.
fn refused_without_flag(rig: &Rig) -> Result<Option<Errno>> {
    let bo = rig.gpu[0]
        .__create(rig.gpu[0].page, Placement::Vram)
        .context("GEM_CREATE")?;
    Ok(bo.__export().err())
}

type Digest256 = [u8; 32];

/// The copy of one file.
struct Job<'r> {
    rig: &'r Rig,
    options: &'r Options,
    chunk: u64,
    size: u64,
}

impl Job<'_> {
    /// Copies all bytes; returns the SHA-256 of what was read from the file
    /// and of what GPU 1's VRAM held, and what the transfers met.
    fn copy(&self, mut file: File) -> Result<(Digest256, Digest256, Delivery)> {
        let (mut source, mut found) = (Sha256::new(), Sha256::new());
        let mut load = Progress::new("load into GPU 0's VRAM", self.size);
        let mut send = Progress::new("transfer to GPU 1's VRAM", self.size);
        let mut check = Progress::new("read back from GPU 1's VRAM", self.size);
        let mut delivery = Delivery::default();
        let mut left = self.size;
        while left > 0 {
            // What fits VRAM is loaded at once; a larger file comes in batches.
            let mut batch = Vec::new();
            let batch_size = left.min(self.batch_size()?);
            let mut loaded = 0;
            while loaded < batch_size {
                let size = (batch_size - loaded).min(self.chunk);
                batch.push(self.load(&mut file, size, &mut source)?);
                loaded += size;
                load.advance(size);
            }
            left -= batch_size;
            for piece in &batch {
                transfer::send(self.rig, piece, self.options.migrations, &mut delivery)?;
                send.advance(piece.size);
            }
            if left == 0
                && let Some(last) = batch.last()
            {
                self.repeat_until_met(last, &mut delivery)?;
            }
            for piece in batch {
                found.update(piece.read_back(&self.rig.gpu[1])?);
                check.advance(piece.size);
            }
        }
        ensure!(file.read(&mut [0])? == 0, "the file grew while it was read");
        Ok((source.finalize().into(), found.finalize().into(), delivery))
    }

    /// Bytes of the file that the VRAM of both GPUs takes now.
    fn batch_size(&self) -> Result<u64> {
        let mut free = u64::MAX;
        for gpu in &self.rig.gpu {
            free = free.min(gpu.__param(P2PGPU_PARAM_VRAM_FREE).context("GETPARAM")?);
        }
        let chunks = free / 4 * 3 / self.chunk;
        Ok(chunks.max(1) * self.chunk)
    }

    /// Reads the next bytes of the file into an object of GPU 0.
    fn load(&self, file: &mut File, size: u64, hash: &mut Sha256) -> Result<Piece<'_>> {
        let mut bytes = vec![0; usize::try_from(size)?];
        file.read_exact(&mut bytes)
            .context("the file ended early")?;
        hash.update(&bytes);
        Piece::load(self.rig, &bytes)
    }

    /// Sends a piece again and again until an invalidation has met a transfer
    /// in flight: the file may have been too small for that.
    fn repeat_until_met(&self, piece: &Piece<'_>, delivery: &mut Delivery) -> Result<()> {
        let (mut repeats, sent) = (0, delivery.requests);
        let met = |delivery: &Delivery| {
            delivery.met_in_flight > 0 && delivery.round_trips >= MIN_ROUND_TRIPS
        };
        while !met(delivery) && repeats < self.options.repeats {
            repeats += 1;
            transfer::send_often(self.rig, piece, self.options.migrations, delivery)?;
        }
        let requests = delivery.requests - sent;
        if requests > 0 {
            println!(
                "The file is small: its last chunk was sent {requests} more times, for an \
                 invalidation to meet a transfer in flight."
            );
        }
        Ok(())
    }
}
