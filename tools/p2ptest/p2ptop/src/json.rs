// SPDX-License-Identifier: GPL-2.0
//! What programs read: `--once --json`. The fields are documented in
//! Documentation/gpu/p2pgpu/testing.rst; [`VERSION`] changes when one changes its
//! meaning or goes, not when one is added.

use crate::parse::{Numbers, Object};
use crate::rates::Rates;
use crate::source::Sample;
use crate::state::{Counts, State};
use serde::Serialize;
use std::collections::BTreeMap;

/// Version of the fields' meaning.
pub const VERSION: u32 = 1;

/// All that is printed.
#[derive(Debug, Serialize)]
pub struct Report {
    version: u32,
    devices: Vec<Device>,
}

impl Report {
    /// Of these devices.
    pub fn new<'a>(devices: impl IntoIterator<Item = (&'a Sample, Option<&'a Rates>)>) -> Self {
        Self {
            version: VERSION,
            devices: devices
                .into_iter()
                .map(|(sample, rates)| Device::new(sample, rates))
                .collect(),
        }
    }
}

#[derive(Debug, Serialize)]
struct Device {
    pci: String,
    slot_size: u64,
    slots: BTreeMap<&'static str, u64>,
    map: Vec<Run>,
    objects: Vec<ObjectFields>,
    activity: Numbers,
    rates: Option<Rates>,
    resources: Numbers,
}

/// Adjacent slots in one state.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Run {
    first: usize,
    count: usize,
    state: State,
}

#[derive(Debug, Serialize)]
struct ObjectFields {
    mmap_offset: u64,
    size: u64,
    placement: &'static str,
    flags: Vec<String>,
    slots: u64,
    held: u64,
    pins: u64,
    mappings: u64,
    peer_maps: u64,
    system_maps: u64,
    invalidations: u64,
    fall_backs: u64,
    importers: Vec<String>,
}

impl Device {
    fn new(sample: &Sample, rates: Option<&Rates>) -> Self {
        let slots = &sample.aperture.slots;
        let counts = Counts::of(slots);
        let mut by_state: BTreeMap<_, _> = State::ALL
            .map(|state| (state.name(), counts.get(state)))
            .into();
        by_state.insert("total", slots.len() as u64);
        Self {
            pci: sample.pci.clone(),
            slot_size: sample.aperture.slot_size,
            slots: by_state,
            map: runs(slots),
            objects: sample.objects.iter().map(ObjectFields::new).collect(),
            activity: sample.activity.clone(),
            rates: rates.cloned(),
            resources: sample.resources.clone(),
        }
    }
}

fn runs(slots: &[State]) -> Vec<Run> {
    let mut first = 0;
    slots
        .chunk_by(|a, b| a == b)
        .map(|run| {
            let start = first;
            first += run.len();
            Run {
                first: start,
                count: run.len(),
                state: run[0],
            }
        })
        .collect()
}

impl ObjectFields {
    fn new(object: &Object) -> Self {
        Self {
            mmap_offset: object.id,
            size: object.size,
            placement: object.placement.name(),
            flags: object.flags.clone(),
            slots: object.slots,
            held: object.held,
            pins: object.pins,
            mappings: object.mappings,
            peer_maps: object.peer_maps,
            system_maps: object.system_maps,
            invalidations: object.invalidations,
            fall_backs: object.fall_backs,
            importers: object.importers.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use proptest::prelude::*;
    use serde_json::json;

    fn value() -> serde_json::Value {
        let sample = fixture::sample();
        let rates = fixture::rates();
        serde_json::to_value(Report::new([(&sample, Some(&rates))])).unwrap()
    }

    #[test]
    fn fields_of_a_device() {
        let report = value();
        assert_eq!(report["version"], 1);
        let device = &report["devices"][0];
        let names: Vec<_> = device.as_object().unwrap().keys().collect();
        let documented = [
            "activity",
            "map",
            "objects",
            "pci",
            "rates",
            "resources",
            "slot_size",
            "slots",
        ];
        assert_eq!(names, documented);
        assert_eq!(device["pci"], "0000:03:00.0");
        assert_eq!(device["slot_size"], 4096);
        assert_eq!(
            device["slots"],
            json!({
                "total": 4096, "free": 2200, "cpu": 510, "lent": 290, "reserved": 1024,
                "pinned": 64, "draining": 8
            })
        );
        assert_eq!(
            device["map"][1],
            json!({"first": 1024, "count": 64, "state": "pinned"})
        );
        assert_eq!(device["activity"]["peer_maps"], 21);
        assert_eq!(device["rates"]["cpu_faults"], 512.0);
        assert_eq!(device["resources"]["objects"], 6);
    }

    #[test]
    fn fields_of_an_object() {
        assert_eq!(
            value()["devices"][0]["objects"][0],
            json!({
                "mmap_offset": 0x1_0000_0000_u64, "size": 4_194_304, "placement": "vram",
                "flags": ["exportable", "reserve"], "slots": 1024, "held": 1024, "pins": 0,
                "mappings": 2, "peer_maps": 3, "system_maps": 1, "invalidations": 2,
                "fall_backs": 0, "importers": ["0000:04:00.0", "0000:06:00.0"]
            })
        );
    }

    #[test]
    fn rates_may_be_unknown() {
        let report = Report::new([(&fixture::sample(), None)]);
        let report = serde_json::to_value(report).unwrap();
        assert!(report["devices"][0]["rates"].is_null());
    }

    proptest! {
        #[test]
        fn runs_are_the_slots(
            slots in prop::collection::vec(prop::sample::select(&State::ALL[..]), 0..300)
        ) {
            let runs = runs(&slots);
            let mut again = Vec::new();
            for run in &runs {
                prop_assert_eq!(run.first, again.len());
                prop_assert!(run.count > 0);
                again.extend(std::iter::repeat_n(run.state, run.count));
            }
            prop_assert_eq!(again, slots);
            prop_assert!(runs.windows(2).all(|two| two[0].state != two[1].state));
        }
    }
}
