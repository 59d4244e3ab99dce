// SPDX-License-Identifier: GPL-2.0

//! What can be done with a NIC while its device is bound: read registers, make and destroy regions
//! and queue pairs.

use super::{
    key_index,
    Nic, //
};
use crate::{
    gate::Inside,
    queue::{
        self,
        QueuePair, //
    },
    region::{
        self,
        Region,
        Source, //
    },
    regs::{
        self,
        Bar,
        Counter, //
    }, //
};
use core::ops::Deref;
use kernel::{
    device::{
        Bound,
        Device, //
    },
    io::{
        register::Array,
        Io, //
    },
    prelude::*,
    sync::Arc, //
};

/// A range of a dma-buf, or of user addresses, and what may be done with it.
#[derive(Clone, Copy)]
pub(crate) struct Range {
    pub(crate) access: u32,
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

/// A NIC whose device is bound while this lives.
pub(crate) struct Bind<'a> {
    pub(super) nic: &'a Nic,
    pub(super) inside: Inside<'a>,
}

impl Deref for Bind<'_> {
    type Target = Nic;

    fn deref(&self) -> &Nic {
        self.nic
    }
}

impl Bind<'_> {
    /// The device.
    pub(crate) fn device(&self) -> &Device<Bound> {
        self.inside.device()
    }

    /// Its registers.
    pub(crate) fn bar(&self) -> Result<&Bar<'_>> {
        self.nic.bar.access(self.inside.device())
    }

    /// Whether the wire is connected. `ENODEV`: the device is off the bus.
    pub(crate) fn link_is_up(&self) -> Result<bool> {
        let status = self.bar()?.read(regs::STATUS);
        if u32::from(status) == regs::ALL_ONES {
            return Err(ENODEV);
        }
        Ok(status.link_up())
    }

    /// A counter.
    pub(crate) fn counter(&self, counter: Counter) -> Result<u64> {
        // CAST: The discriminants are small and not negative.
        let location = regs::COUNTER::try_at(counter as usize).ok_or(EINVAL)?;
        Ok(self.bar()?.try_read(location)?.into())
    }

    /// Makes a region, which is not mapped. `ENOSPC`: none is left. Other errors are the exporter's.
    pub(crate) fn create_region(
        &self,
        owner: u64,
        source: Source,
        range: Range,
    ) -> Result<Arc<Region>> {
        // The other end may still use a key that is no longer.
        let reserved = self.regions.lock().reserve_rested()?;
        let region = u32::try_from(reserved.index)
            .map_err(Error::from)
            .and_then(|index| {
                let shape = region::Shape {
                    key: index | u32::from(reserved.generation) << regs::KEY_GENERATION_SHIFT,
                    owner,
                    access: range.access,
                    offset: range.offset,
                    size: range.size,
                };
                let (mailbox, segments) = (self.mailbox.clone(), self.limits().segments);
                Region::new(self.device(), mailbox, source, shape, segments)
            });
        let mut regions = self.regions.lock();
        match &region {
            Ok(region) => regions.fill(reserved.index, region.clone()),
            Err(_) => regions.free(reserved.index),
        }
        region
    }

    /// The owner's region with this key. `ENOENT`: there is none.
    pub(crate) fn region_of(&self, owner: u64, key: u32) -> Result<Arc<Region>> {
        self.region(key)
            .filter(|region| region.shape().owner == owner)
            .ok_or(ENOENT)
    }

    /// Destroys the owner's region with this key; no DMA of it is in flight afterwards.
    pub(crate) fn destroy_region(&self, owner: u64, key: u32) -> Result {
        let index = key_index(key).ok_or(ENOENT)?;
        let region = {
            let mut regions = self.regions.lock();
            let wanted =
                |region: &Region| region.shape().owner == owner && region.shape().key == key;
            if !regions.get(index).is_some_and(|region| wanted(region)) {
                return Err(ENOENT);
            }
            regions.take_at(index).ok_or(ENOENT)?
        };
        region.destroy();
        self.regions.lock().free(index);
        Ok(())
    }

    /// Makes a queue pair. `ENOSPC`: none is left.
    pub(crate) fn create_queue_pair(
        &self,
        owner: u64,
        send_entries: u32,
        recv_entries: u32,
    ) -> Result<Arc<QueuePair>> {
        let reserved = self.queue_pairs.lock().reserve_lowest()?;
        let queue_pair = u32::try_from(reserved.index)
            .map_err(Error::from)
            .and_then(|number| {
                let shape = queue::Shape {
                    number,
                    serial: self.serial(),
                    owner,
                    send_entries,
                    recv_entries,
                };
                QueuePair::new(self.device(), self.mailbox.clone(), shape)
            });
        let mut queue_pairs = self.queue_pairs.lock();
        match &queue_pair {
            Ok(queue_pair) => queue_pairs.fill(reserved.index, queue_pair.clone()),
            Err(_) => queue_pairs.free(reserved.index),
        }
        queue_pair
    }

    /// The owner's queue pair with this number. `ENOENT`: there is none.
    pub(crate) fn queue_pair_of(&self, owner: u64, number: u32) -> Result<Arc<QueuePair>> {
        self.queue_pair(number)
            .filter(|queue_pair| queue_pair.shape().owner == owner)
            .ok_or(ENOENT)
    }

    /// Destroys the owner's queue pair with this number.
    pub(crate) fn destroy_queue_pair(&self, owner: u64, number: u32) -> Result {
        let index = usize::try_from(number)?;
        let queue_pair = {
            let mut queue_pairs = self.queue_pairs.lock();
            let is_owner = |queue_pair: &QueuePair| queue_pair.shape().owner == owner;
            if !queue_pairs.get(index).is_some_and(|pair| is_owner(pair)) {
                return Err(ENOENT);
            }
            queue_pairs.take_at(index).ok_or(ENOENT)?
        };
        self.end_queue_pair(index, &queue_pair);
        Ok(())
    }

    /// Destroys all that an open file has made.
    pub(crate) fn destroy_all_of(&self, owner: u64) {
        // Queue pairs first, so that no request sees its region go.
        while let Some((index, queue_pair)) =
            self.take_queue_pair(|queue_pair| queue_pair.shape().owner == owner)
        {
            self.end_queue_pair(index, &queue_pair);
        }
        while let Some((index, region)) = self.take_region(|region| region.shape().owner == owner) {
            region.destroy();
            self.regions.lock().free(index);
        }
    }

    fn end_queue_pair(&self, index: usize, queue_pair: &QueuePair) {
        queue_pair.destroy();
        self.queue_pairs.lock().free(index);
        // Somebody may be waiting for completions that do not come any more.
        self.completed.raise();
    }
}
