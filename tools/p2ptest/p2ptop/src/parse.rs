// SPDX-License-Identifier: GPL-2.0
//! The files that the driver shows of a device: text in, types out. Any text is
//! either understood or an error that names the line.

use crate::state::State;
use std::collections::BTreeMap;
use thiserror::Error;

/// Names and numbers, in the order of the names.
pub type Numbers = BTreeMap<String, u64>;

/// Why a text is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Malformed {
    /// There is nothing: the driver shows that of a device that is being unbound
    #[error("it is empty")]
    Empty,
    /// A line that is not understood
    #[error("line {number} is not understood: {line:?}")]
    Line {
        /// From 1
        number: usize,
        /// The line's start
        line: String,
    },
    /// A name that there must be, and is not
    #[error("it has no {0}")]
    Missing(&'static str),
    /// A name that is there twice
    #[error("it has {0} twice")]
    Twice(String),
    /// A map that is cut off, or longer than it says
    #[error("it shows {found} slots and says {stated}")]
    Count {
        /// Characters of the map
        found: u64,
        /// What the first line says
        stated: u64,
    },
}

/// Characters of a line that an error shows.
const SHOWN: usize = 60;

fn bad_line(index: usize, line: &str) -> Malformed {
    Malformed::Line {
        number: index + 1,
        line: line.chars().take(SHOWN).collect(),
    }
}

/// An aperture, slot by slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aperture {
    /// Bytes of a slot
    pub slot_size: u64,
    /// The state of each slot
    pub slots: Vec<State>,
}

/// Reads `aperture`: a first line `slots N size BYTES`, what the characters mean
/// after a colon, then a character a slot in lines of any length.
pub fn aperture(text: &str) -> Result<Aperture, Malformed> {
    let mut lines = text.lines().enumerate();
    let (_, first) = lines.next().ok_or(Malformed::Empty)?;
    let (stated, slot_size) = aperture_head(first).ok_or_else(|| bad_line(0, first))?;
    let mut slots = Vec::new();
    for (index, line) in lines {
        for symbol in line.chars() {
            slots.push(State::of_symbol(symbol).ok_or_else(|| bad_line(index, line))?);
        }
    }
    let found = slots.len() as u64;
    if found != stated {
        return Err(Malformed::Count { found, stated });
    }
    Ok(Aperture { slot_size, slots })
}

fn aperture_head(line: &str) -> Option<(u64, u64)> {
    let (head, _legend) = line.split_once(':')?;
    let words: Vec<_> = head.split_whitespace().collect();
    let ["slots", slots, "size", size] = words[..] else {
        return None;
    };
    let (slots, size) = (slots.parse().ok()?, size.parse().ok()?);
    (slots != 0 && size != 0).then_some((slots, size))
}

/// Reads `resources` or `activity`: a name and a number a line.
pub fn numbers(text: &str) -> Result<Numbers, Malformed> {
    if text.is_empty() {
        return Err(Malformed::Empty);
    }
    let mut numbers = Numbers::new();
    for (index, line) in text.lines().enumerate() {
        let pair = line.split_once(' ').and_then(|(name, number)| {
            let good = !name.is_empty() && number.starts_with(|c: char| c.is_ascii_digit());
            good.then_some((name, number.parse().ok()?))
        });
        let (name, number) = pair.ok_or_else(|| bad_line(index, line))?;
        if numbers.insert(name.to_owned(), number).is_some() {
            return Err(Malformed::Twice(name.to_owned()));
        }
    }
    Ok(numbers)
}

/// What an importer sees of an object's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// In the device's memory
    Vram,
    /// In the machine's memory
    System,
}

impl Placement {
    /// What the driver calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vram => "vram",
            Self::System => "system",
        }
    }
}

/// An object that has importers or slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Names it for as long as it lives: its offset for mmap
    pub id: u64,
    /// Bytes
    pub size: u64,
    /// Where its bytes are
    pub placement: Placement,
    /// What peers may do: `exportable`, `reserve`, `strict`, `read_only`
    pub flags: Vec<String>,
    /// Slots that show its pages
    pub slots: u64,
    /// Those that peers hold
    pub held: u64,
    /// Importers that pin it
    pub pins: u64,
    /// Mappings that importers hold
    pub mappings: u64,
    /// Mappings given through the aperture so far
    pub peer_maps: u64,
    /// Mappings given in system memory so far
    pub system_maps: u64,
    /// Times that importers were told to let go
    pub invalidations: u64,
    /// Mappings that had to be given in system memory though the object was in VRAM
    pub fall_backs: u64,
    /// The devices of its importers, one for each attachment
    pub importers: Vec<String>,
}

