// SPDX-License-Identifier: GPL-2.0

//! Numbers that fuzz targets make of their input.

#![forbid(unsafe_code)]

use arbitrary::{Arbitrary, Result, Unstructured};

/// A number that is often near something that matters: small, a single bit, the last ones, or
/// close to one of `near`.
///
/// # Errors
///
/// None while there is input: what is missing is taken for zero.
pub fn number(u: &mut Unstructured<'_>, near: &[u64]) -> Result<u64> {
    Ok(match u8::arbitrary(u)? % 6 {
        0 => u8::arbitrary(u)?.into(),
        1 => 1 << (u8::arbitrary(u)? % 64),
        2 => u64::MAX - u64::from(u8::arbitrary(u)?),
        3 => u16::arbitrary(u)?.into(),
        4 if !near.is_empty() => {
            let base = *u.choose(near)?;
            base.wrapping_add_signed(i16::arbitrary(u)?.into())
        }
        _ => u64::arbitrary(u)?,
    })
}

/// At most `most` bytes.
///
/// # Errors
///
/// As for [`number`].
pub fn bytes(u: &mut Unstructured<'_>, most: usize) -> Result<Vec<u8>> {
    let len = usize::from(u16::arbitrary(u)?) % (most + 1);
    Ok(u.bytes(len.min(u.len()))?.to_vec())
}
