// SPDX-License-Identifier: GPL-2.0

//! Memory regions: a range of a dma-buf, or of user addresses, as the device, the exporter and the
//! user see it.

mod user;

use self::user::UserRange;

use crate::mailbox::{
    Command,
    Mailbox, //
};
use kernel::{
    device::{
        Bound,
        Device, //
    },
    dma::{
        Coherent,
        DataDirection, //
    },
    dma_buf::{
        importer::{
            AfterInvalidate,
            Attachment,
            Importer, //
        },
        resv::{
            Held,
            Usage, //
        },
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
    time::Jiffies,
    uapi, //
};

/// What a region is; it does not change.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// Names the region.
    pub(crate) key: u32,
    /// The open file that made it.
    pub(crate) owner: u64,
    /// Rights, as the device takes them.
    pub(crate) access: u32,
    /// Start in the dma-buf, or in the user address space; bytes.
    pub(crate) offset: u64,
    /// Bytes, not 0.
    pub(crate) size: u64,
}

impl Shape {
    /// Whether the device may write.
    fn writes(&self) -> bool {
        let writes = uapi::P2PNIC_ACCESS_LOCAL_WRITE | uapi::P2PNIC_ACCESS_REMOTE_WRITE;
        self.access & writes != 0
    }

    fn direction(&self) -> DataDirection {
        match self.writes() {
            true => DataDirection::Bidirectional,
            false => DataDirection::ToDevice,
        }
    }
}

/// Where the region stands.
#[derive(Clone, Copy, Default)]
pub(crate) struct Info {
    /// The device knows the region.
    exists: bool,
    /// The device has addresses for it. Becomes true only with the lock held that whoever takes
    /// them back holds.
    pub(crate) mapped: bool,
    /// Segments of the newest mapping.
    pub(crate) segments: u32,
    /// How the newest attempt to map ended: an errno, 0 if it worked.
    pub(crate) last_error: u32,
    /// Times that it was mapped.
    pub(crate) maps: u64,
    /// Times that the exporter took the mapping back.
    pub(crate) invalidations: u64,
}

/// The device's side of a region.
#[pin_data]
struct MemoryRegion {
    shape: Shape,
    mailbox: Arc<Mailbox>,
    #[pin]
    info: Mutex<Info>,
}

impl MemoryRegion {
    fn new(mailbox: Arc<Mailbox>, shape: Shape) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                shape,
                mailbox,
                info <- new_mutex!(Info::default(), "p2pnic::MemoryRegion::info"),
            }? Error),
            GFP_KERNEL,
        )
    }

    fn create(&self) -> Result {
        let mut info = self.info.lock();
        self.mailbox.submit(Command::CreateRegion {
            key: self.shape.key,
            access: self.shape.access,
            length: self.shape.size,
        })?;
        info.exists = true;
        Ok(())
    }

    /// Gives the device the addresses in `table`. Called with the reservation lock held.
    fn load(&self, dev: &Device<Bound>, table: &SGTable, max_segments: u32) -> Result {
        let segments = segments(table, self.shape.offset, self.shape.size, max_segments)?;
        let count = u32::try_from(segments.len())?;
        let list: Coherent<[[u64; 2]]> = Coherent::from_slice(dev, &segments, GFP_KERNEL)?;
        self.load_list(&list, count)
    }

    /// Gives the device the `count` addresses that `list` starts with. Called with a lock held that
    /// keeps them from being taken back. Allocates nothing.
    fn load_list(&self, list: &Coherent<[[u64; 2]]>, count: u32) -> Result {
        let mut info = self.info.lock();
        if !info.exists {
            return Err(ENOENT);
        }
        // The device reads the list before it answers; if it does not answer, it is stopped.
        self.mailbox.submit(Command::MapRegion {
            key: self.shape.key,
            count,
            list: list.dma_address(),
        })?;
        info.mapped = true;
        info.segments = count;
        info.maps += 1;
        Ok(())
    }

    /// Takes the addresses from the device. Returns when no DMA by them is in flight. Allocates
    /// nothing.
    fn invalidate(&self) {
        let mut info = self.info.lock();
        if core::mem::take(&mut info.mapped) {
            info.invalidations += 1;
            // On an error the device has been stopped: it does no DMA either way.
            let _ = self.mailbox.submit(Command::InvalidateRegion {
                key: self.shape.key,
            });
        }
    }

    /// Makes the device forget the region; requests parked on it complete with REVOKED.
    fn destroy(&self) {
        let mut info = self.info.lock();
        if core::mem::take(&mut info.exists) {
            info.mapped = false;
            // On an error the device has been stopped: it does no DMA either way.
            let _ = self.mailbox.submit(Command::DestroyRegion {
                key: self.shape.key,
            });
        }
    }
}

/// What the exporter calls.
struct Callbacks(Arc<MemoryRegion>);

impl Importer for Callbacks {
    const ALLOW_PEER_TO_PEER: bool = true;

    fn invalidate(&self, _held: Held<'_>) -> AfterInvalidate {
        self.0.invalidate();
        AfterInvalidate::Unmap
    }
}

/// What the region is a range of.
enum Backing {
    DmaBuf(Attachment<Callbacks>),
    User(UserRange),
}

/// What a region is to be made of.
pub(crate) enum Source {
    DmaBuf(ARef<DmaBuf>),
    /// The address space of the current task.
    User,
}

