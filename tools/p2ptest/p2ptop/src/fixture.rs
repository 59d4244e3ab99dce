// SPDX-License-Identifier: GPL-2.0
//! What the driver shows of a made-up device, for tests.

use crate::parse;
use crate::rates::{self, Rates};
use crate::source::{Sample, Source};
use crate::state::State;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Slots of the device's aperture.
pub const SLOTS: usize = 4096;

pub const OBJECTS: &str = "\
id=0x100000000 size=4194304 placement=vram flags=exportable,reserve slots=1024 held=1024 pins=0 mappings=2 peer_maps=3 system_maps=1 invalidations=2 fall_backs=0 importers=0000:04:00.0,0000:06:00.0
id=0x100400000 size=262144 placement=vram flags=exportable slots=64 held=64 pins=1 mappings=1 peer_maps=1 system_maps=0 invalidations=0 fall_backs=0 importers=0000:04:00.0
id=0x100440000 size=1228800 placement=vram flags=exportable,strict,read_only slots=300 held=290 pins=0 mappings=1 peer_maps=17 system_maps=0 invalidations=16 fall_backs=0 importers=0000:06:00.0
id=0x100580000 size=67108864 placement=vram flags=- slots=500 held=0 pins=0 mappings=0 peer_maps=0 system_maps=0 invalidations=0 fall_backs=0 importers=-
id=0x104580000 size=8192 placement=system flags=exportable slots=0 held=0 pins=0 mappings=1 peer_maps=0 system_maps=4 invalidations=3 fall_backs=4 importers=0000:04:00.0
";

pub const ACTIVITY: &str = "\
cpu_faults 512
peer_maps 21
peer_unmaps 18
invalidations 21
fall_backs 4
refusals 2
flushes 60
";

/// An interval of 2 seconds later.
pub const ACTIVITY_LATER: &str = "\
cpu_faults 1536
peer_maps 25
peer_unmaps 21
invalidations 24
fall_backs 5
refusals 2
flushes 70
";

pub const RESOURCES: &str = "\
objects 6
slots_used 1896
slots_idle 510
slots_peer 1378
slots_draining 8
slots_promised 1088
vram_used 72798208
";

/// The aperture that goes with [`OBJECTS`].
pub fn slots() -> Vec<State> {
    let runs = [
        (1024, State::Reserved),
        (64, State::Pinned),
        (290, State::Lent),
        (8, State::Draining),
        (1500, State::Free),
        (510, State::Cpu),
    ];
    let mut slots: Vec<State> = runs
        .into_iter()
        .flat_map(|(count, state)| std::iter::repeat_n(state, count))
        .collect();
    slots.resize(SLOTS, State::Free);
    slots
}

/// The same as the driver writes it.
pub fn aperture_text() -> String {
    let mut text = format!("slots {SLOTS} size 4096: legend\n");
    for line in slots().chunks(64) {
        text.extend(line.iter().map(|state| state.symbol()));
        let _ = writeln!(text);
    }
    text
}

/// All of the above at one moment.
pub fn sample() -> Sample {
    Sample {
        pci: "0000:03:00.0".into(),
        aperture: parse::aperture(&aperture_text()).unwrap(),
        resources: parse::numbers(RESOURCES).unwrap(),
        activity: parse::numbers(ACTIVITY).unwrap(),
        objects: parse::objects(OBJECTS).unwrap(),
        time: Instant::now(),
    }
}

/// Two seconds after [`sample`].
pub fn later(sample: &Sample) -> Sample {
    Sample {
        activity: parse::numbers(ACTIVITY_LATER).unwrap(),
        time: sample.time + Duration::from_secs(2),
        ..sample.clone()
    }
}

/// The rates between the two.
pub fn rates() -> Rates {
    let before = sample();
    rates::between(&before, &later(&before)).unwrap()
}

/// A debugfs with devices of the fixture.
pub struct Fake {
    root: TempDir,
    count: usize,
}

impl Fake {
    pub fn new(count: usize) -> Self {
        let root = tempfile::tempdir().unwrap();
        let fake = Self { root, count };
        (0..count).for_each(|index| fake.add(index));
        fake
    }

    pub fn source(&self) -> Source {
        Source::new(self.root.path())
    }

    pub fn devices(&self) -> Vec<String> {
        (0..self.count)
            .map(|index| format!("0000:{:02x}:00.0", index + 3))
            .collect()
    }

    pub fn folder(&self, index: usize) -> PathBuf {
        self.root.path().join("p2pgpu").join(&self.devices()[index])
    }

    pub fn add(&self, index: usize) {
        let folder = self.folder(index);
        fs::create_dir_all(&folder).unwrap();
        for (file, text) in [
            ("aperture", aperture_text().as_str()),
            ("objects", OBJECTS),
            ("activity", ACTIVITY),
            ("resources", RESOURCES),
        ] {
            fs::write(folder.join(file), text).unwrap();
        }
    }

    pub fn remove(&self, index: usize) {
        fs::remove_dir_all(self.folder(index)).unwrap();
    }
}
