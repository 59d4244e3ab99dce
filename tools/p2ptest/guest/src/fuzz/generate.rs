// SPDX-License-Identifier: GPL-2.0
//! From a seed to a sequence of steps. A step names what earlier steps made by their
//! place in the sequence, not by what it turned out to be: leaving a step out leaves the
//! meaning of the others as it was, which is what replay and minimisation need.

use super::table::{CALLS, CREATE, Driver, Kind, Name};
use crate::pattern::Pattern;
use crate::sys::uapi::P2PGPU_OP_FILL;
use std::collections::BTreeMap;

/// An open file of a sequence: which device it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub usize);

/// The files of a sequence: driver, and number of the device. One GPU is open twice.
pub const FILES: [(Driver, usize); 5] = [
    (Driver::Gpu, 0),
    (Driver::Gpu, 1),
    (Driver::Gpu, 0),
    (Driver::Nic, 0),
    (Driver::Nic, 1),
];

/// The value of a field or an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// This number
    Number(u64),
    /// What the step at this place of the sequence made
    Step(usize),
}

/// How the structure of an ioctl is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// As it should be
    Good,
    /// At an address that is nobody's
    Nowhere,
    /// Where it cannot be written
    ReadOnly,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// An ioctl of the table, with a value for each field
    Ioctl {
        /// Index in the table
        call: usize,
        /// The file
        file: FileId,
        /// A value for each field of the table, and then for each of its elements
        values: Vec<Value>,
        /// Where they are
        memory: Memory,
    },
    /// An ioctl that the driver may not know
    Unknown {
        /// The file
        file: FileId,
        /// The number
        request: u32,
    },
    /// GEM_CLOSE
    Close {
        /// The file
        file: FileId,
        /// The handle
        handle: Value,
    },
    /// PRIME export
    Export {
        /// The file
        file: FileId,
        /// The handle
        handle: Value,
        /// Flags, as the ioctl takes them
        flags: u32,
    },
    /// PRIME import
    Import {
        /// The file
        file: FileId,
        /// The dma-buf
        buffer: Value,
    },
    /// close() of a dma-buf
    CloseBuffer {
        /// The dma-buf
        buffer: Value,
    },
    /// mmap() of an object, or of a dma-buf
    Map {
        /// The file, for an object
        file: FileId,
        /// The object's place or the dma-buf
        what: Value,
        /// Bytes after the start
        offset: u64,
        /// Bytes
        len: usize,
        /// Shared, as it must be
        shared: bool,
    },
    /// munmap()
    Unmap {
        /// The mapping
        mapping: Value,
    },
    /// Reads or writes a mapping
    Touch {
        /// The mapping
        mapping: Value,
        /// Bytes after the start
        offset: u64,
        /// Writes it
        write: bool,
    },
    /// Begin or end of CPU access to a dma-buf
    Sync {
        /// The dma-buf
        buffer: Value,
        /// Flags, as the ioctl takes them
        flags: u64,
    },
    /// Closes a file with all that is in it and opens another of the same device
    Reopen {
        /// The file
        file: FileId,
    },
}

/// Random numbers, the same for the same seed.
#[derive(Debug)]
pub struct Random {
    pattern: Pattern,
    step: u64,
}

