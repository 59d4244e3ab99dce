// SPDX-License-Identifier: GPL-2.0
//! The ioctls of the table: their arguments laid out, watched and read.

use super::{CANARY, Ended, MARGIN, Machine, PAGE, Thing, Wrong, allow, ioctl};
use crate::fuzz::generate::{FileId, Memory, Value};
use crate::fuzz::operations;
use crate::fuzz::table::{Call, Field, Kind, Name};
use crate::sys::uapi::*;
use nix::errno::Errno;
use std::ffi::c_void;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The greatest number that says where an object is: its exporter has it.
const LAST_PLACEMENT: u32 = 2;

impl Machine {
    /// Calls the kernel, and judges what it did with the argument.
    ///
    /// # Errors
    ///
    /// What is wrong with that.
    pub(super) fn ioctl(
        &mut self,
        at: usize,
        call: &Call,
        file: FileId,
        values: &[Value],
        memory: Memory,
    ) -> Result<Ended, Wrong> {
        let array = self.completions.as_mut_ptr().expose_provenance() as u64;
        let elements: Vec<u64> = values
            .get(call.fields.len()..)
            .unwrap_or_default()
            .iter()
            .map(|value| self.number(*value))
            .collect();
        let memory_of_elements = operations::bytes(call, &elements);
        let elements_at = memory_of_elements.as_ptr().expose_provenance() as u64;
        let numbers: Vec<u64> = call
            .fields
            .iter()
            .zip(values)
            .map(|(field, value)| match field.kind {
                Kind::Of(Name::Buffer) => self.descriptor(*value) as u64,
                Kind::Elements if *value == Value::Number(1) => elements_at,
                Kind::Of(Name::Mapping) => {
                    let size = call
                        .field("size")
                        .map_or(0, |(index, _)| self.number(values[index]));
                    self.address(*value, size)
                }
                Kind::Array => match value {
                    // Room for all, nothing, or nobody's.
                    Value::Number(1) => array,
                    Value::Number(number) => *number,
                    Value::Step(_) => 0,
                },
                _ => self.number(*value),
            })
            .collect();
        let mut argument = vec![CANARY; call.size + 2 * MARGIN];
        for (field, number) in call.fields.iter().zip(&numbers) {
            let bytes = number.to_le_bytes();
            let start = MARGIN + field.offset;
            for (to, from) in argument[start..start + field.width]
                .iter_mut()
                .zip(bytes.iter().cycle())
            {
                *to = *from;
            }
        }
        let pointer: *mut c_void = match memory {
            Memory::Good => argument[MARGIN..].as_mut_ptr().cast(),
            Memory::Nowhere => std::ptr::without_provenance_mut(8),
            Memory::ReadOnly => self.read_only.as_ptr(),
        };
        if let Some(last) = self.completions.last_mut() {
            last.id = u64::MAX;
        }
        let fd = self.file(file).as_raw_fd();
        // SAFETY: the argument is as large as the number says, or not ours to write at
        // all; the array that it may point to has room for the greatest capacity. The
        // kernel is the one that is on trial: it is watched by the canaries below.
        let ended = unsafe { ioctl(fd, call.request, pointer) };
        let (head, rest) = argument.split_at(MARGIN);
        let (body, tail) = rest.split_at(call.size);
        let whole = head.iter().chain(tail).all(|byte| *byte == CANARY);
        if !whole || self.completions.last().is_some_and(|c| c.id != u64::MAX) {
            return Err(Wrong(format!("{} wrote outside its argument", call.name)));
        }
        if memory != Memory::Good {
            // What it made has no name now: only the file's end brings it back.
            self.lost.insert(file);
            return match ended {
                Ok(()) if call.request >> 30 & 2 == 0 && memory == Memory::ReadOnly => Ok(ended),
                Ok(()) => Err(Wrong(format!("{} with {memory:?} works", call.name))),
                Err(_) => Ok(ended),
            };
        }
        let numbers: Vec<u64> = call
            .fields
            .iter()
            .zip(numbers)
            .map(|(field, number)| match field.width {
                4 => number & u64::from(u32::MAX),
                _ => number,
            })
            .collect();
        match ended {
            Ok(()) => {
                let why = self
                    .why_not(call, file, &numbers)
                    .or_else(|| operations::why_not(self, call, file, &numbers, &elements));
                if let Some(why) = why {
                    return Err(Wrong(format!("{} works, but {why}", call.name)));
                }
                self.note(at, call, file, &numbers, body)?;
                Ok(Ok(()))
            }
            Err(Errno::EFAULT) if call.fields.iter().any(|f| f.kind == Kind::Array) => Ok(ended),
            Err(_) => allow(call.name, ended, call.errors),
        }
    }

