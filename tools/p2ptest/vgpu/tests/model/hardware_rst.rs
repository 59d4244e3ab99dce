// SPDX-License-Identifier: GPL-2.0

//! The tables of the documentation against `regs.rs`, both ways.

use std::path::Path;

use vgpu::regs::{self, Access, Counter, Global, RingReg, Row};

/// The text of the page. Where that is is asked at run time: what one checkout has
/// compiled may run for another one.
fn page() -> String {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("the package's folder");
    let top = Path::new(&package).join("../../..");
    std::fs::read_to_string(top.join("Documentation/gpu/p2pgpu/hardware.rst")).unwrap()
}

/// The lines of a section of the GPU's chapter, up to the next title.
fn section(title: &str) -> Vec<String> {
    let text = page();
    let lines: Vec<&str> = text.lines().collect();
    let is_rule = |line: &str| {
        line.len() > 2
            && ["=", "-", "~"]
                .iter()
                .any(|c| line.chars().all(|l| l == c.chars().next().unwrap()))
    };
    let gpu = lines
        .iter()
        .position(|line| *line == "The GPU")
        .expect("the GPU's chapter");
    let nic = lines
        .iter()
        .position(|line| *line == "The NIC")
        .expect("the NIC's chapter");
    let start = (gpu..nic)
        .find(|n| lines[*n] == title && is_rule(lines[n + 1]))
        .unwrap_or_else(|| panic!("no section {title}"));
    let end = (start + 2..nic)
        .find(|n| {
            !lines[*n].is_empty() && !lines[*n].contains(' ') && is_rule(lines[n + 1])
                || lines[*n].len() == lines[n + 1].len()
                    && is_rule(lines[n + 1])
                    && !lines[*n].contains("==")
        })
        .unwrap_or(nic);
    lines[start + 2..end]
        .iter()
        .map(|line| (*line).to_owned())
        .collect()
}

/// Rows that begin with a number: the number, then the words.
fn rows(lines: &[String]) -> Vec<(u64, Vec<String>)> {
    lines
        .iter()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let first = words.next().filter(|_| !line.starts_with(' '))?;
            let number = match first.strip_prefix("0x") {
                Some(hex) => u64::from_str_radix(hex, 16).ok()?,
                None => first.parse().ok()?,
            };
            Some((number, words.map(str::to_owned).collect()))
        })
        .collect()
}

/// (offset, bits, name, access) of a table of registers.
fn registers(lines: &[String]) -> Vec<(u64, u32, String, String)> {
    rows(lines)
        .into_iter()
        .filter_map(|(offset, words)| {
            let bits = words.first()?.parse().ok()?;
            Some((
                offset,
                bits,
                words.get(1)?.clone(),
                words.get(2).cloned().unwrap_or_default(),
            ))
        })
        .collect()
}

fn expected<T>(table: &[Row<T>]) -> Vec<(u64, u32, String, String)> {
    let access = |access| match access {
        Access::Ro => "RO",
        Access::Wo => "WO",
        Access::Rw => "RW",
    };
    table
        .iter()
        .map(|row| {
            (
                row.offset,
                row.bits,
                row.name.to_owned(),
                access(row.access).to_owned(),
            )
        })
        .collect()
}

fn fields(lines: &[String]) -> Vec<(String, usize, u32)> {
    rows(lines)
        .into_iter()
        .filter_map(|(offset, words)| {
            let bits = match words.first()?.as_str() {
                "-" => 0,
                bits => bits.parse().ok()?,
            };
            Some((words.get(1)?.clone(), offset as usize, bits))
        })
        .filter(|(name, _, bits)| name != "reserved" || *bits == 0)
        .collect()
}

fn named(fields: &[regs::Field]) -> Vec<(String, usize, u32)> {
    fields
        .iter()
        .map(|(name, offset, bits)| ((*name).to_owned(), *offset, *bits))
        .collect()
}

fn numbered(lines: &[String]) -> Vec<(u64, String)> {
    rows(lines)
        .into_iter()
        .filter_map(|(n, words)| Some((n, words.first()?.clone())))
        .collect()
}