/// A memory region.
#[pin_data]
pub(crate) struct Region {
    inner: Arc<MemoryRegion>,
    /// Whom a request waits for before it is posted; not for users of user addresses.
    dmabuf: Option<ARef<DmaBuf>>,
    /// Held while mapping, so that [`Self::destroy`] returns when nobody uses it.
    #[pin]
    backing: Mutex<Option<Backing>>,
}

impl Region {
    /// Makes the region in the device, without addresses.
    pub(crate) fn new(
        dev: &Device<Bound>,
        mailbox: Arc<Mailbox>,
        source: Source,
        shape: Shape,
        max_segments: u32,
    ) -> Result<Arc<Self>> {
        let inner = MemoryRegion::new(mailbox, shape)?;
        let dmabuf = match &source {
            Source::DmaBuf(dmabuf) => Some(dmabuf.clone()),
            Source::User => None,
        };
        let backing = match source {
            Source::DmaBuf(dmabuf) => {
                let callbacks = Ok(Callbacks(inner.clone()));
                // SAFETY: Unbinding closes the gate and then takes the backing out of every region.
                Backing::DmaBuf(unsafe { Attachment::new(dev, dmabuf, callbacks)? })
            }
            Source::User => {
                // SAFETY: As above.
                Backing::User(unsafe { UserRange::new(dev, inner.clone(), max_segments)? })
            }
        };
        let region = Arc::pin_init(
            try_pin_init!(Self {
                inner,
                dmabuf,
                backing <- new_mutex!(Some(backing), "p2pnic::Region::backing"),
            }? Error),
            GFP_KERNEL,
        )?;
        region.inner.create()?;
        Ok(region)
    }

    /// What the region is.
    pub(crate) fn shape(&self) -> &Shape {
        &self.inner.shape
    }

    /// Where it stands.
    pub(crate) fn info(&self) -> Info {
        *self.inner.info.lock()
    }

    /// Waits for those who use the dma-buf and say so by fences: who writes it or, before a request
    /// that writes it, all. Not in the gate, as that may take long. A signal ends the wait.
    pub(crate) fn wait_for_others(&self, writes: bool) -> Result {
        let usage = if writes { Usage::Read } else { Usage::Write };
        match &self.dmabuf {
            Some(dmabuf) => dmabuf.resv().wait_interruptible(usage, Jiffies::MAX),
            None => Ok(()),
        }
    }

    /// Maps it and gives the device its addresses, unless it has them.
    pub(crate) fn map(&self, dev: &Device<Bound>, max_segments: u32) -> Result {
        let backing = self.backing.lock();
        // It may have been asked for before it ended.
        if !self.info().exists {
            return Ok(());
        }
        let result = match backing.as_ref() {
            Some(Backing::DmaBuf(attachment)) => self.map_dmabuf(attachment, dev, max_segments),
            Some(Backing::User(range)) => range.map(),
            None => return Ok(()),
        };
        self.inner.info.lock().last_error = result.map_or_else(errno, |()| 0);
        result
    }

    fn map_dmabuf(
        &self,
        attachment: &Attachment<Callbacks>,
        dev: &Device<Bound>,
        max_segments: u32,
    ) -> Result {
        let guard = attachment.dmabuf().resv().lock();
        // The event can be older than the mapping that is in force, or than the region's end.
        let info = self.info();
        if info.mapped || !info.exists {
            return Ok(());
        }
        let result = attachment.map(dev, guard.held(), self.inner.shape.direction(), |table| {
            self.inner.load(dev, table, max_segments)
        });
        if result.is_err() {
            attachment.unmap(guard.held())?;
        }
        result
    }

    /// Gives up on the region: it stays for its owner to look at, but the device forgets it, so
    /// that requests that wait for it complete with REVOKED.
    pub(crate) fn revoke(&self) {
        self.inner.destroy();
    }

    /// Ends all use of what it is a range of.
    pub(crate) fn destroy(&self) {
        self.inner.destroy();
        let backing = self.backing.lock().take();
        drop(backing);
    }
}

/// The errno of an error, as userspace knows it.
fn errno(error: Error) -> u32 {
    let error = if error == ERESTARTSYS { EINTR } else { error };
    error.to_errno().unsigned_abs()
}

/// The DMA address and length of each range of `size` bytes at `offset` of a mapped buffer, with
/// adjacent ranges joined.
///
/// `E2BIG`: more than `max` ranges. `EINVAL`: the table ends before the range.
fn segments(table: &SGTable, offset: u64, size: u64, max: u32) -> Result<KVVec<[u64; 2]>> {
    let max = usize::try_from(max)?;
    let mut list: KVVec<[u64; 2]> = KVVec::new();
    let mut skip = offset;
    let mut left = size;
    for entry in table.iter() {
        if left == 0 {
            break;
        }
        let length = entry.dma_len();
        if skip >= length {
            skip -= length;
            continue;
        }
        let address = entry.dma_address().checked_add(skip).ok_or(EOVERFLOW)?;
        let take = left.min(length - skip);
        skip = 0;
        left -= take;
        let full = list.len() == max;
        match list.last_mut() {
            Some([start, length]) if start.checked_add(*length) == Some(address) => {
                *length = length.checked_add(take).ok_or(EOVERFLOW)?;
            }
            _ if full => return Err(E2BIG),
            _ => list.push([address, take], GFP_KERNEL)?,
        }
    }
    if left != 0 {
        return Err(EINVAL);
    }
    for segment in &mut list {
        *segment = segment.map(u64::to_le);
    }
    Ok(list)
}
