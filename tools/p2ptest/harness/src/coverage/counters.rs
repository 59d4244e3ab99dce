// SPDX-License-Identifier: GPL-2.0
//! The counters of a kernel that counts lines: where they are in its image and its
//! modules, what the guests' memory held of them, and the raw profiles that LLVM's tools read.
//!
//! LLVM's InstrProfData.inc has the layout, here that of version 10. A user's program
//! writes such a file itself when it ends; a kernel has no library that would.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use object::read::elf::{ElfFile64, ElfSection64};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget};

use crate::content::write_atomic;
use crate::kernel::Kernel;

/// The counters, 64 bits each.
const COUNTERS: &str = "__llvm_prf_cnts";
/// One record for each function: what it is, and where its counters are.
const DATA: &str = "__llvm_prf_data";
/// The functions' names.
const NAMES: &str = "__llvm_prf_names";

/// Version of a raw profile.
const VERSION: u64 = 10;
/// What it starts with, where addresses have 64 bits: "lprofr" between two other bytes.
const MAGIC: u64 = 0xff6c_7072_6f66_7281;
/// The last of the kinds of values that are counted beside lines; there are none.
const VALUE_KIND_LAST: u64 = 2;
/// Bytes of a record in [`DATA`].
const RECORD: usize = 64;
/// In it: the distance from the record to its first counter.
const COUNTER_DISTANCE: usize = 16;
/// In it: how many counters there are, 32 bits.
const COUNTER_COUNT: usize = 48;
/// Bytes of a counter.
const COUNTER: usize = size_of::<u64>();

/// The name of the part that is no module.
const KERNEL: &str = "vmlinux";

/// What one guest's memory holds, by part.
pub type Snapshot = BTreeMap<String, Vec<u64>>;

/// Where a part's counters are in a guest's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// The module's name, or another one for the kernel itself.
    pub name: String,
    /// The kernel's address of the first one; the guest knows that of a module's.
    pub address: Option<u64>,
    /// How many there are.
    pub count: usize,
}

impl Counted {
    /// The file that has the address of a module's counters.
    fn section(&self) -> String {
        format!("/sys/module/{}/sections/{COUNTERS}", self.name)
    }

    /// How many bytes they take.
    pub fn size(&self) -> usize {
        self.count * COUNTER
    }
}

/// All counters of a kernel, summed up over its guests.
#[derive(Debug)]
pub struct Counters {
    parts: Vec<Part>,
    files: Vec<PathBuf>,
    totals: Mutex<Snapshot>,
}

/// The kernel's image, or a module.
#[derive(Debug)]
struct Part {
    counted: Counted,
    /// The records, as in the memory of a kernel whose records are at 0.
    data: Vec<u8>,
    /// The counters' address less that of the records.
    distance: u64,
    names: Vec<u8>,
}

impl Counters {
    /// Those of a kernel that was built with them.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, or is not as this module's documentation says.
    pub fn of(kernel: &Kernel) -> Result<Self> {
        let counting = kernel.counting.as_ref();
        let counting = counting.context("the kernel was built without counters")?;
        let mut parts = vec![Part::of_kernel(&counting.vmlinux)?];
        let mut files = counting.objects.clone();
        for module in &kernel.modules {
            if let Some(part) = Part::of_module(module)? {
                parts.push(part);
                files.push(module.clone());
            }
        }
        Ok(Self {
            parts,
            files,
            totals: Mutex::default(),
        })
    }

    /// What tells a guest's addresses, line by line, when it is run there.
    pub fn question(&self) -> Vec<String> {
        let modules = self.parts.iter().filter(|p| p.counted.address.is_none());
        ["/bin/grep", "-H", "."]
            .map(str::to_owned)
            .into_iter()
            .chain(modules.map(|p| p.counted.section()))
            .collect()
    }

    /// Address and size of each part in a guest that answers so. A module that is not
    /// loaded has none.
    pub fn places(&self, answer: &[String]) -> Vec<(u64, Counted)> {
        let told = |counted: &Counted| {
            let start = counted.section() + ":0x";
            let digits = answer.iter().find_map(|line| line.strip_prefix(&start))?;
            u64::from_str_radix(digits.trim(), 16).ok()
        };
        let counted = self.parts.iter().map(|part| &part.counted);
        counted
            .filter_map(|c| Some((c.address.or_else(|| told(c))?, c.clone())))
            .collect()
    }

