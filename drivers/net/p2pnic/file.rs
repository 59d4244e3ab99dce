// SPDX-License-Identifier: GPL-2.0

//! Open files of `/dev/p2pnicN`: their ioctls, which `include/uapi/linux/p2pnic.h` describes.
//!
//! Arguments are copied from and to user memory outside of the gate, so that a page fault that
//! takes its time does not keep the device from being unbound.

use crate::{
    ioctl,
    nic::{
        Bind,
        Nic,
        Range, //
    },
    queue::{
        Request,
        Room, //
    },
    region::Source,
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
        let owner = nic.serial();
        Ok(KBox::new(Self { nic, owner }, GFP_KERNEL)?)
    }

    fn release(this: Self::Ptr, _file: &fs::File) {
        // Else unbinding has taken all away, or is about to.
        if let Ok(nic) = this.nic.enter() {
            nic.destroy_all_of(this.owner);
        }
    }

    fn ioctl(this: &Self, _file: &fs::File, cmd: u32, arg: usize) -> Result<isize> {
        if this.nic.is_closing() {
            return Err(ENODEV);
        }
        let arg = UserPtr::from_addr(arg);
        match cmd {
            uapi::P2PNIC_IOCTL_QUERY => this.query(arg),
            uapi::P2PNIC_IOCTL_REG_REGION => this.reg_region(arg),
            uapi::P2PNIC_IOCTL_DEREG_REGION => this.dereg_region(arg),
            uapi::P2PNIC_IOCTL_REGION_INFO => this.region_info(arg),
            uapi::P2PNIC_IOCTL_CREATE_QP => this.create_qp(arg),
            uapi::P2PNIC_IOCTL_CONNECT_QP => this.connect_qp(arg),
            uapi::P2PNIC_IOCTL_DESTROY_QP => this.destroy_qp(arg),
            uapi::P2PNIC_IOCTL_POST_SEND => this.post_send(arg),
            uapi::P2PNIC_IOCTL_POST_RECV => this.post_recv(arg),
            uapi::P2PNIC_IOCTL_POLL => this.poll(arg),
            uapi::P2PNIC_IOCTL_REG_USER => this.reg_user(arg),
            _ => return Err(ENOTTY),
        }?;
        Ok(0)
    }
}

impl OpenFile {
    fn query(&self, arg: UserPtr) -> Result {
        let args = query(&self.nic.enter()?)?;
        ioctl::write(arg, &args)
    }

