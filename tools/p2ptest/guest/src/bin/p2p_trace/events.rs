// SPDX-License-Identifier: GPL-2.0
//! Trace events.

use crate::{open, peer, reserve_all};
use nix::errno::Errno;
use p2pguest::cgroup::{Cgroup, Memory};
use p2pguest::debugfs::Debugfs;
use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::importer::{Direction, Importer, Kind};
use p2pguest::refused;
use p2pguest::rig::{Exported, RESERVED, Rig};
use p2pguest::setting::Setting;
use p2pguest::submit::{Context, copy, fill, gated};
use p2pguest::sys::uapi::*;
use p2pguest::trace::{Event, Trace};
use std::collections::BTreeSet;

/// What the driver says of an object.
struct Told<'a> {
    trace: Trace,
    rig: &'a Rig,
}

/// The number by which events name an object.
#[track_caller]
fn id(bo: &Bo<'_>) -> String {
    format!("{:#x}", bo.__mmap_offset().expect("an mmap offset"))
}

impl<'a> Told<'a> {
    #[track_caller]
    fn start(rig: &'a Rig) -> Self {
        let trace = Trace::start();
        Self { trace, rig }
    }

    fn gpu(&self) -> &'a Gpu {
        &self.rig.gpu[0]
    }

    /// An event of an object of GPU 0.
    #[track_caller]
    fn event(&self, name: &str, bo: &Bo<'_>, fields: &[(&str, &dyn ToString)]) -> Event {
        let mut event = Event {
            name: name.to_owned(),
            fields: fields
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.to_string()))
                .collect(),
        };
        let dev = self.gpu().pci().to_string();
        event.fields.insert("dev".to_owned(), dev);
        event.fields.insert("object".to_owned(), id(bo));
        event
    }

    /// A mapping of NIC 0 that comes or goes.
    #[track_caller]
    fn mapping(&self, name: &str, bo: &Bo<'_>, pages: (u64, u64), aperture: u8) -> Event {
        let importer = self.rig.nic[0].pci();
        let (page, pages) = pages;
        self.event(
            name,
            bo,
            &[
                ("importer", &importer),
                ("page", &page),
                ("pages", &pages),
                ("aperture", &aperture),
            ],
        )
    }

    #[track_caller]
    fn invalidate(&self, bo: &Bo<'_>, mappings: u32) -> Event {
        self.event("invalidate", bo, &[("mappings", &mappings)])
    }

    #[track_caller]
    fn migrate(&self, bo: &Bo<'_>, to: &str, error: i32) -> Event {
        self.event("migrate", bo, &[("to", &to), ("error", &error)])
    }

    /// Exactly this was told of these objects since the last time.
    #[track_caller]
    fn expect(&self, objects: &[&Bo<'_>], expected: &[Event]) {
        let ids: Vec<_> = objects.iter().map(|bo| id(bo)).collect();
        let dev = self.gpu().pci().to_string();
        let events: Vec<_> = self.trace.take();
        let ours: Vec<_> = events
            .into_iter()
            .filter(|event| event.field("dev") == dev)
            .filter(|event| ids.iter().any(|id| event.field("object") == id))
            .collect();
        assert_eq!(ours, expected);
    }
}

/// An exported object of so many pages of GPU 0.
#[track_caller]
fn exported(rig: &Rig, pages: u64, placement: Placement) -> Exported<'_> {
    rig.export(0, pages * rig.gpu[0].page, placement)
}

pub fn events_that_there_are() {
    let names = Trace::start().names();
    let expected = [
        "evict",
        "fall_back",
        "invalidate",
        "map",
        "migrate",
        "pressure",
        "refuse",
        "submit",
        "unmap",
    ];
    assert_eq!(names, expected);
}

pub fn mappings_are_told() {
    let rig = open();
    let told = Told::start(&rig);
    for (placement, aperture) in [(Placement::Vram, 1), (Placement::System, 0)] {
        let Exported { bo, fd } = exported(&rig, 8, placement);
        let window = bo.export_range(3..5);
        for (fd, pages) in [(&fd, (0, 8)), (&window, (3, 2))] {
            let importer = Importer::attach(fd, peer(&rig));
            told.expect(&[&bo], &[]);
            let index = importer.map(Direction::Both);
            told.expect(&[&bo], &[told.mapping("map", &bo, pages, aperture)]);
            importer.unmap(index);
            told.expect(&[&bo], &[told.mapping("unmap", &bo, pages, aperture)]);
        }
    }
}