    /// Adds what a guest's memory holds now; `last` is what it held before.
    pub fn add(&self, last: &mut Snapshot, now: Snapshot) {
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, values) in now {
            let before = last.remove(&name).unwrap_or_default();
            let total = totals.entry(name.clone()).or_default();
            total.resize(total.len().max(values.len()), 0);
            for (at, (total, value)) in total.iter_mut().zip(&values).enumerate() {
                let before = before.get(at).copied().unwrap_or(0);
                // A module that was loaded again has begun anew.
                *total += value.checked_sub(before).unwrap_or(*value);
            }
            last.insert(name, values);
        }
    }

    /// The files that have the mapping from counters to lines.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(PathBuf::as_path)
    }

    /// Writes a raw profile for each part, into this folder.
    ///
    /// # Errors
    ///
    /// When one cannot be written.
    pub fn write(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let mut written = Vec::new();
        for part in &self.parts {
            let name = &part.counted.name;
            let path = folder.join(format!("{name}.profraw"));
            let none = Vec::new();
            write_atomic(&path, &part.profile(totals.get(name).unwrap_or(&none)))?;
            written.push(path);
        }
        Ok(written)
    }
}

impl Part {
    /// What counts in the kernel itself. Its linker script says where that is.
    fn of_kernel(path: &Path) -> Result<Self> {
        let context = || format!("reading {}", path.display());
        let bytes = fs::read(path).with_context(context)?;
        let file: ElfFile64<'_> = ElfFile64::parse(&*bytes).with_context(context)?;
        let address = |symbol: String| {
            let found = file.symbol_by_name(&symbol);
            let found = found.with_context(|| format!("{} has no {symbol}", path.display()));
            found.map(|symbol| symbol.address())
        };
        let bounds = |name: &str| -> Result<(u64, u64)> {
            let start = address(format!("__start_{name}"))?;
            let stop = address(format!("__stop_{name}"))?;
            let size = stop
                .checked_sub(start)
                .context("it stops before it starts")?;
            Ok((start, size))
        };
        let content = |name: &str| {
            let (start, size) = bounds(name)?;
            let found = file
                .sections()
                .find_map(|section| section.data_range(start, size).ok().flatten());
            found.map(<[u8]>::to_vec).with_context(context)
        };
        let (counters, size) = bounds(COUNTERS)?;
        let (records, _) = bounds(DATA)?;
        Self {
            counted: Counted {
                name: KERNEL.to_owned(),
                address: Some(counters),
                count: usize::try_from(size)? / COUNTER,
            },
            data: content(DATA)?,
            distance: counters.wrapping_sub(records),
            names: content(NAMES)?,
        }
        .checked()
        .with_context(context)
    }

    /// What counts in a module; nothing if nothing does.
    fn of_module(path: &Path) -> Result<Option<Self>> {
        let context = || format!("reading {}", path.display());
        let bytes = fs::read(path).with_context(context)?;
        let file: ElfFile64<'_> = ElfFile64::parse(&*bytes).with_context(context)?;
        let Some(counters) = file.section_by_name(COUNTERS) else {
            return Ok(None);
        };
        let section = |name: &str| file.section_by_name(name).with_context(context);
        let records = section(DATA)?;
        let mut data = records.data()?.to_vec();
        relocate(&file, &counters, &records, &mut data).with_context(context)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let part = Self {
            counted: Counted {
                // As the kernel spells it.
                name: name.replace('-', "_"),
                address: None,
                count: usize::try_from(counters.size())? / COUNTER,
            },
            data,
            distance: 0,
            names: section(NAMES)?.data()?.to_vec(),
        };
        part.checked().with_context(context).map(Some)
    }

    /// Each counter has a record, unless the compiler's format is another one.
    fn checked(self) -> Result<Self> {
        let (count, records) = (self.counted.count, self.data.chunks(RECORD));
        let told: usize = records.map(|r| counters_of(r).unwrap_or(0)).sum();
        ensure!(
            self.data.len().is_multiple_of(RECORD) && told == count,
            "{told} of {count} counters have a record"
        );
        Ok(self)
    }

    /// A raw profile with these counters; those that are missing were never reached.
    fn profile(&self, counters: &[u64]) -> Vec<u8> {
        let records = self.data.len() / RECORD;
        let header = [
            MAGIC,
            VERSION,
            0, // binary ids
            records as u64,
            0, // padding
            self.counted.count as u64,
            0,
            0, // bitmaps
            0,
            self.names.len() as u64,
            self.distance,
            0,
            0,
            0, // virtual tables
            0,
            VALUE_KIND_LAST,
        ];
        let mut bytes: Vec<u8> = header.iter().flat_map(|n| n.to_le_bytes()).collect();
        bytes.extend(&self.data);
        let rest = std::iter::repeat(&0);
        let counters = counters.iter().chain(rest).take(self.counted.count);
        bytes.extend(counters.flat_map(|n| n.to_le_bytes()));
        bytes.extend(&self.names);
        bytes.resize(bytes.len().next_multiple_of(COUNTER), 0);
        bytes
    }
}

