// SPDX-License-Identifier: GPL-2.0

//! What can be seen of a device in debugfs, under `p2pgpu/<PCI address>/`:
//!
//! - `resources`: what exists now, a name and a number a line;
//! - `counters`: the device's own counters, a name and a number a line;
//! - `refusals`: how often peers were refused for which reason, a name and a number a line;
//! - `faults`: the device's fault log, after a look for writes to slots that are not installed;
//! - `aperture`: a map, a character a slot.

use crate::{
    driver::{
        DrmDriver,
        Gpu, //
    },
    regs::{
        self,
        Operation, //
    },
    slots::{
        Class,
        Slot, //
    }, //
};
use kernel::{
    debugfs::{
        Dir,
        File, //
    },
    device::Bound,
    drm::{
        Device, //
        Registered,
        RegisteredRef,
    },
    fmt,
    io::Io,
    pci,
    prelude::*,
    sync::atomic::Relaxed, //
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
    _files: [Entry; 5],
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
            writeln!(f, "{name} {count}")?;
        }
        Ok(())
    })
}

fn faults(drm: &RegisteredRef<DrmDriver>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    with_gpu(drm, |_, gpu| {
        gpu.engine_ring
            .run(Operation::Check, 0, 0)
            .map_err(|_| fmt::Error)?;
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
        writeln!(
            f,
            ". free, c idle or CPU, p lent to peers, P held by promise, d draining; \
             {MAP_WIDTH} slots a line"
        )?;
        let mut column = 0;
        let mut result = Ok(());
        dev.aperture.for_each(|slot| {
            let symbol = match slot {
                Slot::Free | Slot::Taken => '.',
                Slot::Idle { .. } => 'c',
                Slot::Peers { class, .. } => match class {
                    Class::Lent => 'p',
                    Class::Promised => 'P',
                },
                Slot::Draining { .. } => 'd',
            };
            column = (column + 1) % MAP_WIDTH;
            let end = if column == 0 { "\n" } else { "" };
            result = result.and_then(|()| write!(f, "{symbol}{end}"));
        });
        result
    })
}
