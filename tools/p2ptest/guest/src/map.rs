// SPDX-License-Identifier: GPL-2.0
//! Shared memory mappings whose bytes others change at any time: all accesses
//! are volatile and bounds checked. An access may raise SIGBUS; use
//! [`crate::igt::fork`] where that is the question.

use crate::must;
use crate::pattern::{Pattern, assert_same};
use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{
    MRemapFlags, MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, mremap,
    munmap,
};
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A mapping, unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<c_void>,
    len: usize,
}

// SAFETY: the address is good in all threads until the drop, and accesses are
// volatile, so that threads racing on the bytes is what the hardware makes of
// it.
unsafe impl Send for Mapping {}
// SAFETY: as above; there is no state but the bytes.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `file` from `offset`, shared, to read and write.
    pub fn __new(file: &impl AsFd, offset: u64, len: usize) -> Result<Self, Errno> {
        Self::__with_flags(file, offset, len, MapFlags::MAP_SHARED)
    }

    /// As [`Self::__new`], with other flags.
    pub fn __with_flags(
        file: &impl AsFd,
        offset: u64,
        len: usize,
        flags: MapFlags,
    ) -> Result<Self, Errno> {
        let size = NonZeroUsize::new(len).ok_or(Errno::EINVAL)?;
        let offset = offset.try_into().map_err(|_| Errno::EOVERFLOW)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses a free address.
        let start = unsafe { mmap(None, size, prot, flags, file, offset)? };
        Ok(Self { start, len })
    }

    /// Maps `len` bytes from the start of `file`, shared, to read only: stores fault.
    pub fn __read_only(file: &impl AsFd, len: usize) -> Result<Self, Errno> {
        let size = NonZeroUsize::new(len).ok_or(Errno::EINVAL)?;
        let (prot, flags) = (ProtFlags::PROT_READ, MapFlags::MAP_SHARED);
        // SAFETY: the kernel chooses a free address.
        let start = unsafe { mmap(None, size, prot, flags, file, 0)? };
        Ok(Self { start, len })
    }

    /// Memory of this process alone, of zeros, at addresses that nothing else is given, also when
    /// the mapping is no longer: who still writes there hits nobody.
    #[track_caller]
    pub fn anonymous(len: usize) -> Self {
        // Far from where the kernel puts what may be anywhere.
        static NEXT: AtomicUsize = AtomicUsize::new(0x1000_0000_0000);

        let size = NonZeroUsize::new(len).expect("not empty");
        // There is a hole behind each.
        let start = NEXT.fetch_add(len.next_multiple_of(4096) + (1 << 20), Ordering::Relaxed);
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED_NOREPLACE;
        // SAFETY: the mapping takes no other's place.
        let start = unsafe { mmap_anonymous(NonZeroUsize::new(start), size, prot, flags) };
        let start = must(start, format_args!("mmap of {len:#x} bytes"));
        Self { start, len }
    }

    /// The first `at` bytes, whole pages, and the others, as mappings of their own.
    #[track_caller]
    pub fn split(self, at: usize) -> (Self, Self) {
        assert!(0 < at && at < self.len && at.is_multiple_of(4096));
        let this = ManuallyDrop::new(self);
        // SAFETY: within the mapping, as was just seen.
        let middle = unsafe { this.start.byte_add(at) };
        (
            Self {
                start: this.start,
                len: at,
            },
            Self {
                start: middle,
                len: this.len - at,
            },
        )
    }

    /// Maps `file` from `offset`, shared, in the place of this mapping.
    #[track_caller]
    pub fn replaced(self, file: &impl AsFd, offset: u64) -> Self {
        let size = NonZeroUsize::new(self.len).expect("not empty");
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        let offset = offset.try_into().expect("an offset");
        // SAFETY: the addresses are those of a mapping that is ours, and ends here.
        let start = unsafe { mmap(Some(self.address()), size, prot, flags, file, offset) };
        must(start, format_args!("mmap in the place of another"));
        self
    }

    /// Keeps the addresses, where nothing can be loaded or stored any more.
    #[track_caller]
    pub fn retired(self) -> Self {
        let size = NonZeroUsize::new(self.len).expect("not empty");
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED | MapFlags::MAP_NORESERVE;
        // SAFETY: the addresses are those of a mapping that is ours, and ends here.
        let start =
            unsafe { mmap_anonymous(Some(self.address()), size, ProtFlags::PROT_NONE, flags) };
        must(start, format_args!("mmap in the place of another"));
        self
    }

    /// Moves the mapping to other addresses, away from those of `self`.
    #[track_caller]
    pub fn moved(self) -> Self {
        let target = ManuallyDrop::new(Self::anonymous(self.len));
        let this = ManuallyDrop::new(self);
        let flags = MRemapFlags::MREMAP_MAYMOVE | MRemapFlags::MREMAP_FIXED;
        // SAFETY: both ranges are those of mappings that are ours, and end here.
        let start = unsafe { mremap(this.start, this.len, this.len, flags, Some(target.start)) };
        Self {
            start: must(start, format_args!("mremap")),
            len: this.len,
        }
    }

    /// Gives up the bytes: what is loaded next is zeros.
    pub fn __discard(&self) -> Result<(), Errno> {
        // SAFETY: the bytes are only accessed as ones that change at any time.
        unsafe { madvise(self.start, self.len, MmapAdvise::MADV_DONTNEED) }
    }

    /// Gives up the bytes: what is loaded next is zeros.
    #[track_caller]
    pub fn discard(&self) {
        must(self.__discard(), format_args!("MADV_DONTNEED"));
    }

    /// Only loads from now on, or stores too.
    #[track_caller]
    pub fn set_writable(&self, writable: bool) {
        let mut prot = ProtFlags::PROT_READ;
        prot.set(ProtFlags::PROT_WRITE, writable);
        // SAFETY: the range is ours; stores that fault are the caller's affair.
        let result = unsafe { mprotect(self.start, self.len, prot) };
        must(result, format_args!("mprotect"));
    }

    /// The first address.
    pub fn address(&self) -> NonZeroUsize {
        self.start.addr()
    }

    /// Fills it with a pattern, from its start.
    #[track_caller]
    pub fn fill(&self, pattern: Pattern) {
        self.write(0, &pattern.bytes(0, self.len));
    }

    /// Asserts that it holds a pattern, from its start.
    #[track_caller]
    pub fn assert_holds(&self, pattern: Pattern) {
        self.assert_holds_from(0, pattern);
    }

    /// Asserts that it holds a pattern from `offset` on.
    #[track_caller]
    pub fn assert_holds_from(&self, offset: usize, pattern: Pattern) {
        let mut found = vec![0; self.len - offset];
        self.read(offset, &mut found);
        let expected = pattern.bytes(offset as u64, found.len());
        assert_same(&found, &expected, "mapping");
    }

    /// Bytes mapped.
    #[expect(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Where `size` bytes at `offset` are.
    #[track_caller]
    fn at<T>(&self, offset: usize) -> *mut T {
        let end = offset.checked_add(size_of::<T>());
        assert!(
            end.is_some_and(|end| end <= self.len),
            "{offset:#x} is past the end"
        );
        assert_eq!(offset % align_of::<T>(), 0, "{offset:#x} is unaligned");
        // SAFETY: within the mapping, as was just seen.
        unsafe { self.start.as_ptr().byte_add(offset).cast() }
    }

    /// One load of 8 bytes.
    #[track_caller]
    pub fn load(&self, offset: usize) -> u64 {
        // SAFETY: in bounds and aligned.
        unsafe { self.at::<u64>(offset).read_volatile() }
    }

    /// Has the kernel load a byte: `EFAULT` where an access of this process would raise
    /// SIGBUS.
    #[track_caller]
    pub fn __probe(&self, offset: usize) -> Result<(), Errno> {
        let (to, _from) = UnixStream::pair().expect("two sockets");
        // SAFETY: in bounds; it is the kernel that reads there.
        let read = unsafe { libc::write(to.as_raw_fd(), self.at::<u8>(offset).cast(), 1) };
        Errno::result(read).map(drop)
    }

    /// One store of 8 bytes.
    #[track_caller]
    pub fn store(&self, offset: usize, value: u64) {
        // SAFETY: in bounds and aligned.
        unsafe { self.at::<u64>(offset).write_volatile(value) }
    }

    /// Copies bytes out, eight at a time where it can.
    #[track_caller]
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        let mut at = offset;
        let (head, words) = bytes.split_at_mut(head_len(offset, bytes.len()));
        let mut words = words.chunks_exact_mut(8);
        for byte in head {
            // SAFETY: in bounds; a byte is always aligned.
            *byte = unsafe { self.at::<u8>(at).read_volatile() };
            at += 1;
        }
        for word in &mut words {
            word.copy_from_slice(&self.load(at).to_ne_bytes());
            at += 8;
        }
        for byte in words.into_remainder() {
            // SAFETY: as above.
            *byte = unsafe { self.at::<u8>(at).read_volatile() };
            at += 1;
        }
    }

    /// Copies bytes in, eight at a time where it can.
    #[track_caller]
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let mut at = offset;
        let (head, words) = bytes.split_at(head_len(offset, bytes.len()));
        let words = words.chunks_exact(8);
        let tail = words.remainder();
        for &byte in head {
            // SAFETY: in bounds; a byte is always aligned.
            unsafe { self.at::<u8>(at).write_volatile(byte) };
            at += 1;
        }
        for word in words {
            let mut value = [0; 8];
            value.copy_from_slice(word);
            self.store(at, u64::from_ne_bytes(value));
            at += 8;
        }
        for &byte in tail {
            // SAFETY: as above.
            unsafe { self.at::<u8>(at).write_volatile(byte) };
            at += 1;
        }
    }

    /// The start, for system calls that take a buffer.
    pub fn as_ptr(&self) -> *mut c_void {
        self.start.as_ptr()
    }
}