fn counters_of(record: &[u8]) -> Option<usize> {
    let bytes = record.get(COUNTER_COUNT..COUNTER_COUNT + 4)?;
    usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
}

/// Does what the kernel's loader does with the records of a module, as far as they are
/// needed: the distances to the counters, as if both sections were at 0.
fn relocate(
    file: &ElfFile64<'_>,
    counters: &ElfSection64<'_, '_>,
    records: &ElfSection64<'_, '_>,
    data: &mut [u8],
) -> Result<()> {
    for (at, relocation) in records.relocations() {
        let offset = usize::try_from(at)?;
        if offset % RECORD != COUNTER_DISTANCE {
            continue;
        }
        let RelocationTarget::Symbol(symbol) = relocation.target() else {
            continue;
        };
        let symbol = file.symbol_by_index(symbol)?;
        ensure!(
            symbol.section_index() == Some(counters.index()),
            "a record's counters are elsewhere"
        );
        let target = symbol.address().wrapping_add_signed(relocation.addend());
        let field = data
            .get_mut(offset..offset + COUNTER)
            .context("a relocation beyond the records")?;
        field.copy_from_slice(&target.wrapping_sub(at).to_le_bytes());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    use object::elf::R_X86_64_PC64;
    use object::write::{Object, Relocation, SectionId, Symbol, SymbolSection};
    use object::{
        Architecture, BinaryFormat, Endianness, RelocationFlags, SectionKind, SymbolFlags,
        SymbolKind, SymbolScope,
    };

    fn elf() -> Object<'static> {
        Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little)
    }

    fn section(file: &mut Object<'_>, name: &str, bytes: &[u8]) -> SectionId {
        let id = file.add_section(Vec::new(), name.into(), SectionKind::Data);
        file.append_section_data(id, bytes, 8);
        id
    }

    fn symbol(name: &str, section: SectionId, value: u64) -> Symbol {
        Symbol {
            name: name.into(),
            value,
            size: 0,
            kind: SymbolKind::Data,
            scope: SymbolScope::Linkage,
            weak: false,
            section: SymbolSection::Section(section),
            flags: SymbolFlags::None,
        }
    }

    /// Records of two functions with 1 and 2 counters.
    fn records() -> Vec<u8> {
        let mut records = vec![0; 2 * RECORD];
        records[COUNTER_COUNT] = 1;
        records[RECORD + COUNTER_COUNT] = 2;
        records
    }

    fn written(file: &Object<'_>, folder: &tempfile::TempDir, name: &str) -> PathBuf {
        let path = folder.path().join(name);
        fs::write(&path, file.write().unwrap()).unwrap();
        path
    }

    #[test]
    fn a_module_has_sections() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = elf();
        section(&mut file, ".text", &[0; 5]);
        let path = written(&file, &folder, "none.ko");
        assert!(Part::of_module(&path).unwrap().is_none());

        let counters = section(&mut file, COUNTERS, &[0; 24]);
        let data = section(&mut file, DATA, &records());
        section(&mut file, NAMES, b"names");
        for (record, counter) in [(0, 16), (1, 0)] {
            let symbol = file.add_symbol(symbol("", counters, counter));
            let relocation = Relocation {
                offset: (record * RECORD + COUNTER_DISTANCE) as u64,
                symbol,
                // The distance is from the record, which is before its field.
                addend: COUNTER_DISTANCE as i64,
                flags: RelocationFlags::Elf {
                    r_type: R_X86_64_PC64,
                },
            };
            file.add_relocation(data, relocation).unwrap();
        }
        let path = written(&file, &folder, "p2p-x.ko");
        let part = Part::of_module(&path).unwrap().unwrap();
        assert_eq!(
            (part.counted.name.as_str(), part.counted.count),
            ("p2p_x", 3)
        );
        assert_eq!((part.counted.address, part.distance), (None, 0));
        assert_eq!(part.names, b"names");
        let distance = |record: usize| {
            let at = record * RECORD + COUNTER_DISTANCE;
            i64::from_le_bytes(part.data[at..at + 8].try_into().unwrap())
        };
        assert_eq!((distance(0), distance(1)), (16, -64));
    }

    #[test]
    fn the_kernel_has_symbols() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = elf();
        let mut bytes = vec![0; 32];
        bytes.extend(records());
        bytes.extend(b"names");
        let data = section(&mut file, ".data", &bytes);
        let end = bytes.len() as u64;
        for (name, start, stop) in [
            (COUNTERS, 8, 32),
            (DATA, 32, end - 5),
            (NAMES, end - 5, end),
        ] {
            file.add_symbol(symbol(&format!("__start_{name}"), data, start));
            file.add_symbol(symbol(&format!("__stop_{name}"), data, stop));
        }
        let path = written(&file, &folder, "vmlinux");
        let part = Part::of_kernel(&path).unwrap();
        assert_eq!((part.counted.address, part.counted.count), (Some(8), 3));
        assert_eq!(part.distance, 8u64.wrapping_sub(32));
        assert_eq!((part.data, part.names), (records(), b"names".to_vec()));

        let path = written(&elf(), &folder, "without");
        assert!(Part::of_kernel(&path).is_err());
    }

    #[test]
    fn another_format_is_refused() {
        let part = |count| Part {
            counted: Counted {
                name: KERNEL.into(),
                address: None,
                count,
            },
            data: records(),
            distance: 0,
            names: Vec::new(),
        };
        assert!(part(3).checked().is_ok());
        assert!(part(4).checked().is_err());
    }

    fn counters() -> Counters {
        let mut data = vec![0; RECORD];
        data[COUNTER_COUNT] = 3;
        Counters {
            parts: vec![Part {
                counted: Counted {
                    name: "m".into(),
                    address: None,
                    count: 3,
                },
                data,
                distance: 7,
                names: b"names".to_vec(),
            }],
            files: Vec::new(),
            totals: Mutex::default(),
        }
    }

    fn told(values: &[u64]) -> Snapshot {
        BTreeMap::from([("m".to_owned(), values.to_vec())])
    }

    #[test]
    fn guests_are_summed_up() {
        let counters = counters();
        let total = || counters.totals.lock().unwrap().get("m").cloned();
        let (mut first, mut second) = (Snapshot::new(), Snapshot::new());
        counters.add(&mut first, told(&[1, 0, 5]));
        counters.add(&mut first, told(&[3, 0, 5]));
        counters.add(&mut second, told(&[0, 1, 0]));
        assert_eq!(total().unwrap(), [3, 1, 5]);
        // Not loaded for a while, then loaded again.
        counters.add(&mut first, told(&[]));
        counters.add(&mut first, told(&[2, 0, 0]));
        assert_eq!(total().unwrap(), [5, 1, 5]);
        counters.add(&mut first, told(&[1, 0, 0]));
        assert_eq!(total().unwrap(), [6, 1, 5]);
    }

    #[test]
    fn a_guest_tells_where_a_module_is() {
        let mut counters = counters();
        let kernel = Counted {
            name: KERNEL.into(),
            address: Some(0xffff_ffff_8100_0000),
            count: 1,
        };
        counters.parts.push(Part {
            counted: kernel.clone(),
            data: Vec::new(),
            distance: 0,
            names: Vec::new(),
        });
        let module = counters.parts[0].counted.clone();
        let section = "/sys/module/m/sections/__llvm_prf_cnts";
        assert_eq!(counters.question(), ["/bin/grep", "-H", ".", section]);
        let answer = [format!("{section}:0xffffffffc0001000")];
        let both = [
            (0xffff_ffff_c000_1000, module),
            (0xffff_ffff_8100_0000, kernel),
        ];
        assert_eq!(counters.places(&answer), both);
        let none = [format!("grep: {section}: No such file or directory")];
        assert_eq!(counters.places(&none), both[1..]);
        assert_eq!(both[0].1.size(), 24);
    }

    #[test]
    fn a_profile_is_as_long_as_its_header_says() {
        let counters = counters();
        let word = |bytes: &[u8], at: usize| {
            u64::from_le_bytes(bytes[at * 8..at * 8 + 8].try_into().unwrap())
        };
        for values in [&[4, 5, 6][..], &[4]] {
            let bytes = counters.parts[0].profile(values);
            assert_eq!(bytes.len(), 16 * 8 + RECORD + 3 * 8 + 8);
            assert_eq!((word(&bytes, 0), word(&bytes, 1)), (MAGIC, VERSION));
            assert_eq!((word(&bytes, 3), word(&bytes, 5)), (1, 3));
            assert_eq!((word(&bytes, 9), word(&bytes, 10)), (5, 7));
            assert_eq!(word(&bytes, 16 + RECORD / 8), 4);
        }
        assert_eq!(counters_of(&counters.parts[0].data), Some(3));
        assert_eq!(counters_of(&[]), None);
    }
}
