// SPDX-License-Identifier: GPL-2.0

//! Open files of `/dev/p2p_importer_test`: one importer each.

use crate::{
    addresses::Addresses,
    importer::{
        Answer,
        Importer,
        Kind, //
    },
    ioctl,
    target::Target, //
};
use kernel::{
    dma::DataDirection,
    dma_buf::DmaBuf,
    fs,
    miscdevice::{
        MiscDevice,
        MiscDeviceRegistration, //
    },
    new_mutex,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
    time::msecs_to_jiffies,
    uaccess::{
        UserPtr,
        UserSlice, //
    },
    uapi, //
};

/// An open file and its importer, while it is attached.
#[pin_data]
pub(crate) struct OpenFile {
    /// Taken for a moment only, but by who attaches: nobody else waits for what that waits for.
    #[pin]
    importer: Mutex<Option<Arc<Importer>>>,
    /// Taken for a moment only.
    #[pin]
    addresses: Mutex<Option<Arc<Addresses>>>,
}

#[vtable]
impl MiscDevice for OpenFile {
    type Ptr = Pin<KBox<Self>>;

    fn open(_file: &fs::File, _misc: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        KBox::try_pin_init(
            try_pin_init!(Self {
                importer <- new_mutex!(None, "p2p_importer_test::importer"),
                addresses <- new_mutex!(None, "p2p_importer_test::addresses"),
            }),
            GFP_KERNEL,
        )
    }

    fn release(this: Self::Ptr, _file: &fs::File) {
        // There may be none.
        let _ = this.detach();
    }

    fn ioctl(this: Pin<&Self>, _file: &fs::File, cmd: u32, arg: usize) -> Result<isize> {
        let arg = UserPtr::from_addr(arg);
        match cmd {
            uapi::P2P_IMPORTER_IOCTL_ATTACH => this.attach(arg),
            uapi::P2P_IMPORTER_IOCTL_DETACH => this.detach(),
            uapi::P2P_IMPORTER_IOCTL_PIN => this.importer()?.pin(),
            uapi::P2P_IMPORTER_IOCTL_UNPIN => this.importer()?.unpin(),
            uapi::P2P_IMPORTER_IOCTL_MAP => map(&*this.importer()?, arg),
            uapi::P2P_IMPORTER_IOCTL_UNMAP => unmap(&*this.importer()?, arg),
            uapi::P2P_IMPORTER_IOCTL_RANGES => ranges(&*this.importer()?, arg),
            uapi::P2P_IMPORTER_IOCTL_CYCLE => cycle(&*this.importer()?, arg),
            uapi::P2P_IMPORTER_IOCTL_TIME => time(&*this.importer()?, arg),
            uapi::P2P_IMPORTER_IOCTL_INFO => ioctl::write(arg, &this.importer()?.info()?),
            uapi::P2P_IMPORTER_IOCTL_VMAP => this.importer()?.vmap(),
            uapi::P2P_IMPORTER_IOCTL_VUNMAP => this.importer()?.vunmap(),
            uapi::P2P_IMPORTER_IOCTL_VREAD => vread(&*this.importer()?, arg),
            uapi::P2P_IMPORTER_IOCTL_VWRITE => vwrite(&*this.importer()?, arg),
            uapi::P2P_IMPORTER_IOCTL_START_ACCESS => this.importer()?.start_access(),
            uapi::P2P_IMPORTER_IOCTL_REGISTER => this.register(arg),
            uapi::P2P_IMPORTER_IOCTL_UNREGISTER => this.unregister(),
            uapi::P2P_IMPORTER_IOCTL_MAP_REGION => this.addresses()?.map(),
            uapi::P2P_IMPORTER_IOCTL_UNMAP_REGION => {
                this.addresses()?.unmap();
                Ok(())
            }
            uapi::P2P_IMPORTER_IOCTL_REGION => region(&*this.addresses()?, arg),
            _ => return Err(ENOTTY),
        }?;
        Ok(0)
    }
}

impl OpenFile {
    fn importer(&self) -> Result<Arc<Importer>> {
        self.importer.lock().clone().ok_or(ENOTCONN)
    }

