// SPDX-License-Identifier: GPL-2.0

//! The numbers of `regs.rs` and of hardware.rst are the same.

use std::collections::BTreeMap;

use vnic::regs;

const PAGE: &str = include_str!("../../../../Documentation/gpu/p2pgpu/hardware.rst");

/// The part of the page between the title `from` and the title `to`.
fn section<'a>(from: &str, to: &str) -> &'a str {
    let start = PAGE.find(&format!("\n{from}\n")).expect(from);
    let rest = &PAGE[start + 1..];
    rest.find(&format!("\n{to}\n"))
        .map_or(rest, |end| &rest[..end])
}

fn number(word: &str) -> Option<u64> {
    match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => word.parse().ok(),
    }
}

/// Rows "number [columns...] NAME ...": the name is in column `column`.
fn table(text: &str, column: usize) -> BTreeMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let value = number(words.next()?)?;
            let name = words.nth(column - 1)?;
            let upper = name
                .chars()
                .all(|c| c.is_ascii_uppercase() || "_[]0123456789".contains(c));
            (upper && name.starts_with(|c: char| c.is_ascii_uppercase()))
                .then(|| (name.split('[').next().unwrap_or(name).to_owned(), value))
        })
        .collect()
}

fn names(list: &[(&str, u64)]) -> BTreeMap<String, u64> {
    list.iter()
        .map(|&(name, value)| (name.to_owned(), value))
        .collect()
}

macro_rules! named {
    ($($name:ident),* $(,)?) => { names(&[$((stringify!($name), u64::from(regs::$name))),*]) };
}

#[test]
fn registers_agree() {
    let text = section("Registers (BAR0, 64 KiB)", "Mailbox");
    let expected = named!(
        ID,
        VERSION,
        FEATURES,
        STATUS,
        MAX_REGIONS,
        MAX_QUEUE_PAIRS,
        MAX_SEGMENTS,
        CONTROL,
        MAILBOX_ADDR,
        MAILBOX_DOORBELL,
        EVENT_ADDR,
        EVENT_SIZE,
        EVENT_HEAD,
        DOORBELLS,
    );
    assert_eq!(table(text, 2), expected);
    let flat: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for (name, offset) in [
        ("SEND_TAIL", regs::SEND_TAIL),
        ("RECV_TAIL", regs::RECV_TAIL),
        ("CQ_HEAD", regs::CQ_HEAD),
    ] {
        assert!(text.contains(&format!("+{offset} {name}")), "{name}");
    }
    for (name, bit) in [
        ("READY", regs::STATUS_READY),
        ("RESETTING", regs::STATUS_RESETTING),
        ("LINK_UP", regs::STATUS_LINK_UP),
        ("RESET", regs::CONTROL_RESET),
    ] {
        let bit = format!("bit {} {name}", bit.trailing_zeros());
        assert!(
            flat.contains(&format!("{bit} ")) || flat.contains(&format!("{bit},")),
            "{name}"
        );
    }
    for (name, value) in [
        ("MAX_REGIONS", regs::MAX_REGIONS_VALUE),
        ("MAX_QUEUE_PAIRS", regs::MAX_QUEUE_PAIRS_VALUE),
        ("MAX_SEGMENTS", regs::MAX_SEGMENTS_VALUE),
    ] {
        let row = text
            .lines()
            .find(|line| line.contains(&format!(" {name} ")))
            .unwrap();
        assert!(row.ends_with(&format!(" {value}")), "{row}");
    }
    assert!(text.contains(&format!("0x{:x}", regs::ID_VALUE)));
}

#[test]
fn commands_and_errors_agree() {
    let text = section("Mailbox", "Queue pairs");
    let expected = named!(
        MR_CREATE,
        MR_MAP,
        MR_INVALIDATE,
        MR_DESTROY,
        QP_CREATE,
        QP_CONNECT,
        QP_DESTROY
    );
    let ops: BTreeMap<_, _> = table(text, 1).into_iter().collect();
    assert_eq!(ops, expected);
    let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for (name, value) in [
        ("BAD_COMMAND", regs::BAD_COMMAND),
        ("BAD_INDEX", regs::BAD_INDEX),
        ("BAD_ARGUMENT", regs::BAD_ARGUMENT),
        ("DMA_ERROR", regs::MAILBOX_DMA_ERROR),
        ("LOCAL_WRITE", regs::LOCAL_WRITE),
        ("REMOTE_READ", regs::REMOTE_READ),
        ("REMOTE_WRITE", regs::REMOTE_WRITE),
    ] {
        assert!(text.contains(&format!("{value} {name}")), "{name}");
    }
}

#[test]
fn completions_agree() {
    let text = section("Queue pairs", "Invalid regions");
    let expected = named!(
        LOCAL_ACCESS,
        REMOTE_ACCESS,
        LENGTH,
        REVOKED,
        FLUSHED,
        LINK_DOWN,
        DMA_ERROR,
        BAD_REQUEST,
    );
    let errors = &text[text.find("A completion queue without room").unwrap()..];
    assert_eq!(table(errors, 1), expected);
    for (name, value) in [
        ("WRITE", regs::WRITE),
        ("READ", regs::READ),
        ("SEND", regs::SEND),
    ] {
        assert!(text.contains(&format!("{value} {name}")), "{name}");
    }
    assert!(text.contains(&format!("{} RECV", regs::RECV)));
    let fields = table(text, 2);
    assert_eq!(fields["GENERATION"], regs::GENERATION as u64);
}

#[test]
fn counters_agree() {
    let text = section("NIC counters", "Reset");
    let expected: BTreeMap<_, _> = vnic::NAMES
        .iter()
        .map(|&(counter, name)| (name.to_owned(), regs::COUNTERS + 8 * counter as u64))
        .collect();
    assert_eq!(table(text, 1), expected);
}

#[test]
fn identity_agrees() {
    let row = PAGE.lines().find(|line| line.starts_with("NIC  ")).unwrap();
    let words: Vec<_> = row.split_whitespace().collect();
    assert_eq!(number(words[1]), Some(regs::VENDOR.into()));
    assert_eq!(number(words[2]), Some(regs::DEVICE.into()));
    assert_eq!(number(words[3]), Some(regs::CLASS.into()));
}
