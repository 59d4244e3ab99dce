// SPDX-License-Identifier: GPL-2.0
//! Objects that leave VRAM and come back to it by copies for which nobody waits, what waits for
//! their bytes, and what becomes of all if the copies fail or the device goes.

use crate::{Injected, SHORT, ends, grant};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use p2pguest::binding::{Unbound, gpu_is_there, wait_until};
use p2pguest::dmabuf::{Access, DmaBuf, outcome};
use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::host;
use p2pguest::igt::{self, Outcome};
use p2pguest::importer::{Attach, Direction, Importer};
use p2pguest::nic::ACCESS_ALL;
use p2pguest::pattern::Pattern;
use p2pguest::refused;
use p2pguest::rig::Rig;
use p2pguest::shared::Stalled;
use p2pguest::submit::{Context, binary, copy};
use p2pguest::syncobj::Syncobj;
use p2pguest::sys::uapi::*;
use p2pguest::topology::Topology;
use p2pguest::trace::Trace;
use serde_json::json;
use std::fs;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

fn is_in_vram(bo: &Bo<'_>) -> bool {
    bo.info().placement == P2PGPU_PLACEMENT_VRAM
}

/// Objects that take turns in the VRAM that the first of them leaves for one.
struct Turns<'g> {
    away: Bo<'g>,
    there: Bo<'g>,
    _ballast: Bo<'g>,
}

/// Two objects that hold patterns 1 and 2, of which the second is in VRAM.
#[track_caller]
fn turns(gpu: &Gpu) -> Turns<'_> {
    let size = 16 * gpu.page;
    let _ballast = gpu.fill_all_but(size);
    let [away, there] = [1, 2].map(|pattern| {
        let bo = gpu.create_evictable(size);
        bo.fill(Pattern(pattern));
        bo
    });
    assert!(!is_in_vram(&away) && is_in_vram(&there));
    Turns {
        away,
        there,
        _ballast,
    }
}

/// A job that copies the start of `from`, which is to come back for it.
#[track_caller]
fn use_of<'g>(context: &Context<'_>, from: &Bo<'g>, to: &Bo<'g>) -> Syncobj<'g> {
    let done = Syncobj::new(from.gpu());
    context.submit(&[copy(from, to, to.size)], &[], &[binary(&done)]);
    done
}

pub fn evictions_are_queued() {
    let gpu = Gpu::open(0);
    let Turns { away, there, .. } = &turns(&gpu);
    there.set_exportable(true);
    let dmabuf = DmaBuf(there.export());
    let map = there.map();
    let sink = gpu.create(gpu.page, Placement::System);
    let context = Context::new(&gpu);
    let evictions = there.info().evictions;
    // Nothing that is queued ends.
    let stalled = Stalled::new("gpu0");
    let done = use_of(&context, away, &sink);
    assert!(is_in_vram(away) && !is_in_vram(there));
    assert_eq!(there.info().evictions, evictions + 1);
    assert!(!dmabuf.is_ready(Access::Read), "its bytes are on the way");
    assert!(!done.is_signalled());
    thread::scope(|scope| {
        let reader = scope.spawn(|| map.load(8));
        thread::sleep(Duration::from_millis(50));
        assert!(!reader.is_finished(), "the CPU waits for the bytes");
        drop(stalled);
        assert_eq!(reader.join().ok(), Some(Pattern(2).word(1)));
    });
    assert_eq!(ends(&done), Ok(()));
    sink.assert_holds(Pattern(1));
    assert!(dmabuf.is_ready(Access::Write));
    // Each in its place, and then the other way round.
    there.assert_holds(Pattern(2));
    away.assert_holds(Pattern(1));
    assert_eq!([away.info().losses, there.info().losses], [0, 0]);
}

pub fn peers_wait_for_bytes() {
    let rig = Rig::open();
    let gpu = &rig.gpu[0];
    let Turns { away, there, .. } = &turns(gpu);
    let sink = gpu.create(gpu.page, Placement::System);
    let context = Context::new(gpu);
    for bo in [away, there] {
        bo.set_exportable(true);
    }
    let importers = [away, there].map(|bo| {
        let how = Attach::peer(rig.nic[0].pci());
        Importer::attach(&bo.export(), how)
    });
    let trace = Trace::start();
    let stalled = Stalled::new("gpu0");
    let done = use_of(&context, away, &sink);
    thread::scope(|scope| {
        let maps = importers.each_ref().map(|importer| {
            scope.spawn(|| importer.__map(Direction::Both).map(|(index, _)| index))
        });
        thread::sleep(Duration::from_millis(50));
        assert!(maps.iter().all(|map| !map.is_finished()), "no bytes yet");
        // It is the exporter that waits: importers need not know of the fence.
        let given = trace.take().iter().any(|event| event.name == "map");
        assert!(!given, "a peer has addresses of what is not there yet");
        drop(stalled);
        for (importer, map) in importers.iter().zip(maps) {
            let index = map.join().expect("a thread").expect("a mapping");
            // Who came second may have needed the room of the other, which was told then.
            let _gone = importer.__unmap(index);
            assert_eq!(importer.info().mappings, 0);
        }
    });
    assert_eq!(ends(&done), Ok(()));
    sink.assert_holds(Pattern(1));
    if Topology::current().has_route() {
        assert_eq!(away.info().losses, 0);
    }
    away.assert_holds(Pattern(1));
    there.assert_holds(Pattern(2));
}

