// SPDX-License-Identifier: GPL-2.0

//! Open files of `/dev/p2pnicN`: their ioctls, which `include/uapi/linux/p2pnic.h` describes.

use crate::{
    events, ioctl,
    nic::{
        Bind,
        Nic,
        Range, //
    },
    queue::{
        QueuePair,
        Request,
        Room, //
    },
    registry,
    regs::{
        self,
        Counter, //
    },
    signal::Wake,
};
use kernel::{
    dma_buf::DmaBuf,
    fs,
    miscdevice::{
        MiscDevice,
        MiscDeviceRegistration, //
    },
    page::PAGE_SIZE,
    prelude::*,
    sync::Arc,
    time::{
        Instant,
        Monotonic,
        Msecs,
        NSEC_PER_MSEC, //
    },
    uaccess::{
        UserPtr,
        UserSlice, //
    },
    uapi, //
};

/// Entries of a send or receive queue.
const QUEUE_ENTRIES: core::ops::RangeInclusive<u32> = 4..=2048;
/// Most completions that one ioctl takes.
const MAX_COMPLETIONS: u32 = 4096;
/// Longest sleep before completions are looked for without an interrupt, in case one was lost.
const LONGEST_SLEEP_MS: u64 = 100;

/// An open file. What it has made lies with the NIC, under `owner`.
pub(crate) struct OpenFile {
    nic: Arc<Nic>,
    owner: u64,
}

#[vtable]
impl MiscDevice for OpenFile {
    type Ptr = KBox<Self>;

    fn open(_file: &fs::File, misc: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        let nic = registry::find(misc.device().name()).ok_or(ENODEV)?;
        let owner = nic.new_owner();
        Ok(KBox::new(Self { nic, owner }, GFP_KERNEL)?)
    }

    fn release(this: Self::Ptr, _file: &fs::File) {
        // Else unbinding has taken all away, or is about to.
        if let Ok(nic) = this.nic.enter() {
            nic.destroy_all_of(this.owner);
        }
    }

    fn ioctl(this: &Self, _file: &fs::File, cmd: u32, arg: usize) -> Result<isize> {
        let nic = this.nic.enter()?;
        let arg = UserPtr::from_addr(arg);
        match cmd {
            uapi::P2PNIC_IOCTL_QUERY => query(&nic, arg),
            uapi::P2PNIC_IOCTL_REG_REGION => this.reg_region(&nic, arg),
            uapi::P2PNIC_IOCTL_DEREG_REGION => this.dereg_region(&nic, arg),
            uapi::P2PNIC_IOCTL_REGION_INFO => this.region_info(&nic, arg),
            uapi::P2PNIC_IOCTL_CREATE_QP => this.create_qp(&nic, arg),
            uapi::P2PNIC_IOCTL_CONNECT_QP => this.connect_qp(&nic, arg),
            uapi::P2PNIC_IOCTL_DESTROY_QP => this.destroy_qp(&nic, arg),
            uapi::P2PNIC_IOCTL_POST_SEND => this.post_send(&nic, arg),
            uapi::P2PNIC_IOCTL_POST_RECV => this.post_recv(&nic, arg),
            uapi::P2PNIC_IOCTL_POLL => this.poll(&nic, arg),
            _ => return Err(ENOTTY),
        }?;
        Ok(0)
    }
}

impl OpenFile {
    fn reg_region(&self, nic: &Bind<'_>, arg: UserPtr) -> Result {
        let mut args: ioctl::RegRegion = ioctl::read(arg)?;
        let page = u64::try_from(PAGE_SIZE)?;
        let known = uapi::P2PNIC_ACCESS_LOCAL_WRITE
            | uapi::P2PNIC_ACCESS_REMOTE_READ
            | uapi::P2PNIC_ACCESS_REMOTE_WRITE;
        let unaligned = args.offset % page != 0 || args.size % page != 0;
        if args.pad != 0 || args.access & !known != 0 || args.size == 0 || unaligned {
            return Err(EINVAL);
        }
        let dmabuf = DmaBuf::from_fd(args.fd)?;
        let end = args.offset.checked_add(args.size).ok_or(EINVAL)?;
        if end > u64::try_from(dmabuf.size())? {
            return Err(EINVAL);
        }

        let range = Range {
            access: args.access,
            offset: args.offset,
            size: args.size,
        };
        args.key = nic.create_region(self.owner, dmabuf, range)?.shape().key;
        ioctl::write(arg, &args).inspect_err(|_| {
            // Nobody knows the key. Another thread may have guessed it, and destroyed it first.
            let _ = nic.destroy_region(self.owner, args.key);
        })
    }

