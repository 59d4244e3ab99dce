// SPDX-License-Identifier: GPL-2.0

//! Binding to the PCI device, and letting go of it.

use crate::{
    debugfs,
    file::OpenFile,
    nic::Nic,
    registry,
    regs::{
        self,
        Vector, //
    },
    settings::Settings, //
};
use kernel::{
    device::{
        Bound,
        Core, //
    },
    dma::{
        Device as _,
        DmaMask, //
    },
    irq,
    miscdevice::{
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    pci,
    prelude::*,
    sync::Arc, //
};

kernel::pci_device_table!(
    PCI_TABLE,
    <Driver as pci::Driver>::IdInfo,
    [(
        pci::DeviceId::from_id(pci::Vendor::from_raw(regs::VENDOR), regs::DEVICE),
        ()
    )]
);

/// The PCI driver.
pub(crate) struct Driver;

/// The handler of one interrupt vector.
struct Handler {
    nic: Arc<Nic>,
    vector: Vector,
}

impl irq::Handler for Handler {
    fn handle(&self) -> irq::IrqReturn {
        match self.vector {
            Vector::Mailbox => self.nic.mailbox.answered(),
            Vector::Completions => self.nic.completed.raise(),
            Vector::Events => self.nic.needed.raise(),
        }
        irq::IrqReturn::Handled
    }
}

/// Shuts the NIC down when dropped, unless unbinding did.
struct Running<'bound> {
    nic: Arc<Nic>,
    pdev: &'bound pci::Device<Bound>,
}

impl Running<'_> {
    fn shut_down(&self) {
        self.nic.shut_down(self.pdev);
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// What a bound device has. Field order: who can reach the NIC goes first, then the NIC stops, with
/// its interrupts still there.
pub(crate) struct Data<'bound> {
    _misc: Pin<KBox<MiscDeviceRegistration<OpenFile>>>,
    _debugfs: debugfs::Files,
    _settings: Settings<'bound>,
    _entry: registry::Entry,
    running: Running<'bound>,
    _handlers: pci::MsixHandlers<'bound, Handler>,
}

impl<'bound> Data<'bound> {
    fn new(pdev: &'bound pci::Device<Core<'_>>) -> Result<Self> {
        pdev.enable_device_mem()?;
        // SAFETY: Nothing of this driver has allocated or mapped anything for DMA yet.
        unsafe { pdev.dma_set_mask_and_coherent(DmaMask::new::<64>())? };
        // SAFETY: As above.
        unsafe { pdev.dma_set_max_seg_size(u32::MAX) };

        // SAFETY: `Running` shuts the NIC down.
        let nic = unsafe { Nic::new(pdev)? };
        let running = Running {
            nic: nic.clone(),
            pdev,
        };
        let mut handlers = KVec::with_capacity(Vector::ALL.len(), GFP_KERNEL)?;
        for vector in Vector::ALL {
            let nic = nic.clone();
            handlers.push(Handler { nic, vector }, GFP_KERNEL)?;
        }
        // SAFETY: `handlers` is dropped here on an error, and with `Data` otherwise.
        let handlers = unsafe { pci::MsixHandlers::new(pdev, c"p2pnic", handlers)? };
        nic.start(pdev)?;

        let debugfs = debugfs::Files::new(&nic)?;
        let bound: &'bound pci::Device<Bound> = pdev;
        let settings = Settings::new(bound.as_ref(), &nic)?;
        let entry = registry::Entry::new(nic)?;
        let options = MiscDeviceOptions {
            name: entry.name()?,
        };
        let misc = KBox::pin_init(MiscDeviceRegistration::register(options), GFP_KERNEL)?;
        dev_dbg!(pdev, "is /dev/{}\n", options.name.to_str()?);
        Ok(Self {
            _misc: misc,
            _debugfs: debugfs,
            _settings: settings,
            _entry: entry,
            running,
            _handlers: handlers,
        })
    }
}

impl pci::Driver for Driver {
    type IdInfo = ();
    type Data<'bound> = Data<'bound>;
    const ID_TABLE: pci::IdTable<Self::IdInfo> = &PCI_TABLE;

    fn probe<'bound>(
        pdev: &'bound pci::Device<Core<'_>>,
        _info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        Data::new(pdev)
    }

    fn unbind<'bound>(_pdev: &'bound pci::Device<Core<'_>>, data: Pin<&Self::Data<'bound>>) {
        data.running.shut_down();
    }

    /// A reset takes regions and queue pairs from the device: they are gone for their owners too.
    fn reset_prepare<'bound>(_pdev: &'bound pci::Device<Core<'_>>, data: Pin<&Self::Data<'bound>>) {
        data.running.shut_down();
    }

    fn reset_done<'bound>(pdev: &'bound pci::Device<Core<'_>>, data: Pin<&Self::Data<'bound>>) {
        if let Err(error) = data.running.nic.restart(pdev) {
            dev_err!(pdev, "does not come back from a reset: {:?}\n", error);
        }
    }
}
