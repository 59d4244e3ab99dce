// SPDX-License-Identifier: GPL-2.0

//! Configuration space: a type 0 header, a PCI Express endpoint with function-level reset, MSI-X.

use crate::config::{Bar, Config, MSIX_BAR, MSIX_BAR_SIZE, MSIX_PBA};

/// Bytes, the extended part (which is empty) included.
pub const SIZE: usize = 4096;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
/// Memory, master, parity, SERR and INTx-disable can be written.
const COMMAND_WRITABLE: u16 = 0x0546;
const STATUS_CAPABILITIES: u16 = 1 << 4;

const EXPRESS: usize = 0x40;
const EXPRESS_LEN: usize = 0x3c;
const DEVICE_CONTROL: usize = EXPRESS + 0x08;
const FLR_CAPABLE: u32 = 1 << 28;
const ROLE_BASED_ERRORS: u32 = 1 << 15;
const INITIATE_FLR: u8 = 1 << 7;

const MSIX: usize = 0x80;
const MSIX_CONTROL: usize = MSIX + 0x02;
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_WRITABLE: u16 = 0xc000;

/// Configuration space as the client sees it.
#[derive(Clone, Debug)]
pub struct Space {
    bytes: Box<[u8; SIZE]>,
    writable: Box<[u8; SIZE]>,
    power_on: Box<[u8; SIZE]>,
}

/// Whether a write asked for a function-level reset, which has been done to the space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Bits may have changed.
    Bits,
    /// All is as at power on.
    FunctionLevelReset,
}

impl Space {
    /// The space of a device that was just powered on.
    pub fn new(config: &Config) -> Self {
        let mut space = Self {
            bytes: Box::new([0; SIZE]),
            writable: Box::new([0; SIZE]),
            power_on: Box::new([0; SIZE]),
        };
        space.header(config);
        space.express(config.msix_vectors > 0);
        if config.msix_vectors > 0 {
            space.msix(config.msix_vectors);
        }
        space.power_on = space.bytes.clone();
        space
    }

    fn header(&mut self, config: &Config) {
        self.set16(0x00, config.vendor);
        self.set16(0x02, config.device);
        self.set16(STATUS, STATUS_CAPABILITIES);
        let [programming, subclass, class, _] = config.class.to_le_bytes();
        self.set(0x08, &[config.revision, programming, subclass, class]);
        self.set16(SUBSYSTEM, config.vendor);
        self.set16(SUBSYSTEM + 2, config.device);
        self.set(CAPABILITIES, &[0x40]);
        self.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        self.allow(0x0c, &[0xff]); // cache line size: software's own note
        self.allow(0x3c, &[0xff]); // interrupt line: as well
        for (place, bar) in (BAR0..).step_by(4).zip(&config.bars) {
            if let Some(bar) = bar {
                self.bar(place, bar);
            }
        }
        if config.msix_vectors > 0 {
            let place = BAR0 + 4 * usize::from(MSIX_BAR);
            self.allow(place, &address_mask(MSIX_BAR_SIZE)[..4]);
        }
    }

    fn bar(&mut self, place: usize, bar: &Bar) {
        let kind = u8::from(bar.is_64bit) << 2 | u8::from(bar.prefetchable) << 3;
        self.set(place, &[kind]);
        let bytes = if bar.is_64bit { 8 } else { 4 };
        self.allow(place, &address_mask(bar.size)[..bytes]);
    }

