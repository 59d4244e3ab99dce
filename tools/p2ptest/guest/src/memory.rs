// SPDX-License-Identifier: GPL-2.0
//! Where in the physical address space things are: BARs and memory.

use crate::drm::PciAddress;
use std::fs;
use std::ops::Range;

/// The regions that a device claims, in the order of its BARs; empty where there
/// is none.
#[track_caller]
pub fn bars(device: PciAddress) -> Vec<Range<u64>> {
    let path = format!("/sys/bus/pci/devices/{device}/resource");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => panic!("{path}: {error}"),
    };
    parse_bars(&text)
}

/// The aperture of a GPU: its BAR 2.
#[track_caller]
pub fn aperture(gpu: PciAddress) -> Range<u64> {
    let bar = bars(gpu).get(2).cloned().unwrap_or_default();
    assert!(!bar.is_empty(), "{gpu} has no BAR 2");
    bar
}

/// The system's memory.
#[track_caller]
pub fn ram() -> Vec<Range<u64>> {
    let text = fs::read_to_string("/proc/iomem").expect("/proc/iomem");
    let ranges = parse_ram(&text);
    assert!(!ranges.is_empty(), "no memory in {text:?}");
    ranges
}

/// Whether `size` bytes at `start` lie in one of these ranges.
pub fn lies_in(ranges: &[Range<u64>], start: u64, size: u64) -> bool {
    let inside = |range: &Range<u64>| {
        range.start <= start && start.checked_add(size).is_some_and(|end| end <= range.end)
    };
    ranges.iter().any(inside)
}

/// Whether `size` bytes at `start` meet one of these ranges.
pub fn meets(ranges: &[Range<u64>], start: u64, size: u64) -> bool {
    let end = start.saturating_add(size);
    ranges
        .iter()
        .any(|range| range.start < end && start < range.end)
}

fn parse_bars(text: &str) -> Vec<Range<u64>> {
    let number = |word: Option<&str>| {
        word.and_then(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok())
            .unwrap_or(0)
    };
    text.lines()
        .map(|line| {
            let mut words = line.split_whitespace();
            match (number(words.next()), number(words.next())) {
                (0, 0) => 0..0,
                (first, last) => first..last + 1,
            }
        })
        .collect()
}

fn parse_ram(text: &str) -> Vec<Range<u64>> {
    let number = |text: &str| u64::from_str_radix(text.trim(), 16).ok();
    text.lines()
        .filter_map(|line| line.split_once(" : "))
        .filter(|(_, what)| *what == "System RAM")
        .filter_map(|(range, _)| range.split_once('-'))
        .filter_map(|(first, last)| Some(number(first)?..number(last)? + 1))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_of_a_device() {
        let text = "0x00000000fe800000 0x00000000fe80ffff 0x0000000000040200\n\
                    0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                    0x0000380000000000 0x0000380000ffffff 0x000000000014220c\n";
        assert_eq!(
            parse_bars(text),
            [
                0xfe80_0000..0xfe81_0000,
                0..0,
                0x3800_0000_0000..0x3800_0100_0000
            ]
        );
    }

    #[test]
    fn memory() {
        let text = "00000000-00000fff : Reserved\n\
                    00001000-0009fbff : System RAM\n\
                    00100000-3ffdffff : System RAM\n  01000000-01ffffff : Kernel code\n";
        let ram = parse_ram(text);
        assert_eq!(ram, [0x1000..0x9fc00, 0x10_0000..0x3ffe_0000]);
        assert!(lies_in(&ram, 0x10_0000, 0x1000));
        assert!(!lies_in(&ram, 0x3ffd_f000, 0x2000));
        assert!(meets(&ram, 0x3ffd_f000, 0x2000));
        assert!(!meets(&ram, 0x3ffe_0000, 0x1000));
        assert!(!lies_in(&ram, u64::MAX, 2));
    }
}