    fn attach(&self, arg: UserPtr) -> Result {
        let args: ioctl::Attach = ioctl::read(arg)?;
        let known = uapi::P2P_IMPORTER_PEER2PEER | uapi::P2P_IMPORTER_SOFTWARE;
        let too_long = args.delay_ms > uapi::P2P_IMPORTER_MAX_DELAY_MS;
        if args.pad != 0 || args.flags & !known != 0 || too_long {
            return Err(EINVAL);
        }
        let kind = match args.kind {
            uapi::P2P_IMPORTER_STATIC => Kind::Static,
            uapi::P2P_IMPORTER_DYNAMIC => Kind::Dynamic,
            uapi::P2P_IMPORTER_DEAF => Kind::Deaf,
            _ => return Err(EINVAL),
        };
        let answer = match args.answer {
            uapi::P2P_IMPORTER_UNMAP => Answer::Unmap,
            uapi::P2P_IMPORTER_KEEP => Answer::Keep,
            uapi::P2P_IMPORTER_UNMAP_LATER => Answer::UnmapLater,
            uapi::P2P_IMPORTER_REMAP => Answer::Remap,
            _ => return Err(EINVAL),
        };
        let peer = args.flags & uapi::P2P_IMPORTER_PEER2PEER != 0;
        let late = matches!(answer, Answer::UnmapLater | Answer::Remap);
        if (kind != Kind::Dynamic && answer != Answer::Unmap)
            || (kind == Kind::Static && peer)
            || (!late && args.delay_ms != 0)
        {
            return Err(EINVAL);
        }
        let dmabuf = DmaBuf::from_fd(args.fd)?;
        let pci = [
            args.pci_domain,
            args.pci_bus,
            args.pci_device,
            args.pci_function,
        ];
        let target = if args.flags & uapi::P2P_IMPORTER_SOFTWARE == 0 {
            let [domain, bus, device, function] = pci;
            Target::pci(domain, bus, device, function)?
        } else if pci == [0; 4] {
            Target::software()?
        } else {
            return Err(EINVAL);
        };

        let mut slot = self.importer.lock();
        if slot.is_some() {
            return Err(EISCONN);
        }
        let importer = Importer::new(target, answer, msecs_to_jiffies(args.delay_ms))?;
        importer.attach(kind, peer, dmabuf)?;
        *slot = Some(importer);
        Ok(())
    }

    fn addresses(&self) -> Result<Arc<Addresses>> {
        self.addresses.lock().clone().ok_or(ENOTCONN)
    }

    fn register(&self, arg: UserPtr) -> Result {
        // What is not stored ends only when the lock is not held.
        let addresses = Arc::new(Addresses::new(&ioctl::read(arg)?)?, GFP_KERNEL)?;
        let mut slot = self.addresses.lock();
        if slot.is_some() {
            return Err(EISCONN);
        }
        *slot = Some(addresses);
        Ok(())
    }

    fn unregister(&self) -> Result {
        let addresses = self.addresses.lock().take().ok_or(ENOTCONN)?;
        drop(addresses);
        Ok(())
    }

    fn detach(&self) -> Result {
        let importer = self.importer.lock().take().ok_or(ENOTCONN)?;
        importer.close();
        Ok(())
    }
}

fn direction(direction: u32) -> Result<DataDirection> {
    match direction {
        uapi::P2P_IMPORTER_BIDIRECTIONAL => Ok(DataDirection::Bidirectional),
        uapi::P2P_IMPORTER_TO_DEVICE => Ok(DataDirection::ToDevice),
        uapi::P2P_IMPORTER_FROM_DEVICE => Ok(DataDirection::FromDevice),
        _ => Err(EINVAL),
    }
}

fn map(importer: &Importer, arg: UserPtr) -> Result {
    let mut args: ioctl::Map = ioctl::read(arg)?;
    if args.pad != 0 {
        return Err(EINVAL);
    }
    let (index, ranges) = importer.map(direction(args.direction)?)?;
    args.index = u32::try_from(index)?;
    args.ranges = u32::try_from(ranges)?;
    // Not undone on an error: the mapping is there, and INFO counts it.
    ioctl::write(arg, &args)
}

