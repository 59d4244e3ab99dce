// SPDX-License-Identifier: GPL-2.0
//! Tests of what the driver shows for p2ptop, through p2ptop itself: its numbers
//! are those of GEM_INFO, and looking costs the device nothing.

use p2pguest::debugfs::Debugfs;
use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::igt::{self, Subtest};
use p2pguest::must;
use p2pguest::nic::ACCESS_ALL;
use p2pguest::rig::{RESERVED, Registered, Rig};
use p2pguest::subtests;
use p2pguest::sys::uapi::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Output};
use std::thread;

const SUBTESTS: &[Subtest] = subtests![
    /// A lent object is shown as GEM_INFO has it, in both of its placements.
    lent_object_agrees_with_gem_info,
    /// Slots that peers hold by a reservation are told apart from lent ones.
    reserved_slots_are_told_apart,
    /// Slots of the CPU are shown, and the object that has no importers.
    cpu_slots_are_shown,
    /// An object that no slot shows and no importer has is not listed.
    idle_objects_are_not_listed,
    /// Each importer is listed, and no longer when it has gone.
    importers_come_and_go,
    /// Each event is counted once.
    events_are_counted,
    /// A fall-back is counted, for the object and for the device.
    fall_backs_are_counted,
    /// The map covers the aperture, and adds up to the counts.
    map_adds_up,
    /// An idle device has rates, and they are 0.
    idle_rates_are_zero,
    /// The picture has the counts, and an object a line.
    picture_has_counts_and_objects,
    /// Looking makes no access to the device's registers.
    looking_is_free,
    /// Each look at a busy device can be read, and adds up.
    busy_devices_can_be_read,
    /// What is wrong is said, with what to do.
    problems_say_what_to_do,
    /// Others than root are told so.
    only_root_can_look,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

#[track_caller]
fn run(command: &mut Command) -> Output {
    match command.output() {
        Ok(output) => output,
        Err(error) => panic!("{}: {error}", p2p_init::TOP),
    }
}

/// What p2ptop prints about one GPU.
#[track_caller]
fn once(gpu: &Gpu, options: &[&str]) -> String {
    let pci = gpu.pci().to_string();
    let mut command = Command::new(p2p_init::TOP);
    command.args(["--once", "--device", &pci]).args(options);
    let output = run(&mut command);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// What p2ptop knows about one GPU.
#[track_caller]
fn look(gpu: &Gpu) -> Value {
    device(&once(gpu, &["--json", "--interval", "0"]))
}

#[track_caller]
fn device(text: &str) -> Value {
    let mut report: Value = serde_json::from_str(text).expect("JSON");
    assert_eq!(report["version"], 1);
    assert_eq!(report["devices"].as_array().map(Vec::len), Some(1));
    report["devices"][0].take()
}

/// The line of an object, if it is listed.
#[track_caller]
fn listed<'v>(device: &'v Value, bo: &Bo<'_>) -> Option<&'v Value> {
    let offset = must(bo.__mmap_offset(), format_args!("GEM_MMAP_OFFSET"));
    let objects = device["objects"].as_array().expect("objects");
    let mut found = objects.iter().filter(|o| o["mmap_offset"] == offset);
    let object = found.next();
    assert_eq!(found.next(), None, "listed twice");
    object
}

#[track_caller]
fn object<'v>(device: &'v Value, bo: &Bo<'_>) -> &'v Value {
    listed(device, bo).expect("the object is listed")
}

/// Asserts that an object is shown as GEM_INFO and its owner have it.
#[track_caller]
fn assert_agrees(gpu: &Gpu, bo: &Bo<'_>, flags: &[&str], importers: &[String]) {
    let info = bo.info();
    let device = look(gpu);
    let offset = must(bo.__mmap_offset(), format_args!("GEM_MMAP_OFFSET"));
    let vram = info.placement == P2PGPU_PLACEMENT_VRAM;
    let expected = json!({
        "mmap_offset": offset,
        "size": info.size,
        "placement": if vram { "vram" } else { "system" },
        "flags": flags,
        "slots": info.slots,
        "held": info.peer_slots,
        "pins": info.pins,
        "mappings": object(&device, bo)["mappings"],
        "peer_maps": info.peer_maps,
        "system_maps": info.system_maps,
        "invalidations": info.invalidations,
        "fall_backs": info.fall_backs,
        "importers": importers,
    });
    assert_eq!(*object(&device, bo), expected);
}

/// An object that NIC 0 holds, lent; skips where there is no route.
#[track_caller]
fn lent(rig: &Rig, pages: u64) -> Registered<'_> {
    let held = rig.register(0, pages * rig.gpu[0].page, Placement::Vram);
    rig.touch(0, &held);
    igt::require(held.bo.info().peer_maps == 1, "a peer-to-peer route");
    held
}

fn names(rig: &Rig, nics: &[usize]) -> Vec<String> {
    nics.iter()
        .map(|&nic| rig.nic[nic].pci().to_string())
        .collect()
}

fn lent_object_agrees_with_gem_info() {
    let rig = Rig::open();
    let (gpu, held) = (&rig.gpu[0], lent(&rig, 100));
    assert_agrees(gpu, &held.bo, &["exportable"], &names(&rig, &[0]));
    let shown = look(gpu);
    assert_eq!(object(&shown, &held.bo)["held"], 100);
    assert_eq!(object(&shown, &held.bo)["mappings"], 1);
    assert_eq!(shown["slots"]["lent"], 100);
    assert_eq!(shown["slots"]["reserved"], 0);

    held.bo.move_to(Placement::System);
    assert_agrees(gpu, &held.bo, &["exportable"], &names(&rig, &[0]));
    let shown = look(gpu);
    assert_eq!(object(&shown, &held.bo)["mappings"], 0);
    assert_eq!(object(&shown, &held.bo)["invalidations"], 1);
    assert_eq!(shown["slots"]["lent"], 0);
}

fn reserved_slots_are_told_apart() {
    let rig = Rig::open();
    let (gpu, held) = (&rig.gpu[0], lent(&rig, 64));
    let kept = rig.hold_slots(0, 32);
    let counts = |shown: &Value| {
        let get = |state| shown["slots"][state].as_u64();
        (get("lent"), get("reserved"), get("pinned"), get("draining"))
    };
    let shown = look(gpu);
    assert_eq!(counts(&shown), (Some(64), Some(32), Some(0), Some(0)));
    assert_eq!(shown["resources"]["slots_promised"], 32);
    let flags = ["exportable", "reserve"];
    assert_agrees(gpu, &kept.bo, &flags, &names(&rig, &[0]));

    // Slots that peers hold follow the object's flag.
    held.bo.set_peer(RESERVED);
    assert_eq!(counts(&look(gpu)), (Some(0), Some(96), Some(0), Some(0)));
    kept.bo.set_peer(P2PGPU_PEER_EXPORTABLE);
    rig.touch(0, &kept);
    assert_eq!(counts(&look(gpu)), (Some(32), Some(64), Some(0), Some(0)));
    held.bo
        .set_peer(RESERVED | P2PGPU_PEER_STRICT | P2PGPU_PEER_READ_ONLY);
    let flags = ["exportable", "reserve", "strict", "read_only"];
    assert_agrees(gpu, &held.bo, &flags, &names(&rig, &[0]));
}

fn cpu_slots_are_shown() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(256 * gpu.page, Placement::Vram);
    let map = bo.map();
    (0..256).for_each(|page| map.store(page * 4096, 1));
    assert_agrees(&gpu, &bo, &[], &[]);
    let shown = look(&gpu);
    assert_eq!(object(&shown, &bo)["slots"], 256);
    assert_eq!(shown["slots"]["cpu"], 256);
    assert_eq!(shown["slots"]["free"], gpu.slots - 256);
    drop(map);
    bo.close();
    assert_eq!(look(&gpu)["slots"]["free"], gpu.slots);
}

