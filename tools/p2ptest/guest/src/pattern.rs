// SPDX-License-Identifier: GPL-2.0
//! Bytes that say where they belong: two patterns differ everywhere, and a
//! page that ends up in another's place is seen.

/// A reproducible stream of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern(pub u64);

impl Pattern {
    /// The word at `index`, counted in words of 8 bytes.
    pub fn word(self, index: u64) -> u64 {
        // The finalizer of splitmix64: a bijection with good diffusion.
        let mut z = index.wrapping_add(self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `len` bytes from `offset` of the stream.
    pub fn bytes(self, offset: u64, len: usize) -> Vec<u8> {
        let skip = usize::try_from(offset % 8).unwrap_or(0);
        let words = (skip + len).div_ceil(8);
        let mut bytes = Vec::with_capacity(words * 8);
        for index in (offset / 8..).take(words) {
            bytes.extend_from_slice(&self.word(index).to_le_bytes());
        }
        bytes.drain(..skip);
        bytes.truncate(len);
        bytes
    }
}

/// Asserts that two buffers agree and says where they do not.
#[track_caller]
pub fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    // Many bytes at a time: an emulated processor takes long for each access.
    if found == expected {
        return;
    }
    let Some(first) = found.iter().zip(expected).position(|(a, b)| a != b) else {
        return;
    };
    let wrong = found.iter().zip(expected).filter(|(a, b)| a != b).count();
    let show = first..(first + 16).min(found.len());
    panic!(
        "{what}: {wrong} of {} bytes differ, the first at {first:#x}: found {:02x?}, expected {:02x?}",
        found.len(),
        &found[show.clone()],
        &expected[show]
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_a_part_of_the_whole() {
        let whole = Pattern(7).bytes(0, 100);
        for offset in 0..20 {
            for len in 0..30 {
                let part = Pattern(7).bytes(offset as u64, len);
                assert_eq!(part, whole[offset..offset + len]);
            }
        }
    }

    #[test]
    fn patterns_and_pages_differ() {
        assert_ne!(Pattern(1).bytes(0, 64), Pattern(2).bytes(0, 64));
        assert_ne!(Pattern(1).bytes(0, 64), Pattern(1).bytes(4096, 64));
    }

    #[test]
    #[should_panic(expected = "1 of 3 bytes differ, the first at 0x1")]
    fn a_difference_is_reported() {
        assert_same(&[1, 2, 3], &[1, 9, 3], "test");
    }
}