fn unmap(importer: &Importer, arg: UserPtr) -> Result {
    let args: ioctl::Unmap = ioctl::read(arg)?;
    if args.pad != 0 {
        return Err(EINVAL);
    }
    importer.unmap(usize::try_from(args.index)?)
}

fn ranges(importer: &Importer, arg: UserPtr) -> Result {
    let mut args: ioctl::Ranges = ioctl::read(arg)?;
    if args.pad != 0 {
        return Err(EINVAL);
    }
    let list = importer.ranges(usize::try_from(args.index)?)?;
    write_ranges(&list, args.ranges, args.capacity)?;
    args.count = u32::try_from(list.len())?;
    ioctl::write(arg, &args)
}

/// Writes as many ranges as there is room for.
fn write_ranges(list: &[ioctl::Range], to: u64, capacity: u32) -> Result {
    let capacity = usize::try_from(capacity)?;
    let space = list
        .len()
        .min(capacity)
        .checked_mul(size_of::<ioctl::Range>())
        .ok_or(EINVAL)?;
    let to = UserPtr::from_addr(usize::try_from(to)?);
    let mut to = UserSlice::new(to, space).writer();
    for range in list.iter().take(capacity) {
        to.write(range)?;
    }
    Ok(())
}

fn region(addresses: &Addresses, arg: UserPtr) -> Result {
    let mut args: ioctl::Region = ioctl::read(arg)?;
    let (list, maps, invalidations) = addresses.info()?;
    write_ranges(&list, args.pages, args.capacity)?;
    args.count = u32::try_from(list.len())?;
    args.maps = maps;
    args.invalidations = invalidations;
    ioctl::write(arg, &args)
}

/// Calls `f` with a piece of the bytes of an access after the other: the offset in the buffer, and
/// room for them. At least once, so that any access needs a mapping.
fn in_pieces(args: &ioctl::Access, mut f: impl FnMut(usize, &mut [u8]) -> Result) -> Result {
    let mut offset = usize::try_from(args.offset)?;
    let mut left = usize::try_from(args.size)?;
    let mut room = KVec::from_elem(0u8, PAGE_SIZE, GFP_KERNEL)?;
    loop {
        let count = left.min(PAGE_SIZE);
        f(offset, room.get_mut(..count).ok_or(EINVAL)?)?;
        offset = offset.checked_add(count).ok_or(EINVAL)?;
        left -= count;
        if left == 0 {
            return Ok(());
        }
    }
}

fn vread(importer: &Importer, arg: UserPtr) -> Result {
    let args: ioctl::Access = ioctl::read(arg)?;
    let to = UserPtr::from_addr(usize::try_from(args.data)?);
    let mut to = UserSlice::new(to, usize::try_from(args.size)?).writer();
    in_pieces(&args, |offset, piece| {
        importer.vread(offset, piece)?;
        to.write_slice(piece)
    })
}

fn vwrite(importer: &Importer, arg: UserPtr) -> Result {
    let args: ioctl::Access = ioctl::read(arg)?;
    let from = UserPtr::from_addr(usize::try_from(args.data)?);
    let mut from = UserSlice::new(from, usize::try_from(args.size)?).reader();
    in_pieces(&args, |offset, piece| {
        from.read_slice(piece)?;
        importer.vwrite(offset, piece)
    })
}

fn cycle(importer: &Importer, arg: UserPtr) -> Result {
    let args: ioctl::Cycle = ioctl::read(arg)?;
    let direction = direction(args.direction)?;
    for _ in 0..args.count {
        importer.cycle(direction)?;
    }
    Ok(())
}

fn time(importer: &Importer, arg: UserPtr) -> Result {
    let args: ioctl::Time = ioctl::read(arg)?;
    let direction = direction(args.direction)?;
    if !(1..=uapi::P2P_IMPORTER_MAX_SAMPLES).contains(&args.count) {
        return Err(EINVAL);
    }
    let samples = importer.time(direction, usize::try_from(args.count)?)?;
    let space = samples
        .len()
        .checked_mul(size_of::<ioctl::Sample>())
        .ok_or(EINVAL)?;
    let out = UserPtr::from_addr(usize::try_from(args.samples)?);
    let mut out = UserSlice::new(out, space).writer();
    for sample in samples {
        out.write(&sample)?;
    }
    Ok(())
}