    fn express(&mut self, more: bool) {
        const VERSION: u16 = 2; // of an endpoint, which is type 0
        let next = if more { MSIX as u8 } else { 0 };
        self.set(EXPRESS, &[0x10, next]);
        self.set16(EXPRESS + 0x02, VERSION);
        self.set32(EXPRESS + 0x04, FLR_CAPABLE | ROLE_BASED_ERRORS);
        self.set16(DEVICE_CONTROL, 0x2810); // no snoop, relaxed ordering, reads of 512 bytes
        self.allow(DEVICE_CONTROL, &0x7fff_u16.to_le_bytes());
        self.set32(EXPRESS + 0x0c, 0x11); // link: 2.5 GT/s, one lane
        self.set16(EXPRESS + 0x12, 0x11);
        self.allow(EXPRESS + 0x10, &0x00fb_u16.to_le_bytes());
        self.set32(EXPRESS + 0x2c, 0x2);
        self.set16(EXPRESS + 0x30, 0x1);
    }

    fn msix(&mut self, vectors: u16) {
        self.set(MSIX, &[0x11, 0]);
        self.set16(MSIX_CONTROL, vectors - 1);
        self.allow(MSIX_CONTROL, &MSIX_WRITABLE.to_le_bytes());
        self.set32(MSIX + 0x04, u32::from(MSIX_BAR));
        self.set32(MSIX + 0x08, MSIX_PBA as u32 | u32::from(MSIX_BAR));
    }

    /// Reads; false if the range is not inside.
    #[must_use]
    pub fn read(&self, offset: u64, data: &mut [u8]) -> bool {
        let Some(range) = range(offset, data.len()) else {
            return false;
        };
        data.copy_from_slice(&self.bytes[range]);
        true
    }

    /// Writes what can be written; `None` if the range is not inside.
    #[must_use]
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<Written> {
        let range = range(offset, data.len())?;
        let reset = range
            .clone()
            .zip(data)
            .any(|(place, value)| place == DEVICE_CONTROL + 1 && value & INITIATE_FLR != 0);
        if reset {
            self.reset();
            return Some(Written::FunctionLevelReset);
        }
        for (place, value) in range.zip(data) {
            let mask = self.writable[place];
            self.bytes[place] = self.bytes[place] & !mask | value & mask;
        }
        Some(Written::Bits)
    }

    /// Back to power on.
    pub fn reset(&mut self) {
        self.bytes.copy_from_slice(&self.power_on[..]);
    }

    /// The bus-master bit.
    pub fn master(&self) -> bool {
        self.get16(COMMAND) & COMMAND_MASTER != 0
    }

    /// The memory bit: BARs answer.
    pub fn memory(&self) -> bool {
        self.get16(COMMAND) & COMMAND_MEMORY != 0
    }

    /// The enable bit of MSI-X.
    pub fn msix_enabled(&self) -> bool {
        self.get16(MSIX_CONTROL) & MSIX_ENABLE != 0
    }

    fn get16(&self, place: usize) -> u16 {
        u16::from_le_bytes([self.bytes[place], self.bytes[place + 1]])
    }

    fn set(&mut self, place: usize, value: &[u8]) {
        self.bytes[place..place + value.len()].copy_from_slice(value);
    }

    fn set16(&mut self, place: usize, value: u16) {
        self.set(place, &value.to_le_bytes());
    }

    fn set32(&mut self, place: usize, value: u32) {
        self.set(place, &value.to_le_bytes());
    }

    fn allow(&mut self, place: usize, mask: &[u8]) {
        self.writable[place..place + mask.len()].copy_from_slice(mask);
    }
}

const _: () = assert!(EXPRESS + EXPRESS_LEN <= MSIX);

/// The address bits of a BAR that can be written: writing ones to all of them tells the size.
fn address_mask(size: u64) -> [u8; 8] {
    (!(size - 1)).to_le_bytes()
}