#[test]
fn registers_agree() {
    let documented = registers(&section("Registers (BAR0, 4 KiB)"));
    let split = documented.iter().position(|row| row.2 == "BASE").unwrap();
    let (global, ring) = documented.split_at(split);
    let global: Vec<_> = global
        .iter()
        .filter(|row| row.2 != "counters")
        .cloned()
        .collect();
    assert_eq!(global, expected(Global::ALL));
    assert_eq!(ring, expected(RingReg::ALL));
}

#[test]
fn ring_places_and_constants_agree() {
    let lines = section("Registers (BAR0, 4 KiB)");
    let text = lines.join("\n");
    for ring in 0..regs::RINGS {
        let offset = regs::RING_BASE + regs::RING_STRIDE * ring as u64;
        assert!(
            text.contains(&format!("{offset:#05x}  -     RING[{ring}]")),
            "{offset:#x}"
        );
    }
    assert!(text.contains(&format!("RO     {:#010x} (\"P2PG\")", regs::ID)));
    assert!(text.contains("SIZE           RW     log2 of the number of commands, 4 to 12"));
    assert_eq!((regs::RING_SIZE_MIN, regs::RING_SIZE_MAX), (4, 12));
    let states = ["disabled", "running", "halted", "stopping"];
    let states: Vec<String> = states
        .iter()
        .enumerate()
        .map(|(n, s)| format!("{n} {s}"))
        .collect();
    assert!(text.contains(&states.join(", ")));
    let state = [
        regs::RingState::Disabled,
        regs::RingState::Running,
        regs::RingState::Halted,
    ];
    assert_eq!(state.map(|state| state as u32), [0, 1, 2]);
}

#[test]
fn counters_agree() {
    let documented = numbered(&section("Counters"));
    let expected: Vec<_> = Counter::ALL
        .iter()
        .map(|row| (row.offset, row.name.to_owned()))
        .collect();
    assert_eq!(documented, expected);
    // The driver and the fake machine of these tests count on this order.
    assert!(
        Counter::ALL
            .iter()
            .all(|row| row.offset == 0x100 + 8 * row.register as u64)
    );
}

#[test]
fn status_command_and_segment_agree() {
    assert_eq!(fields(&section("Rings")), named(regs::STATUS_FIELDS));
    let lines = section("Commands");
    let all = fields(&lines);
    let split = all.iter().position(|field| field.0 == "SRC").unwrap();
    let (command, segment) = all.split_at(split);
    assert_eq!(command, named(regs::COMMAND_FIELDS));
    assert_eq!(segment, named(regs::SEGMENT_FIELDS));

    let opcodes: Vec<_> = numbered(&lines)
        .into_iter()
        .filter(|(_, name)| name.chars().all(|c| c.is_ascii_uppercase()))
        .collect();
    let expected: Vec<_> = regs::OPCODES
        .iter()
        .map(|(n, name)| (u64::from(*n), (*name).to_owned()))
        .collect();
    assert_eq!(opcodes, expected);
}

#[test]
fn errors_and_faults_agree() {
    let errors: Vec<_> = regs::ERRORS
        .iter()
        .map(|(n, name)| (*n as u64, (*name).to_owned()))
        .collect();
    assert_eq!(numbered(&section("Errors")), errors);
    let faults: Vec<_> = regs::FAULT_KINDS
        .iter()
        .map(|(n, name)| (*n as u64, (*name).to_owned()))
        .collect();
    assert_eq!(numbered(&section("Faults")), faults);
}

#[test]
fn the_pte_agrees() {
    let text = section("The aperture").join("\n");
    assert!(text.contains("[0]     VALID "));
    assert!(text.contains("[51:12] PAGE "));
    assert_eq!(
        (regs::PTE_VALID, regs::PTE_PAGE),
        (1, 0x000f_ffff_ffff_f000)
    );
    let poison = format!("poison byte {:#x}", regs::POISON);
    assert!(section("Modes").join("\n").contains(&poison));
    let log = format!("The log keeps {} entries", regs::FAULT_LOG);
    assert!(section("Faults").join("\n").contains(&log));
}