/// Reads `objects`: an object a line, as `name=value` words in any order. A list is
/// separated by commas, an empty one is `-`. Names that are not known are passed
/// over: a newer driver may show more.
pub fn objects(text: &str) -> Result<Vec<Object>, Malformed> {
    text.lines()
        .enumerate()
        .map(|(index, line)| object(line).ok_or_else(|| bad_line(index, line))?)
        .collect()
}

/// `None`: a word is malformed. An error: one is missing or there twice.
fn object(line: &str) -> Option<Result<Object, Malformed>> {
    let mut words = BTreeMap::new();
    for word in line.split_whitespace() {
        let (name, value) = word.split_once('=')?;
        if words.insert(name, value).is_some() {
            return Some(Err(Malformed::Twice(name.to_owned())));
        }
    }
    if words.is_empty() {
        return None;
    }
    let known = [
        "id",
        "size",
        "placement",
        "flags",
        "slots",
        "held",
        "pins",
        "mappings",
        "peer_maps",
        "system_maps",
        "invalidations",
        "fall_backs",
        "importers",
    ];
    if let Some(name) = known.into_iter().find(|name| !words.contains_key(name)) {
        return Some(Err(Malformed::Missing(name)));
    }
    let number = |name: &str| words.get(name)?.parse::<u64>().ok();
    let list = |name: &str| -> Option<Vec<String>> {
        match *words.get(name)? {
            "-" => Some(Vec::new()),
            list if list.split(',').all(|item| !item.is_empty()) => {
                Some(list.split(',').map(str::to_owned).collect())
            }
            _ => None,
        }
    };
    let placement = match *words.get("placement")? {
        "vram" => Placement::Vram,
        "system" => Placement::System,
        _ => return None,
    };
    Some(Ok(Object {
        id: u64::from_str_radix(words.get("id")?.strip_prefix("0x")?, 16).ok()?,
        size: number("size")?,
        placement,
        flags: list("flags")?,
        slots: number("slots")?,
        held: number("held")?,
        pins: number("pins")?,
        mappings: number("mappings")?,
        peer_maps: number("peer_maps")?,
        system_maps: number("system_maps")?,
        invalidations: number("invalidations")?,
        fall_backs: number("fall_backs")?,
        importers: list("importers")?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use proptest::prelude::*;

    #[test]
    fn an_aperture() {
        let found = aperture("slots 6 size 4096: anything\n.cLR\nPd\n").unwrap();
        assert_eq!(found.slot_size, 4096);
        assert_eq!(found.slots, State::ALL);
    }

    #[test]
    fn malformed_apertures() {
        assert_eq!(aperture(""), Err(Malformed::Empty));
        let line = |number, line: &str| {
            Err(Malformed::Line {
                number,
                line: line.into(),
            })
        };
        for head in [
            "slots 4 size 4096",
            "slots 4:",
            "slots -1 size 4096:",
            "slots 0 size 4096:",
            "slots 4 size 0:",
            "slots x size 4096:",
            "size 4096 slots 4:",
        ] {
            assert_eq!(aperture(&format!("{head}\n....\n")), line(1, head));
        }
        assert_eq!(aperture("slots 3 size 1:\n..\nx\n"), line(3, "x"));
        let count = |found, stated| Err(Malformed::Count { found, stated });
        assert_eq!(aperture("slots 3 size 1:\n..\n"), count(2, 3));
        assert_eq!(aperture("slots 3 size 1:\n....\n"), count(4, 3));
        assert_eq!(aperture("slots 3 size 1:"), count(0, 3));
    }

    #[test]
    fn names_and_numbers() {
        let found = numbers("a 1\nb_c 18446744073709551615\n").unwrap();
        assert_eq!(found["a"], 1);
        assert_eq!(found["b_c"], u64::MAX);
        assert_eq!(numbers(""), Err(Malformed::Empty));
        assert_eq!(numbers("a 1\na 1\n"), Err(Malformed::Twice("a".into())));
        for line in [
            "a",
            "a -1",
            "a +1",
            "a 18446744073709551616",
            " 1",
            "a  1",
            "",
        ] {
            let text = format!("ok 1\n{line}\n");
            let error = numbers(&text).unwrap_err();
            assert!(matches!(error, Malformed::Line { number: 2, .. }), "{line}");
        }
    }

    #[test]
    fn objects_of_the_fixture() {
        let found = objects(fixture::OBJECTS).unwrap();
        assert_eq!(found.len(), 5);
        assert_eq!(found[0].id, 0x1_0000_0000);
        assert_eq!(found[0].placement, Placement::Vram);
        assert_eq!(found[0].flags, ["exportable", "reserve"]);
        assert_eq!(found[0].importers, ["0000:04:00.0", "0000:06:00.0"]);
        assert_eq!(found[4].placement, Placement::System);
        assert!(found[3].flags.is_empty() && found[3].importers.is_empty());
        assert_eq!(objects("").unwrap(), []);
    }

    #[test]
    fn unknown_words_are_passed_over() {
        let line = fixture::OBJECTS.lines().next().unwrap();
        let more = format!("{line} heat=7\n");
        assert_eq!(objects(&more).unwrap(), objects(line).unwrap());
    }

    #[test]
    fn malformed_objects() {
        let good = fixture::OBJECTS.lines().next().unwrap();
        for word in good.split(' ') {
            let (name, _) = word.split_once('=').unwrap();
            let without: Vec<_> = good.split(' ').filter(|other| *other != word).collect();
            let error = objects(&without.join(" ")).unwrap_err();
            assert!(matches!(error, Malformed::Missing(missing) if missing == name));
            let error = objects(&format!("{good} {word}")).unwrap_err();
            assert_eq!(error, Malformed::Twice(name.into()));
            for value in ["", ",", "?=", "x y"] {
                let bad = good.replace(word, &format!("{name}={value}"));
                let free = matches!(name, "flags" | "importers") && value == "?=";
                assert_eq!(objects(&bad).is_ok(), free, "{bad}");
            }
        }
        assert!(objects("\n").is_err());
        assert!(objects(&format!("{good}\n\n")).is_err());
    }

    #[test]
    fn errors_say_where() {
        let error = objects("x\n").unwrap_err();
        assert_eq!(error.to_string(), r#"line 1 is not understood: "x""#);
        let error = aperture("slots 3 size 1:\n..").unwrap_err();
        assert_eq!(error.to_string(), "it shows 2 slots and says 3");
        let long = "y".repeat(1_000);
        assert!(objects(&long).unwrap_err().to_string().len() < 200);
    }

    proptest! {
        #[test]
        fn any_text_is_understood_or_refused(text in "\\PC*(\n\\PC*){0,4}") {
            let _ = aperture(&text);
            let _ = numbers(&text);
            let _ = objects(&text);
        }

        #[test]
        fn damaged_files_do_not_panic(at in 0usize..2_000, bytes in any::<[u8; 3]>()) {
            for good in [fixture::OBJECTS, fixture::ACTIVITY, &fixture::aperture_text()] {
                let mut damaged = good.as_bytes().to_vec();
                let at = at % damaged.len();
                for (place, byte) in damaged[at..].iter_mut().zip(bytes) {
                    *place = byte;
                }
                let text = String::from_utf8_lossy(&damaged);
                let _ = aperture(&text);
                let _ = numbers(&text);
                let _ = objects(&text);
            }
        }

        #[test]
        fn cut_off_maps_are_refused(cut in 0usize..200) {
            let text = fixture::aperture_text();
            let cut = text.len() - 2 - cut;
            prop_assert!(aperture(&text[..cut]).is_err());
        }

        #[test]
        fn an_aperture_is_read_back(
            slots in prop::collection::vec(prop::sample::select(&State::ALL[..]), 1..500),
            width in 1usize..70,
        ) {
            let mut text = format!("slots {} size 4096: legend\n", slots.len());
            for line in slots.chunks(width) {
                text.extend(line.iter().map(|state| state.symbol()));
                text.push('\n');
            }
            prop_assert_eq!(aperture(&text).unwrap().slots, slots);
        }
    }
}
