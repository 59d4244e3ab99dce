// SPDX-License-Identifier: GPL-2.0
//! What it takes to map a dma-buf of p2pgpu, and one of vfio-pci beside it: GPU 0 and
//! GPU 1 export pages of their apertures, and one importer maps them in turns. For
//! scattered pages vfio-pci does nothing but call `dma_buf_phys_vec_to_sgt`.
//!
//! Its arguments are what to measure: `mappings`, `jobs`; both if there are none.
//!
//! A line for each figure has the nanoseconds of all rounds:
//!
//! ```text
//! bytes=4096 layout=contiguous what=map who=p2pgpu ns=2310,2290,...
//! ```

mod jobs;

use anyhow::{Context, Result, ensure};
use p2pguest::debugfs::Debugfs;
use p2pguest::dmabuf::DmaBuf;
use p2pguest::drm::PciAddress;
use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::importer::{Answer, Attach, Direction, Importer};
use p2pguest::map::Mapping;
use p2pguest::nic::Nic;
use p2pguest::sys::uapi::*;
use p2pguest::vfio::VfioDevice;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

/// Sizes of the dma-bufs, pages.
const SIZES: [u64; 5] = [1, 8, 64, 512, 2048];
/// Times that each exporter has its turn, and rounds in a turn that count, after one
/// other.
const TURNS: usize = 25;
const ROUNDS: usize = 8;
/// Rounds with slots that show nothing yet, and with mappings that are taken back.
const COLD_ROUNDS: usize = 21;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("p2pbench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// One range
    Contiguous,
    /// A range a page
    Scattered,
}

impl Layout {
    fn name(self) -> &'static str {
        match self {
            Self::Contiguous => "contiguous",
            Self::Scattered => "scattered",
        }
    }

    fn ranges(self, pages: u64) -> u64 {
        match self {
            Self::Contiguous => 1,
            Self::Scattered => pages,
        }
    }
}

fn run() -> Result<()> {
    let chosen: Vec<_> = std::env::args().skip(1).collect();
    let takes = |what: &str| chosen.is_empty() || chosen.iter().any(|name| name == what);
    let nodes = Gpu::nodes().context("libdrm found no devices")?;
    ensure!(nodes.len() >= 2, "two GPUs are needed");
    let gpu = Gpu::__open(&nodes[0])?;
    let nics = Nic::paths().context("the NICs could not be listed")?;
    let nic = Nic::__open(nics.first().context("a NIC is needed")?)?.pci();
    let vfio = VfioDevice::new(nodes[1].pci).context("vfio-pci")?;
    if takes("jobs") {
        jobs::run(&gpu, nic)?;
    }
    if !takes("mappings") {
        return Ok(());
    }
    let bench = Bench { gpu, vfio, nic };
    bench.all(Layout::Contiguous)?;
    let _comb = bench.comb()?;
    bench.all(Layout::Scattered)
}

struct Bench {
    gpu: Gpu,
    vfio: VfioDevice,
    nic: PciAddress,
}

/// The nanoseconds of each kind of work of each exporter.
type Times = BTreeMap<(&'static str, &'static str), Vec<u64>>;

impl Bench {
    fn all(&self, layout: Layout) -> Result<()> {
        for pages in SIZES {
            let mut times = Times::new();
            self.warm(layout, pages, &mut times)?;
            self.cold(layout, pages, &mut times)?;
            self.taken_back(pages, &mut times)?;
            for ((what, who), times) in times {
                let list: Vec<_> = times.iter().map(u64::to_string).collect();
                println!(
                    "bytes={} layout={} what={what} who={who} ns={}",
                    pages * self.gpu.page,
                    layout.name(),
                    list.join(",")
                );
            }
        }
        Ok(())
    }

    /// Leaves GPU 0 every other slot: the others show pages of objects that CPUs map.
    fn comb(&self) -> Result<Vec<(Bo<'_>, Mapping)>> {
        let mut tooth = Vec::new();
        for _ in 0..self.gpu.slots {
            let bo = self.gpu.__create(self.gpu.page, Placement::Vram)?;
            let map = bo.__map()?;
            map.load(0);
            tooth.push((bo, map));
        }
        let mut kept = false;
        tooth.retain(|_| {
            kept = !kept;
            kept
        });
        Ok(tooth)
    }

