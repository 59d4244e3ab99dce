// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of fences and reservation objects, and what the tests beside other code share.

use crate::{
    dma_buf::software::SoftwareDevice,
    faux,
    prelude::*,
    str::CString,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// Makes a device without hardware. Its name is its own: a test that failed keeps its devices.
pub(crate) fn faux_device() -> Result<faux::Registration> {
    static NEXT: Atomic<u32> = Atomic::new(0);

    let name = CString::try_from_fmt(fmt!("kunit-faux-{}", NEXT.fetch_add(1, Relaxed)))?;
    faux::Registration::new(&name, None)
}

/// Makes a device without hardware that can do DMA anywhere.
pub(crate) fn dma_device() -> Result<SoftwareDevice> {
    SoftwareDevice::new(c"kunit-dma")
}

#[macros::kunit_tests(rust_dma_buf_fence)]
mod fence {
    use crate::{
        dma_buf::fence::{
            Callback,
            Fence,
            FenceMemory,
            Listener,
            Names,
            PendingFence,
            Timeline, //
        },
        prelude::*,
        sync::{
            aref::ARef,
            atomic::{
                Atomic,
                Relaxed, //
            },
            Arc, //
        },
        time::msecs_to_jiffies, //
    };

    struct KunitNames;

    impl Names for KunitNames {
        const DRIVER: &'static CStr = c"kunit";
        const TIMELINE: &'static CStr = c"tests";
    }

    /// A fence of a timeline of its own.
    fn pending() -> Result<PendingFence> {
        let memory = FenceMemory::new(GFP_KERNEL)?;
        Ok(Timeline::<KunitNames>::new().fence(memory))
    }

    fn reference(pending: &PendingFence) -> ARef<Fence> {
        pending.fence().into()
    }

    #[test]
    fn signal_ok() -> Result {
        let pending = pending()?;
        let fence = reference(&pending);
        assert!(!fence.is_signaled());
        assert_eq!(fence.status(), None);
        pending.signal(Ok(()));
        assert!(fence.is_signaled());
        assert_eq!(fence.status(), Some(Ok(())));
        fence.wait(0)
    }

    #[test]
    fn signal_error() -> Result {
        let pending = pending()?;
        let fence = reference(&pending);
        pending.signal(Err(EIO));
        assert!(fence.is_signaled());
        assert_eq!(fence.status(), Some(Err(EIO)));
        assert_eq!(fence.wait(msecs_to_jiffies(1000)), Err(EIO));
        Ok(())
    }

    #[test]
    fn dropped_is_canceled() -> Result {
        let pending = pending()?;
        let fence = reference(&pending);
        drop(pending);
        assert_eq!(fence.status(), Some(Err(ECANCELED)));
        Ok(())
    }

    #[test]
    fn wait_times_out() -> Result {
        let pending = pending()?;
        assert_eq!(pending.fence().wait(0), Err(ETIMEDOUT));
        assert_eq!(pending.fence().wait(msecs_to_jiffies(10)), Err(ETIMEDOUT));
        // Longer than the C function can be told, but there is nothing to wait for.
        let fence = reference(&pending);
        pending.signal(Ok(()));
        fence.wait(usize::MAX)
    }

    #[test]
    fn order_and_timelines() -> Result {
        let timeline = Timeline::<KunitNames>::new();
        let first = timeline.fence(FenceMemory::new(GFP_KERNEL)?);
        let second = timeline.fence(FenceMemory::new(GFP_KERNEL)?);
        let other = pending()?;
        // SAFETY: These fields of a fence never change.
        let number = |pending: &PendingFence| unsafe {
            let raw = pending.fence().as_raw();
            ((*raw).context, (*raw).seqno)
        };
        assert!(number(&first).1 < number(&second).1);
        assert_eq!(number(&first).0, number(&second).0);
        assert!(number(&other).0 != number(&first).0);

        first.signal(Ok(()));
        assert!(!second.fence().is_signaled());
        Ok(())
    }

    /// Counts how often it is called.
    #[derive(Clone)]
    struct Counter(Arc<Atomic<u32>>);

    impl Counter {
        fn new() -> Result<Self> {
            Ok(Self(Arc::new(Atomic::new(0), GFP_KERNEL)?))
        }

        fn calls(&self) -> u32 {
            self.0.load(Relaxed)
        }
    }

    impl Listener for Counter {
        fn signalled(&self) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn callback_is_called_once() -> Result {
        let counter = Counter::new()?;
        let mut callback = KBox::pin_init(Callback::new(counter.clone()), GFP_KERNEL)?;
        let first = pending()?;
        let fence = reference(&first);
        assert!(callback.as_mut().wait_for(&fence));
        assert!(callback.waits_for().is_some());
        assert_eq!(counter.calls(), 0);
        first.signal(Ok(()));
        assert_eq!(counter.calls(), 1);
        assert!(callback.waits_for().is_none());
        // What has signalled is not waited for.
        assert!(!callback.as_mut().wait_for(&fence));
        assert_eq!(counter.calls(), 1);
        Ok(())
    }

    #[test]
    fn callback_forgets() -> Result {
        let counter = Counter::new()?;
        let mut callback = KBox::pin_init(Callback::new(counter.clone()), GFP_KERNEL)?;
        let (first, second) = (pending()?, pending()?);
        assert!(callback.as_mut().wait_for(first.fence()));
        // Another fence takes the place of the first.
        assert!(callback.as_mut().wait_for(second.fence()));
        first.signal(Ok(()));
        assert_eq!(counter.calls(), 0);
        drop(callback);
        second.signal(Ok(()));
        assert_eq!(counter.calls(), 0);
        Ok(())
    }

    #[test]
    fn outlives_its_timeline() -> Result {
        let pending = pending()?;
        let fence = reference(&pending);
        drop(pending);
        let again = fence.clone();
        drop(fence);
        assert!(again.is_signaled());
        Ok(())
    }
}

#[macros::kunit_tests(rust_dma_buf_resv)]
mod resv {
    use crate::{
        bindings,
        dma_buf::{
            fence::{
                FenceMemory,
                Names,
                PendingFence,
                Timeline, //
            },
            resv::{
                Locks,
                Resv,
                Usage, //
            }, //
        },
        prelude::*,
        time::msecs_to_jiffies,
        types::Opaque, //
    };

    /// A reservation object that belongs to no buffer.
    struct OwnResv(Pin<KBox<Opaque<bindings::dma_resv>>>);

    impl OwnResv {
        fn new() -> Result<Self> {
            // SAFETY: The slot is memory for a reservation object, which stays where it is.
            let init = Opaque::ffi_init(|slot| unsafe { bindings::dma_resv_init(slot) });
            Ok(Self(KBox::pin_init(init, GFP_KERNEL)?))
        }
    }

    impl core::ops::Deref for OwnResv {
        type Target = Resv;

        fn deref(&self) -> &Resv {
            // SAFETY: The object is initialized and lives as long as `self`.
            unsafe { Resv::from_raw(self.0.get()) }
        }
    }

    impl Drop for OwnResv {
        fn drop(&mut self) {
            // SAFETY: The object is initialized, and nobody uses it any more.
            unsafe { bindings::dma_resv_fini(self.0.get()) };
        }
    }

    struct KunitNames;

    impl Names for KunitNames {
        const DRIVER: &'static CStr = c"kunit";
        const TIMELINE: &'static CStr = c"tests";
    }

    /// A fence of a timeline of its own.
    fn pending() -> Result<PendingFence> {
        let memory = FenceMemory::new(GFP_KERNEL)?;
        Ok(Timeline::<KunitNames>::new().fence(memory))
    }

    /// Adds a fence that has not signalled.
    fn add(resv: &Resv, usage: Usage) -> Result<PendingFence> {
        let pending = pending()?;
        let guard = resv.lock();
        guard
            .held()
            .reserve_fences(1)?
            .add(pending.fence(), usage)?;
        Ok(pending)
    }

    #[test]
    fn lock_and_try_lock() -> Result {
        let resv = OwnResv::new()?;
        let guard = resv.lock();
        assert!(resv.try_lock().is_none());
        // Failing must not have unlocked it.
        assert!(resv.try_lock().is_none());
        drop(guard);

        let guard = resv.try_lock();
        assert!(guard.is_some());
        assert!(resv.try_lock().is_none());
        drop(guard);

        let guard = resv.lock_interruptible()?;
        assert!(resv.try_lock().is_none());
        drop(guard);
        assert!(resv.try_lock().is_some());
        Ok(())
    }

    #[test]
    fn several_locks() -> Result {
        let [first, second, other] = [OwnResv::new()?, OwnResv::new()?, OwnResv::new()?];
        // The same one twice, and in any order.
        for resvs in [[&*first, &*second, &*first], [&*second, &*second, &*first]] {
            let locks = Locks::lock_interruptible(&resvs)?;
            assert!(first.try_lock().is_none());
            assert!(second.try_lock().is_none());
            assert!(other.try_lock().is_some());
            locks.held(&first)?.check(&first)?;
            locks.held(&second)?.check(&second)?;
            assert_eq!(locks.held(&other).err(), Some(EINVAL));
            drop(locks);
            assert!(first.try_lock().is_some());
            assert!(second.try_lock().is_some());
        }
        drop(Locks::lock_interruptible(&[])?);
        Ok(())
    }

    #[test]
    fn fence_of_all() -> Result {
        let resv = OwnResv::new()?;
        let fence = |usage| resv.lock().held().fence(usage);
        assert!(fence(Usage::Bookkeep)?.is_none());
        let write = add(&resv, Usage::Write)?;
        assert!(fence(Usage::Kernel)?.is_none());
        let one = fence(Usage::Write)?.ok_or(EINVAL)?;
        assert!(core::ptr::eq(&*one, write.fence()));
        assert_eq!(one.context(), write.fence().context());

        let read = add(&resv, Usage::Read)?;
        let both = fence(Usage::Read)?.ok_or(EINVAL)?;
        write.signal(Ok(()));
        assert!(one.is_signaled());
        assert!(!both.is_signaled());
        read.signal(Ok(()));
        assert_eq!(both.wait(msecs_to_jiffies(10_000)), Ok(()));
        Ok(())
    }

    #[test]
    fn held_is_for_one_object() -> Result {
        let (resv, other) = (OwnResv::new()?, OwnResv::new()?);
        let guard = resv.lock();
        assert_eq!(guard.held().check(&resv), Ok(()));
        assert_eq!(guard.held().check(&other), Err(EINVAL));
        assert!(core::ptr::eq(guard.held().resv(), &*resv));
        Ok(())
    }

    #[test]
    fn room_is_counted() -> Result {
        let resv = OwnResv::new()?;
        let fences = [pending()?, pending()?];
        {
            let guard = resv.lock();
            let mut room = guard.held().reserve_fences(1)?;
            assert_eq!(room.add(fences[0].fence(), Usage::Kernel), Ok(()));
            assert_eq!(room.add(fences[1].fence(), Usage::Kernel), Err(ENOSPC));
        }
        let [first, second] = fences;
        first.signal(Ok(()));
        // The second was not added.
        assert_eq!(resv.wait(Usage::Kernel, 0), Ok(()));
        drop(second);
        Ok(())
    }

    #[test]
    fn wait_for_a_fence() -> Result {
        let resv = OwnResv::new()?;
        assert_eq!(resv.wait(Usage::Bookkeep, 0), Ok(()));
        let pending = add(&resv, Usage::Kernel)?;
        let soon = msecs_to_jiffies(10);
        assert_eq!(resv.wait(Usage::Kernel, 0), Err(ETIMEDOUT));
        assert_eq!(resv.wait(Usage::Kernel, soon), Err(ETIMEDOUT));
        assert_eq!(resv.wait_interruptible(Usage::Kernel, soon), Err(ETIMEDOUT));
        pending.signal(Ok(()));
        assert_eq!(resv.wait(Usage::Kernel, soon), Ok(()));
        assert_eq!(resv.wait_interruptible(Usage::Kernel, soon), Ok(()));
        Ok(())
    }

    #[test]
    fn usages_include_those_above() -> Result {
        let usages = [Usage::Kernel, Usage::Write, Usage::Read, Usage::Bookkeep];
        for (index, usage) in usages.into_iter().enumerate() {
            let resv = OwnResv::new()?;
            let pending = add(&resv, usage)?;
            for (other_index, other) in usages.into_iter().enumerate() {
                let waits = resv.wait(other, 0) == Err(ETIMEDOUT);
                assert_eq!(waits, other_index >= index);
            }
            drop(pending);
            assert_eq!(resv.wait(Usage::Bookkeep, 0), Ok(()));
        }
        Ok(())
    }
}