pub fn addresses_wait_for_bytes() {
    let rig = Rig::open();
    let gpu = &rig.gpu[0];
    let Turns { away, there, .. } = &turns(gpu);
    let sink = gpu.create(gpu.page, Placement::System);
    let context = Context::new(gpu);
    // Where there is no route, that is the one in system memory only.
    let has_route = Topology::current().has_route();
    let bos: Vec<_> = [there, away][..1 + usize::from(has_route)].to_vec();
    let maps: Vec<_> = bos.iter().map(|bo| bo.map()).collect();
    bos.iter().for_each(|bo| bo.set_exportable(true));
    let stalled = Stalled::new("gpu0");
    let done = use_of(&context, away, &sink);
    // Who registers holds mmap_lock until the bytes are there: a thread that starts meanwhile
    // would wait for room for its stack, and we for the thread.
    let all_started = Barrier::new(maps.len());
    let regions: Vec<_> = thread::scope(|scope| {
        let register = |map| {
            all_started.wait();
            rig.nic[0].register_map(map, ACCESS_ALL)
        };
        let registered = maps
            .iter()
            .map(|map| scope.spawn(move || register(map)))
            .collect::<Vec<_>>();
        thread::sleep(Duration::from_millis(50));
        let early = registered.iter().any(|region| region.is_finished());
        assert!(!early, "no bytes yet");
        drop(stalled);
        registered
            .into_iter()
            .map(|region| region.join().expect("a thread"))
            .collect()
    });
    assert_eq!(ends(&done), Ok(()));
    let target = rig.register(1, away.size, Placement::System);
    let wire = rig.connect(4);
    for (region, pattern) in regions.iter().zip([2, 1]) {
        wire.write(region, &target.region);
        target.bo.assert_holds(Pattern(pattern));
    }
}

pub fn eviction_is_tried_again() {
    let gpu = Gpu::open(0);
    let Turns { away, there, .. } = &turns(&gpu);
    let sink = gpu.create(gpu.page, Placement::System);
    let _short = grant(&gpu, "copy_timeout_ms");
    for (what, count) in [("stall", 1), ("error", 2)] {
        let context = Context::new(&gpu);
        let (user, other) = match is_in_vram(away) {
            true => (there, away),
            false => (away, there),
        };
        let injected = Injected::new(what, count);
        let done = use_of(&context, user, &sink);
        assert_eq!(ends(&done), Ok(()), "{what}");
        drop(injected);
        assert!(is_in_vram(user) && !is_in_vram(other));
        assert_eq!(context.query().state, P2PGPU_CONTEXT_OK);
        assert_eq!(other.info().losses, 0);
    }
    away.assert_holds(Pattern(1));
    there.assert_holds(Pattern(2));
}

pub fn lost_in_an_eviction() {
    let gpu = Gpu::open(0);
    let Turns { away, there, .. } = &turns(&gpu);
    let sink = gpu.create(gpu.page, Placement::System);
    let context = Context::new(&gpu);
    let injected = Injected::new("error", 3);
    let done = use_of(&context, away, &sink);
    assert_eq!(ends(&done), Ok(()));
    drop(injected);
    sink.assert_holds(Pattern(1));
    wait_until("the loss is seen", || there.info().losses == 1);
    assert!(!is_in_vram(there));
    // Nobody else's bytes are in their place.
    let found = there.download(0, there.size as usize);
    assert!(found.iter().all(|byte| *byte == 0));
    // It is as good as a new one.
    there.fill(Pattern(3));
    there.assert_holds(Pattern(3));
    assert_eq!([away.info().losses, there.info().losses], [0, 1]);
}

