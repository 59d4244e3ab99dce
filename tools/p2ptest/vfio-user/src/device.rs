// SPDX-License-Identifier: GPL-2.0

//! What a device model implements.

/// The part of a device model that answers the client.
///
/// All methods run on the thread that called [`Server::run`](crate::Server::run), one at a time,
/// while a virtual CPU of the client waits for the answer with the client's big lock held. A DMA by
/// message needs that lock: so none of these methods may wait for an engine thread that may be in
/// a DMA (send it a message, set a flag). The one exception is [`disconnected`](Self::disconnected).
pub trait Device: Send {
    /// Reads `data.len()` bytes at `offset` of the trapped BAR `bar`; the range is inside the BAR.
    ///
    /// `data` comes filled with ones: what a model leaves alone reads so.
    fn read(&mut self, bar: u8, offset: u64, data: &mut [u8]);

    /// Writes `data` at `offset` of the trapped BAR `bar`; the range is inside the BAR.
    fn write(&mut self, bar: u8, offset: u64, data: &[u8]);

    /// Function-level reset, or the client's reset of the device.
    ///
    /// Bus mastering is off already: no DMA to RAM goes on, and what starts now fails with
    /// [`NotMaster`](crate::bus::BusError::NotMaster). One DMA by message of each thread may still
    /// be on its way.
    fn reset(&mut self);

    /// A client came: the machine is powered on. Called before its first access.
    fn connected(&mut self) {}

    /// The client went, or was cut off: the machine is off.
    ///
    /// All DMA fails with [`Disconnected`](crate::bus::BusError::Disconnected) already, those under
    /// way included, so this may wait for engine threads to come to rest. What a power cycle
    /// clears (the contents of VRAM) is for the model to clear here or in
    /// [`connected`](Self::connected).
    fn disconnected(&mut self) {
        self.reset();
    }
}
