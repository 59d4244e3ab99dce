// SPDX-License-Identifier: GPL-2.0
//! Executes steps, and judges how each one ends by what the uapi's description says.

mod check;
mod described;

use super::generate::{Action, FILES, FileId, Value};
use super::table::{CALLS, COMMON, Driver, Name, listed};
use crate::drm::{self, Node};
use crate::gpu::Gpu;
use crate::map::Mapping;
use crate::nic::Nic;
use crate::sys::uapi::*;
use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::MapFlags;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

/// Bytes of a page.
const PAGE: u64 = 4096;
/// Entries of the array for completions, which no call may overrun.
const CAPACITY: usize = 4096;
/// What surrounds an argument and must not change.
const CANARY: u8 = 0xa5;
/// Bytes of it on either side.
const MARGIN: usize = 64;

/// What a step made.
#[derive(Debug)]
enum Thing {
    /// A handle, place, region or queue pair.
    Number(u64),
    Buffer(OwnedFd),
    Mapping(Mapping),
}

/// What is wrong with the end of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong(pub String);

/// How a step ended, if nothing is wrong.
pub type Ended = Result<(), Errno>;

/// Open files, and what the steps have made.
#[derive(Debug)]
pub struct Machine {
    gpus: Vec<Node>,
    nics: Vec<PathBuf>,
    files: Vec<File>,
    made: BTreeMap<usize, Thing>,
    /// Addresses of mappings that are no longer. The files go first: see the order of the fields.
    retired: Vec<Mapping>,
    /// Sizes of objects, by file and handle.
    pub(super) objects: BTreeMap<(FileId, u64), u64>,
    /// Regions and queue pairs.
    names: BTreeSet<(Name, FileId, u64)>,
    /// Files in which a call has made something that it could not name.
    pub(super) lost: BTreeSet<FileId>,
    /// Sizes of dma-bufs, by descriptor.
    buffers: BTreeMap<i32, u64>,
    /// What mappings are written from and read into: an access that the kernel makes for
    /// us fails with EFAULT where one of our own would raise SIGBUS.
    scratch: File,
    completions: Vec<p2pnic_completion>,
    read_only: Mapping,
}

impl Machine {
    /// Opens the files of a sequence.
    ///
    /// # Errors
    ///
    /// When a device is missing or cannot be opened.
    pub fn open() -> io::Result<Self> {
        let scratch = File::from(nix::sys::memfd::memfd_create(
            c"scratch",
            nix::sys::memfd::MFdFlags::empty(),
        )?);
        scratch.set_len(PAGE)?;
        let read_only = Mapping::__read_only(&scratch, PAGE as usize)?;
        let mut machine = Self {
            gpus: Gpu::nodes()?,
            nics: Nic::paths()?,
            files: Vec::new(),
            made: BTreeMap::new(),
            retired: Vec::new(),
            objects: BTreeMap::new(),
            names: BTreeSet::new(),
            lost: BTreeSet::new(),
            buffers: BTreeMap::new(),
            scratch,
            completions: vec![p2pnic_completion::default(); CAPACITY + 1],
            read_only,
        };
        for index in 0..FILES.len() {
            let file = machine.open_file(FileId(index))?;
            machine.files.push(file);
        }
        Ok(machine)
    }

    fn open_file(&self, id: FileId) -> io::Result<File> {
        let missing = || io::Error::other("two GPUs and two NICs are needed");
        let (driver, index) = FILES[id.0];
        match driver {
            Driver::Gpu => self.gpus.get(index).ok_or_else(missing)?.open(),
            Driver::Nic => {
                let path = self.nics.get(index).ok_or_else(missing)?;
                OpenOptions::new().read(true).write(true).open(path)
            }
        }
    }

    fn file(&self, id: FileId) -> &File {
        &self.files[id.0]
    }

    /// The number that a value stands for; a step that made nothing names nothing.
    fn number(&self, value: Value) -> u64 {
        match value {
            Value::Number(number) => number,
            Value::Step(step) => match self.made.get(&step) {
                Some(Thing::Number(number)) => *number,
                Some(Thing::Buffer(fd)) => fd.as_raw_fd() as u64,
                Some(Thing::Mapping(_)) | None => u64::from(u32::MAX),
            },
        }
    }

    /// The descriptor that a value stands for: of a dma-buf, or of nothing at all. What
    /// else is open here is not for strangers to close or to read.
    fn descriptor(&self, value: Value) -> i32 {
        match value {
            Value::Step(step) => match self.made.get(&step) {
                Some(Thing::Buffer(fd)) => fd.as_raw_fd(),
                _ => -1,
            },
            Value::Number(number) => -1 - (number % 1000) as i32,
        }
    }