    fn dereg_region(&self, nic: &Bind<'_>, arg: UserPtr) -> Result {
        let args: ioctl::DeregRegion = ioctl::read(arg)?;
        if args.pad != 0 {
            return Err(EINVAL);
        }
        nic.destroy_region(self.owner, args.key)
    }

    fn region_info(&self, nic: &Bind<'_>, arg: UserPtr) -> Result {
        let mut args: ioctl::RegionInfo = ioctl::read(arg)?;
        let info = nic.region_of(self.owner, args.key)?.info();
        args.mapped = info.mapped.into();
        args.segments = info.segments;
        args.last_error = info.last_error;
        args.maps = info.maps;
        args.invalidations = info.invalidations;
        ioctl::write(arg, &args)
    }

    fn create_qp(&self, nic: &Bind<'_>, arg: UserPtr) -> Result {
        let mut args: ioctl::CreateQp = ioctl::read(arg)?;
        let is_size = |n: u32| QUEUE_ENTRIES.contains(&n) && n.is_power_of_two();
        if args.pad != 0 || !is_size(args.send_entries) || !is_size(args.recv_entries) {
            return Err(EINVAL);
        }
        let queue_pair = nic.create_queue_pair(self.owner, args.send_entries, args.recv_entries)?;
        args.qp = queue_pair.shape().number;
        ioctl::write(arg, &args).inspect_err(|_| {
            // Nobody knows the number. Another thread may have guessed it, and destroyed it first.
            let _ = nic.destroy_queue_pair(self.owner, args.qp);
        })
    }

    fn connect_qp(&self, nic: &Bind<'_>, arg: UserPtr) -> Result {
        let args: ioctl::ConnectQp = ioctl::read(arg)?;
        let queue_pair = nic.queue_pair_of(self.owner, args.qp)?;
        // The NIC at the other end is of the same kind.
        if args.remote_qp >= nic.limits().queue_pairs {
            return Err(EINVAL);
        }
        queue_pair.connect(args.remote_qp)
    }

    fn destroy_qp(&self, nic: &Bind<'_>, arg: UserPtr) -> Result {
        let args: ioctl::DestroyQp = ioctl::read(arg)?;
        if args.pad != 0 {
            return Err(EINVAL);
        }
        nic.destroy_queue_pair(self.owner, args.qp)
    }

    fn post_send(&self, nic: &Bind<'_>, arg: UserPtr) -> Result {
        let args: ioctl::PostSend = ioctl::read(arg)?;
        let queue_pair = nic.queue_pair_of(self.owner, args.qp)?;
        let remote_is_bad = match args.opcode {
            regs::WRITE | regs::READ => false,
            regs::SEND => args.remote_key != 0 || args.remote_offset != 0,
            _ => true,
        };
        if remote_is_bad || args.size > regs::MAX_LENGTH {
            return Err(EINVAL);
        }
        let request = Request {
            opcode: args.opcode,
            id: args.id,
            local_key: args.local_key,
            remote_key: args.remote_key,
            local_offset: args.local_offset,
            remote_offset: args.remote_offset,
            size: args.size,
        };
        queue_pair.post_send(nic.bar()?, &request)
    }

    fn post_recv(&self, nic: &Bind<'_>, arg: UserPtr) -> Result {
        let args: ioctl::PostRecv = ioctl::read(arg)?;
        let queue_pair = nic.queue_pair_of(self.owner, args.qp)?;
        if args.size > regs::MAX_LENGTH {
            return Err(EINVAL);
        }
        let room = Room {
            id: args.id,
            local_key: args.local_key,
            local_offset: args.local_offset,
            size: args.size,
        };
        queue_pair.post_recv(nic.bar()?, &room)
    }