pub fn moves_are_told() {
    let rig = open();
    let told = Told::start(&rig);
    let Exported { bo, fd } = exported(&rig, 4, Placement::Vram);
    let importer = Importer::attach(&fd, peer(&rig));
    importer.map(Direction::Both);
    importer.map(Direction::ToDevice);
    told.trace.take();
    bo.move_to(Placement::System);
    let unmap = || told.mapping("unmap", &bo, (0, 4), 1);
    told.expect(
        &[&bo],
        &[
            told.invalidate(&bo, 2),
            unmap(),
            unmap(),
            told.migrate(&bo, "system", 0),
        ],
    );
    bo.move_to(Placement::System);
    told.expect(&[&bo], &[]);
    bo.move_to(Placement::Vram);
    told.expect(&[&bo], &[told.migrate(&bo, "vram", 0)]);
    importer.pin();
    refused(bo.__move_to(Placement::System), Errno::EBUSY);
    let busy = -(Errno::EBUSY as i32);
    told.expect(&[&bo], &[told.migrate(&bo, "system", busy)]);
}

pub fn fall_backs_are_told() {
    let rig = open();
    let told = Told::start(&rig);
    let Exported { bo, fd } = exported(&rig, 4, Placement::Vram);
    let importer = Importer::attach(&fd, peer(&rig));
    let _all = reserve_all(&rig);
    importer.map(Direction::Both);
    let importer = rig.nic[0].pci();
    told.expect(
        &[&bo],
        &[
            told.migrate(&bo, "system", 0),
            told.event("fall_back", &bo, &[("importer", &importer)]),
            told.mapping("map", &bo, (0, 4), 0),
        ],
    );
    assert_eq!(bo.info().fall_backs, 1);
}

pub fn pressure_is_told() {
    let rig = open();
    let pages = rig.gpu[0].slots / 4 * 3;
    let grace = Setting::new(rig.gpu[0].pci(), "peer_grace_ms");
    grace.write("0");
    let told = Told::start(&rig);
    let (cold, warm) = (
        exported(&rig, pages, Placement::Vram),
        exported(&rig, pages, Placement::Vram),
    );
    let first = Importer::attach(&cold.fd, peer(&rig));
    let second = Importer::attach(&warm.fd, peer(&rig));
    first.map(Direction::Both);
    told.trace.take();
    second.map(Direction::Both);
    told.expect(
        &[&cold.bo, &warm.bo],
        &[
            told.event("pressure", &warm.bo, &[("victim", &id(&cold.bo))]),
            told.invalidate(&cold.bo, 1),
            told.mapping("unmap", &cold.bo, (0, pages), 1),
            told.mapping("map", &warm.bo, (0, pages), 1),
        ],
    );
    assert_eq!(first.info().invalidations, 1);
}