    /// The address of a mapping that has so many bytes, or one where nothing is. What else is
    /// mapped here is not for NICs to write.
    fn address(&self, value: Value, size: u64) -> u64 {
        match value {
            Value::Step(step) => match self.made.get(&step) {
                Some(Thing::Mapping(mapping)) if size <= mapping.len() as u64 => {
                    mapping.address().get() as u64
                }
                _ => 0,
            },
            Value::Number(number) => number % PAGE,
        }
    }

    /// Does a step.
    ///
    /// # Errors
    ///
    /// What is wrong with its end; an errno that its description allows is not.
    pub fn perform(&mut self, at: usize, action: &Action) -> Result<Ended, Wrong> {
        match action {
            Action::Ioctl {
                call,
                file,
                values,
                memory,
            } => self.ioctl(at, &CALLS[*call], *file, values, *memory),
            Action::Unknown { file, request } => self.unknown(*file, *request),
            Action::Close { file, handle } => {
                let handle = self.number(*handle) as u32;
                let ended = drm::close_handle(self.file(*file), handle);
                let known = self.objects.remove(&(*file, handle.into())).is_some();
                let known = known || self.lost.contains(file) && ended.is_ok();
                expect("GEM_CLOSE", ended, known, &[Errno::EINVAL])
            }
            Action::Export {
                file,
                handle,
                flags,
            } => self.export(at, *file, *handle, *flags),
            Action::Import { file, buffer } => self.import(at, *file, *buffer),
            Action::CloseBuffer { buffer } => {
                if let Value::Step(step) = buffer
                    && let Some(Thing::Buffer(fd)) = self.made.get(step)
                {
                    self.buffers.remove(&fd.as_raw_fd());
                    self.made.remove(step);
                }
                Ok(Ok(()))
            }
            Action::Map {
                file,
                what,
                offset,
                len,
                shared,
            } => Ok(self.map(at, *file, *what, *offset, *len, *shared)),
            Action::Unmap { mapping } => {
                if let Value::Step(step) = mapping
                    && let Some(Thing::Mapping(_)) = self.made.get(step)
                    && let Some(Thing::Mapping(mapping)) = self.made.remove(step)
                {
                    // A NIC may still have the addresses: nothing of ours comes there.
                    self.retired.push(mapping.retired());
                }
                Ok(Ok(()))
            }
            Action::Touch {
                mapping,
                offset,
                write,
            } => self.touch(*mapping, *offset, *write),
            Action::Sync { buffer, flags } => {
                // DMA_BUF_IOCTL_SYNC takes 8 bytes of flags.
                let mut flags = *flags;
                let fd = self.descriptor(*buffer);
                // SAFETY: the request is for this number.
                let ended = unsafe { ioctl(fd, 0x4008_6200, (&raw mut flags).cast()) };
                allow("DMA_BUF_IOCTL_SYNC", ended, &[Errno::EBADF, Errno::EINVAL])
            }
            Action::Reopen { file } => self.reopen(*file),
        }
    }

    fn reopen(&mut self, id: FileId) -> Result<Ended, Wrong> {
        let file = self
            .open_file(id)
            .map_err(|error| Wrong(format!("open: {error}")))?;
        self.files[id.0] = file;
        self.objects.retain(|(file, _), _| *file != id);
        self.names.retain(|(_, file, _)| *file != id);
        self.lost.remove(&id);
        Ok(Ok(()))
    }

    /// A number that the driver's header does not have. The core has others of the same
    /// type, which are left alone.
    fn unknown(&mut self, file: FileId, request: u32) -> Result<Ended, Wrong> {
        let (driver, _) = FILES[file.0];
        let (letter, number) = (request >> 8 & 0xff, request & 0xff);
        let ours = match driver {
            Driver::Gpu => letter == u32::from(b'd') && (0x40..0xa0).contains(&number),
            Driver::Nic => letter == u32::from(b'N'),
        };
        if !ours || listed(driver).contains(&number) {
            return Ok(Ok(()));
        }
        // As large as the number can say.
        let mut room = vec![0u8; 1 << 14];
        let fd = self.file(file).as_raw_fd();
        // SAFETY: there is room for all that the number can stand for.
        match unsafe { ioctl(fd, request, room.as_mut_ptr().cast()) } {
            Ok(()) => Err(Wrong(format!("ioctl {request:#x} works"))),
            ended => Ok(ended),
        }
    }

