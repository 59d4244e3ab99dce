// SPDX-License-Identifier: GPL-2.0

//! Attributes of a device: files in its sysfs folder.
//!
//! C header: [`include/linux/device.h`](srctree/include/linux/device.h)

use super::{
    Bound,
    Device, //
};
use crate::{
    bindings,
    error::to_result,
    fmt,
    page::PAGE_SIZE,
    prelude::*,
    str::Formatter,
    types::Opaque, //
};
use core::slice;

/// What a file shows, and what becomes of what is written to it.
///
/// Both may run at once, and more than once, without any lock.
pub trait Attribute: Send + Sync {
    /// The name of the file.
    const NAME: &'static CStr;

    /// Writes what the file shows: at most a page, else whoever reads it gets `EFBIG`.
    fn show(&self, f: &mut Formatter<'_>) -> fmt::Result;

    /// Takes what somebody wrote at once, less than a page. On an error nothing has changed.
    ///
    /// Text that is not UTF-8 is refused with `EINVAL`, and does not come here.
    fn store(&self, text: &str) -> Result;
}

/// A file that everybody can read and its owner, root, write. It is there until it is dropped, which
/// waits for those who read or write it.
///
/// # Examples
///
/// ```
/// use kernel::{
///     device::{
///         attribute::{
///             Attribute,
///             File, //
///         },
///         Bound,
///         Device, //
///     },
///     dma_buf::software::SoftwareDevice,
///     fmt,
///     str::Formatter,
///     sync::atomic::{
///         Atomic,
///         Relaxed, //
///     }, //
/// };
///
/// struct Limit(Atomic<u32>);
///
/// impl Attribute for Limit {
///     const NAME: &'static CStr = c"limit";
///
///     fn show(&self, f: &mut Formatter<'_>) -> fmt::Result {
///         use core::fmt::Write;
///         writeln!(f, "{}", self.0.load(Relaxed))
///     }
///
///     fn store(&self, text: &str) -> Result {
///         let limit = text.trim().parse().map_err(|_| EINVAL)?;
///         self.0.store(limit, Relaxed);
///         Ok(())
///     }
/// }
///
/// let registration = SoftwareDevice::new(c"example-attribute")?;
/// let dev: &Device<Bound> = registration.as_ref();
/// let file = File::new(dev, Limit(Atomic::new(7)))?;
/// assert_eq!(File::new(dev, Limit(Atomic::new(8))).err(), Some(EEXIST));
/// // Removes the file.
/// drop(file);
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// If `made` is set, `attr` is a file of `dev`.
#[pin_data(PinnedDrop)]
pub struct File<'a, T: Attribute> {
    #[pin]
    attr: Opaque<bindings::device_attribute>,
    dev: &'a Device<Bound>,
    made: bool,
    data: T,
}

// SAFETY: The attribute is constant, and its data can be used and dropped anywhere.
unsafe impl<T: Attribute> Send for File<'_, T> {}
// SAFETY: As above.
unsafe impl<T: Attribute> Sync for File<'_, T> {}

impl<'a, T: Attribute> File<'a, T> {
    /// Makes the file in the folder of `dev`. `EEXIST`: there is one of that name.
    pub fn new(dev: &'a Device<Bound>, data: T) -> Result<Pin<KBox<Self>>> {
        let mut attr = bindings::device_attribute::default();
        attr.attr.name = T::NAME.as_char_ptr();
        attr.attr.mode = 0o644;
        #[cfg(CONFIG_DEBUG_LOCK_ALLOC)]
        {
            attr.attr.key = crate::static_lock_class!().as_ptr();
        }
        attr.__bindgen_anon_1.show = Some(Self::show_callback);
        attr.__bindgen_anon_2.store = Some(Self::store_callback);

        let mut file = KBox::pin(
            Self {
                attr: Opaque::new(attr),
                dev,
                made: false,
                data,
            },
            GFP_KERNEL,
        )?;
        // SAFETY: The device is valid. The attribute stays where it is until it is dropped, which
        // removes the file.
        to_result(unsafe { bindings::device_create_file(dev.as_raw(), file.attr.get()) })?;
        // INVARIANT: The file has just been made.
        *file.as_mut().project().made = true;
        Ok(file)
    }

    /// # Safety
    ///
    /// `attr` is that of a `Self`, whose file is not removed during `'b`.
    unsafe fn from_attr<'b>(attr: *mut bindings::device_attribute) -> &'b Self {
        // SAFETY: By the safety requirements.
        unsafe { &*crate::container_of!(Opaque::cast_from(attr), Self, attr) }
    }

    /// # Safety
    ///
    /// Called by the core for a file that `new` made, with a page to write to.
    unsafe extern "C" fn show_callback(
        _dev: *mut bindings::device,
        attr: *mut bindings::device_attribute,
        page: *mut c_char,
    ) -> isize {
        // SAFETY: The core keeps the file from being removed while it is read.
        let this = unsafe { Self::from_attr(attr) };
        // SAFETY: The core passes a page.
        let mut f = unsafe { Formatter::from_buffer(page.cast(), PAGE_SIZE) };
        let result = this.data.show(&mut f).map(|()| f.bytes_written());
        match result.map(isize::try_from) {
            Ok(Ok(len)) => len,
            // CAST: An errno fits.
            _ => EFBIG.to_errno() as isize,
        }
    }

    /// # Safety
    ///
    /// Called by the core for a file that `new` made, with `count` bytes to read.
    unsafe extern "C" fn store_callback(
        _dev: *mut bindings::device,
        attr: *mut bindings::device_attribute,
        text: *const c_char,
        count: usize,
    ) -> isize {
        // SAFETY: The core keeps the file from being removed while it is written.
        let this = unsafe { Self::from_attr(attr) };
        // SAFETY: The core passes so many bytes.
        let bytes = unsafe { slice::from_raw_parts(text.cast(), count) };
        let stored = core::str::from_utf8(bytes)
            .map_err(|_| EINVAL)
            .and_then(|text| this.data.store(text))
            .and_then(|()| Ok(isize::try_from(count)?));
        // CAST: An errno fits.
        stored.unwrap_or_else(|error| error.to_errno() as isize)
    }
}

#[pinned_drop]
impl<T: Attribute> PinnedDrop for File<'_, T> {
    fn drop(self: Pin<&mut Self>) {
        if self.made {
            // SAFETY: By the type invariant; the device is valid.
            unsafe { bindings::device_remove_file(self.dev.as_raw(), self.attr.get()) };
        }
    }
}
