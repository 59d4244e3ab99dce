// SPDX-License-Identifier: GPL-2.0 OR MIT

//! References to devices that have been registered.

use crate::{
    drm::{
        Device,
        Driver,
        Ioctl,
        Registration, //
    },
    sync::aref::ARef,
};
use core::ops::Deref;

/// A counted reference to a device that has been registered at some point.
///
/// For what uses the device outside of ioctls, debugfs files for example: it can take a
/// [`RegistrationGuard`](crate::drm::RegistrationGuard) at any time.
///
/// # Examples
///
/// ```
/// use kernel::drm::{
///     Driver,
///     RegisteredRef, //
/// };
///
/// /// What a file in debugfs shows, as long as there is something to show.
/// fn is_there<T: Driver>(dev: &RegisteredRef<T>) -> bool {
///     // The device is not unregistered while there is a guard.
///     dev.registration_guard().is_some()
/// }
/// ```
///
/// # Invariants
///
/// The device has been registered.
pub struct RegisteredRef<T: Driver>(ARef<Device<T>>);

impl<T: Driver> RegisteredRef<T> {
    /// The device of a registration.
    pub fn new(registration: &Registration<'_, T>) -> Self {
        // INVARIANT: A registration exists only for a device that is registered.
        Self(registration.device().into())
    }
}

impl<T: Driver> Deref for RegisteredRef<T> {
    type Target = Device<T, Ioctl>;

    fn deref(&self) -> &Self::Target {
        // SAFETY: By the type invariant the device has been registered.
        unsafe { self.0.assume_ctx() }
    }
}
