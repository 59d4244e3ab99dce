// SPDX-License-Identifier: GPL-2.0

//! Dma-bufs of other exporters, which the copy engine reaches by DMA.
//!
//! An import is mapped when the engine first needs it, and stays mapped until the exporter takes the
//! mapping back, the engine needs to write what it could only read, the object is freed, or the
//! device goes. The mapping is used and undone with the reservation lock held, which is that of the
//! exporter; the engine's accesses outlast the lock, as fences.

use crate::{
    driver::Gpu,
    engine::Extent,
    regs::Place, //
};
use kernel::{
    device::{
        Bound,
        Device, //
    },
    dma::DataDirection,
    dma_buf::{
        fence::Fence,
        importer::{
            AfterInvalidate,
            Attachment,
            Importer, //
        },
        resv::Held,
        DmaBuf, //
    },
    new_mutex,
    prelude::*,
    scatterlist::SGTable,
    sync::{
        aref::ARef,
        Arc,
        Mutex, //
    },
    time::Jiffies, //
};

/// What the engine does with a mapping.
struct Use {
    /// Work that has been submitted, and may not have ended.
    work: KVec<ARef<Fence>>,
    /// Whether the newest mapping may be written.
    writable: bool,
}

/// What the exporter calls.
#[pin_data]
struct Callbacks {
    /// Changed with the reservation lock held.
    #[pin]
    usage: Mutex<Use>,
}

impl Callbacks {
    /// Waits for the engine's accesses, which end in bounded time: a ring gives up what is lost.
    fn wait(&self) {
        let work = core::mem::take(&mut self.usage.lock().work);
        for fence in work {
            // Work that has failed has ended too.
            let _ = fence.wait(Jiffies::MAX);
        }
    }
}

impl Importer for Callbacks {
    const ALLOW_PEER_TO_PEER: bool = true;

    fn invalidate(&self, _held: Held<'_>) -> AfterInvalidate {
        self.wait();
        AfterInvalidate::Unmap
    }
}

/// A dma-buf of another exporter.
#[pin_data]
pub(crate) struct Import {
    /// `None` when the object, or the device, has gone.
    #[pin]
    attachment: Mutex<Option<Attachment<Callbacks>>>,
}

impl Import {
    /// Passes the ranges of the mapped dma-buf to `use_extents`, under its reservation lock. If the
    /// engine writes, `writes` is set. What it submits goes to [`Import::add_work`].
    ///
    /// `ENODEV`: the device is gone. Other errors are the exporter's.
    pub(crate) fn extents(
        &self,
        dev: &Device<Bound>,
        held: Held<'_>,
        writes: bool,
    ) -> Result<KVVec<Extent>> {
        let attachment = self.attachment.lock();
        let attachment = attachment.as_ref().ok_or(ENODEV)?;
        if !attachment.is_mapped() {
            attachment.usage.lock().writable = writes;
        } else if writes && !attachment.usage.lock().writable {
            attachment.wait();
            attachment.unmap(held)?;
            attachment.usage.lock().writable = true;
        }
        // All of it need not be written: what is not keeps its bytes.
        let dir = match attachment.usage.lock().writable {
            true => DataDirection::Bidirectional,
            false => DataDirection::ToDevice,
        };
        attachment.map(dev, held, dir, extents)
    }

    /// Whether what [`Import::extents`] returned last is in force, under the reservation lock.
    pub(crate) fn is_mapped(&self) -> bool {
        self.attachment
            .lock()
            .as_ref()
            .is_some_and(Attachment::is_mapped)
    }

    /// Makes room for the fence of work on what [`Import::extents`] returned.
    pub(crate) fn reserve_work(&self) -> Result {
        if let Some(attachment) = self.attachment.lock().as_ref() {
            let work = &mut attachment.usage.lock().work;
            while let Some(index) = work.iter().position(|fence| fence.is_signaled()) {
                work.remove(index)?;
            }
            work.reserve(1, GFP_KERNEL)?;
        }
        Ok(())
    }

    /// The engine reaches the mapping until `fence` signals. There is room; the reservation lock has
    /// been held since [`Import::extents`].
    pub(crate) fn add_work(&self, fence: &Fence) {
        if let Some(attachment) = self.attachment.lock().as_ref() {
            let pushed = attachment
                .usage
                .lock()
                .work
                .push_within_capacity(fence.into());
            if pushed.is_err() {
                let _ = fence.wait(Jiffies::MAX);
            }
        }
    }

    /// Unmaps and detaches.
    fn end(&self) {
        let attachment = self.attachment.lock().take();
        drop(attachment);
    }
}

/// Where the bytes of a mapping lie for the engine.
fn extents(table: &SGTable) -> Result<KVVec<Extent>> {
    let mut list = KVVec::new();
    for entry in table.iter() {
        let extent = Extent {
            place: Place::Memory(entry.dma_address()),
            len: entry.dma_len(),
        };
        list.push(extent, GFP_KERNEL)?;
    }
    Ok(list)
}

/// The imports of a device: all are detached before it is unbound.
#[pin_data(PinnedDrop)]
pub(crate) struct Imports {
    #[pin]
    list: Mutex<KVec<Arc<Import>>>,
}

impl Imports {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            list <- new_mutex!(KVec::new(), "p2pgpu::import::list"),
        })
    }
}

/// Attaches the engine to a dma-buf. Errors are the exporter's.
pub(crate) fn attach(gpu: &Gpu<'_>, dmabuf: &DmaBuf) -> Result<Arc<Import>> {
    let callbacks = try_pin_init!(Callbacks {
        usage <- new_mutex!(Use {
            work: KVec::new(),
            writable: false,
        }, "p2pgpu::import::usage"),
    }? Error);
    let import = Arc::pin_init(
        try_pin_init!(Import {
            attachment <- new_mutex!(None, "p2pgpu::import::attachment"),
        }? Error),
        GFP_KERNEL,
    )?;
    gpu.imports.list.lock().push(import.clone(), GFP_KERNEL)?;
    // SAFETY: The import is among those of the device, which `Imports` detaches when it is dropped,
    // before the driver is unbound.
    match unsafe { Attachment::new(gpu.dev(), dmabuf.into(), callbacks) } {
        Ok(attachment) => *import.attachment.lock() = Some(attachment),
        Err(error) => {
            detach(gpu, &import);
            return Err(error);
        }
    }
    Ok(import)
}

/// Detaches the engine. Takes the reservation lock.
pub(crate) fn detach(gpu: &Gpu<'_>, import: &Arc<Import>) {
    import.end();
    let removed = {
        let mut list = gpu.imports.list.lock();
        let found = list.iter().position(|other| Arc::ptr_eq(other, import));
        found.and_then(|index| list.remove(index).ok())
    };
    drop(removed);
}

#[pinned_drop]
impl PinnedDrop for Imports {
    fn drop(self: Pin<&mut Self>) {
        // No ioctl runs any more: nothing is added, and no work is in flight.
        let list = core::mem::take(&mut *self.list.lock());
        for import in list {
            import.end();
        }
    }
}