fn idle_objects_are_not_listed() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(gpu.page, Placement::Vram);
    bo.set_exportable(true);
    let _fd = bo.export();
    let shown = look(&gpu);
    assert_eq!(listed(&shown, &bo), None);
    assert_eq!(shown["resources"]["objects"], 1);
}

fn importers_come_and_go() {
    let rig = Rig::open();
    let gpu = &rig.gpu[0];
    let exported = rig.export(0, 4 * gpu.page, Placement::System);
    let register = |nic: usize| rig.nic[nic].register(&exported.fd, ACCESS_ALL, exported.bo.size);
    let assert_importers = |nics: &[usize]| {
        assert_agrees(gpu, &exported.bo, &["exportable"], &names(&rig, nics));
    };
    let first = register(0);
    assert_importers(&[0]);
    let second = register(1);
    let third = register(0);
    assert_importers(&[0, 1, 0]);
    second.deregister();
    assert_importers(&[0, 0]);
    first.deregister();
    assert_importers(&[0]);
    third.deregister();
    assert_eq!(listed(&look(gpu), &exported.bo), None);
}

/// Counters of what is no event.
const APART: [&str; 2] = ["flushes", "late_answers"];

/// The counters that a device shows.
#[track_caller]
fn activity(gpu: &Gpu) -> BTreeMap<String, u64> {
    let shown = look(gpu);
    let counters = shown["activity"].as_object().expect("counters");
    counters
        .iter()
        .map(|(name, count)| (name.clone(), count.as_u64().expect("a number")))
        .collect()
}

