// SPDX-License-Identifier: GPL-2.0

//! What a device model says of itself before it is served: identity, BARs, vectors.

use std::sync::Arc;

use crate::SharedMemory;

/// BAR that holds the MSI-X table (offset 0) and pending bits (offset 0x800); the server's own.
pub const MSIX_BAR: u8 = 4;

/// Size of BAR [`MSIX_BAR`] in bytes.
pub const MSIX_BAR_SIZE: u64 = 4096;

/// Offset of the pending bits in BAR [`MSIX_BAR`].
pub const MSIX_PBA: u64 = 0x800;

/// Most MSI-X vectors that the table has room for.
pub const MAX_VECTORS: u16 = 128;

/// Where the bytes of a BAR live.
#[derive(Clone, Debug)]
pub enum Backing {
    /// Each access is a call of [`Device::read`](crate::Device::read) or
    /// [`Device::write`](crate::Device::write).
    Trapped,
    /// The client maps this memory, of exactly the BAR's size. Accesses that still arrive as
    /// messages go to the memory too; the device sees none.
    ///
    /// A client that maps any BAR waits for each write to a trapped one (no posted writes).
    Mapped(Arc<SharedMemory>),
}

/// One memory BAR.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Bytes: a power of two, at least 4 KiB (less than 4 GiB if 32-bit).
    pub size: u64,
    /// A 64-bit BAR takes the next one too, which must be `None`.
    pub is_64bit: bool,
    /// Reads have no side effects and writes may be merged.
    pub prefetchable: bool,
    /// Where its bytes live.
    pub backing: Backing,
}

/// The identity and the resources of a PCI Express endpoint.
#[derive(Clone, Debug)]
pub struct Config {
    /// Vendor, of the subsystem too.
    pub vendor: u16,
    /// Device, of the subsystem too.
    pub device: u16,
    /// Class, subclass, programming interface: 24 bits.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// BAR0 to BAR5. With vectors, [`MSIX_BAR`] is the server's and must be `None`.
    pub bars: [Option<Bar>; 6],
    /// MSI-X vectors, at most [`MAX_VECTORS`]; 0 for no MSI-X capability.
    pub msix_vectors: u16,
}

/// Why a [`Config`] is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The class has more than 24 bits.
    #[error("class code has more than 24 bits")]
    Class,
    /// More vectors than the table has room for.
    #[error("more than {MAX_VECTORS} MSI-X vectors")]
    Vectors,
    /// Size not a power of two, below 4 KiB, or too large for a 32-bit BAR.
    #[error("BAR{0}: size is not a power of two from 4 KiB to what its address can hold")]
    BarSize(u8),
    /// A 64-bit BAR without the next one free.
    #[error("BAR{0}: 64-bit, but the next BAR is not free")]
    BarPair(u8),
    /// The memory behind a mapped BAR has another size.
    #[error("BAR{0}: its memory has another size")]
    BarMemory(u8),
    /// [`MSIX_BAR`] is given although there are vectors.
    #[error("BAR{MSIX_BAR} belongs to MSI-X")]
    MsixBar,
}

impl Config {
    /// Checks the rules that the fields name.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.class >> 24 != 0 {
            return Err(ConfigError::Class);
        }
        if self.msix_vectors > MAX_VECTORS {
            return Err(ConfigError::Vectors);
        }
        let mut upper_half = false;
        for (index, bar) in (0u8..).zip(&self.bars) {
            let taken = index == MSIX_BAR && self.msix_vectors > 0;
            if upper_half && (bar.is_some() || taken) {
                return Err(ConfigError::BarPair(index - 1));
            }
            upper_half = false;
            let Some(bar) = bar else { continue };
            if taken {
                return Err(ConfigError::MsixBar);
            }
            bar.check(index)?;
            upper_half = bar.is_64bit;
        }
        if upper_half {
            return Err(ConfigError::BarPair(5));
        }
        Ok(())
    }

    /// Size of BAR `index`, the server's own included; `None` if there is no such BAR.
    pub(crate) fn bar_size(&self, index: u8) -> Option<u64> {
        if index == MSIX_BAR && self.msix_vectors > 0 {
            return Some(MSIX_BAR_SIZE);
        }
        self.bars
            .get(usize::from(index))?
            .as_ref()
            .map(|bar| bar.size)
    }
}

impl Bar {
    fn check(&self, index: u8) -> Result<(), ConfigError> {
        let limit = if self.is_64bit { 1 << 62 } else { 1 << 31 };
        if !self.size.is_power_of_two() || self.size < 4096 || self.size > limit {
            return Err(ConfigError::BarSize(index));
        }
        match &self.backing {
            Backing::Mapped(memory) if memory.size() != self.size => {
                Err(ConfigError::BarMemory(index))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(size: u64, is_64bit: bool) -> Option<Bar> {
        Some(Bar {
            size,
            is_64bit,
            prefetchable: false,
            backing: Backing::Trapped,
        })
    }

    fn check(bars: [Option<Bar>; 6], msix_vectors: u16) -> Result<(), ConfigError> {
        let (vendor, device, class, revision) = (1, 2, 3, 4);
        Config {
            vendor,
            device,
            class,
            revision,
            bars,
            msix_vectors,
        }
        .check()
    }

    #[test]
    fn sizes_fit_their_addresses() {
        let with = |size, is_64bit| check([bar(size, is_64bit), None, None, None, None, None], 0);
        for size in [0, 2048, 4097, 6 << 20, 1 << 32] {
            assert_eq!(with(size, false), Err(ConfigError::BarSize(0)), "{size}");
        }
        assert_eq!(with(1 << 31, false), Ok(()));
        assert_eq!(with(1 << 32, true), Ok(()));
        assert_eq!(with(1 << 63, true), Err(ConfigError::BarSize(0)));
    }

    #[test]
    fn wide_bars_take_two_places() {
        let small = || bar(4096, false);
        let wide = || bar(4096, true);
        let pair = Err(ConfigError::BarPair(2));
        assert_eq!(check([None, None, wide(), small(), None, None], 0), pair);
        assert_eq!(check([None, None, None, wide(), None, None], 0), Ok(()));
        let msix = Err(ConfigError::BarPair(3));
        assert_eq!(check([None, None, None, wide(), None, None], 1), msix);
        let last = Err(ConfigError::BarPair(5));
        assert_eq!(check([None, None, None, None, None, wide()], 0), last);
    }

    #[test]
    fn vectors_have_their_bar_and_their_limit() {
        let taken = || [None, None, None, None, bar(4096, false), None];
        assert_eq!(check(taken(), 1), Err(ConfigError::MsixBar));
        assert_eq!(check(taken(), 0), Ok(()));
        let none = || [const { None }; 6];
        assert_eq!(check(none(), MAX_VECTORS), Ok(()));
        assert_eq!(check(none(), MAX_VECTORS + 1), Err(ConfigError::Vectors));
    }

    #[test]
    fn memory_has_the_size_of_its_bar() {
        let memory = Arc::new(SharedMemory::new(8192).unwrap());
        let mapped = Bar {
            backing: Backing::Mapped(memory),
            ..bar(4096, false).unwrap()
        };
        let bars = [Some(mapped), None, None, None, None, None];
        assert_eq!(check(bars, 0), Err(ConfigError::BarMemory(0)));
    }
}