    fn reg_region(&self, arg: UserPtr) -> Result {
        let mut args: ioctl::RegRegion = ioctl::read(arg)?;
        if args.pad != 0 || !is_good_range(args.access, args.offset, args.size)? {
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
        args.key = {
            let nic = self.nic.enter()?;
            let region = nic.create_region(self.owner, Source::DmaBuf(dmabuf), range)?;
            region.shape().key
        };
        ioctl::write(arg, &args).inspect_err(|_| self.forget_region(args.key))
    }

    fn reg_user(&self, arg: UserPtr) -> Result {
        let mut args: ioctl::RegUser = ioctl::read(arg)?;
        if !is_good_range(args.access, args.address, args.size)? {
            return Err(EINVAL);
        }
        let range = Range {
            access: args.access,
            offset: args.address,
            size: args.size,
        };
        args.key = {
            let nic = self.nic.enter()?;
            let region = nic.create_region(self.owner, Source::User, range)?;
            let key = region.shape().key;
            // What cannot be mapped now is refused here, and not when a request needs it.
            let mapped = region.map(nic.device(), nic.limits().segments);
            mapped.inspect_err(|_| {
                // Another thread may have guessed the key, and destroyed it first.
                let _ = nic.destroy_region(self.owner, key);
            })?;
            key
        };
        ioctl::write(arg, &args).inspect_err(|_| self.forget_region(args.key))
    }

    /// Destroys a region that nobody knows the key of. Another thread may have guessed it, and
    /// destroyed it first; or unbinding has.
    fn forget_region(&self, key: u32) {
        if let Ok(nic) = self.nic.enter() {
            let _ = nic.destroy_region(self.owner, key);
        }
    }

    fn dereg_region(&self, arg: UserPtr) -> Result {
        let args: ioctl::DeregRegion = ioctl::read(arg)?;
        if args.pad != 0 {
            return Err(EINVAL);
        }
        self.nic.enter()?.destroy_region(self.owner, args.key)
    }

    fn region_info(&self, arg: UserPtr) -> Result {
        let mut args: ioctl::RegionInfo = ioctl::read(arg)?;
        let info = {
            let nic = self.nic.enter()?;
            let region = nic.region_of(self.owner, args.key)?;
            region.info()
        };
        args.mapped = info.mapped.into();
        args.segments = info.segments;
        args.last_error = info.last_error;
        args.maps = info.maps;
        args.invalidations = info.invalidations;
        ioctl::write(arg, &args)
    }

    fn create_qp(&self, arg: UserPtr) -> Result {
        let mut args: ioctl::CreateQp = ioctl::read(arg)?;
        let is_size = |n: u32| QUEUE_ENTRIES.contains(&n) && n.is_power_of_two();
        if args.pad != 0 || !is_size(args.send_entries) || !is_size(args.recv_entries) {
            return Err(EINVAL);
        }
        args.qp = {
            let nic = self.nic.enter()?;
            let queue_pair =
                nic.create_queue_pair(self.owner, args.send_entries, args.recv_entries)?;
            queue_pair.shape().number
        };
        ioctl::write(arg, &args).inspect_err(|_| {
            // Nobody knows the number. Another thread may have guessed it, and destroyed it first;
            // or unbinding has.
            if let Ok(nic) = self.nic.enter() {
                let _ = nic.destroy_queue_pair(self.owner, args.qp);
            }
        })
    }

    fn connect_qp(&self, arg: UserPtr) -> Result {
        let args: ioctl::ConnectQp = ioctl::read(arg)?;
        let nic = self.nic.enter()?;
        let queue_pair = nic.queue_pair_of(self.owner, args.qp)?;
        // The NIC at the other end is of the same kind.
        if args.remote_qp >= nic.limits().queue_pairs {
            return Err(EINVAL);
        }
        queue_pair.connect(args.remote_qp)
    }

    fn destroy_qp(&self, arg: UserPtr) -> Result {
        let args: ioctl::DestroyQp = ioctl::read(arg)?;
        if args.pad != 0 {
            return Err(EINVAL);
        }
        self.nic.enter()?.destroy_queue_pair(self.owner, args.qp)
    }

    /// Waits for the work of others on a region that a request is to read or, if `writes`, write.
    /// The request's completion says what is wrong with the key.
    fn wait_for_others(&self, key: u32, writes: bool) -> Result {
        let region = self.nic.enter()?.region_of(self.owner, key);
        region.map_or(Ok(()), |region| region.wait_for_others(writes))
    }

    fn post_send(&self, arg: UserPtr) -> Result {
        let args: ioctl::PostSend = ioctl::read(arg)?;
        self.nic.enter()?.queue_pair_of(self.owner, args.qp)?;
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
        self.wait_for_others(args.local_key, args.opcode == regs::READ)?;
        let nic = self.nic.enter()?;
        let queue_pair = nic.queue_pair_of(self.owner, args.qp)?;
        queue_pair.post_send(nic.bar()?, &request)
    }

    fn post_recv(&self, arg: UserPtr) -> Result {
        let args: ioctl::PostRecv = ioctl::read(arg)?;
        self.nic.enter()?.queue_pair_of(self.owner, args.qp)?;
        if args.size > regs::MAX_LENGTH {
            return Err(EINVAL);
        }
        let room = Room {
            id: args.id,
            local_key: args.local_key,
            local_offset: args.local_offset,
            size: args.size,
        };
        self.wait_for_others(args.local_key, true)?;
        let nic = self.nic.enter()?;
        let queue_pair = nic.queue_pair_of(self.owner, args.qp)?;
        queue_pair.post_recv(nic.bar()?, &room)
    }

    fn poll(&self, arg: UserPtr) -> Result {
        let mut args: ioctl::Poll = ioctl::read(arg)?;
        // Known before the arguments are looked at.
        self.found(&args, 0)?;
        if args.pad != 0 || args.capacity == 0 || args.capacity > MAX_COMPLETIONS {
            return Err(EINVAL);
        }
        let start = Instant::<Monotonic>::now();
        let mut interrupted = false;
        loop {
            let seen = self.nic.completed.count();
            if self.deliver(&mut args, arg)? {
                return Ok(());
            }
            if self.nic.is_closing() {
                return Err(ENODEV);
            }
            if self.nic.mailbox.has_failed() {
                return self.nic.mailbox.check();
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
            if interrupted {
                // Made again, by the kernel or by the caller, it waits for what is left.
                args.timeout_ns = left;
                ioctl::write(arg, &args)?;
                return Err(ERESTARTSYS);
            }
            let left = left.div_ceil(u64::try_from(NSEC_PER_MSEC)?);
            let sleep = Msecs::try_from(left.min(LONGEST_SLEEP_MS))?;
            interrupted = self.nic.completed.wait(seen, sleep) == Wake::Interrupted;
        }
    }

    /// The completions of the queue pair that `args` names, `capacity` at most.
    fn found(&self, args: &ioctl::Poll, capacity: u32) -> Result<Found> {
        let nic = self.nic.enter()?;
        let queue_pair = nic.queue_pair_of(self.owner, args.qp)?;
        let completions = queue_pair.completions()?;
        let mut found = Found {
            serial: queue_pair.shape().serial,
            head: completions.head(),
            list: KVVec::new(),
            sent: 0,
            received: 0,
        };
        while found.count() < capacity {
            let Some(completion) = completions.peek(found.count())? else {
                break;
            };
            if completion.opcode == regs::RECV {
                found.received += 1;
            } else {
                found.sent += 1;
            }
            let completion = uapi::p2pnic_completion {
                id: completion.id,
                size: completion.size,
                status: completion.status,
                opcode: completion.opcode,
            };
            found.list.push(completion.into(), GFP_KERNEL)?;
        }
        Ok(found)
    }

    /// Hands what has completed to the caller. Returns whether anything has.
    ///
    /// Completions are consumed when they are in user memory: on `EFAULT` none is lost. If another
    /// task consumed them meanwhile, they are its own, and those that follow are looked for.
    fn deliver(&self, args: &mut ioctl::Poll, arg: UserPtr) -> Result<bool> {
        loop {
            let found = self.found(args, args.capacity)?;
            if found.count() == 0 {
                return Ok(false);
            }
            let size = found
                .list
                .len()
                .checked_mul(size_of::<ioctl::Completion>())
                .ok_or(EINVAL)?;
            let out = UserPtr::from_addr(usize::try_from(args.completions)?);
            let mut out = UserSlice::new(out, size).writer();
            for completion in &found.list {
                out.write(completion)?;
            }
            args.count = found.count();
            ioctl::write(arg, args)?;
            if self.consume(args.qp, &found)? {
                return Ok(true);
            }
        }
    }

    /// Consumes what was found, unless somebody else has.
    fn consume(&self, number: u32, found: &Found) -> Result<bool> {
        let nic = self.nic.enter()?;
        let queue_pair = nic.queue_pair_of(self.owner, number)?;
        let mut completions = queue_pair.completions()?;
        if queue_pair.shape().serial != found.serial || completions.head() != found.head {
            return Ok(false);
        }
        queue_pair.consume(nic.bar()?, &mut completions, found.sent, found.received)?;
        Ok(true)
    }
}

/// Completions that have been looked at, and not been consumed.
struct Found {
    /// Those of the queue pair with this serial number, from this head.
    serial: u64,
    head: u32,
    list: KVVec<ioctl::Completion>,
    sent: u32,
    received: u32,
}

impl Found {
    fn count(&self) -> u32 {
        self.sent + self.received
    }
}

/// Whether a region can be so: known rights, and whole pages, at least one.
fn is_good_range(access: u32, start: u64, size: u64) -> Result<bool> {
    let page = u64::try_from(PAGE_SIZE)?;
    let known = uapi::P2PNIC_ACCESS_LOCAL_WRITE
        | uapi::P2PNIC_ACCESS_REMOTE_READ
        | uapi::P2PNIC_ACCESS_REMOTE_WRITE;
    let aligned = start.is_multiple_of(page) && size.is_multiple_of(page);
    Ok(access & !known == 0 && size != 0 && aligned)
}

fn query(nic: &Bind<'_>) -> Result<ioctl::Query> {
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
    Ok(args)
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
