// SPDX-License-Identifier: GPL-2.0

//! Memory regions: what a key stands for, where its bytes lie, and who is at them now.

use std::collections::HashMap;
use std::sync::Arc;

use thiserror::Error;

use crate::regs;

/// A range of DMA addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// DMA address.
    pub addr: u64,
    /// Bytes, not 0.
    pub len: u64,
}

/// Why a segment list is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MapError {
    /// A segment has length 0 or runs past the end of the address space.
    #[error("a segment is empty or wraps")]
    Segment,
    /// The segments do not cover the region's length exactly.
    #[error("the segments do not cover the region")]
    Cover,
}

/// The addresses of a valid region, adjacent segments joined.
#[derive(Debug, PartialEq, Eq)]
pub struct SegmentMap {
    /// Region offset of each segment's first byte, rising.
    starts: Vec<u64>,
    segments: Vec<Segment>,
}

impl SegmentMap {
    /// Checks that `list` covers `length` bytes.
    pub fn new(
        list: impl IntoIterator<Item = Segment>,
        length: u64,
    ) -> Result<SegmentMap, MapError> {
        let mut map = SegmentMap {
            starts: Vec::new(),
            segments: Vec::new(),
        };
        let mut offset = 0u64;
        for segment in list {
            let end = segment
                .addr
                .checked_add(segment.len)
                .ok_or(MapError::Segment)?;
            if segment.len == 0 {
                return Err(MapError::Segment);
            }
            let next = offset.checked_add(segment.len).ok_or(MapError::Cover)?;
            match map.segments.last_mut() {
                Some(last) if last.addr + last.len == segment.addr => last.len = end - last.addr,
                _ => {
                    map.starts.push(offset);
                    map.segments.push(segment);
                }
            }
            offset = next;
        }
        if offset != length {
            return Err(MapError::Cover);
        }
        map.starts.shrink_to_fit();
        map.segments.shrink_to_fit();
        Ok(map)
    }

    /// The DMA ranges of `len` bytes at `offset`, which the caller has checked against the length.
    pub fn pieces(&self, offset: u64, len: usize) -> Vec<(u64, usize)> {
        let mut pieces = Vec::new();
        let mut left = len;
        let mut at = offset;
        let mut index = self
            .starts
            .partition_point(|&start| start <= at)
            .saturating_sub(1);
        while left > 0 {
            let Some((segment, start)) = self.segments.get(index).zip(self.starts.get(index))
            else {
                break;
            };
            let skip = at - start;
            let n = usize::try_from(segment.len - skip)
                .unwrap_or(usize::MAX)
                .min(left);
            pieces.push((segment.addr + skip, n));
            left -= n;
            at += n as u64;
            index += 1;
        }
        pieces
    }

    /// Address and length of each segment.
    pub fn ranges(&self) -> Vec<(u64, u64)> {
        self.segments.iter().map(|s| (s.addr, s.len)).collect()
    }

    fn len(&self) -> usize {
        self.segments.len()
    }
}

/// A region, named in a way that a later region with the same key does not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegionRef {
    pub index: u32,
    pub serial: u64,
}

/// The addresses in force between one MR_MAP and the next MR_INVALIDATE.
#[derive(Debug)]
pub(crate) struct Mapping {
    pub map: Arc<SegmentMap>,
    /// Tells this mapping from earlier ones of the region.
    pub id: u64,
}

#[derive(Debug)]
pub(crate) struct Region {
    pub key: u32,
    pub serial: u64,
    pub access: u32,
    pub length: u64,
    /// `None`: the region is invalid.
    pub mapping: Option<Mapping>,
    /// MR_DESTROY has begun: the key is unknown.
    pub dying: bool,
    /// A REGION_NEEDED event was made since the last MR_MAP.
    pub asked: bool,
    /// DMAs in flight; the region is not removed while there are any.
    pub in_flight: u32,
    /// Requests that have begun and not ended.
    pub active: u32,
    /// The last peer address that was written through the present or the last mapping.
    pub last_peer: Option<u64>,
}

impl Region {
    /// Whether `len` bytes at `offset` are inside and all bits of `rights` are granted.
    pub fn allows(&self, offset: u64, len: u64, rights: u32) -> bool {
        self.access & rights == rights
            && offset
                .checked_add(len)
                .is_some_and(|end| end <= self.length)
    }

    pub fn busy(&self) -> bool {
        self.in_flight > 0 || self.active > 0
    }
}

/// All regions.
#[derive(Debug, Default)]
pub(crate) struct Regions {
    by_index: HashMap<u32, Region>,
    /// Segments of all mappings together.
    segments: usize,
    next_serial: u64,
}

impl Regions {
    /// The index part of a key.
    pub fn index(key: u32) -> u32 {
        key & 0x00ff_ffff
    }

