// SPDX-License-Identifier: GPL-2.0
//! What most tests stand on: two GPUs, two NICs wired to each other, objects
//! that are exported and registered, and a connected queue pair.

use crate::binding::wait_until;
use crate::gpu::{Bo, Gpu, Placement};
use crate::map::Mapping;
use crate::nic::{ACCESS_ALL, Nic, Qp, Region};
use crate::pattern::Pattern;
use crate::sys::uapi::*;
use std::os::fd::OwnedFd;

/// The flags of an object whose peers are promised slots.
pub const RESERVED: u32 = P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_RESERVE;

/// Two GPUs and two NICs.
#[derive(Debug)]
pub struct Rig {
    /// The GPUs, in the order of their PCI addresses
    pub gpu: [Gpu; 2],
    /// The NICs, in the order of their PCI addresses
    pub nic: [Nic; 2],
}

/// An object that NICs may map: flagged and exported.
#[derive(Debug)]
pub struct Exported<'r> {
    /// The object
    pub bo: Bo<'r>,
    /// Its dma-buf
    pub fd: OwnedFd,
}

/// An exported object that a NIC registered.
#[derive(Debug)]
pub struct Registered<'r> {
    // Fields are dropped in this order: the region goes first.
    /// The region, with every right, over the whole object
    pub region: Region<'r>,
    /// The object's dma-buf
    pub fd: OwnedFd,
    /// The object
    pub bo: Bo<'r>,
}

/// An object whose pages are in slots that are apart.
#[derive(Debug)]
pub struct Scattered<'r> {
    /// The object
    pub object: Exported<'r>,
    /// What is between them
    pub filler: Bo<'r>,
}

/// A queue pair of each NIC, connected.
#[derive(Debug)]
pub struct Wire<'r> {
    /// NIC 0's end
    pub near: Qp<'r>,
    /// NIC 1's end
    pub far: Qp<'r>,
}

impl Rig {
    /// Opens all devices; skips the subtest if there are fewer.
    #[track_caller]
    pub fn open() -> Self {
        Self {
            gpu: [Gpu::open(0), Gpu::open(1)],
            nic: [Nic::open(0), Nic::open(1)],
        }
    }

    /// Waits until the NICs reach one another, as they do a moment after one has come.
    #[track_caller]
    pub fn wait_for_wire(&self) {
        wait_until("the wire connects", || {
            self.nic[0].query().flags & P2PNIC_LINK_UP != 0
        });
    }

    /// The NICs reach one another, and both GPUs.
    #[track_caller]
    pub fn assert_works(&self) {
        self.wait_for_wire();
        let size = 8 * self.gpu[0].page;
        let source = self.register(0, size, Placement::Vram);
        let target = self.register(1, size, Placement::Vram);
        source.bo.fill(Pattern(2));
        self.connect(4).write(&source.region, &target.region);
        target.bo.assert_holds(Pattern(2));
        assert_eq!(target.bo.map().load(8), Pattern(2).word(1));
    }

