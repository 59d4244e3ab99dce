// SPDX-License-Identifier: GPL-2.0 OR MIT

//! KUnit tests of the path between an exporter and its importers.

use super::*;
use crate::dma_buf::{
    importer::{
        AfterInvalidate,
        Attachment,
        Importer, //
    },
    software::SoftwareDevice,
    tests::dma_device, //
};

/// An importer that answers in one way.
struct Peer {
    told: Arc<Count>,
    answer: AfterInvalidate,
}

impl Importer for Peer {
    const ALLOW_PEER_TO_PEER: bool = true;

    fn invalidate(&self, _held: Held<'_>) -> AfterInvalidate {
        self.told.up();
        self.answer
    }
}

fn attach(
    reg: &SoftwareDevice,
    dmabuf: &ARef<DmaBuf>,
    answer: AfterInvalidate,
) -> Result<(Attachment<Peer>, Arc<Count>)> {
    let told = Arc::new(Count::new(), GFP_KERNEL)?;
    let data = Peer {
        told: told.clone(),
        answer,
    };
    // SAFETY: The tests drop their attachments before their devices.
    let attachment = unsafe { Attachment::new(bound(reg), dmabuf.clone(), Ok::<_, Error>(data))? };
    Ok((attachment, told))
}

fn bound(reg: &SoftwareDevice) -> &device::Device<Bound> {
    reg.as_ref()
}

/// Maps, and returns the page-frame numbers that the device was given.
fn map(attachment: &Attachment<Peer>, reg: &SoftwareDevice) -> Result<KVec<usize>> {
    let guard = attachment.dmabuf().resv().lock();
    let dir = DataDirection::Bidirectional;
    attachment.map(bound(reg), guard.held(), dir, |table| {
        let mut pfns = KVec::new();
        for entry in table.iter() {
            let start = usize::try_from(entry.dma_address())?;
            for offset in (0..usize::try_from(entry.dma_len())?).step_by(PAGE_SIZE) {
                pfns.push((start + offset) / PAGE_SIZE, GFP_KERNEL)?;
            }
        }
        Ok(pfns)
    })
}

fn invalidate(dmabuf: &DmaBuf) -> Result {
    let guard = dmabuf.resv().lock();
    dmabuf.invalidate(guard.held())
}

#[macros::kunit_tests(rust_drm_gem_managed_sharing)]
mod suite {
    use super::*;

    #[test]
    fn attach_is_the_exporters_choice() -> Result {
        let parent = faux_device()?;
        let rig = Rig::new(&parent)?;
        let reg = dma_device()?;
        let events = Events::new()?;
        let obj = rig.small(&events)?;
        events.export.set(Err(EPERM));
        assert_eq!(export(&obj).err(), Some(EPERM));
        events.export.set(Ok(()));
        let dmabuf = export(&obj)?;

        events.attach.set(Err(EXDEV));
        let refused = attach(&reg, &dmabuf, AfterInvalidate::Unmap);
        assert_eq!(refused.err(), Some(EXDEV));
        assert_eq!((events.attached.get(), events.detached.get()), (0, 0));

        events.attach.set(Ok(()));
        let (attachment, _) = attach(&reg, &dmabuf, AfterInvalidate::Unmap)?;
        assert_eq!((events.attached.get(), events.detached.get()), (1, 0));
        assert_eq!((events.dynamic.get(), events.peers.get()), (1, 1));
        assert!(core::ptr::eq(attachment.dmabuf(), &*dmabuf));
        drop(attachment);
        assert_eq!((events.attached.get(), events.detached.get()), (1, 1));
        assert_eq!((events.mapped.get(), events.unmapped.get()), (0, 0));
        Ok(())
    }

    #[test]
    fn map_once() -> Result {
        let parent = faux_device()?;
        let rig = Rig::new(&parent)?;
        let (reg, wrong) = (dma_device()?, dma_device()?);
        let events = Events::new()?;
        let obj = rig.small(&events)?;
        let dmabuf = export(&obj)?;
        let (attachment, _) = attach(&reg, &dmabuf, AfterInvalidate::Unmap)?;

        events.map.set(Err(ENOSPC));
        assert_eq!(map(&attachment, &reg).err(), Some(ENOSPC));
        assert!(!attachment.is_mapped());
        events.map.set(Ok(()));
        assert_eq!(map(&attachment, &wrong).err(), Some(EINVAL));
        assert!(!attachment.is_mapped());

        let pfns = map(&attachment, &reg)?;
        assert_eq!(pfns.len(), 2);
        for (index, &pfn) in pfns.iter().enumerate() {
            assert_eq!(obj.pages.pfn(index), Some(pfn));
        }
        assert!(attachment.is_mapped());
        // What is mapped is given again.
        assert!(map(&attachment, &reg)? == pfns);
        assert_eq!(events.mapped.get(), 1);

        {
            // Neither the right direction nor the right lock.
            let other = rig.small(&events)?;
            let guard = other.resv().lock();
            let (dev, dir) = (bound(&reg), DataDirection::Bidirectional);
            let mapped = attachment.map(dev, guard.held(), dir, |_| Ok(()));
            assert_eq!(mapped, Err(EINVAL));
            assert_eq!(attachment.unmap(guard.held()), Err(EINVAL));
            assert_eq!(dmabuf.invalidate(guard.held()), Err(EINVAL));
            drop(guard);
            let guard = obj.resv().lock();
            let mapped = attachment.map(dev, guard.held(), DataDirection::ToDevice, |_| Ok(()));
            assert_eq!(mapped, Err(EINVAL));
            assert_eq!(attachment.unmap(guard.held()), Ok(()));
            // Nothing is left to unmap.
            assert_eq!(attachment.unmap(guard.held()), Ok(()));
        }
        assert!(!attachment.is_mapped());
        assert_eq!((events.mapped.get(), events.unmapped.get()), (1, 1));
        assert_eq!(events.strange.get(), 0);
        Ok(())
    }

