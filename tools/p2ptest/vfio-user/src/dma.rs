// SPDX-License-Identifier: GPL-2.0

//! DMA: the client's memory map, and transfers through it.
//!
//! Memory that comes with a sealed file descriptor is mapped and copied directly; all other
//! addresses go to the client as messages.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::io::Errno;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use crate::bus::{Bus, BusError, Target};
use crate::connection::{Connection, refused};
use crate::shared::{copy_in, copy_out};
use crate::wire::{Command, DmaMap, DmaUnmap, Fields, MAX_MAPS, push64};

/// Most bytes copied under the lock at a time: an unmap waits no longer than that takes.
const COPY_CHUNK: usize = 256 * 1024;

/// Most bytes of a DMA by message. QEMU does not go on with a reply that its socket took only a
/// part of; one of this size fits a single socket buffer, which the kernel takes whole or not.
const MESSAGE_CHUNK: usize = 32 * 1024;

/// A file, whatever descriptor it came in: device and inode.
type FileId = (u64, u64);

#[derive(Debug)]
struct Map {
    size: u64,
    /// The file's mapping and where in it this map starts. `None`: by message.
    memory: Option<(Arc<MmapRegion>, u64)>,
    write: bool,
}

#[derive(Debug, Default)]
struct Table {
    link: Option<Link>,
    master: bool,
    /// By DMA address; they do not overlap.
    maps: BTreeMap<u64, Map>,
    /// Each file is mapped once, whole: an IOMMU makes a DMA map of every page.
    files: HashMap<FileId, Weak<MmapRegion>>,
}

#[derive(Clone, Debug)]
struct Link {
    connection: Arc<Connection>,
    /// Most bytes in one message to this client.
    chunk: usize,
}

/// The client's memory and the way to it.
///
/// Transfers to mapped memory hold the lock for reading: whoever has changed the table can be sure
/// that none goes on under the old one.
#[derive(Debug, Default)]
pub struct Dma {
    table: RwLock<Table>,
}

/// What serves the next piece of a transfer.
enum Piece {
    Copied(usize),
    ByMessage(Link, usize),
}

impl Dma {
    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client is there; it takes messages of at most `max_data` bytes of data.
    pub fn attach(&self, connection: Arc<Connection>, max_data: u64) {
        let chunk = usize::try_from(max_data)
            .unwrap_or(MESSAGE_CHUNK)
            .min(MESSAGE_CHUNK);
        let link = Some(Link { connection, chunk });
        *self.table_mut() = Table {
            link,
            ..Table::default()
        };
    }

    /// The client is gone, with all its memory.
    pub fn detach(&self) {
        *self.table_mut() = Table::default();
    }

    /// Sets the bus-master bit. When it was cleared, no transfer to mapped memory is under way.
    pub fn set_master(&self, master: bool) {
        let changed = self.table().master != master;
        if changed {
            self.table_mut().master = master;
        }
    }

    /// Adds memory. A file that cannot shrink is mapped, all else goes by message.
    pub fn map(&self, map: &DmaMap, fd: Option<OwnedFd>) -> Result<(), Errno> {
        let last = last_address(map.address, map.size)?;
        let mut table = self.table_mut();
        if table.maps.len() >= MAX_MAPS {
            return Err(Errno::NOSPC);
        }
        let below = table.maps.range(..=last).next_back();
        if below.is_some_and(|(&start, old)| start + (old.size - 1) >= map.address) {
            return Err(Errno::EXIST);
        }
        let memory = match fd {
            Some(fd) => table.file(fd)?,
            None => None,
        };
        let memory = match memory {
            Some(memory) => {
                let end = map.offset.checked_add(map.size).ok_or(Errno::INVAL)?;
                if end > memory.size() as u64 {
                    return Err(Errno::INVAL);
                }
                Some((memory, map.offset))
            }
            None => None,
        };
        table.maps.insert(
            map.address,
            Map {
                size: map.size,
                memory,
                write: map.write,
            },
        );
        Ok(())
    }

    /// Removes the maps that lie in the range and returns their size. On return nothing uses them.
    pub fn unmap(&self, unmap: &DmaUnmap) -> Result<u64, Errno> {
        let (first, last) = match *unmap {
            DmaUnmap::All => (0, u64::MAX),
            DmaUnmap::Range { address, size } => (address, last_address(address, size)?),
        };
        let mut table = self.table_mut();
        let (starts, ends) = (
            table
                .maps
                .range(..first)
                .next_back()
                .map(|(&start, map)| start + (map.size - 1)),
            table
                .maps
                .range(..=last)
                .next_back()
                .map(|(&start, map)| start + (map.size - 1)),
        );
        if starts.is_some_and(|end| end >= first) || ends.is_some_and(|end| end > last) {
            return Err(Errno::INVAL); // a map cannot be cut
        }
        let inside: Vec<u64> = table
            .maps
            .range(first..=last)
            .map(|(&start, _)| start)
            .collect();
        let removed = inside.iter().filter_map(|start| table.maps.remove(start));
        let size = removed.fold(0, |sum: u64, map| sum.saturating_add(map.size));
        table.files.retain(|_, file| file.strong_count() > 0);
        Ok(size)
    }