/// Provokes the refusal of each reason that there is, and says for which object.
fn each_refusal(rig: &Rig, mut provoked: impl FnMut(&Bo<'_>, &str, Errno)) {
    let gpu = &rig.gpu[0];
    let plain = gpu.create(4 * gpu.page, Placement::Vram);
    refused(plain.__export(), Errno::EPERM);
    provoked(&plain, "not_flagged", Errno::EPERM);

    let Exported { bo, fd } = exported(rig, 4, Placement::Vram);
    {
        let policy = Setting::new(gpu.pci(), "peer_policy");
        policy.write("default deny");
        refused(Importer::__attach(&fd, peer(rig)), Errno::EPERM);
        provoked(&bo, "policy", Errno::EPERM);
    }
    let importer = Importer::attach(&fd, peer(rig));
    {
        let limit = Setting::new(gpu.pci(), "pin_limit");
        limit.write("3");
        refused(importer.__pin(), Errno::ENOSPC);
        provoked(&bo, "pin_limit", Errno::ENOSPC);
    }
    {
        let limit = Setting::new(gpu.pci(), "reserve_limit_process");
        limit.write("3");
        refused(bo.__set_peer(RESERVED), Errno::ENOSPC);
        provoked(&bo, "reserve_limit", Errno::ENOSPC);
    }
    {
        let system = gpu.create(4 * gpu.page, Placement::System);
        let cgroup = Cgroup::new();
        for memory in [Memory::Vram, Memory::Aperture] {
            cgroup.set_max(gpu.pci(), memory, 3 * gpu.page);
        }
        cgroup.enter();
        refused(bo.__set_peer(RESERVED), Errno::ENOSPC);
        provoked(&bo, "cgroup_aperture", Errno::ENOSPC);
        refused(system.__move_to(Placement::Vram), Errno::ENOSPC);
        provoked(&system, "cgroup_vram", Errno::ENOSPC);
    }
    let deaf = Importer::attach(&fd, peer(rig).kind(Kind::Deaf));
    refused(deaf.__map(Direction::Both), Errno::EOPNOTSUPP);
    provoked(&bo, "deaf", Errno::EOPNOTSUPP);

    bo.set_peer(P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_READ_ONLY);
    refused(importer.__map(Direction::FromDevice), Errno::EACCES);
    provoked(&bo, "read_only", Errno::EACCES);

    bo.set_peer(P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_STRICT);
    refused(Importer::__attach(&fd, peer(rig).no_peer()), Errno::EXDEV);
    provoked(&bo, "no_route", Errno::EXDEV);

    let _all = reserve_all(rig);
    refused(importer.__map(Direction::Both), Errno::ENOSPC);
    provoked(&bo, "no_slots", Errno::ENOSPC);
    refused(bo.__set_peer(RESERVED), Errno::ENOSPC);
    provoked(&bo, "reservation", Errno::ENOSPC);
}

pub fn refusals_are_told() {
    let rig = open();
    let told = Told::start(&rig);
    let counts = || {
        let counts = Debugfs::default().refusals(rig.gpu[0].pci());
        counts.expect("debugfs")
    };
    let mut seen = BTreeSet::new();
    let mut expected = counts();
    each_refusal(&rig, |bo, reason, errno| {
        let events: Vec<_> = told
            .trace
            .take()
            .into_iter()
            .filter(|event| event.name == "refuse")
            .collect();
        let error = -(errno as i32);
        let fields: [(&str, &dyn ToString); 2] = [("reason", &reason), ("error", &error)];
        assert_eq!(events, [told.event("refuse", bo, &fields)]);
        *expected.get_mut(reason).expect("a reason that is counted") += 1;
        assert_eq!(counts(), expected, "{reason}");
        seen.insert(reason.to_owned());
    });
    assert_eq!(
        seen,
        expected.into_keys().collect(),
        "the reasons that there are"
    );
}

pub fn submissions_are_told() {
    let gpu = Gpu::open(0);
    let trace = Trace::start();
    let (first, second) = (Context::new(&gpu), Context::new(&gpu));
    let [a, b] = [0, 1].map(|_| gpu.create(gpu.page, Placement::Vram));
    first.run(&[fill(&a, 1, 4)]);
    let gate = gated(&gpu, &second, &[fill(&b, 1, 4), copy(&a, &b, 4)]);
    gate.advance(1);
    let events = trace.take();
    let told: Vec<_> = events.iter().filter(|e| e.name == "submit").collect();
    let numbers = |name| told.iter().map(|e| e.field(name)).collect::<Vec<_>>();
    assert_eq!(numbers("dev"), [(); 2].map(|()| gpu.pci().to_string()));
    assert_eq!(numbers("commands"), ["1", "2"]);
    assert_eq!(numbers("waits"), ["0", "1"]);
    assert_ne!(told[0].field("context"), told[1].field("context"));
}

pub fn evictions_are_told() {
    let rig = open();
    let gpu = &rig.gpu[0];
    let size = 4 * gpu.page;
    let _ballast = gpu.fill_all_but(size);
    let bo = gpu.create_evictable(size);
    let told = Told::start(&rig);
    let new = gpu.create(size, Placement::Vram);
    let evict = told.event("evict", &bo, &[("size", &size)]);
    told.expect(&[&bo], &[told.migrate(&bo, "system", 0), evict]);
    new.close();
    bo.checksum(0, size);
    told.expect(&[&bo], &[told.migrate(&bo, "vram", 0)]);
}
