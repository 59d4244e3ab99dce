// SPDX-License-Identifier: GPL-2.0

//! What can be seen of a device in debugfs, under `p2pgpu/<PCI address>/`:
//!
//! - `resources`: what exists now, a name and a number a line;
//! - `counters`: the device's own counters, a name and a number a line;
//! - `refusals`: how often peers were refused for which reason, a name and a number a line;
//! - `faults`: the device's fault log, after a look for writes to slots that are not installed;
//! - `aperture`: a map, a character a slot;
//! - `objects`: those that have importers or slots, one a line;
//! - `activity`: what has happened so far, a name and a number a line.
//!
//! `p2ptop` reads the last three and `resources`: none of them touches the device.

use crate::{
    census::{
        Census,
        Counted, //
    },
    driver::{
        DrmDriver,
        Gpu, //
    },
    engine,
    gem::{
        self,
        PlacementKind, //
    },
    regs::{
        self,
        SLOT_SIZE, //
    }, //
};
use kernel::{
    debugfs::{
        Dir,
        File, //
    },
    device::Bound,
    drm::{
        gem::BaseObject,
        Device, //
        Registered,
        RegisteredRef,
    },
    fmt::{
        self,
        Write, //
    },
    io::Io,
    pci,
    prelude::*,
    sync::atomic::Relaxed,
    uapi, //
};

/// Slots in a line of the map.
const MAP_WIDTH: usize = 64;

type Entry = Pin<KBox<File<RegisteredRef<DrmDriver>>>>;

kernel::sync::global_lock! {
    // SAFETY: `Root::new` initializes it before a device can be probed.
    unsafe(uninit) static ROOT: Mutex<Option<Dir>> = None;
}

/// The module's folder, `p2pgpu`, in which each device has its own.
pub(crate) struct Root;

impl Root {
    /// Makes the folder.
    ///
    /// # Safety
    ///
    /// Called once, before the driver is registered.
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: The caller promises that this is the first use.
        unsafe { ROOT.init() };
        *ROOT.lock() = Some(Dir::new(c"p2pgpu"));
        Self
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // The static is not dropped with the module.
        *ROOT.lock() = None;
    }
}

/// The files of a device; dropping it removes them.
pub(crate) struct DebugFiles {
    _files: [Entry; 7],
    _dir: Dir,
}

impl DebugFiles {
    pub(crate) fn new(
        pdev: &pci::Device<Bound>,
        drm: impl Fn() -> RegisteredRef<DrmDriver>,
    ) -> Result<Self> {
        let dir = match &*ROOT.lock() {
            Some(root) => root.subdir(pdev.as_ref().name()),
            None => return Err(ENODEV),
        };
        let files = [
            KBox::pin_init(
                dir.read_callback_file(c"resources", drm(), &resources),
                GFP_KERNEL,
            )?,
            KBox::pin_init(
                dir.read_callback_file(c"counters", drm(), &counters),
                GFP_KERNEL,
            )?,
            KBox::pin_init(
                dir.read_callback_file(c"refusals", drm(), &refusals),
                GFP_KERNEL,
            )?,
            KBox::pin_init(
                dir.read_callback_file(c"faults", drm(), &faults),
                GFP_KERNEL,
            )?,
            KBox::pin_init(
                dir.read_callback_file(c"aperture", drm(), &aperture),
                GFP_KERNEL,
            )?,
            KBox::pin_init(
                dir.read_callback_file(c"objects", drm(), &objects),
                GFP_KERNEL,
            )?,
            KBox::pin_init(
                dir.read_callback_file(c"activity", drm(), &activity),
                GFP_KERNEL,
            )?,
        ];
        Ok(Self {
            _files: files,
            _dir: dir,
        })
    }
}