    fn poll(&self, nic: &Bind<'_>, arg: UserPtr) -> Result {
        let mut args: ioctl::Poll = ioctl::read(arg)?;
        let queue_pair = nic.queue_pair_of(self.owner, args.qp)?;
        if args.pad != 0 || args.capacity == 0 || args.capacity > MAX_COMPLETIONS {
            return Err(EINVAL);
        }
        let start = Instant::<Monotonic>::now();
        loop {
            let seen = nic.completed.count();
            if deliver(nic, &queue_pair, &mut args, arg)? {
                return Ok(());
            }
            if nic.is_closing() {
                return Err(ENODEV);
            }
            if nic.mailbox.has_failed() {
                return nic.mailbox.check();
            }
            if args.timeout_ns == 0 {
                args.count = 0;
                return ioctl::write(arg, &args);
            }
            let waited = u64::try_from(start.elapsed().as_nanos())?;
            let left = args.timeout_ns.saturating_sub(waited);
            if left == 0 {
                return Err(ETIMEDOUT);
            }
            let left = left.div_ceil(u64::try_from(NSEC_PER_MSEC)?);
            let sleep = Msecs::try_from(left.min(LONGEST_SLEEP_MS))?;
            match nic.completed.wait(seen, sleep) {
                Wake::Raised => (),
                // What we wait for may wait for a region, at either end of the wire, whose event's
                // interrupt was lost.
                Wake::TimedOut => registry::all()
                    .iter()
                    .flatten()
                    .for_each(|nic| events::look(nic)),
                Wake::Interrupted => return Err(EINTR),
            }
        }
    }
}

fn query(nic: &Bind<'_>, arg: UserPtr) -> Result {
    let mut args = ioctl::Query::default();
    let [domain, bus, device, function] = pci_address(nic.pdev().as_ref().name())?;
    args.pci_domain = domain;
    args.pci_bus = bus;
    args.pci_device = device;
    args.pci_function = function;
    if nic.link_is_up()? {
        args.flags |= uapi::P2PNIC_LINK_UP;
    }
    args.max_regions = nic.limits().regions;
    args.max_queue_pairs = nic.limits().queue_pairs;
    args.regions = nic.region_count();
    args.peer_read_bytes = nic.counter(Counter::PeerReadBytes)?;
    args.peer_write_bytes = nic.counter(Counter::PeerWriteBytes)?;
    args.ram_read_bytes = nic.counter(Counter::RamReadBytes)?;
    args.ram_write_bytes = nic.counter(Counter::RamWriteBytes)?;
    args.parked = nic.counter(Counter::Parked)?;
    args.resumed = nic.counter(Counter::Resumed)?;
    args.invalidations = nic.counter(Counter::Invalidations)?;
    args.invalidations_busy = nic.counter(Counter::InvalidationsBusy)?;
    ioctl::write(arg, &args)
}

/// Hands what has completed to the caller. Returns whether anything has.
///
/// Completions are consumed when they are in user memory: on `EFAULT` none is lost.
fn deliver(
    nic: &Bind<'_>,
    queue_pair: &QueuePair,
    args: &mut ioctl::Poll,
    arg: UserPtr,
) -> Result<bool> {
    let space = usize::try_from(args.capacity)?
        .checked_mul(size_of::<ioctl::Completion>())
        .ok_or(EINVAL)?;
    let out = UserPtr::from_addr(usize::try_from(args.completions)?);
    let mut out = UserSlice::new(out, space).writer();

    let mut completions = queue_pair.completions()?;
    let (mut sent, mut received) = (0u32, 0u32);
    while sent + received < args.capacity {
        let Some(completion) = completions.peek(sent + received)? else {
            break;
        };
        if completion.opcode == regs::RECV {
            received += 1;
        } else {
            sent += 1;
        }
        out.write(&ioctl::Completion::from(uapi::p2pnic_completion {
            id: completion.id,
            size: completion.size,
            status: completion.status,
            opcode: completion.opcode,
        }))?;
    }
    if sent + received == 0 {
        return Ok(false);
    }
    args.count = sent + received;
    ioctl::write(arg, args)?;
    queue_pair.consume(nic.bar()?, &mut completions, sent, received)?;
    Ok(true)
}

/// Domain, bus, device and function in a name such as `0000:01:00.0`.
fn pci_address(name: &CStr) -> Result<[u32; 4]> {
    let name = name.to_str()?;
    let number = |part: Option<&str>| {
        part.and_then(|part| u32::from_str_radix(part, 16).ok())
            .ok_or(EINVAL)
    };
    let mut parts = name.split([':', '.']);
    Ok([
        number(parts.next())?,
        number(parts.next())?,
        number(parts.next())?,
        number(parts.next())?,
    ])
}