    fn export(
        &mut self,
        at: usize,
        file: FileId,
        handle: Value,
        flags: u32,
    ) -> Result<Ended, Wrong> {
        let handle = self.number(handle) as u32;
        let made = drm::prime_handle_to_fd(self.file(file), handle, flags.cast_signed());
        let ended = made.map(|fd| {
            let size = self.objects.get(&(file, handle.into())).copied();
            self.buffers.insert(fd.as_raw_fd(), size.unwrap_or(0));
            self.made.insert(at, Thing::Buffer(fd));
        });
        let known = self.objects.contains_key(&(file, handle.into()));
        let errors = [Errno::EPERM, Errno::EINVAL, Errno::ENOENT, Errno::EMFILE];
        if ended.is_ok() && !known && !self.lost.contains(&file) {
            return Err(Wrong(format!("PRIME export of handle {handle} works")));
        }
        allow("PRIME_HANDLE_TO_FD", ended, &errors)
    }

    fn import(&mut self, at: usize, file: FileId, buffer: Value) -> Result<Ended, Wrong> {
        let fd = self.descriptor(buffer);
        let ended = drm::prime_fd_to_handle(self.file(file), fd).map(|handle| {
            let size = self.buffers.get(&fd).copied().unwrap_or(0);
            self.objects.insert((file, handle.into()), size);
            self.made.insert(at, Thing::Number(handle.into()));
        });
        let errors = [
            Errno::EBADF,
            Errno::EINVAL,
            Errno::EPERM,
            Errno::EXDEV,
            Errno::EOPNOTSUPP,
        ];
        allow("PRIME_FD_TO_HANDLE", ended, &errors)
    }

    fn map(
        &mut self,
        at: usize,
        file: FileId,
        what: Value,
        offset: u64,
        len: usize,
        shared: bool,
    ) -> Ended {
        let flags = match shared {
            true => MapFlags::MAP_SHARED,
            false => MapFlags::MAP_PRIVATE,
        };
        let step = match what {
            Value::Step(step) => self.made.get(&step),
            Value::Number(_) => None,
        };
        let mapping = match step {
            Some(Thing::Buffer(fd)) => Mapping::__with_flags(fd, offset, len, flags),
            _ => {
                let place = self.number(what).wrapping_add(offset);
                Mapping::__with_flags(self.file(file), place, len, flags)
            }
        }?;
        self.made.insert(at, Thing::Mapping(mapping));
        Ok(())
    }

    fn touch(&self, mapping: Value, offset: u64, write: bool) -> Result<Ended, Wrong> {
        let Value::Step(step) = mapping else {
            return Ok(Ok(()));
        };
        let Some(Thing::Mapping(mapping)) = self.made.get(&step) else {
            return Ok(Ok(()));
        };
        let start = (offset as usize) % mapping.len();
        let word = 8.min(mapping.len() - start);
        let fd = self.scratch.as_raw_fd();
        // SAFETY: both calls move bytes between a file of ours and a mapping, within its
        // bounds; nobody holds a reference to either.
        let moved = unsafe {
            let place = mapping.as_ptr().byte_add(start);
            match write {
                true => libc::pread(fd, place, word, 0),
                false => libc::pwrite(fd, place, word, 0),
            }
        };
        Ok(Errno::result(moved).map(drop))
    }
}

/// An ioctl, any ioctl.
///
/// # Safety
///
/// What the kernel does with the argument must be good.
unsafe fn ioctl(fd: i32, request: u32, argument: *mut c_void) -> Result<(), Errno> {
    // SAFETY: up to the caller.
    let result = unsafe { libc::ioctl(fd, request.into(), argument) };
    Errno::result(result).map(drop)
}

/// An errno must be one that is documented.
fn allow(name: &str, ended: Ended, errors: &[Errno]) -> Result<Ended, Wrong> {
    match ended {
        Err(errno) if !errors.contains(&errno) && !COMMON.contains(&errno) => {
            Err(Wrong(format!("{name}: {errno}, which is not documented")))
        }
        _ => Ok(ended),
    }
}

/// It must work if what it names is there, and else be refused.
fn expect(name: &str, ended: Ended, known: bool, errors: &[Errno]) -> Result<Ended, Wrong> {
    if ended.is_ok() != known {
        let there = if known { "is there" } else { "is not" };
        return Err(Wrong(format!("{name}: {ended:?}, but it {there}")));
    }
    allow(name, ended, errors)
}