fn range(offset: u64, len: usize) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(len)?;
    (end <= SIZE).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Backing;
    use proptest::prelude::*;

    fn bar(size: u64, is_64bit: bool) -> Option<Bar> {
        Some(Bar {
            size,
            is_64bit,
            prefetchable: is_64bit,
            backing: Backing::Trapped,
        })
    }

    fn config() -> Config {
        Config {
            vendor: 0x1234,
            device: 0x2019,
            class: 0x03_80_00,
            revision: 7,
            bars: [
                bar(0x1000, false),
                None,
                bar(1 << 33, true),
                None,
                None,
                None,
            ],
            msix_vectors: 3,
        }
    }

    fn get32(space: &Space, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        assert!(space.read(offset, &mut bytes));
        u32::from_le_bytes(bytes)
    }

    fn put32(space: &mut Space, offset: u64, value: u32) -> Written {
        space.write(offset, &value.to_le_bytes()).unwrap()
    }

    #[test]
    fn identity_is_where_it_belongs() {
        let space = Space::new(&config());
        assert_eq!(get32(&space, 0x00), 0x2019_1234);
        assert_eq!(get32(&space, 0x08), 0x0380_0007);
        assert_eq!(get32(&space, 0x2c), 0x2019_1234);
    }

    #[test]
    fn sizing_tells_size_and_kind() {
        let mut space = Space::new(&config());
        for place in (0x10..0x28).step_by(4) {
            put32(&mut space, place, u32::MAX);
        }
        let bars: Vec<u32> = (0x10..0x28)
            .step_by(4)
            .map(|at| get32(&space, at))
            .collect();
        assert_eq!(bars, [0xffff_f000, 0, 0xc, 0xffff_fffe, 0xffff_f000, 0]);
    }

    #[test]
    fn capabilities_form_a_list() {
        let space = Space::new(&config());
        assert_ne!(get32(&space, 4) & 1 << 20, 0);
        assert_eq!(get32(&space, 0x34) & 0xff, 0x40);
        assert_eq!(get32(&space, 0x40) & 0xffff, 0x8010);
        assert_eq!(get32(&space, 0x80), 0x0002_0011);
        assert_eq!((get32(&space, 0x84), get32(&space, 0x88)), (4, 0x804));
        let without = Space::new(&Config {
            msix_vectors: 0,
            ..config()
        });
        assert_eq!(get32(&without, 0x40) & 0xffff, 0x0010);
        assert_eq!((get32(&without, 0x80), get32(&without, 0x20)), (0, 0));
    }

    #[test]
    fn function_level_reset_clears_all() {
        let mut space = Space::new(&config());
        let before = space.bytes.clone();
        put32(&mut space, 0x04, 0x6);
        put32(&mut space, 0x10, 0xfe00_0000);
        put32(&mut space, 0x80, 0x8000_0000);
        assert!(space.master() && space.memory() && space.msix_enabled());
        assert_eq!(space.write(0x48, &[0]), Some(Written::Bits));
        assert_eq!(
            space.write(0x48, &[0, 0x80]),
            Some(Written::FunctionLevelReset)
        );
        assert_eq!(space.bytes, before);
        assert_eq!(
            space.write(0x49, &[0x80]),
            Some(Written::FunctionLevelReset)
        );
        assert!(!space.master() && !space.memory() && !space.msix_enabled());
    }

    proptest! {
        #[test]
        fn read_only_bits_stay(writes: Vec<(u64, Vec<u8>)>) {
            let mut space = Space::new(&config());
            let before = space.bytes.clone();
            for (offset, data) in writes {
                let _ = space.write(offset % 0x120, &data);
            }
            for place in 0..SIZE {
                let fixed = !space.writable[place];
                prop_assert_eq!(space.bytes[place] & fixed, before[place] & fixed);
            }
        }

        #[test]
        fn ranges_past_the_end_change_nothing(back in 0u64..64, len in 1usize..200) {
            let mut space = Space::new(&config());
            let offset = SIZE as u64 - back;
            let outside = len as u64 > back;
            prop_assert_eq!(space.write(offset, &vec![0xff; len]).is_none(), outside);
            prop_assert_eq!(!space.read(offset, &mut vec![0; len]), outside);
            prop_assert!(space.write(u64::MAX - back, &vec![0; len]).is_none());
        }
    }
}