    /// A flagged and exported object of GPU `index`.
    #[track_caller]
    pub fn export(&self, index: usize, size: u64, placement: Placement) -> Exported<'_> {
        let bo = self.gpu[index].create(size, placement);
        bo.set_exportable(true);
        let fd = bo.export();
        Exported { bo, fd }
    }

    /// An object of GPU `index` that NIC `index` registered.
    #[track_caller]
    pub fn register(&self, index: usize, size: u64, placement: Placement) -> Registered<'_> {
        let Exported { bo, fd } = self.export(index, size, placement);
        let region = self.nic[index].register(&fd, ACCESS_ALL, size);
        Registered { region, fd, bo }
    }

    /// Makes NIC `index` hold this many slots of GPU `index` until the result is
    /// dropped, so that nobody can take them; none where there is no peer-to-peer
    /// route.
    #[track_caller]
    pub fn hold_slots(&self, index: usize, count: u64) -> Registered<'_> {
        let page = self.gpu[index].page;
        let held = self.register(index, count * page, Placement::Vram);
        held.bo.set_peer(RESERVED);
        self.touch(index, &held);
        held
    }

    /// Makes NIC `index` map a region of it, by sending a page of it.
    #[track_caller]
    pub fn touch(&self, index: usize, held: &Registered<'_>) {
        self.touch_region(index, &held.region);
    }

    /// The same with a region alone.
    #[track_caller]
    pub fn touch_region(&self, index: usize, region: &Region<'_>) {
        let page = self.gpu[index].page;
        let sink = self.register(1 - index, page, Placement::System);
        let wire = self.connect(4);
        let qp = [&wire.near, &wire.far][index];
        // One page is enough: a region is mapped as a whole.
        qp.post_send(request(
            P2PNIC_OP_WRITE,
            (region, 0),
            (&sink.region, 0),
            page,
        ));
        qp.expect(P2PNIC_STATUS_OK);
    }

    /// An object of GPU `index` whose pages are in slots no two of which are
    /// adjacent: in as many ranges of the aperture as it has pages.
    #[track_caller]
    pub fn scatter(&self, index: usize, pages: u64) -> Scattered<'_> {
        /// Pages that a fault can show at once.
        const GROUP: u64 = 16;
        let gpu = &self.gpu[index];
        let load = |map: &Mapping, page: u64| {
            map.load(usize::try_from(page * gpu.page).expect("an offset in memory"));
        };
        // When no slot is free, a fault takes the one that was used first.
        let all = gpu.create(gpu.aperture(), Placement::Vram);
        let map = all.map();
        (0..gpu.slots).for_each(|page| load(&map, page));
        let object = self.export(index, pages * gpu.page, Placement::Vram);
        let filler = gpu.create(pages * gpu.page, Placement::Vram);
        let (one, other) = (object.bo.map(), filler.map());
        for start in (0..pages).step_by(GROUP as usize) {
            // Backwards: a walk forwards is given more than the page that it touches.
            for page in (start..pages.min(start + GROUP)).rev() {
                load(&one, page);
                load(&other, page);
            }
        }
        Scattered { object, filler }
    }

    /// A connected pair of queue pairs with room for this many requests.
    #[track_caller]
    pub fn connect(&self, entries: u32) -> Wire<'_> {
        let near = self.nic[0].create_qp(entries, entries);
        let far = self.nic[1].create_qp(entries, entries);
        near.connect(&far);
        far.connect(&near);
        Wire { near, far }
    }

    /// A size for transfers that take a moment on both GPUs.
    #[track_caller]
    pub fn bulk_size(&self) -> u64 {
        self.gpu[0].bulk_size().min(self.gpu[1].bulk_size())
    }

    /// Invalidations that met a transfer in flight, at both NICs.
    #[track_caller]
    pub fn busy_invalidations(&self) -> u64 {
        self.nic
            .iter()
            .map(|nic| nic.query().invalidations_busy)
            .sum()
    }
}

/// A request between two regions, without queue pair and id.
pub fn request(
    opcode: u32,
    (local, local_offset): (&Region<'_>, u64),
    (remote, remote_offset): (&Region<'_>, u64),
    size: u64,
) -> p2pnic_post_send {
    p2pnic_post_send {
        opcode,
        local_key: local.key,
        local_offset,
        remote_key: remote.key,
        remote_offset,
        size,
        ..Default::default()
    }
}

/// A request to send from a region, without queue pair and id.
pub fn send_request(local: &Region<'_>, local_offset: u64, size: u64) -> p2pnic_post_send {
    p2pnic_post_send {
        opcode: P2PNIC_OP_SEND,
        local_key: local.key,
        local_offset,
        size,
        ..Default::default()
    }
}

impl Wire<'_> {
    /// Posts a write of a whole local region into the remote one.
    #[track_caller]
    pub fn start_write(&self, local: &Region<'_>, remote: &Region<'_>) {
        self.near.post_send(request(
            P2PNIC_OP_WRITE,
            (local, 0),
            (remote, 0),
            local.size,
        ));
    }

    /// Writes a whole local region into the remote one and waits.
    #[track_caller]
    pub fn write(&self, local: &Region<'_>, remote: &Region<'_>) {
        self.start_write(local, remote);
        let done = self.near.expect(P2PNIC_STATUS_OK);
        assert_eq!(done.size, local.size, "bytes written");
    }
}
