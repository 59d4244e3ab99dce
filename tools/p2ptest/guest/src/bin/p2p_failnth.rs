// SPDX-License-Identifier: GPL-2.0
//! Tests of each ioctl of the GPU's driver while memory runs out: the first, the
//! second and every other allocation that it makes fails, and every copy from and
//! to userspace. Each failure ends in ENOMEM or EFAULT and leaves nothing behind.
//! Needs the debug kernel.

use nix::errno::Errno;
use p2pguest::drm;
use p2pguest::failnth::{PAGE, SIZE, What, errno, exhaust, exhaust_and_check};
use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::igt::{self, Subtest};
use p2pguest::map::Mapping;
use p2pguest::pattern::Pattern;
use p2pguest::rig::{Exported, RESERVED, Rig};
use p2pguest::setting::Setting;
use p2pguest::submit::{Context, binary, point};
use p2pguest::subtests;
use p2pguest::syncobj::{PATIENCE, Syncobj};
use p2pguest::sys::uapi::*;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::ExitCode;

const SUBTESTS: &[Subtest] = subtests![
    /// Opening a render node and closing it.
    gpu_open,
    /// GETPARAM.
    getparam,
    /// GEM_CREATE in both placements.
    create,
    /// Closing a handle: it is closed, or still there.
    close,
    /// GEM_MMAP_OFFSET.
    mmap_offset,
    /// mmap of an object.
    mmap,
    /// Touching a page in VRAM: the access is made in the end.
    fault,
    /// GEM_INFO and GEM_MADVISE.
    info,
    /// GEM_SET_PEER, each flag.
    set_peer,
    /// GEM_SET_PEER with a promise for which a NIC has to let go of slots.
    set_peer_takes_slots,
    /// PEER_QUERY.
    query,
    /// GEM_MOVE in both directions: the object is where it was, and as it was.
    migrate,
    /// GEM_MOVE of an object that a NIC has mapped.
    migrate_mapped,
    /// GEM_COPY between both placements.
    copy,
    /// GEM_CHECKSUM.
    checksum,
    /// CONTEXT_CREATE and SUBMIT.
    submit,
    /// PRIME export.
    export,
    /// GEM_EXPORT_RANGE.
    export_range,
    /// mmap of a dma-buf, and touching a page there.
    mmap_dma_buf,
    /// Writing and reading the policy of peers.
    policy,
    /// PRIME import of an own object.
    import,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

fn gpu_open() {
    let path = Gpu::open(0).node().path.clone();
    let open = |(): &()| File::open(&path).map_err(|e| errno(&e));
    exhaust("open", || (), open);
}

fn getparam() {
    let gpu = Gpu::open(0);
    exhaust("GETPARAM", || (), |()| gpu.__param(P2PGPU_PARAM_VRAM_SIZE));
}

fn create() {
    let gpu = Gpu::open(0);
    for placement in Placement::ALL {
        exhaust_and_check(
            What::Allocations,
            &format!("GEM_CREATE {placement:?}"),
            || (),
            |()| gpu.__create(SIZE, placement),
            |(), _| (),
        );
    }
}

fn close() {
    let gpu = Gpu::open(0);
    for placement in Placement::ALL {
        let object = || gpu.create(SIZE, placement);
        exhaust_and_check(
            What::All,
            "GEM_CLOSE",
            object,
            |bo| gpu.__close(bo.handle),
            |bo, result| assert_eq!(gpu.__close(bo.handle).is_ok(), result.is_err()),
        );
    }
}

fn mmap_offset() {
    let gpu = Gpu::open(0);
    let object = || gpu.create(SIZE, Placement::Vram);
    exhaust("GEM_MMAP_OFFSET", object, Bo::__mmap_offset);
}

fn mmap() {
    let gpu = Gpu::open(0);
    let object = || gpu.create(SIZE, Placement::Vram);
    exhaust("mmap", object, Bo::__map);
}

fn fault() {
    let gpu = Gpu::open(0);
    let mapped = || {
        let bo = gpu.create(SIZE, Placement::Vram);
        (bo.map(), bo)
    };
    exhaust("touch", mapped, |(map, _)| {
        map.store(0, 1);
        Ok(map.load(0))
    });
}

fn info() {
    let gpu = Gpu::open(0);
    let object = || gpu.create(SIZE, Placement::Vram);
    exhaust("GEM_INFO", object, Bo::__info);
    let object = || gpu.create_evictable(SIZE);
    exhaust("GEM_MADVISE", object, |bo| {
        bo.__advise(P2PGPU_MADV_DONTNEED)
    });
}

fn set_peer() {
    let gpu = Gpu::open(0);
    let object = || gpu.create(SIZE, Placement::Vram);
    let unpromised = P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_STRICT | P2PGPU_PEER_READ_ONLY;
    for flags in [P2PGPU_PEER_EXPORTABLE, RESERVED, unpromised] {
        exhaust(&format!("GEM_SET_PEER {flags:#x}"), object, |bo| {
            bo.__set_peer(flags)
        });
    }
    let flagged = || {
        let bo = object();
        bo.set_peer(RESERVED | unpromised);
        bo
    };
    exhaust("GEM_SET_PEER 0", flagged, |bo| bo.__set_peer(0));
}

fn set_peer_takes_slots() {
    let rig = Rig::open();
    let gpu = &rig.gpu[0];
    let pages = SIZE / PAGE;
    let _squeeze = rig.hold_slots(0, gpu.slots - pages);
    let lent = || {
        let held = rig.register(0, SIZE, Placement::Vram);
        rig.touch(0, &held);
        assert_eq!(u64::from(held.bo.info().peer_slots), pages);
        (gpu.create(SIZE, Placement::Vram), held)
    };
    exhaust_and_check(
        What::All,
        "GEM_SET_PEER that takes slots",
        lent,
        |(bo, _)| bo.__set_peer(RESERVED),
        |(bo, _), result| {
            let promised = u64::from(bo.info().promised_slots);
            assert_eq!(promised, if result.is_ok() { pages } else { 0 });
        },
    );
}

fn query() {
    let rig = Rig::open();
    let peer = rig.nic[0].pci();
    let object = || rig.gpu[0].create(SIZE, Placement::Vram);
    exhaust("PEER_QUERY", object, |bo| {
        rig.gpu[0].__query(bo.handle, peer)
    });
}

/// An object is in one of two placements: where a failed move left it.
#[track_caller]
fn assert_moved(bo: &Bo<'_>, from: Placement, result: Result<&(), &Errno>) {
    let expected = if result.is_ok() { from.other() } else { from };
    assert_eq!(bo.info().placement, expected as u32, "after {result:?}");
    bo.assert_holds(Pattern(7));
}

fn migrate() {
    let gpu = Gpu::open(0);
    for placement in Placement::ALL {
        let object = || {
            let bo = gpu.create(SIZE, placement);
            bo.fill(Pattern(7));
            bo
        };
        exhaust_and_check(
            What::All,
            &format!("GEM_MOVE from {placement:?}"),
            object,
            |bo| bo.__move_to(placement.other()),
            |bo, result| assert_moved(bo, placement, result),
        );
    }
}

fn migrate_mapped() {
    let rig = Rig::open();
    for placement in Placement::ALL {
        let sink = rig.register(1, SIZE, Placement::System);
        let wire = rig.connect(4);
        let mapped = || {
            let source = rig.register(0, SIZE, placement);
            source.bo.fill(Pattern(7));
            wire.write(&source.region, &sink.region);
            source
        };
        exhaust_and_check(
            What::All,
            &format!("GEM_MOVE of a mapped object from {placement:?}"),
            mapped,
            |source| source.bo.__move_to(placement.other()),
            |source, result| {
                assert_moved(&source.bo, placement, result);
                // The NIC finds it, wherever it is.
                wire.write(&source.region, &sink.region);
                sink.bo.assert_holds(Pattern(7));
            },
        );
    }
}

fn copy() {
    let gpu = Gpu::open(0);
    for (from, to) in [
        (Placement::Vram, Placement::System),
        (Placement::System, Placement::Vram),
        (Placement::Vram, Placement::Vram),
    ] {
        let (source, target) = (gpu.create(SIZE, from), gpu.create(SIZE, to));
        exhaust(
            &format!("GEM_COPY {from:?} to {to:?}"),
            || (),
            |()| source.__copy_to(&target, SIZE),
        );
    }
}

fn submit() {
    let gpu = Gpu::open(0);
    exhaust("CONTEXT_CREATE", || (), |()| Context::__new(&gpu));
    let context = Context::new(&gpu);
    for placement in Placement::ALL {
        let [from, to] = [0, 1].map(|_| gpu.create(SIZE, placement));
        let ops = [
            p2pguest::submit::copy(&from, &to, SIZE),
            p2pguest::submit::between(P2PGPU_OP_CHECKSUM, &from, &to, SIZE),
        ];
        // An engine whose jobs fail would lose the context.
        let syncobj = || Syncobj::new(&gpu);
        exhaust_and_check(
            What::Allocations,
            &format!("SUBMIT {placement:?}"),
            || (syncobj(), syncobj()),
            |(first, second)| {
                let outs = [binary(first), point(second, 3)];
                context.__submit(&ops, &[], &outs)
            },
            |(first, _), result| {
                // All or nothing.
                assert_eq!(first.__wait(PATIENCE, 0).is_ok(), result.is_ok());
            },
        );
    }
    assert_eq!(context.query().state, P2PGPU_CONTEXT_OK);
}

fn checksum() {
    let gpu = Gpu::open(0);
    for placement in Placement::ALL {
        let bo = gpu.create(SIZE, placement);
        exhaust(
            &format!("GEM_CHECKSUM {placement:?}"),
            || (),
            |()| bo.__checksum(0, SIZE),
        );
    }
}

fn export() {
    let gpu = Gpu::open(0);
    let object = || {
        let bo = gpu.create(SIZE, Placement::Vram);
        bo.set_exportable(true);
        bo
    };
    exhaust_and_check(
        What::Allocations,
        "PRIME export",
        object,
        Bo::__export,
        |_, _| (),
    );
}

fn export_range() {
    let gpu = Gpu::open(0);
    let object = || {
        let bo = gpu.create(SIZE, Placement::Vram);
        bo.set_exportable(true);
        bo
    };
    let flags = P2PGPU_EXPORT_CLOEXEC | P2PGPU_EXPORT_RDWR;
    exhaust_and_check(
        What::Allocations,
        "GEM_EXPORT_RANGE",
        object,
        |bo| bo.__export_range(PAGE, 2 * PAGE, flags),
        |_, _| (),
    );
}

fn mmap_dma_buf() {
    let rig = Rig::open();
    let exported = || rig.export(0, SIZE, Placement::Vram);
    exhaust("mmap of a dma-buf", exported, |exported| {
        let map = Mapping::__new(&exported.fd, 0, PAGE as usize)?;
        map.store(0, 1);
        Ok(())
    });
}

fn policy() {
    let rig = Rig::open();
    let policy = Setting::new(rig.gpu[0].pci(), "peer_policy");
    let mapped = || {
        let held = rig.register(0, SIZE, Placement::Vram);
        rig.touch(0, &held);
        held
    };
    exhaust("peer_policy", mapped, |_| {
        policy.__write("allow driver p2pnic\ndeny pci 0000:ff:00.0\ndefault deny")
    });
}

fn import() {
    let rig = Rig::open();
    let other = rig.gpu[0].reopen();
    let exported = || rig.export(0, SIZE, Placement::Vram);
    exhaust_and_check(
        What::Allocations,
        "PRIME import",
        exported,
        |exported: &Exported<'_>| drm::prime_fd_to_handle(&other, exported.fd.as_raw_fd()),
        |_, handle| {
            if let Ok(&handle) = handle {
                assert_eq!(other.__close(handle), Ok(()));
            }
        },
    );
}
