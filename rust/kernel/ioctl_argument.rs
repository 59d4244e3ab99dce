// SPDX-License-Identifier: GPL-2.0

//! The structures of ioctls as values that cross to and from user memory.
//!
//! A uapi header's structure comes from bindgen, without a promise that all its bytes may be shown
//! to userspace. [`ioctl_argument!`] wraps one and has the compiler check that.

use crate::{
    prelude::*,
    transmute::{
        AsBytes,
        FromBytes, //
    },
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

/// Wraps a structure of a uapi header whose fields, all integers, are listed with their types. The
/// sizes of the fields have to add up to its own: there is no padding that could leak.
///
/// The wrapper dereferences to the structure.
///
/// # Examples
///
/// ```
/// use kernel::{
///     ioctl_argument::{
///         ioctl_argument,
///         read,
///         write, //
///     },
///     uaccess::UserPtr, //
/// };
///
/// /// As bindgen makes it of a header.
/// #[repr(C)]
/// #[derive(Clone, Copy, Default)]
/// pub struct ExampleResize {
///     pub handle: u32,
///     pub flags: u32,
///     pub size: u64,
/// }
///
/// ioctl_argument!(Resize, ExampleResize, [handle: u32, flags: u32, size: u64]);
///
/// fn resize(arg: UserPtr) -> Result {
///     let mut resize: Resize = read(arg)?;
///     if resize.flags != 0 {
///         return Err(EINVAL);
///     }
///     resize.size = resize.size.next_power_of_two();
///     write(arg, &resize)
/// }
///
/// // No task can have memory there.
/// assert_eq!(resize(UserPtr::from_addr(usize::MAX - 4096)), Err(EFAULT));
/// let argument = Resize::from(ExampleResize { handle: 1, flags: 0, size: 2 });
/// assert_eq!((argument.handle, argument.size), (1, 2));
/// ```
#[macro_export]
macro_rules! ioctl_argument {
    ($name:ident, $uapi:ty, [$($field:ident: $kind:ty),+ $(,)?]) => {
        #[derive(Clone, Copy, Default)]
        #[repr(transparent)]
        pub(crate) struct $name($uapi);

        const _: () = ::core::assert!(
            0 $(+ ::core::mem::size_of::<$kind>())+ == ::core::mem::size_of::<$uapi>(),
            "padding that nobody initializes"
        );

        // Names all fields with their types, so that the sum above is that of the fields.
        const _: fn(&$uapi) = |argument| {
            $(let _: $kind = argument.$field;)+
        };

        // SAFETY: All fields are integers.
        unsafe impl $crate::transmute::FromBytes for $name {}
        // SAFETY: All fields are integers and, as asserted above, there is no padding.
        unsafe impl $crate::transmute::AsBytes for $name {}

        impl From<$uapi> for $name {
            fn from(argument: $uapi) -> Self {
                Self(argument)
            }
        }

        impl ::core::ops::Deref for $name {
            type Target = $uapi;

            fn deref(&self) -> &$uapi {
                &self.0
            }
        }

        impl ::core::ops::DerefMut for $name {
            fn deref_mut(&mut self) -> &mut $uapi {
                &mut self.0
            }
        }
    };
}
pub use ioctl_argument;

/// Reads an ioctl's argument; `EFAULT` if it is not readable.
pub fn read<T: FromBytes>(arg: UserPtr) -> Result<T> {
    UserSlice::new(arg, size_of::<T>()).reader().read()
}

/// Writes an ioctl's argument back; `EFAULT` if it is not writable.
pub fn write<T: AsBytes>(arg: UserPtr, value: &T) -> Result {
    UserSlice::new(arg, size_of::<T>()).writer().write(value)
}