    #[test]
    fn invalidate_and_unmap() -> Result {
        let parent = faux_device()?;
        let rig = Rig::new(&parent)?;
        let reg = dma_device()?;
        let events = Events::new()?;
        let obj = rig.small(&events)?;
        let dmabuf = export(&obj)?;
        let (attachment, told) = attach(&reg, &dmabuf, AfterInvalidate::Unmap)?;
        // Attached only: nothing to take back.
        invalidate(&dmabuf)?;
        assert_eq!(told.get(), 0);

        for round in 1..=3 {
            map(&attachment, &reg)?;
            assert_eq!(events.mapped.get(), round);
            invalidate(&dmabuf)?;
            assert_eq!(told.get(), round);
            assert_eq!(events.unmapped.get(), round);
            assert!(!attachment.is_mapped());
            invalidate(&dmabuf)?;
            assert_eq!(told.get(), round);
        }
        assert_eq!(events.strange.get(), 0);
        Ok(())
    }

    #[test]
    fn invalidate_and_unmap_later() -> Result {
        let parent = faux_device()?;
        let rig = Rig::new(&parent)?;
        let reg = dma_device()?;
        let events = Events::new()?;
        let obj = rig.small(&events)?;
        let dmabuf = export(&obj)?;
        let (attachment, told) = attach(&reg, &dmabuf, AfterInvalidate::Later)?;
        map(&attachment, &reg)?;
        invalidate(&dmabuf)?;
        assert_eq!((told.get(), events.unmapped.get()), (1, 0));
        assert!(attachment.is_mapped());
        // It knows.
        invalidate(&dmabuf)?;
        assert_eq!(told.get(), 1);
        // The addresses that were taken back are not given again.
        assert_eq!(map(&attachment, &reg).err(), Some(EBUSY));
        attachment.unmap(obj.resv().lock().held())?;
        assert_eq!(events.unmapped.get(), 1);
        map(&attachment, &reg)?;
        invalidate(&dmabuf)?;
        assert_eq!((told.get(), events.mapped.get()), (2, 2));
        Ok(())
    }

    #[test]
    fn drop_while_mapped() -> Result {
        let parent = faux_device()?;
        let rig = Rig::new(&parent)?;
        let reg = dma_device()?;
        for answer in [AfterInvalidate::Unmap, AfterInvalidate::Later] {
            let events = Events::new()?;
            let dmabuf = export(&*rig.small(&events)?)?;
            let (attachment, told) = attach(&reg, &dmabuf, answer)?;
            map(&attachment, &reg)?;
            drop(attachment);
            assert_eq!(told.get(), 1);
            assert_eq!((events.mapped.get(), events.unmapped.get()), (1, 1));
            assert_eq!((events.attached.get(), events.detached.get()), (1, 1));
            // The buffer has the last reference to the object.
            assert_eq!(events.freed.get(), 0);
            drop(dmabuf);
            flush_releases();
            assert_eq!(events.freed.get(), 1);
        }
        Ok(())
    }

    #[test]
    fn two_importers() -> Result {
        let parent = faux_device()?;
        let rig = Rig::new(&parent)?;
        let regs = (dma_device()?, dma_device()?);
        let events = Events::new()?;
        let dmabuf = export(&*rig.small(&events)?)?;
        let (first, told_first) = attach(&regs.0, &dmabuf, AfterInvalidate::Unmap)?;
        let (second, told_second) = attach(&regs.1, &dmabuf, AfterInvalidate::Unmap)?;
        map(&first, &regs.0)?;
        invalidate(&dmabuf)?;
        assert_eq!((told_first.get(), told_second.get()), (1, 0));
        map(&first, &regs.0)?;
        map(&second, &regs.1)?;
        invalidate(&dmabuf)?;
        assert_eq!((told_first.get(), told_second.get()), (2, 1));
        assert_eq!((events.mapped.get(), events.unmapped.get()), (3, 3));
        Ok(())
    }