/// Asserts what something adds to the counters; flushes are no event but a price, and answers are
/// late on a slow machine.
#[track_caller]
fn assert_adds(gpu: &Gpu, what: impl FnOnce(), expected: &[(&str, u64)]) {
    let before = activity(gpu);
    what();
    let after = activity(gpu);
    let added: BTreeMap<_, _> = after
        .iter()
        .map(|(name, count)| (name.as_str(), count - before[name]))
        .filter(|(name, added)| *added != 0 && !APART.contains(name))
        .collect();
    assert_eq!(added, expected.iter().copied().collect());
}

fn events_are_counted() {
    let rig = Rig::open();
    let gpu = &rig.gpu[0];
    drop(lent(&rig, 1));
    let held = rig.register(0, 8 * gpu.page, Placement::Vram);
    assert_adds(gpu, || rig.touch(0, &held), &[("peer_maps", 1)]);
    assert_adds(gpu, || rig.touch(0, &held), &[]);
    assert_adds(
        gpu,
        || held.bo.move_to(Placement::System),
        &[("invalidations", 1), ("peer_unmaps", 1)],
    );
    assert_adds(gpu, || held.bo.move_to(Placement::Vram), &[]);
    assert_adds(gpu, || rig.touch(0, &held), &[("peer_maps", 1)]);
    assert_adds(gpu, || drop(held), &[("peer_unmaps", 1)]);

    let bo = gpu.create(gpu.page, Placement::Vram);
    assert_adds(gpu, || assert!(bo.__export().is_err()), &[("refusals", 1)]);
    let map = bo.map();
    let before = activity(gpu)["flushes"];
    assert_adds(gpu, || map.store(0, 1), &[("cpu_faults", 1)]);
    assert_eq!(activity(gpu)["flushes"], before + 1, "flushes of one fault");
    assert_adds(gpu, || map.store(0, 2), &[]);
}

fn fall_backs_are_counted() {
    let rig = Rig::open();
    let gpu = &rig.gpu[0];
    drop(lent(&rig, 1));
    let _all = rig.hold_slots(0, gpu.slots);
    let other = rig.register(0, gpu.page, Placement::Vram);
    assert_adds(gpu, || rig.touch(0, &other), &[("fall_backs", 1)]);
    assert_eq!(object(&look(gpu), &other.bo)["fall_backs"], 1);
    assert_agrees(gpu, &other.bo, &["exportable"], &names(&rig, &[0]));
}

/// Asserts that the runs of the map follow each other over the whole aperture, and
/// add up to the counts.
#[track_caller]
fn assert_adds_up(gpu: &Gpu, shown: &Value) {
    let number = |value: &Value| value.as_u64().expect("a number");
    let mut sums = BTreeMap::new();
    let mut next = 0;
    for run in shown["map"].as_array().expect("a map") {
        assert_eq!(number(&run["first"]), next);
        next += number(&run["count"]);
        let state = run["state"].as_str().expect("a state").to_owned();
        *sums.entry(state).or_insert(0) += number(&run["count"]);
    }
    assert_eq!(next, gpu.slots);
    sums.insert("total".into(), gpu.slots);
    let counts = shown["slots"].as_object().expect("counts");
    for (state, count) in counts {
        assert_eq!(
            number(count),
            sums.get(state).copied().unwrap_or(0),
            "{state}"
        );
    }
    assert!(sums.keys().all(|state| counts.contains_key(state)));
}