/// Runs `show` with the hardware; a device that is gone shows nothing.
fn with_gpu(
    drm: &RegisteredRef<DrmDriver>,
    show: impl FnOnce(&Device<DrmDriver, Registered>, &Gpu<'_>) -> fmt::Result,
) -> fmt::Result {
    match drm.registration_guard() {
        Some(dev) => dev.registration_data_with(|gpu| show(&dev, gpu)),
        None => Ok(()),
    }
}

fn resources(drm: &RegisteredRef<DrmDriver>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    with_gpu(drm, |dev, _| {
        let counts = dev.aperture.counts();
        writeln!(f, "objects {}", dev.objects())?;
        writeln!(
            f,
            "slots_used {}",
            dev.aperture.total() - counts.free as usize
        )?;
        writeln!(f, "slots_idle {}", counts.idle)?;
        writeln!(f, "slots_peer {}", counts.held)?;
        writeln!(f, "slots_lent {}", counts.lent)?;
        writeln!(f, "slots_draining {}", counts.draining)?;
        writeln!(f, "slots_promised {}", counts.promised)?;
        writeln!(f, "slots_reserved {}", dev.reserved())?;
        writeln!(f, "slots_claimed {}", dev.aperture.claimed())?;
        writeln!(f, "aperture_broken {}", u8::from(dev.aperture.is_broken()))?;
        writeln!(f, "vram_used {}", dev.vram.size() - dev.vram.free())
    })
}

fn counters(drm: &RegisteredRef<DrmDriver>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    with_gpu(drm, |_, gpu| {
        for (name, offset) in regs::COUNTERS {
            writeln!(
                f,
                "{name} {}",
                gpu.bar.try_read64(offset).map_err(|_| fmt::Error)?
            )?;
        }
        // Counted here and not by the device: interrupts of its fault log that arrived.
        let interrupts = gpu.fault_interrupts.load(Relaxed);
        writeln!(f, "fault_interrupts {interrupts}")
    })
}

fn refusals(drm: &RegisteredRef<DrmDriver>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    with_gpu(drm, |dev, _| {
        for (name, count) in dev.refusals.iter() {
            writeln!(f, "{} {count}", name.to_str().map_err(|_| fmt::Error)?)?;
        }
        Ok(())
    })
}

fn faults(drm: &RegisteredRef<DrmDriver>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    with_gpu(drm, |_, gpu| {
        engine::check(gpu).map_err(|_| fmt::Error)?;
        writeln!(
            f,
            "count {}",
            u32::from(gpu.bar.read(regs::FAULT_COUNT).count())
        )?;
        // The log is read destructively, and is bounded: what is shown here is not shown again.
        for _ in 0..regs::FAULT_LOG_ENTRIES {
            if !gpu.bar.read(regs::STATUS).fault_pending() {
                break;
            }
            let info = gpu.bar.try_read(regs::FAULT_INFO).map_err(|_| fmt::Error)?;
            let address = gpu.bar.try_read(regs::FAULT_ADDR).map_err(|_| fmt::Error)?;
            let address: u64 = address.address().into();
            gpu.bar.write_reg(regs::FAULT_ACK::zeroed());
            writeln!(
                f,
                "{} slot {} {} {} bytes address {address:#x}",
                regs::fault_name(info.kind().into()),
                info.slot(),
                if info.write() { "write" } else { "read" },
                info.size(),
            )?;
        }
        Ok(())
    })
}

fn aperture(drm: &RegisteredRef<DrmDriver>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    with_gpu(drm, |dev, _| {
        let census = Census::new(dev).map_err(|_| fmt::Error)?;
        let slots = census.slots();
        writeln!(
            f,
            "slots {} size {SLOT_SIZE}: . free, c idle or CPU, L lent, R reserved, P pinned, \
             d draining; {MAP_WIDTH} a line",
            slots.len()
        )?;
        let mut column = 0;
        for used in slots {
            f.write_char(used.symbol())?;
            column = (column + 1) % MAP_WIDTH;
            if column == 0 {
                f.write_char('\n')?;
            }
        }
        match column {
            0 => Ok(()),
            _ => f.write_char('\n'),
        }
    })
}

fn objects(drm: &RegisteredRef<DrmDriver>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    with_gpu(drm, |dev, _| {
        let mut census = Census::new(dev).map_err(|_| fmt::Error)?;
        census.add_attached(dev).map_err(|_| fmt::Error)?;
        for counted in census.objects() {
            show_object(counted, f)?;
        }
        Ok(())
    })
}

/// Names of the flags, in the order of their bits.
const FLAGS: [(u32, &str); 4] = [
    (uapi::P2PGPU_PEER_EXPORTABLE, "exportable"),
    (uapi::P2PGPU_PEER_RESERVE, "reserve"),
    (uapi::P2PGPU_PEER_STRICT, "strict"),
    (uapi::P2PGPU_PEER_READ_ONLY, "read_only"),
];

fn show_object(counted: &Counted, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let obj = &*counted.object;
    // What userspace knows the object by, and nothing that it does not.
    let id = gem::mmap_offset(obj).map_err(|_| fmt::Error)?;
    write!(f, "id={id:#x} size={} ", obj.size())?;
    {
        let state = obj.state.lock();
        let placement = match state.placement.kind() {
            Some(PlacementKind::System) => "system",
            Some(PlacementKind::Vram) => "vram",
            // It has no importers of this driver, nor slots: it is not listed.
            None => "imported",
        };
        write!(f, "placement={placement} flags=")?;
        let set = FLAGS.iter().filter(|(flag, _)| state.has_flag(*flag));
        list(f, set.map(|(_, name)| *name))?;
        write!(f, " slots={} held={}", counted.shown, counted.held)?;
        write!(f, " pins={} mappings={}", state.pins, state.mappings)?;
        write!(f, " peer_maps={}", state.peer_maps)?;
        write!(f, " system_maps={}", state.system_maps)?;
        write!(f, " invalidations={}", state.invalidations)?;
        write!(f, " fall_backs={} importers=", state.fall_backs)?;
    }
    let importers = obj.importers.lock();
    let names = importers.devices.iter();
    // The name of a PCI device is its address.
    list(f, names.map(|device| device.name().to_str().unwrap_or("?")))?;
    f.write_char('\n')
}

/// The items with commas between them; `-` if there is none.
fn list<'a>(f: &mut fmt::Formatter<'_>, items: impl Iterator<Item = &'a str>) -> fmt::Result {
    let mut first = true;
    for item in items {
        if !first {
            f.write_char(',')?;
        }
        f.write_str(item)?;
        first = false;
    }
    if first {
        f.write_char('-')?;
    }
    Ok(())
}

fn activity(drm: &RegisteredRef<DrmDriver>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    with_gpu(drm, |dev, gpu| {
        let activity = &dev.activity;
        writeln!(f, "cpu_faults {}", activity.cpu_faults.get())?;
        writeln!(f, "peer_maps {}", dev.peer_maps())?;
        writeln!(f, "peer_unmaps {}", dev.peer_unmaps())?;
        writeln!(f, "invalidations {}", activity.invalidations.get())?;
        writeln!(f, "fall_backs {}", activity.fall_backs.get())?;
        let refusals = dev.refusals.iter().map(|(_, count)| count);
        writeln!(f, "refusals {}", refusals.fold(0, u64::wrapping_add))?;
        writeln!(f, "flushes {}", gpu.table.flushes.get())?;
        writeln!(f, "late_answers {}", dev.patience.late.get())
    })
}