    /// Each mapping is another, and goes by itself; all are taken back together.
    #[test]
    fn map_twice() -> Result {
        let parent = faux_device()?;
        let rig = Rig::new(&parent)?;
        let reg = dma_device()?;
        let events = Events::new()?;
        let dmabuf = export(&*rig.small(&events)?)?;
        let (attachment, told) = attach(&reg, &dmabuf, AfterInvalidate::Unmap)?;
        let dir = DataDirection::Bidirectional;
        {
            let guard = dmabuf.resv().lock();
            assert_eq!(attachment.map_again(bound(&reg), guard.held(), dir)?, 1);
            assert_eq!(attachment.map_again(bound(&reg), guard.held(), dir)?, 2);
            assert_eq!(attachment.unmap_one(guard.held(), 2), Err(ENOENT));
            attachment.unmap_one(guard.held(), 0)?;
            assert_eq!((events.mapped.get(), events.unmapped.get()), (2, 1));
            assert_eq!(attachment.map_again(bound(&reg), guard.held(), dir)?, 2);
        }
        invalidate(&dmabuf)?;
        assert_eq!((told.get(), attachment.mappings()), (1, 0));
        assert_eq!((events.mapped.get(), events.unmapped.get()), (3, 3));
        Ok(())
    }

    /// Pins count, and those that are left go with the attachment.
    #[test]
    fn pins_are_counted() -> Result {
        let parent = faux_device()?;
        let rig = Rig::new(&parent)?;
        let reg = dma_device()?;
        let events = Events::new()?;
        let dmabuf = export(&*rig.small(&events)?)?;
        let (attachment, _) = attach(&reg, &dmabuf, AfterInvalidate::Unmap)?;
        {
            let guard = dmabuf.resv().lock();
            assert_eq!(attachment.unpin(guard.held()), Err(EINVAL));
            for _ in 0..3 {
                attachment.pin(guard.held())?;
            }
            attachment.unpin(guard.held())?;
        }
        assert_eq!((events.pinned.get(), events.unpinned.get()), (3, 1));
        drop(attachment);
        assert_eq!((events.pinned.get(), events.unpinned.get()), (3, 3));
        Ok(())
    }

    /// An importer of the old kind cannot be told, nor does it pin: the core does that for it.
    #[test]
    fn static_importer() -> Result {
        let parent = faux_device()?;
        let rig = Rig::new(&parent)?;
        let reg = dma_device()?;
        let events = Events::new()?;
        let dmabuf = export(&*rig.small(&events)?)?;
        let told = Arc::new(Count::new(), GFP_KERNEL)?;
        let data = Peer {
            told: told.clone(),
            answer: AfterInvalidate::Later,
        };
        // SAFETY: The attachment is dropped before the device.
        let attachment =
            unsafe { Attachment::new_static(bound(&reg), dmabuf.clone(), Ok::<_, Error>(data))? };
        assert_eq!((events.dynamic.get(), events.peers.get()), (0, 0));
        assert!(!attachment.is_peer());
        assert_eq!(attachment.pin(dmabuf.resv().lock().held()), Err(EINVAL));
        map(&attachment, &reg)?;
        assert_eq!((events.pinned.get(), events.mapped.get()), (1, 1));
        invalidate(&dmabuf)?;
        assert_eq!((told.get(), events.unmapped.get()), (0, 0));
        attachment.unmap(dmabuf.resv().lock().held())?;
        assert_eq!((events.unpinned.get(), events.unmapped.get()), (1, 1));
        Ok(())
    }

    /// The C interface that other drivers use: the core pins.
    #[test]
    fn static_importer_pins() -> Result {
        let parent = faux_device()?;
        let rig = Rig::new(&parent)?;
        let reg = dma_device()?;
        let events = Events::new()?;
        let dmabuf = export(&*rig.small(&events)?)?;
        let dir = bindings::dma_data_direction::DMA_TO_DEVICE;
        // SAFETY: The buffer and the device are valid.
        let attachment = from_err_ptr(unsafe {
            bindings::dma_buf_attach(dmabuf.as_raw(), bound(&reg).as_raw())
        })?;
        assert_eq!((events.dynamic.get(), events.peers.get()), (0, 0));
        // SAFETY: The attachment is valid.
        let sgt =
            from_err_ptr(unsafe { bindings::dma_buf_map_attachment_unlocked(attachment, dir) })?;
        assert_eq!((events.pinned.get(), events.mapped.get()), (1, 1));
        // SAFETY: This undoes the mapping, once.
        unsafe { bindings::dma_buf_unmap_attachment_unlocked(attachment, sgt, dir) };
        assert_eq!((events.unpinned.get(), events.unmapped.get()), (1, 1));
        // SAFETY: This undoes the attachment, which is not mapped.
        unsafe { bindings::dma_buf_detach(dmabuf.as_raw(), attachment) };
        assert_eq!(events.detached.get(), 1);
        Ok(())
    }
}