    /// Adds an invalid region; the error is a mailbox error.
    pub fn create(&mut self, key: u32, access: u32, length: u64) -> Result<(), u32> {
        let index = Self::index(key);
        if index >= regs::MAX_REGIONS_VALUE || self.by_index.contains_key(&index) {
            return Err(regs::BAD_INDEX);
        }
        let all = regs::LOCAL_WRITE | regs::REMOTE_READ | regs::REMOTE_WRITE;
        if access & !all != 0 || length == 0 {
            return Err(regs::BAD_ARGUMENT);
        }
        self.next_serial += 1;
        let region = Region {
            key,
            serial: self.next_serial,
            access,
            length,
            mapping: None,
            dying: false,
            asked: false,
            in_flight: 0,
            active: 0,
            last_peer: None,
        };
        self.by_index.insert(index, region);
        Ok(())
    }

    /// The region that `key` names now.
    pub fn find(&self, key: u32) -> Option<(RegionRef, &Region)> {
        let index = Self::index(key);
        let region = self
            .by_index
            .get(&index)
            .filter(|r| r.key == key && !r.dying)?;
        Some((
            RegionRef {
                index,
                serial: region.serial,
            },
            region,
        ))
    }

    /// The same region as before, unless it is being destroyed.
    pub fn live(&mut self, name: RegionRef) -> Option<&mut Region> {
        self.any(name).filter(|r| !r.dying)
    }

    /// The same region as before, being destroyed or not.
    pub fn any(&mut self, name: RegionRef) -> Option<&mut Region> {
        self.by_index
            .get_mut(&name.index)
            .filter(|r| r.serial == name.serial)
    }

    /// Whether `n` more segments fit.
    pub fn has_room(&self, n: usize) -> bool {
        self.segments.saturating_add(n) <= regs::MAX_TOTAL_SEGMENTS
    }

    /// Makes a region valid.
    pub fn map(&mut self, name: RegionRef, map: SegmentMap) {
        let segments = map.len();
        self.next_serial += 1;
        let id = self.next_serial;
        let Some(region) = self.live(name) else {
            return;
        };
        region.mapping = Some(Mapping {
            map: Arc::new(map),
            id,
        });
        region.asked = false;
        region.last_peer = None;
        self.segments += segments;
    }

    /// Makes a region invalid for what starts now; whether it was valid.
    pub fn unmap(&mut self, name: RegionRef) -> bool {
        let Some(mapping) = self.any(name).and_then(|r| r.mapping.take()) else {
            return false;
        };
        self.segments -= mapping.map.len();
        true
    }

    pub fn remove(&mut self, name: RegionRef) {
        self.unmap(name);
        if self.any(name).is_some() {
            self.by_index.remove(&name.index);
        }
    }

    /// Reset, first half: nothing starts any more.
    pub fn kill_all(&mut self) {
        for region in self.by_index.values_mut() {
            region.dying = true;
            region.mapping = None;
        }
        self.segments = 0;
    }

    /// Reset, second half, when no DMA is in flight.
    pub fn clear(&mut self) {
        self.by_index.clear();
        self.segments = 0;
    }

    pub fn iter(&self) -> impl Iterator<Item = &Region> {
        self.by_index.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seg(addr: u64, len: u64) -> Segment {
        Segment { addr, len }
    }

    #[test]
    fn adjacent_segments_are_joined_and_split_by_offset() {
        let map = SegmentMap::new([seg(0x1000, 16), seg(0x1010, 16), seg(0x9000, 8)], 40).unwrap();
        assert_eq!(map.len(), 2);
        assert_eq!(map.pieces(8, 28), [(0x1008, 24), (0x9000, 4)]);
        assert_eq!(map.pieces(32, 8), [(0x9000, 8)]);
        assert_eq!(map.pieces(40, 0), []);
    }

    #[test]
    fn lists_that_do_not_cover_are_refused() {
        assert_eq!(SegmentMap::new([seg(0, 8)], 9), Err(MapError::Cover));
        assert_eq!(SegmentMap::new([seg(0, 8)], 7), Err(MapError::Cover));
        assert_eq!(SegmentMap::new([seg(0, 0)], 0), Err(MapError::Segment));
        assert_eq!(
            SegmentMap::new([seg(u64::MAX, 2)], 2),
            Err(MapError::Segment)
        );
        let huge = seg(0, u64::MAX);
        assert_eq!(
            SegmentMap::new([huge, huge], u64::MAX),
            Err(MapError::Cover)
        );
    }

    #[test]
    fn a_new_region_with_the_same_key_is_another() {
        let mut regions = Regions::default();
        regions.create(7, 0, 8).unwrap();
        let (old, _) = regions.find(7).unwrap();
        regions.map(old, SegmentMap::new([seg(0, 8)], 8).unwrap());
        regions.remove(old);
        regions.create(7, 0, 8).unwrap();
        assert!(regions.live(old).is_none() && regions.any(old).is_none());
        assert!(!regions.unmap(old));
        assert_eq!(regions.segments, 0);
    }
}