    /// Why a call with these numbers must be refused, if it must.
    fn why_not(&self, call: &Call, file: FileId, numbers: &[u64]) -> Option<String> {
        for (field, &number) in call.fields.iter().zip(numbers) {
            let good = match field.kind {
                Kind::Zero => number == 0,
                Kind::OneOf(values) => values.iter().any(|&value| u64::from(value) == number),
                Kind::Flags(mask) => number & !u64::from(mask) == 0,
                Kind::Entries => number.is_power_of_two() && (4..=2048).contains(&number),
                Kind::Capacity => (1..=4096).contains(&number),
                Kind::Of(Name::Handle | Name::Key | Name::Pair | Name::Context)
                    if self.lost.contains(&file) =>
                {
                    true
                }
                Kind::Of(Name::Handle) => self.objects.contains_key(&(file, number)),
                Kind::Of(Name::Mapping) => self.made.values().any(|thing| match thing {
                    Thing::Mapping(mapping) => mapping.address().get() as u64 == number,
                    _ => false,
                }),
                Kind::Of(Name::Buffer) => self.buffers.contains_key(&(number as u32).cast_signed()),
                Kind::Of(name) => self.names.contains(&(name, file, number)),
                _ => true,
            };
            if !good {
                return Some(format!("{} is {number:#x}", field.name));
            }
        }
        let number = |name: &str| call.field(name).map_or(0, |(index, _)| numbers[index]);
        for (object, offset, size) in call.ranges {
            let kind = call.field(object).map(|(_, field)| field.kind);
            let end = match kind {
                Some(Kind::Of(Name::Buffer)) => {
                    self.buffers.get(&(number(object) as u32).cast_signed())
                }
                _ => self.objects.get(&(file, number(object))),
            };
            let (start, size) = (number(offset), number(size));
            let inside = start.checked_add(size).zip(end);
            if end.is_none() && self.lost.contains(&file) {
                continue;
            }
            if size == 0 || inside.is_none_or(|(last, end)| last > *end) {
                let bytes = end.map_or("no".to_owned(), |end| format!("{end:#x}"));
                return Some(format!(
                    "{start:#x}+{size:#x} is not in the {bytes} bytes of {object}"
                ));
            }
        }
        None
    }

    /// Remembers what a call made, and what it ended.
    fn note(
        &mut self,
        at: usize,
        call: &Call,
        file: FileId,
        numbers: &[u64],
        body: &[u8],
    ) -> Result<(), Wrong> {
        let out = |field: &Field| {
            body[field.offset..field.offset + field.width]
                .iter()
                .rev()
                .fold(0, |number, byte| number << 8 | u64::from(*byte))
        };
        let number = |name: &str| call.field(name).map_or(0, |(index, _)| numbers[index]);
        for field in call.fields {
            let Kind::Made(name) = field.kind else {
                continue;
            };
            let value = out(field);
            match name {
                Name::Buffer => {
                    let fd = (value as u32).cast_signed();
                    // SAFETY: the kernel has just made it, for us alone.
                    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                    self.buffers.insert(fd.as_raw_fd(), number("size"));
                    self.made.insert(at, Thing::Buffer(fd));
                    continue;
                }
                Name::Handle => {
                    self.objects.insert((file, value), number("size"));
                }
                Name::Key | Name::Pair | Name::Context => {
                    self.names.insert((name, file, value));
                }
                Name::Place | Name::Mapping => {}
            }
            self.made.insert(at, Thing::Number(value));
        }
        match call.request {
            P2PNIC_IOCTL_DEREG_REGION => {
                self.names.remove(&(Name::Key, file, number("key")));
            }
            DRM_IOCTL_P2PGPU_CONTEXT_DESTROY => {
                self.names.remove(&(Name::Context, file, number("id")));
            }
            P2PNIC_IOCTL_DESTROY_QP => {
                self.names.remove(&(Name::Pair, file, number("qp")));
            }
            DRM_IOCTL_P2PGPU_GEM_INFO => {
                let get = |name: &str| call.field(name).map_or(0, |(_, field)| out(field));
                let size = self.objects.get(&(file, number("handle"))).copied();
                let pages = get("size") / PAGE;
                let good = size.is_none_or(|size| size == get("size"))
                    && get("peer_slots") <= get("slots")
                    && get("slots") <= pages
                    && get("placement") <= u64::from(LAST_PLACEMENT);
                if !good {
                    return Err(Wrong(format!("GEM_INFO of {size:#x?} bytes: {body:02x?}")));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
