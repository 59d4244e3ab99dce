// SPDX-License-Identifier: GPL-2.0
//! The elements of a call: the operations of a submission.

use super::generate::FileId;
use super::machine::Machine;
use super::table::{Call, Kind};
use crate::sys::uapi::*;

/// Most elements that a call takes, and one more.
const ROOM: usize = 65;

/// The elements as the kernel reads them. What is not there is 0.
pub fn bytes(call: &Call, elements: &[u64]) -> Vec<u8> {
    let size: usize = call.elements.iter().map(|field| field.width).sum();
    let mut bytes = vec![0; size * ROOM];
    let fields = call.elements.iter().cycle();
    let mut at = 0;
    for (number, field) in elements.iter().zip(fields) {
        let value = number.to_le_bytes();
        if let Some(place) = bytes.get_mut(at..at + field.width) {
            place.copy_from_slice(&value[..field.width]);
        }
        at += field.width;
    }
    bytes
}

/// Why a submission of these operations must be refused, if it must.
pub fn why_not(
    machine: &Machine,
    call: &Call,
    file: FileId,
    numbers: &[u64],
    elements: &[u64],
) -> Option<String> {
    let (place, _) = call
        .fields
        .iter()
        .enumerate()
        .find(|(_, field)| field.kind == Kind::Count)?;
    let width = call.elements.len();
    let count = usize::try_from(numbers[place]).ok()?;
    let there = elements.len() / width;
    if count == 0 || count > there {
        return Some(format!("{count} of {there} operations"));
    }
    elements
        .chunks(width)
        .take(count)
        .find_map(|element| operation(machine, file, element))
}

fn operation(machine: &Machine, file: FileId, element: &[u64]) -> Option<String> {
    let &[op, value, src, dst, src_offset, dst_offset, size] = element else {
        return Some("no such operation".to_owned());
    };
    let [op, value, src, dst] = [op, value, src, dst].map(|number| number as u32);
    let inside = |handle: u32, offset: u64, size: u64| {
        let object = machine.objects.get(&(file, handle.into()));
        let end = offset.checked_add(size);
        let there = object.zip(end).is_some_and(|(object, end)| end <= *object);
        size != 0 && (there || object.is_none() && machine.lost.contains(&file))
    };
    let written = match op {
        P2PGPU_OP_CHECKSUM => P2PGPU_DIGEST_SIZE.into(),
        _ => size,
    };
    let is_fill = op == P2PGPU_OP_FILL;
    let units = is_fill || matches!(op, P2PGPU_OP_ADD_U32 | P2PGPU_OP_ADD_F32);
    let unaligned = [src_offset, dst_offset, size].iter().any(|n| n % 4 != 0);
    let overlap = src == dst
        && src_offset < dst_offset.saturating_add(written)
        && dst_offset < src_offset.saturating_add(size);
    let why = match () {
        () if !(P2PGPU_OP_COPY..=P2PGPU_OP_ADD_F32).contains(&op) => "there is no such operation",
        () if is_fill && (src != 0 || src_offset != 0) => "a fill has a source",
        () if !is_fill && value != 0 => "it has a value",
        () if units && unaligned => "it is not aligned",
        () if !inside(dst, dst_offset, written) => "the destination is not in its object",
        () if !is_fill && !inside(src, src_offset, size) => "the source is not in its object",
        () if !is_fill && op != P2PGPU_OP_CHECKSUM && overlap => "the ranges overlap",
        () => return None,
    };
    Some(format!("{why}: {element:x?}"))
}