    /// Copies the start of a range if it is mapped memory, and says how much; else finds out how
    /// much of it is not.
    fn piece(
        &self,
        address: u64,
        len: usize,
        write: bool,
        copy: impl FnOnce(&vm_memory::VolatileSlice<'_>),
    ) -> Result<Piece, BusError> {
        let table = self.table();
        let link = table.link.as_ref().ok_or(BusError::Disconnected)?;
        if !table.master {
            return Err(BusError::NotMaster);
        }
        if let Some((memory, offset, left)) = table.find(address, write) {
            let count = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(len)
                .min(COPY_CHUNK);
            let offset = usize::try_from(offset).map_err(|_| BusError::Unmapped)?;
            let slice = memory
                .get_slice(offset, count)
                .map_err(|_| BusError::Unmapped)?;
            copy(&slice);
            return Ok(Piece::Copied(count));
        }
        let next = table.next_memory(address);
        let gap = next.map_or(u64::MAX, |next| next - address);
        let count = usize::try_from(gap)
            .unwrap_or(usize::MAX)
            .min(len)
            .min(link.chunk);
        Ok(Piece::ByMessage(link.clone(), count))
    }
}

impl Table {
    /// The mapping of a file, shared with other maps of it; `None` if it may shrink under us.
    fn file(&mut self, fd: OwnedFd) -> Result<Option<Arc<MmapRegion>>, Errno> {
        let stat = fstat(&fd)?;
        let id = (stat.st_dev, stat.st_ino);
        if let Some(known) = self.files.get(&id).and_then(Weak::upgrade) {
            return Ok(Some(known));
        }
        if !fcntl_get_seals(&fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK)) {
            log::warn!("guest memory that is no sealed memfd goes by message: slow");
            return Ok(None);
        }
        let size = usize::try_from(stat.st_size).map_err(|_| Errno::INVAL)?;
        let map = MmapRegion::from_file(FileOffset::new(File::from(fd), 0), size)
            .map_err(|_| Errno::NOMEM)?;
        let map = Arc::new(map);
        // Those that were mapped for a request that was refused in the end.
        self.files.retain(|_, file| file.strong_count() > 0);
        self.files.insert(id, Arc::downgrade(&map));
        Ok(Some(map))
    }

    /// The mapped memory at an address: mapping, offset in it, bytes up to the map's end.
    fn find(&self, address: u64, write: bool) -> Option<(&MmapRegion, u64, u64)> {
        let (&start, map) = self.maps.range(..=address).next_back()?;
        let into = address - start;
        let (memory, offset) = map.memory.as_ref()?;
        (into < map.size && (map.write || !write))
            .then(|| (&**memory, offset + into, map.size - into))
    }

    /// Where the next mapped memory after an address starts.
    fn next_memory(&self, address: u64) -> Option<u64> {
        let after = address.checked_add(1)?;
        self.maps
            .range(after..)
            .find(|(_, map)| map.memory.is_some())
            .map(|(&start, _)| start)
    }
}

/// The last address of a range that is not empty and does not wrap.
fn last_address(address: u64, size: u64) -> Result<u64, Errno> {
    let more = size.checked_sub(1).ok_or(Errno::INVAL)?;
    address.checked_add(more).ok_or(Errno::INVAL)
}

/// A transfer that would wrap around the end of addresses is refused before it starts.
fn check_range(address: u64, len: usize) -> Result<(), BusError> {
    match len {
        0 => Ok(()),
        _ => last_address(address, len as u64)
            .map(drop)
            .map_err(|_| BusError::Unmapped),
    }
}

impl Bus for Dma {
    fn read(&self, mut addr: u64, mut data: &mut [u8]) -> Result<Target, BusError> {
        check_range(addr, data.len())?;
        let mut target = Target::Ram;
        while !data.is_empty() {
            let piece = self.piece(addr, data.len(), false, |slice| {
                copy_out(slice, &mut data[..slice.len()]);
            })?;
            let count = match piece {
                Piece::Copied(count) => count,
                Piece::ByMessage(link, count) => {
                    read_by_message(&link.connection, addr, &mut data[..count])?;
                    target = Target::Peer;
                    count
                }
            };
            addr = addr.wrapping_add(count as u64);
            data = &mut data[count..];
        }
        Ok(target)
    }

    fn write(&self, mut addr: u64, mut data: &[u8]) -> Result<Target, BusError> {
        check_range(addr, data.len())?;
        let mut target = Target::Ram;
        while !data.is_empty() {
            let piece = self.piece(addr, data.len(), true, |slice| {
                copy_in(slice, &data[..slice.len()]);
            })?;
            let count = match piece {
                Piece::Copied(count) => count,
                Piece::ByMessage(link, count) => {
                    write_by_message(&link.connection, addr, &data[..count])?;
                    target = Target::Peer;
                    count
                }
            };
            addr = addr.wrapping_add(count as u64);
            data = &data[count..];
        }
        Ok(target)
    }
}

