// SPDX-License-Identifier: GPL-2.0

//! An importer of user addresses, which lets go when it is told, and maps when it is asked to.

use crate::{
    ioctl,
    target::Target, //
};
use kernel::{
    current,
    dma::DmaAddress,
    dma_buf::importer::physical,
    mm::p2p::{
        Importer,
        Region, //
    },
    new_mutex,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
    uapi, //
};

/// What the device was given, and how often.
#[derive(Default)]
struct Record {
    /// Addresses, one a page; none while nothing is mapped. Has room for all.
    pages: KVVec<DmaAddress>,
    maps: u32,
    invalidations: u32,
}

/// What the core's calls and the file share.
#[pin_data]
struct Published {
    #[pin]
    record: Mutex<Record>,
}

/// What the core calls: it may not allocate.
struct Callbacks(Arc<Published>);

impl Importer for Callbacks {
    fn publish(&self, pages: &[DmaAddress]) -> Result {
        let mut record = self.0.record.lock();
        record.pages.clear();
        for &page in pages {
            record.pages.push_within_capacity(page)?;
        }
        record.maps += 1;
        Ok(())
    }

    fn invalidate(&self) {
        let mut record = self.0.record.lock();
        record.pages.clear();
        record.invalidations += 1;
    }
}

/// A range of addresses of the process that made it.
pub(crate) struct Addresses {
    // Field order: the region ends before its device.
    region: Pin<KBox<Region<Callbacks>>>,
    published: Arc<Published>,
    target: Target,
    count: usize,
}

impl Addresses {
    /// See `P2P_IMPORTER_IOCTL_REGISTER`.
    pub(crate) fn new(args: &ioctl::Register) -> Result<Self> {
        let too_long = args.length > uapi::P2P_IMPORTER_MAX_LENGTH.into();
        if args.pad != 0 || args.flags & !uapi::P2P_IMPORTER_WRITE != 0 || too_long {
            return Err(EINVAL);
        }
        let start = usize::try_from(args.start)?;
        let length = usize::try_from(args.length)?;
        let end = start.checked_add(length).ok_or(EINVAL)?;
        let target = Target::pci(
            args.pci_domain,
            args.pci_bus,
            args.pci_device,
            args.pci_function,
        )?;
        let count = length / PAGE_SIZE;
        let record = Record {
            pages: KVVec::with_capacity(count, GFP_KERNEL)?,
            ..Default::default()
        };
        let published = Arc::pin_init(
            try_pin_init!(Published {
                record <- new_mutex!(record, "p2p_importer_test::published"),
            }? Error),
            GFP_KERNEL,
        )?;
        let write = args.flags & uapi::P2P_IMPORTER_WRITE != 0;
        let callbacks = Callbacks(published.clone());
        let task = current!();
        let mm = task.mm().ok_or(EINVAL)?;
        // SAFETY: `Target::device` argues that its devices stay good for an importer, and ours
        // ends after the region.
        let region = unsafe { Region::new(target.device(), mm, start..end, write, callbacks)? };
        Ok(Self {
            region,
            published,
            target,
            count,
        })
    }

    /// See `P2P_IMPORTER_IOCTL_MAP_REGION`.
    pub(crate) fn map(&self) -> Result {
        self.region.map()
    }

    /// See `P2P_IMPORTER_IOCTL_UNMAP_REGION`.
    pub(crate) fn unmap(&self) {
        self.region.unmap();
    }

    /// What there is now: an address for each page, and how often it was mapped and taken back.
    pub(crate) fn info(&self) -> Result<(KVVec<ioctl::Range>, u32, u32)> {
        let mut ranges = KVVec::with_capacity(self.count, GFP_KERNEL)?;
        let dev = self.target.device();
        let size = u64::try_from(PAGE_SIZE)?;
        let record = self.published.record.lock();
        for &dma in record.pages.iter() {
            let range = uapi::p2p_importer_range {
                dma,
                size,
                physical: physical(dev, dma).unwrap_or(u64::MAX),
            };
            ranges.push_within_capacity(range.into())?;
        }
        Ok((ranges, record.maps, record.invalidations))
    }
}
