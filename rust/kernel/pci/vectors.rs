// SPDX-License-Identifier: GPL-2.0

//! A set of interrupt vectors together with their handlers.

use super::{
    Device,
    IrqType,
    IrqTypes,
    IrqVectorRegistration, //
};
use crate::{
    device,
    irq,
    prelude::*, //
};

/// MSI-X vectors 0 to n-1 of a device, each with a handler, until it is dropped.
///
/// # Examples
///
/// ```
/// use kernel::{
///     device::Bound,
///     irq::{
///         Handler,
///         IrqReturn, //
///     },
///     pci::{
///         self,
///         MsixHandlers, //
///     },
///     sync::{
///         atomic::{
///             Atomic,
///             Relaxed, //
///         },
///         Arc, //
///     }, //
/// };
///
/// /// Counts the interrupts of a ring.
/// struct Ring(Arc<Atomic<u64>>);
///
/// impl Handler for Ring {
///     fn handle(&self) -> IrqReturn {
///         self.0.fetch_add(1, Relaxed);
///         IrqReturn::Handled
///     }
/// }
///
/// fn listen<'a>(
///     pdev: &'a pci::Device<Bound>,
///     counts: [Arc<Atomic<u64>>; 2],
/// ) -> Result<MsixHandlers<'a, Ring>> {
///     let mut rings = KVec::new();
///     for count in counts {
///         rings.push(Ring(count), GFP_KERNEL)?;
///     }
///     // SAFETY: It is a field of what the driver keeps until it is unbound.
///     unsafe { MsixHandlers::new(pdev, c"example", rings) }
/// }
/// ```
pub struct MsixHandlers<'a, H: irq::Handler> {
    // Field order: handlers are unregistered before their vectors are freed.
    handlers: KVec<Pin<KBox<irq::Registration<'a, H>>>>,
    _vectors: KBox<IrqVectorRegistration<'a>>,
}

impl<'a, H: irq::Handler + 'a> MsixHandlers<'a, H> {
    /// Allocates one vector for each of `handlers`, in order, and registers them.
    ///
    /// Handlers can run before this returns.
    ///
    /// # Safety
    ///
    /// The value must be dropped: it must not be passed to `mem::forget()`.
    pub unsafe fn new(
        pdev: &'a Device<device::Bound>,
        name: &'static CStr,
        handlers: KVec<H>,
    ) -> Result<Self> {
        let count = u32::try_from(handlers.len())?;
        let types = IrqTypes::default().with(IrqType::MsiX);
        let vectors = KBox::new(pdev.alloc_irq_vectors(count, count, types)?, GFP_KERNEL)?;
        let mut this = Self {
            handlers: KVec::with_capacity(handlers.len(), GFP_KERNEL)?,
            _vectors: vectors,
        };
        let vectors: *const IrqVectorRegistration<'a> = &*this._vectors;
        // SAFETY: The box does not move its content, and outlives the handlers, the only ones that
        // get this reference: see the order of the fields.
        let vectors = unsafe { &*vectors };
        for (index, handler) in handlers.into_iter().enumerate() {
            let request = vectors.index(index)?.into();
            let flags = irq::Flags::TRIGGER_NONE;
            // SAFETY: The registration is stored in `this`, which the caller promises to drop.
            let registration = unsafe { irq::Registration::new(request, flags, name, Ok(handler)) };
            let registration = KBox::pin_init(registration, GFP_KERNEL)?;
            this.handlers.push(registration, GFP_KERNEL)?;
        }
        Ok(this)
    }
}