pub fn lost_on_the_way_back() {
    let gpu = Gpu::open(0);
    let Turns {
        away,
        there,
        _ballast,
    } = turns(&gpu);
    let sink = gpu.create(gpu.page, Placement::System);
    there.close();
    let context = Context::new(&gpu);
    let injected = Injected::new("error", 3);
    let done = use_of(&context, &away, &sink);
    assert_eq!(ends(&done), Err(Errno::EIO));
    drop(injected);
    assert_eq!(context.query().state, P2PGPU_CONTEXT_ERROR);
    wait_until("it is where it was", || !is_in_vram(&away));
    assert_eq!(away.map().load(8), Pattern(1).word(1));
    away.assert_holds(Pattern(1));
    assert_eq!(away.info().losses, 0);
    // It came back for the checksum.
    assert!(is_in_vram(&away));
}

/// Everything that an object's owner and its peers can ask for when GPU 0 has gone away while the
/// object's bytes were on their way. `go` makes the GPU go; the result is kept to the end.
#[track_caller]
fn gone_during_an_eviction<T>(go: impl FnOnce(&Gpu) -> T) -> (Rig, T) {
    let rig = Rig::open();
    let gpu = &rig.gpu[0];
    for what in ["copy_timeout_ms", "job_timeout_ms"] {
        // It is as before when the GPU is bound again.
        fs::write(gpu.pci().sysfs().join(what), SHORT).expect("a file in sysfs");
    }
    let went = {
        let Turns {
            away,
            there,
            _ballast,
        } = &turns(gpu);
        for bo in [away, there] {
            bo.set_exportable(true);
        }
        let buffer = DmaBuf(there.export());
        let importers = [away, there].map(|bo| {
            let how = Attach::peer(rig.nic[0].pci());
            Importer::attach(&bo.export(), how)
        });
        let map = there.map();
        let sink = gpu.create(gpu.page, Placement::System);
        let context = Context::new(gpu);
        let stalled = Stalled::new("gpu0");
        let done = use_of(&context, away, &sink);
        assert!(is_in_vram(away) && !is_in_vram(there));
        assert!(!buffer.is_ready(Access::Read), "its bytes are on the way");
        // The syncobj goes with the GPU.
        let fence = done.export_sync_file();
        // A CPU and peers wait for them.
        let reader = igt::fork(|| {
            map.load(8);
        });
        let went = thread::scope(|scope| {
            let maps = importers.each_ref().map(|importer| {
                scope.spawn(|| importer.__map(Direction::Both).map(|(index, _)| index))
            });
            thread::sleep(Duration::from_millis(50));
            let went = go(gpu);
            for (importer, map) in importers.iter().zip(maps) {
                // What was given before it went was taken back.
                if let Err(errno) = map.join().expect("a thread") {
                    assert_eq!(errno, Errno::ENODEV);
                }
                assert_eq!(importer.info().mappings, 0);
            }
            went
        });
        drop(stalled);
        // What was submitted ends, and not well.
        wait_until("the job has ended", || outcome(&fence).is_some());
        assert!(matches!(
            outcome(&fence),
            Some(Err(Errno::ENODEV | Errno::EIO))
        ));
        assert!(buffer.is_ready(Access::Write));
        match reader.outcome() {
            // It came before.
            Outcome::Passed | Outcome::Killed(Signal::SIGBUS) => {}
            outcome => panic!("the reader: {outcome:?}"),
        }
        refused(there.__info(), Errno::ENODEV);
        refused(away.__checksum(0, 4096), Errno::ENODEV);
        for importer in &importers {
            refused(importer.__map(Direction::Both), Errno::ENODEV);
        }
        went
    };
    (rig, went)
}

pub fn unbound_during_an_eviction() {
    let (rig, unbound) = gone_during_an_eviction(|gpu| Unbound::new("p2pgpu", gpu.pci()));
    let pci = rig.gpu[0].pci();
    drop(rig);
    drop(unbound);
    wait_until("the GPU comes back", || gpu_is_there(pci));
    // All of VRAM is there again, and an eviction works.
    let gpu = Gpu::open(0);
    let vram = |what| gpu.param(what);
    assert_eq!(vram(P2PGPU_PARAM_VRAM_FREE), vram(P2PGPU_PARAM_VRAM_SIZE));
    let Turns { away, there, .. } = &turns(&gpu);
    away.assert_holds(Pattern(1));
    there.assert_holds(Pattern(2));
}

pub fn pulled_out_during_an_eviction() {
    host::retire_guest();
    igt::expect_gone(Gpu::open(0).pci());
    let (rig, ()) = gone_during_an_eviction(|gpu| {
        host::control("gpu0", json!({"cmd": "remove"}));
        fs::write(gpu.pci().sysfs().join("remove"), "1").expect("a file in sysfs");
        let is_there = || gpu.pci().sysfs().exists();
        wait_until("the device is gone", || !is_there());
    });
    // The other one does not notice.
    let Turns { away, there, .. } = &turns(&rig.gpu[1]);
    away.assert_holds(Pattern(1));
    there.assert_holds(Pattern(2));
}