/// Bytes before the first aligned word.
fn head_len(offset: usize, len: usize) -> usize {
    (offset.next_multiple_of(8) - offset).min(len)
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and ends here. It cannot fail: the
        // range is one that mmap returned.
        let _ = unsafe { munmap(self.start, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, OpenOptions};

    /// A file of `len` bytes that has no name any more.
    fn file(len: u64) -> File {
        let path = std::env::temp_dir().join(format!(
            "p2pguest-map-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(path).unwrap();
        file.set_len(len).unwrap();
        file
    }

    #[test]
    fn copies_of_any_alignment_are_whole() {
        let map = Mapping::__new(&file(4096), 0, 4096).unwrap();
        for offset in 0..9 {
            for len in 0..40 {
                let bytes: Vec<u8> = (0..len).map(|n| n + 1).collect();
                map.write(offset, &[0; 64]);
                map.write(offset, &bytes);
                let mut back = vec![0; bytes.len() + 1];
                map.read(offset, &mut back);
                assert_eq!(back[..bytes.len()], bytes);
                assert_eq!(back[bytes.len()], 0);
            }
        }
    }

    #[test]
    #[should_panic(expected = "past the end")]
    fn an_access_past_the_end_is_refused() {
        Mapping::__new(&file(4096), 0, 4096).unwrap().load(4096);
    }

    #[test]
    fn an_empty_mapping_is_refused() {
        assert_eq!(Mapping::__new(&file(4096), 0, 0).err(), Some(Errno::EINVAL));
    }
}