impl Random {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Self {
            pattern: Pattern(seed),
            step: 0,
        }
    }

    fn word(&mut self) -> u64 {
        self.step += 1;
        self.pattern.word(self.step)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.word() % limit.max(1) as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Bytes of a page.
const PAGE: u64 = 4096;
/// The flags of a PRIME export: O_CLOEXEC and O_RDWR, together or not, and an unknown one.
const EXPORT_FLAGS: [u32; 5] = [0x8_0002, 0x8_0002, 0x8_0000, 2, 0x10_0000];

/// Makes the steps of one sequence.
#[derive(Debug)]
pub struct Generator {
    random: Random,
    steps: Vec<Action>,
    /// What steps make, unless they fail: by kind and file.
    made: BTreeMap<(Name, FileId), Vec<usize>>,
}

/// The steps that seeds stand for: of each those up to a place in the sequence.
pub fn sequence(seeds: impl IntoIterator<Item = (u64, usize)>) -> Vec<Action> {
    let mut generator = Generator {
        random: Random::new(0),
        steps: Vec::new(),
        made: BTreeMap::new(),
    };
    for (seed, end) in seeds {
        generator.random = Random::new(seed);
        if generator.steps.is_empty() && !generator.random.one_in(4) {
            generator.connect();
        }
        while generator.steps.len() < end {
            generator.next();
        }
        generator.truncate(end);
    }
    generator.steps
}

impl Generator {
    fn push(&mut self, action: Action, makes: Option<(Name, FileId)>) -> usize {
        let at = self.steps.len();
        if let Some(place) = makes {
            self.made.entry(place).or_default().push(at);
        }
        self.steps.push(action);
        at
    }

    /// Forgets what is past a place.
    fn truncate(&mut self, end: usize) {
        self.steps.truncate(end);
        for places in self.made.values_mut() {
            places.retain(|at| *at < end);
        }
        self.made.retain(|_, places| !places.is_empty());
    }

    /// An ioctl with all fields right, but for those given by name.
    fn call(&mut self, name: &str, file: FileId, given: &[(&str, Value)]) -> usize {
        let index = CALLS
            .iter()
            .position(|call| call.name.ends_with(name))
            .unwrap_or_default();
        let values = CALLS[index]
            .fields
            .iter()
            .map(|field| {
                let found = given.iter().find(|(name, _)| *name == field.name);
                found.map_or(Value::Number(0), |(_, value)| *value)
            })
            .collect();
        self.ioctl(index, file, values, Memory::Good)
    }

    fn ioctl(&mut self, call: usize, file: FileId, values: Vec<Value>, memory: Memory) -> usize {
        let makes = CALLS[call]
            .fields
            .iter()
            .find_map(|field| match field.kind {
                // A buffer is the process's, whatever file it came from.
                Kind::Made(Name::Buffer) => Some((Name::Buffer, FileId(0))),
                Kind::Made(name) => Some((name, file)),
                _ => None,
            });
        let action = Action::Ioctl {
            call,
            file,
            values,
            memory,
        };
        self.push(action, makes)
    }

    /// Two objects that the NICs have registered, and a connected queue pair: what takes
    /// chance too long to find.
    fn connect(&mut self) {
        let pages = 1 + self.random.below(32) as u64;
        let mut pairs = [0; 2];
        for (end, pair) in pairs.iter_mut().enumerate() {
            let (gpu, nic) = (FileId(end), FileId(3 + end));
            let size = Value::Number(pages * PAGE);
            let placement = Value::Number(self.random.pick(&[0, 1, 1]));
            let given = [("size", size), ("placement", placement)];
            let object = self.call("GEM_CREATE", gpu, &given);
            let flags = Value::Number(self.random.pick(&[1, 1, 3, 5, 7]));
            let handle = Value::Step(object);
            self.call("SET_PEER", gpu, &[("handle", handle), ("flags", flags)]);
            let export = Action::Export {
                file: gpu,
                handle,
                flags: EXPORT_FLAGS[0],
            };
            let buffer = self.push(export, Some((Name::Buffer, FileId(0))));
            let (fd, access) = (Value::Step(buffer), Value::Number(7));
            let given = [("fd", fd), ("access", access), ("size", size)];
            self.call("REG_REGION", nic, &given);
            if self.random.one_in(2) {
                let what = self.call("GEM_MMAP_OFFSET", gpu, &[("handle", handle)]);
                let map = Action::Map {
                    file: gpu,
                    what: Value::Step(what),
                    offset: 0,
                    len: (pages * PAGE) as usize,
                    shared: true,
                };
                let map = self.push(map, Some((Name::Mapping, FileId(0))));
                let given = [
                    ("address", Value::Step(map)),
                    ("access", access),
                    ("size", size),
                ];
                self.call("REG_USER", nic, &given);
            }
            let entries = Value::Number(16);
            let given = [("send_entries", entries), ("recv_entries", entries)];
            *pair = self.call("CREATE_QP", nic, &given);
        }
        for end in 0..2 {
            let given = [
                ("qp", Value::Step(pairs[end])),
                ("remote_qp", Value::Step(pairs[1 - end])),
            ];
            self.call("CONNECT_QP", FileId(3 + end), &given);
        }
    }

    fn next(&mut self) {
        let file = FileId(self.random.below(FILES.len()));
        let gpu = FileId(self.random.below(3));
        match self.random.below(40) {
            0..23 => {
                let (driver, _) = FILES[file.0];
                let mut call = self.random.below(CALLS.len());
                while CALLS[call].driver != driver {
                    call = self.random.below(CALLS.len());
                }
                // Nothing happens without objects.
                if driver == Driver::Gpu && self.random.one_in(4) {
                    call = CREATE;
                }
                let mut values: Vec<_> = CALLS[call]
                    .fields
                    .iter()
                    .map(|field| self.value(field.kind, file))
                    .collect();
                self.elements(call, file, &mut values);
                let memory = match self.random.below(40) {
                    0 => Memory::Nowhere,
                    1 => Memory::ReadOnly,
                    _ => Memory::Good,
                };
                self.ioctl(call, file, values, memory);
            }
            23 => {
                let request = self.unknown();
                self.push(Action::Unknown { file, request }, None);
            }
            24 | 25 => {
                let handle = self.name(Name::Handle, gpu);
                self.push(Action::Close { file: gpu, handle }, None);
            }
            26..29 => {
                let handle = self.name(Name::Handle, gpu);
                let flags = self.random.pick(&EXPORT_FLAGS);
                let export = Action::Export {
                    file: gpu,
                    handle,
                    flags,
                };
                self.push(export, Some((Name::Buffer, FileId(0))));
            }
            29 | 30 => {
                let buffer = self.name(Name::Buffer, FileId(0));
                let import = Action::Import { file: gpu, buffer };
                self.push(import, Some((Name::Handle, gpu)));
            }
            31 => {
                let buffer = self.name(Name::Buffer, FileId(0));
                self.push(Action::CloseBuffer { buffer }, None);
            }
            32 | 33 => self.map(gpu),
            34 => {
                let mapping = self.name(Name::Mapping, FileId(0));
                self.push(Action::Unmap { mapping }, None);
            }
            35..38 => {
                let touch = Action::Touch {
                    mapping: self.name(Name::Mapping, FileId(0)),
                    offset: PAGE * self.random.below(40) as u64,
                    write: self.random.one_in(2),
                };
                self.push(touch, None);
            }
            38 => {
                let sync = Action::Sync {
                    buffer: self.name(Name::Buffer, FileId(0)),
                    flags: self.random.pick(&[1, 2, 3, 5, 6, 7, 0, 8]),
                };
                self.push(sync, None);
            }
            _ if self.random.one_in(3) => {
                self.push(Action::Reopen { file }, None);
            }
            _ => {}
        }
    }

    /// The elements of a call that takes some, and mostly their number.
    fn elements(&mut self, call: usize, file: FileId, values: &mut Vec<Value>) {
        let call = &CALLS[call];
        if call.elements.is_empty() {
            return;
        }
        let count = 1 + self.random.below(4);
        for _ in 0..count {
            let start = values.len();
            values.extend(call.elements.iter().map(|f| self.value(f.kind, file)));
            // What is not to be there for some operations is mostly not.
            let is_fill = values[start] == Value::Number(P2PGPU_OP_FILL.into());
            if is_fill && !self.random.one_in(8) {
                for (field, value) in call.elements.iter().zip(&mut values[start..]) {
                    if field.name.starts_with("src") {
                        *value = Value::Number(0);
                    }
                }
            }
        }
        let place = call.fields.iter().position(|f| f.kind == Kind::Count);
        if let Some(place) = place
            && !self.random.one_in(24)
        {
            values[place] = Value::Number(count as u64);
        }
    }

    fn map(&mut self, file: FileId) {
        let name = self.random.pick(&[Name::Place, Name::Place, Name::Buffer]);
        let what = match name {
            Name::Buffer => self.name(name, FileId(0)),
            _ => self.name(name, file),
        };
        let pages = self.random.pick(&[1, 1, 2, 8, 40]);
        let map = Action::Map {
            file,
            what,
            offset: self
                .random
                .pick(&[0, 0, 0, PAGE, 1 << 30, u64::MAX - PAGE + 1]),
            len: pages * PAGE as usize,
            shared: !self.random.one_in(10),
        };
        self.push(map, Some((Name::Mapping, FileId(0))));
    }

    /// A number near those that the drivers have, of another size or direction, or any.
    fn unknown(&mut self) -> u32 {
        let known = CALLS[self.random.below(CALLS.len())].request;
        match self.random.below(4) {
            0 => known ^ 1 << 16 << self.random.below(16),
            1 => known ^ 1 << self.random.below(8),
            2 => known & 0xffff,
            _ => self.random.word() as u32,
        }
    }

    /// Mostly something that exists there.
    fn name(&mut self, name: Name, file: FileId) -> Value {
        let wrong = match self.random.below(24) {
            0 => Some(self.random.word() >> self.random.pick(&[0, 32, 60])),
            1 => Some(self.random.pick(&[0, 1, u64::from(u32::MAX), 1 << 31])),
            _ => None,
        };
        let here = self.made.get(&(name, file)).map_or(&[][..], Vec::as_slice);
        match wrong {
            Some(number) => Value::Number(number),
            None if here.is_empty() => Value::Number(self.random.below(4) as u64),
            // What is new is more likely to be there still.
            None => {
                let back = self
                    .random
                    .below(here.len())
                    .min(self.random.below(here.len()));
                let here = &self.made[&(name, file)];
                Value::Step(here[here.len() - 1 - back])
            }
        }
    }

    fn value(&mut self, kind: Kind, file: FileId) -> Value {
        let random = &mut self.random;
        Value::Number(match kind {
            // These are the process's.
            Kind::Of(name @ (Name::Buffer | Name::Mapping)) => {
                return self.name(name, FileId(0));
            }
            Kind::Of(name) => return self.name(name, file),
            Kind::Far(name) => {
                let other = FileId(3 + random.below(2));
                return self.name(name, other);
            }
            Kind::Zero => match random.below(40) {
                0 => random.pick(&[1, 1 << 31, u64::MAX]),
                _ => 0,
            },
            Kind::OneOf(values) => match random.below(24) {
                0 => random.word(),
                1 => values.len() as u64,
                _ => random.pick(values).into(),
            },
            Kind::Flags(mask) => match random.below(24) {
                0 => random.word(),
                1 => 1 << random.below(32),
                // Combinations that make sense, more often than not.
                _ if random.one_in(2) => (random.word() & u64::from(mask)) | 1,
                _ => random.word() & u64::from(mask),
            },
            Kind::Offset => match random.below(12) {
                0 => random.pick(&[1, 8, 4095, 1 << 31, 1 << 63, u64::MAX, u64::MAX - 4095]),
                1..4 => PAGE * random.below(40) as u64,
                _ => 0,
            },
            Kind::Size => match random.below(16) {
                0 => random.pick(&[0, 1, 4095, 1 << 31, 1 << 40, 1 << 63, u64::MAX]),
                // More than the aperture, or a good part of it.
                1 => random.pick(&[4 << 20, 20 << 20]),
                2..8 => PAGE,
                _ => PAGE * (1 + random.below(32)) as u64,
            },
            Kind::Entries => {
                random.pick(&[4, 4, 16, 16, 64, 2048, 0, 3, 4096, u64::from(u32::MAX)])
            }
            Kind::Capacity => random.pick(&[1, 4, 64, 4096, 4097, 0]),
            Kind::Wait => random.pick(&[0, 0, 1000, 2_000_000]),
            Kind::Elements => random.pick(&[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 8]),
            Kind::Count => random.pick(&[0, 1, 64, 65, u64::from(u32::MAX)]),
            Kind::Array => random.pick(&[1, 1, 1, 1, 1, 1, 0, 8]),
            Kind::Usually(usual) => match random.below(24) {
                0 => random.word(),
                1 => random.pick(&[1, 7, 8, 31, 32, 255, 256]),
                _ => random.pick(usual).into(),
            },
            Kind::Free | Kind::Out | Kind::Made(_) => random.word(),
        })
    }
}
