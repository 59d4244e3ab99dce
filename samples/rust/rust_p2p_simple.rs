// SPDX-License-Identifier: GPL-2.0

//! Rust sample of a simple device whose memory other devices can use: QEMU's `ivshmem-plain`.
//!
//! BAR 2 is memory. `/dev/p2p_simple` gives it to any device that has a route to it:
//!
//! - `ioctl(fd, _IOW('V', 0, __u64[3]), &{offset, size, read_only})`: a dma-buf of a range;
//! - `ioctl(fd, _IOW('V', 1, __u64), &size)`: one whose pages are assigned when they are needed;
//! - `mmap(fd)`, shared, at any offset: such pages, which end with the mapping.

use kernel::{
    device::Core,
    dma_buf::DmaBuf,
    driver::Registration,
    fs,
    ioctl_argument::read,
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    mm::virt::VmaNew,
    pci::{
        self,
        p2p_bar::{
            Access,
            PeerBar, //
        }, //
    },
    prelude::*,
    uaccess::UserPtr, //
};

const EXPORT: u32 = kernel::ioctl::_IOW::<[u64; 3]>('V' as u32, 0);
const EXPORT_LAZY: u32 = kernel::ioctl::_IOW::<u64>('V' as u32, 1);

kernel::sync::global_lock! {
    // SAFETY: The module initializes it before anything else.
    unsafe(uninit) static BAR: Mutex<Option<PeerBar>> = None;
}

/// An open file; it may outlive the device.
struct OpenFile(PeerBar);

#[vtable]
impl MiscDevice for OpenFile {
    type Ptr = KBox<Self>;

    fn open(_file: &fs::File, _misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        let bar = BAR.lock().clone().ok_or(ENODEV)?;
        Ok(KBox::new(Self(bar), GFP_KERNEL)?)
    }

    fn ioctl(this: &Self, _file: &fs::File, cmd: u32, arg: usize) -> Result<isize> {
        let arg = UserPtr::from_addr(arg);
        let dmabuf = match cmd {
            EXPORT => {
                let [start, size, read_only] = read::<[u64; 3]>(arg)?;
                let end = start.checked_add(size).ok_or(EINVAL)?;
                let access = match read_only {
                    0 => Access::ReadWrite,
                    1 => Access::ReadOnly,
                    _ => return Err(EINVAL),
                };
                this.0.export(start..end, access)?
            }
            EXPORT_LAZY => this.0.export_lazy(read(arg)?, Access::ReadWrite)?,
            _ => return Err(ENOTTY),
        };
        let fd = DmaBuf::into_fd(dmabuf, fs::file::flags::O_CLOEXEC.try_into()?)?;
        Ok(fd.try_into()?)
    }

    fn mmap(this: &Self, _file: &fs::File, vma: &VmaNew) -> Result {
        let size = u64::try_from(vma.end() - vma.start())?;
        this.0.export_lazy(size, Access::ReadWrite)?.mmap(vma)
    }
}

/// The BAR of the device that is bound: one is enough for a sample.
struct Entry;

impl Drop for Entry {
    fn drop(&mut self) {
        *BAR.lock() = None;
    }
}

struct Driver;

kernel::pci_device_table!(
    PCI_TABLE,
    <Driver as pci::Driver>::IdInfo,
    [(
        pci::DeviceId::from_id(pci::Vendor::REDHAT_QUMRANET, 0x1110),
        ()
    )]
);

impl pci::Driver for Driver {
    type IdInfo = ();
    type Data<'bound> = (Pin<KBox<MiscDeviceRegistration<OpenFile>>>, Entry);
    const ID_TABLE: pci::IdTable<()> = &PCI_TABLE;

    fn probe<'bound>(
        pdev: &'bound pci::Device<Core<'_>>,
        _info: Option<&'bound ()>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        pdev.enable_device_mem()?;
        let entry = match &mut *BAR.lock() {
            Some(_) => return Err(EBUSY),
            none => {
                *none = Some(PeerBar::new(pdev, 2)?);
                Entry
            }
        };
        let options = MiscDeviceOptions {
            name: c"p2p_simple",
        };
        let misc = KBox::pin_init(MiscDeviceRegistration::register(options), GFP_KERNEL)?;
        Ok((misc, entry))
    }
}

#[pin_data]
struct Module {
    #[pin]
    driver: Registration<pci::Adapter<Driver>>,
}

impl kernel::InPlaceModule for Module {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        // SAFETY: This is the first use, and the only call.
        unsafe { BAR.init() };
        try_pin_init!(Self {
            driver <- Registration::new(<Self as kernel::ModuleMetadata>::NAME, module),
        })
    }
}

module! {
    type: Module,
    name: "rust_p2p_simple",
    authors: ["The p2pgpu developers"],
    description: "Rust sample of a PCI device whose memory other devices use",
    license: "GPL v2",
    imports_ns: ["DMA_BUF"],
}
