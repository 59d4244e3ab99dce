// SPDX-License-Identifier: GPL-2.0
//! Tests of dma-bufs that come by PRIME from other exporters: CPUs see them, the
//! copy engine reaches them, and either side can move or go away; and of what CPUs
//! and processes do with dma-bufs of ours.

mod cpu;
mod foreign;
mod gone;

use p2pguest::igt::{self, Subtest};
use p2pguest::subtests;
use std::process::ExitCode;

use cpu::*;
use foreign::*;
use gone::*;

const SUBTESTS: &[Subtest] = subtests![
    /// A mapping of an imported object is one of the exporter's memory.
    foreign_cpu_access,
    /// No more of an imported object can be mapped than there is.
    foreign_cpu_access_past_the_end,
    /// The engine copies from a foreign dma-buf, and hashes it.
    foreign_source,
    /// The engine copies into a foreign dma-buf, and only where it is told.
    foreign_target,
    /// The engine copies from one exporter's dma-buf to another's.
    foreign_to_foreign,
    /// What the engine has read can be written next.
    foreign_read_then_written,
    /// What is no dma-buf is refused.
    bad_import,
    /// The same dma-buf gives the same handle in a file, and another object in
    /// another file.
    import_twice,
    /// An imported object is exported as the dma-buf that it came from, unflagged.
    import_is_handed_on,
    /// An imported object outlives the exporter's files.
    import_keeps_the_dma_buf,
    /// What only makes sense for own objects is refused with EOPNOTSUPP.
    import_cannot_be_managed,
    /// GEM_INFO says that an object is imported, and has nothing of this device.
    import_info,
    /// A copy waits for fences that others put on a foreign dma-buf.
    import_is_copied_after_fences,
    /// The exporter's device goes away under an import.
    exporter_goes,
    /// The importing device goes away.
    importer_goes,
    /// Both go away, the exporter first, or the importer.
    both_go,
    /// A process with imports is killed in a copy.
    importer_is_killed,
    /// A mapping of a dma-buf follows the object wherever it moves.
    dma_buf_mmap_over_moves,
    /// No more of a dma-buf is mapped than there is, and only for what its file is.
    dma_buf_mmap_limits,
    /// A dma-buf is ready when the engine's work on it is done, and not before.
    dma_buf_poll,
    /// CPU access begins when the engine's work is done.
    dma_buf_sync_waits,
    /// The fences of the engine's work can be had as files.
    dma_buf_export_sync_file,
    /// Fences that somebody brings are waited for by the engine, and by moves.
    dma_buf_import_sync_file,
    /// The dma-buf of a device that is gone can be asked, but not touched.
    dma_buf_when_gone,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}