/// What a DMA request starts with: address and count.
fn place(address: u64, count: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16);
    push64(&mut bytes, &[address, count as u64]);
    bytes
}

fn read_by_message(connection: &Connection, address: u64, data: &mut [u8]) -> Result<(), BusError> {
    let answer = connection.request(Command::DmaRead, [&place(address, data.len()), &[]])?;
    let mut fields = Fields(&answer);
    let fits = fields.u64() == Ok(address)
        && fields.u64() == Ok(data.len() as u64)
        && fields.rest().len() == data.len();
    if !fits {
        return Err(refused(Errno::PROTO));
    }
    data.copy_from_slice(fields.rest());
    Ok(())
}

fn write_by_message(connection: &Connection, address: u64, data: &[u8]) -> Result<(), BusError> {
    // QEMU answers with the header alone.
    connection
        .request(Command::DmaWrite, [&place(address, data.len()), data])
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SharedMemory;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    const MAP: DmaMap = DmaMap {
        offset: 0,
        address: 0x1000,
        size: 0x1000,
        write: true,
    };

    fn dma() -> (Dma, SharedMemory, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let memory = SharedMemory::new(0x1000).unwrap();
        let dma = Dma::default();
        dma.attach(Arc::new(Connection::new(ours).unwrap()), 1 << 20);
        dma.set_master(true);
        dma.map(&MAP, Some(memory.as_fd().try_clone_to_owned().unwrap()))
            .unwrap();
        (dma, memory, theirs)
    }

    /// Starts a copy, has `change` change the table meanwhile, and checks that it waited.
    fn check_waits(change: impl FnOnce(&Dma)) {
        let (dma, _memory, _client) = dma();
        let copied = AtomicBool::new(false);
        let (started, start) = channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                dma.piece(0x1000, 8, true, |_| {
                    started.send(()).unwrap();
                    thread::sleep(Duration::from_millis(200));
                    copied.store(true, Ordering::SeqCst);
                })
                .map(drop)
                .unwrap();
            });
            start.recv().unwrap();
            change(&dma);
            assert!(copied.load(Ordering::SeqCst), "a copy went on");
        });
    }

    #[test]
    fn unmap_waits_for_copies() {
        check_waits(|dma| assert_eq!(dma.unmap(&DmaUnmap::All), Ok(0x1000)));
    }

    #[test]
    fn clearing_the_bus_master_bit_waits_for_copies() {
        check_waits(|dma| dma.set_master(false));
    }

    #[test]
    fn detach_waits_for_copies() {
        check_waits(Dma::detach);
    }

    #[test]
    fn a_new_client_finds_nothing_of_the_last() {
        let (dma, _memory, _client) = dma();
        assert_eq!(dma.write(0x1000, &[1]), Ok(Target::Ram));
        dma.detach();
        assert_eq!(dma.write(0x1000, &[1]), Err(BusError::Disconnected));
        let (ours, _theirs) = UnixStream::pair().unwrap();
        dma.attach(Arc::new(Connection::new(ours).unwrap()), 1);
        assert_eq!(dma.write(0x1000, &[1]), Err(BusError::NotMaster));
    }

    #[test]
    fn the_receiving_thread_is_not_left_waiting_for_itself() {
        let (dma, _memory, _client) = dma();
        assert_eq!(dma.write(0x8000, &[1]), Err(refused(Errno::DEADLK)));
    }

    #[test]
    fn files_are_mapped_once_and_forgotten() {
        let (dma, memory, _client) = dma();
        let fd = || Some(memory.as_fd().try_clone_to_owned().unwrap());
        dma.map(
            &DmaMap {
                address: 0x8000,
                ..MAP
            },
            fd(),
        )
        .unwrap();
        assert_eq!(dma.table().files.len(), 1);
        let past = DmaMap {
            offset: 1,
            address: 0x4000,
            ..MAP
        };
        assert_eq!(dma.map(&past, fd()), Err(Errno::INVAL));
        dma.unmap(&DmaUnmap::All).unwrap();
        assert!(dma.table().files.is_empty());
        for _ in 0..3 {
            let other = SharedMemory::new(0x1000).unwrap();
            let fd = other.as_fd().try_clone_to_owned().unwrap();
            assert_eq!(dma.map(&past, Some(fd)), Err(Errno::INVAL));
        }
        assert!(
            dma.table().files.len() <= 1,
            "refused maps leave nothing to pile up"
        );
    }

    #[test]
    fn read_only_memory_is_written_by_message() {
        let (dma, memory, client) = dma();
        let fd = memory.as_fd().try_clone_to_owned().unwrap();
        dma.map(
            &DmaMap {
                address: 0x8000,
                write: false,
                ..MAP
            },
            Some(fd),
        )
        .unwrap();
        assert_eq!(dma.read(0x8000, &mut [0; 4]), Ok(Target::Ram));
        drop(client);
        thread::scope(|scope| {
            let write = scope.spawn(|| dma.write(0x8000, &[1; 4]));
            assert_eq!(write.join().unwrap(), Err(BusError::Disconnected));
        });
    }
}