    fn object(&self, pages: u64) -> Result<(Bo<'_>, DmaBuf)> {
        let bo = self.gpu.__create(pages * self.gpu.page, Placement::Vram)?;
        bo.__set_peer(P2PGPU_PEER_EXPORTABLE)?;
        let dmabuf = DmaBuf(bo.__export()?);
        Ok((bo, dmabuf))
    }

    fn attach(&self, dmabuf: &DmaBuf) -> Result<Importer> {
        Ok(Importer::__attach(dmabuf, Attach::peer(self.nic))?)
    }

    /// `EINVAL` unless the dma-buf is mapped in as many ranges as the layout has.
    fn check(importer: &Importer, layout: Layout, pages: u64, who: &str) -> Result<()> {
        let (index, ranges) = importer.__map(Direction::Both)?;
        importer.__unmap(index)?;
        ensure!(
            u64::from(ranges) == layout.ranges(pages),
            "{who}: {ranges} ranges, {} of {pages} pages",
            layout.name()
        );
        Ok(())
    }

    /// With slots that show the pages already.
    fn warm(&self, layout: Layout, pages: u64, times: &mut Times) -> Result<()> {
        let page = self.gpu.page;
        let ranges: Vec<_> = match layout {
            Layout::Contiguous => vec![(0, pages * page)],
            Layout::Scattered => (0..pages).map(|at| (2 * at * page, page)).collect(),
        };
        let theirs = self
            .vfio
            .export(2, &ranges)
            .context("VFIO_DEVICE_FEATURE_DMA_BUF")?;
        let (_bo, ours) = self.object(pages)?;
        for turn in 0..TURNS {
            let both = [("p2pgpu", &ours), ("vfio-pci", &theirs)];
            // Neither is always the first.
            for (who, dmabuf) in [both[turn % 2], both[1 - turn % 2]] {
                let importer = self.attach(dmabuf)?;
                Self::check(&importer, layout, pages, who)?;
                let mut add = |what, ns| times.entry((what, who)).or_default().push(ns);
                add("attach", importer.__info()?.attach_ns);
                for sample in importer.__time(Direction::Both, ROUNDS + 1)?.iter().skip(1) {
                    add("map", sample.map_ns);
                    add("unmap", sample.unmap_ns);
                    add("map+unmap", sample.map_ns + sample.unmap_ns);
                }
            }
        }
        Ok(())
    }

    /// The first mapping of an object.
    fn cold(&self, layout: Layout, pages: u64, times: &mut Times) -> Result<()> {
        let accesses = || -> Result<u64> {
            let counters = Debugfs::default().counters("p2pgpu", self.gpu.pci())?;
            Ok(counters["reg_reads"] + counters["reg_writes"])
        };
        let mut most = 0;
        for _ in 0..COLD_ROUNDS {
            let (_bo, dmabuf) = self.object(pages)?;
            let importer = self.attach(&dmabuf)?;
            let first = accesses()?;
            let asking = accesses()? - first;
            let before = accesses()?;
            let samples = importer.__time(Direction::Both, 1)?;
            most = most.max(accesses()? - before - asking);
            for sample in samples {
                times
                    .entry(("cold-map+unmap", "p2pgpu"))
                    .or_default()
                    .push(sample.map_ns + sample.unmap_ns);
            }
            Self::check(&importer, layout, pages, "p2pgpu")?;
        }
        println!(
            "bytes={} layout={} accesses={most}",
            pages * self.gpu.page,
            layout.name()
        );
        Ok(())
    }

    /// From being told to let go to the next mapping, by a work item.
    fn taken_back(&self, pages: u64, times: &mut Times) -> Result<()> {
        let (bo, dmabuf) = self.object(pages)?;
        let how = Attach::peer(self.nic).answer(Answer::Remap, 0);
        let importer = Importer::__attach(&dmabuf, how)?;
        importer.__map(Direction::Both)?;
        for round in 0..COLD_ROUNDS {
            bo.__set_peer(P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_STRICT)?;
            // Clearing a flag takes mappings back.
            bo.__set_peer(P2PGPU_PEER_EXPORTABLE)?;
            let remapped = u32::try_from(round + 1)?;
            while importer.__info()?.remaps < remapped {
                thread::sleep(Duration::from_millis(1));
            }
            let ns = importer.__info()?.remap_ns;
            times
                .entry(("told-to-remapped", "p2pgpu"))
                .or_default()
                .push(ns);
        }
        Ok(())
    }
}