fn map_adds_up() {
    let rig = Rig::open();
    let gpu = &rig.gpu[0];
    assert_adds_up(gpu, &look(gpu));
    let _held = lent(&rig, 33);
    let _kept = rig.hold_slots(0, 65);
    let bo = gpu.create(16 * gpu.page, Placement::Vram);
    bo.map().store(0, 1);
    let shown = look(gpu);
    assert_adds_up(gpu, &shown);
    assert_eq!(shown["slot_size"], gpu.page);
    let used = 33 + 65 + u64::from(bo.info().slots);
    assert_eq!(shown["slots"]["free"], gpu.slots - used);
}

fn idle_rates_are_zero() {
    let gpu = Gpu::open(0);
    let shown = device(&once(&gpu, &["--json", "--interval", "0.2"]));
    let rates = shown["rates"].as_object().expect("rates");
    let counters = shown["activity"].as_object().expect("counters");
    assert!(rates.keys().eq(counters.keys()) && !rates.is_empty());
    assert!(rates.values().all(|rate| *rate == 0.0), "{rates:?}");
    assert!(look(&gpu)["rates"].is_null());
}

fn picture_has_counts_and_objects() {
    let rig = Rig::open();
    let (gpu, held) = (&rig.gpu[0], lent(&rig, 100));
    let text = once(gpu, &["--interval", "0"]);
    println!("{text}");
    assert!(text.lines().all(|line| line.len() <= 80));
    assert!(text.starts_with(&format!("GPU {}", gpu.pci())));
    assert!(text.contains("L lent 100"));
    let offset = must(held.bo.__mmap_offset(), format_args!("GEM_MMAP_OFFSET"));
    let line = text
        .lines()
        .find(|line| line.contains(&format!("{offset:#x}")));
    let line = line.expect("a line of the object");
    assert!(
        line.contains("400 KiB") && line.contains("100/100"),
        "{line}"
    );
}

fn looking_is_free() {
    let rig = Rig::open();
    let (gpu, _held) = (&rig.gpu[0], lent(&rig, 100));
    let accesses = || {
        let counters = Debugfs::default().counters("p2pgpu", gpu.pci());
        let counters = counters.expect("counters");
        counters["reg_reads"] + counters["reg_writes"]
    };
    // Asking for the counters is not free itself.
    let cost = |what: &dyn Fn()| {
        let before = accesses();
        what();
        accesses() - before
    };
    let nothing = cost(&|| {});
    assert_eq!(cost(&|| drop(look(gpu))), nothing);
    assert_eq!(cost(&|| drop(once(gpu, &["--interval", "0.1"]))), nothing);
}

fn busy_devices_can_be_read() {
    let rig = Rig::open();
    let (gpu, held) = (&rig.gpu[0], lent(&rig, 200));
    let mut looks = 0;
    thread::scope(|scope| {
        let busy = scope.spawn(|| {
            for _ in 0..20 {
                held.bo.move_to(Placement::System);
                held.bo.move_to(Placement::Vram);
                rig.touch(0, &held);
                let bo = gpu.create(64 * gpu.page, Placement::Vram);
                let map = bo.map();
                (0..64).for_each(|page| map.store(page * 4096, 1));
            }
        });
        while !busy.is_finished() {
            assert_adds_up(gpu, &look(gpu));
            looks += 1;
        }
    });
    assert!(looks > 0);
}

/// Asserts that p2ptop fails, and what it says.
#[track_caller]
fn assert_says(command: &mut Command, text: &str) {
    let output = run(command);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains(text), "{errors}");
    assert!(output.stdout.is_empty());
}

fn problems_say_what_to_do() {
    let gpu = Gpu::open(0);
    let top = |options: &[&str]| {
        let mut command = Command::new(p2p_init::TOP);
        command.args(options);
        command
    };
    let pci = gpu.pci().to_string();
    assert_says(&mut top(&["--once", "--device", "ff:1f.7"]), &pci);
    let nowhere = "/nonexistent";
    assert_says(
        &mut top(&["--once", "--debugfs", nowhere]),
        "mount -t debugfs none /nonexistent",
    );
    assert_says(
        &mut top(&["--once", "--debugfs", "/proc"]),
        "modprobe p2pgpu",
    );
    assert_says(&mut top(&["--interval", "0"]), "--interval must be");
}

fn only_root_can_look() {
    let mut command = Command::new(p2p_init::TOP);
    command.arg("--once").uid(65534).gid(65534);
    assert_says(&mut command, "run p2ptop as root");
}
