// SPDX-License-Identifier: GPL-2.0
//! All mistakes at once, from two threads.

use nix::errno::Errno;
use p2pguest::drm;
use p2pguest::gpu::{self, Gpu, Placement};
use p2pguest::nic::{self, ACCESS_ALL, Nic};
use p2pguest::pattern::Pattern;
use p2pguest::rig::Rig;
use p2pguest::sys::uapi::*;
use std::fmt::Debug;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Calls of each thread.
const STEPS: u64 = 1000;

/// Numbers that are wrong in interesting ways, and some that are right.
struct Random {
    pattern: Pattern,
    step: u64,
}

impl Random {
    fn word(&mut self) -> u64 {
        self.step += 1;
        self.pattern.word(self.step)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[(self.word() % from.len() as u64) as usize]
    }

    fn size(&mut self) -> u64 {
        let sizes = [
            0,
            1,
            4095,
            4096,
            8192,
            65536,
            1 << 20,
            1 << 40,
            1 << 63,
            u64::MAX,
        ];
        self.pick(&sizes)
    }

    fn offset(&mut self) -> u64 {
        self.pick(&[0, 0, 0, 1, 8, 4095, 4096, 1 << 31, 1 << 63, u64::MAX])
    }

    /// A handle, region or queue pair: mostly one that may exist.
    fn name(&mut self, known: &[u32]) -> u32 {
        match self.word() % 8 {
            0 => self.word() as u32,
            1 => self.pick(&[0, u32::MAX, 1 << 31]),
            2 => (self.word() % 16) as u32,
            _ if known.is_empty() => 1,
            _ => self.pick(known),
        }
    }

    /// A field that should be 0, and mostly is.
    fn zero(&mut self) -> u32 {
        self.pick(&[0, 0, 0, 0, 0, 0, 1, 1 << 31])
    }
}

/// What a thread has seen, to use again in a wrong place.
struct Chaos<'t> {
    gpu: &'t Gpu,
    nic: &'t Nic,
    random: Random,
    handles: Vec<u32>,
    keys: Vec<u32>,
    pairs: Vec<u32>,
    buffers: Vec<OwnedFd>,
}

/// Most names that a thread remembers, so that VRAM and memory do not run out
/// for good: what is forgotten goes when the files are closed.
const KEEP: usize = 24;

/// How a call ended: whether it worked, and what it was if neither that nor a
/// refusal of the headers' explains the end.
type Ended = Result<bool, String>;

/// Judges the end of a call.
fn judge(result: Result<(), Errno>, call: impl Debug) -> Ended {
    match result {
        Ok(()) => Ok(true),
        Err(errno) if EXPECTED.contains(&errno) => Ok(false),
        Err(errno) => Err(format!("{call:?}: {errno}")),
    }
}

/// Keeps what a call made; gives back the oldest, if there are too many.
fn keep<T>(known: &mut Vec<T>, made: T) -> Option<T> {
    known.push(made);
    (known.len() > KEEP).then(|| known.remove(0))
}

impl Chaos<'_> {
    fn gpu_call<T: gpu::Argument + Debug>(&self, mut arg: T) -> Ended {
        let result = self.gpu.__ioctl(&mut arg);
        judge(result, arg)
    }

    fn nic_call<T: nic::Argument + Debug>(&self, mut arg: T) -> Ended {
        let result = self.nic.__ioctl(&mut arg);
        judge(result, arg)
    }

    fn close(&self, handle: u32) -> Ended {
        judge(self.gpu.__close(handle), ("GEM_CLOSE", handle))
    }

    fn deregister(&self, key: u32) -> Ended {
        judge(self.nic.__deregister(key), ("DEREG_REGION", key))
    }

    /// One call with random arguments.
    fn step(&mut self) -> Ended {
        let random = &mut self.random;
        let (handle, second) = (random.name(&self.handles), random.name(&self.handles));
        let (key, qp) = (random.name(&self.keys), random.name(&self.pairs));
        let (offset, size, zero) = (random.offset(), random.size(), random.zero());
        match random.word() % 18 {
            0 => self.create(size, zero),
            1 => self.close(handle),
            2 => self.gpu_call(drm_p2pgpu_gem_set_peer {
                handle,
                flags: zero ^ 1,
            }),
            3 => self.gpu_call(drm_p2pgpu_gem_info {
                handle,
                pad: zero,
                ..Default::default()
            }),
            4 => {
                let placement = random.pick(&[0, 1, 2]);
                self.gpu_call(drm_p2pgpu_gem_move {
                    handle,
                    placement,
                    flags: zero,
                    pad: 0,
                })
            }
            5 => {
                let dst_offset = random.offset();
                self.gpu_call(drm_p2pgpu_gem_copy {
                    src_handle: handle,
                    dst_handle: second,
                    src_offset: offset,
                    dst_offset,
                    size,
                })
            }
            6 => self.gpu_call(drm_p2pgpu_gem_checksum {
                handle,
                pad: zero,
                offset,
                size,
                ..Default::default()
            }),
            7 => self.export(handle),
            8 => self.import(),
            9 => {
                let query = self.gpu.__query(handle, self.nic.pci());
                judge(query.map(drop), ("PEER_QUERY", handle))
            }
            10 | 11 => self.register(ACCESS_ALL ^ zero, offset, size),
            12 => self.deregister(key),
            13 => self.nic_call(p2pnic_region_info {
                key,
                ..Default::default()
            }),
            14 => self.create_qp(zero),
            15 => judge(self.nic.__destroy_qp(qp), ("DESTROY_QP", qp)),
            16 => {
                let remote_qp = random.name(&[0, 1]);
                self.nic_call(p2pnic_connect_qp { qp, remote_qp })
            }
            _ => {
                let request = p2pnic_post_send {
                    qp,
                    opcode: random.pick(&[0, 1, 2, 3, 4]),
                    id: offset,
                    local_key: key,
                    remote_key: random.name(&[]),
                    local_offset: offset,
                    remote_offset: random.offset(),
                    size,
                };
                self.nic_call(request)
            }
        }
    }

    fn create(&mut self, size: u64, flags: u32) -> Ended {
        let mut arg = drm_p2pgpu_gem_create {
            size,
            placement: self.random.pick(&[0, 1, 1, 2]),
            flags,
            ..Default::default()
        };
        let result = self.gpu.__ioctl(&mut arg);
        if result.is_ok()
            && let Some(oldest) = keep(&mut self.handles, arg.handle)
        {
            self.close(oldest)?;
        }
        judge(result, arg)
    }

    fn export(&mut self, handle: u32) -> Ended {
        let made = drm::prime_handle_to_fd(self.gpu, handle, drm::PRIME_FLAGS);
        let result = made.map(|fd| drop(keep(&mut self.buffers, fd)));
        judge(result, ("PRIME_HANDLE_TO_FD", handle))
    }

    fn import(&mut self) -> Ended {
        let fd = self.some_fd();
        let made = drm::prime_fd_to_handle(self.gpu, fd);
        let result = made.map(|handle| self.handles.push(handle));
        judge(result, ("PRIME_FD_TO_HANDLE", fd))
    }

    fn register(&mut self, access: u32, offset: u64, size: u64) -> Ended {
        let mut arg = p2pnic_reg_region {
            fd: self.some_fd(),
            access,
            offset,
            size,
            ..Default::default()
        };
        let result = self.nic.__ioctl(&mut arg);
        if result.is_ok()
            && let Some(oldest) = keep(&mut self.keys, arg.key)
        {
            self.deregister(oldest)?;
        }
        judge(result, arg)
    }

    fn create_qp(&mut self, pad: u32) -> Ended {
        let mut arg = p2pnic_create_qp {
            send_entries: self.random.pick(&[0, 3, 4, 16, 2048, 4096]),
            recv_entries: 4,
            pad,
            ..Default::default()
        };
        let result = self.nic.__ioctl(&mut arg);
        if result.is_ok() {
            self.pairs.push(arg.qp);
        }
        judge(result, arg)
    }

    /// A dma-buf, or what is none.
    fn some_fd(&mut self) -> i32 {
        if self.buffers.is_empty() || self.random.word().is_multiple_of(4) {
            return self.random.pick(&[-1, 0, 1, i32::MAX]);
        }
        let index = self.random.word() % self.buffers.len() as u64;
        self.buffers[index as usize].as_raw_fd()
    }
}

/// Errors that the two headers name for one of these calls.
const EXPECTED: [Errno; 13] = [
    Errno::EINVAL,
    Errno::ENOENT,
    Errno::EPERM,
    Errno::EBADF,
    Errno::E2BIG,
    Errno::ENOSPC,
    Errno::EBUSY,
    Errno::EAGAIN,
    Errno::EISCONN,
    Errno::ENXIO,
    Errno::EXDEV,
    Errno::EINTR,
    Errno::ENOMEM,
];

pub fn bad_all_at_once() {
    let rig = Rig::open();
    // Files of this test's own: what is left in them goes with them.
    let (gpu, nic) = (rig.gpu[0].reopen(), rig.nic[0].reopen());
    let (calls, worked) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for seed in 0..2 {
            let (gpu, nic, calls, worked) = (&gpu, &nic, &calls, &worked);
            scope.spawn(move || {
                let mut chaos = Chaos {
                    gpu,
                    nic,
                    random: Random {
                        pattern: Pattern(seed),
                        step: 0,
                    },
                    handles: Vec::new(),
                    keys: Vec::new(),
                    pairs: Vec::new(),
                    buffers: Vec::new(),
                };
                for _ in 0..STEPS {
                    let ended = chaos.step();
                    calls.fetch_add(1, Ordering::Relaxed);
                    match ended {
                        Ok(as_asked) => drop(worked.fetch_add(as_asked.into(), Ordering::Relaxed)),
                        Err(call) => panic!("thread {seed}, number {}: {call}", chaos.random.step),
                    }
                }
            });
        }
    });
    println!(
        "{} calls, of which {} worked",
        calls.into_inner(),
        worked.load(Ordering::Relaxed)
    );
    assert!(
        worked.into_inner() > 100,
        "too few calls worked to mean anything"
    );
    drop((gpu, nic));
    // The devices are as good as before.
    let (source, target) = (
        rig.register(0, 4096, Placement::Vram),
        rig.register(1, 4096, Placement::Vram),
    );
    source.bo.fill(Pattern(1));
    rig.connect(4).write(&source.region, &target.region);
    target.bo.assert_holds(Pattern(1));
}

pub fn bad_races() {
    let rig = Rig::open();
    let (gpu, nic) = (&rig.gpu[0], &rig.nic[0]);
    let exported = rig.export(0, 4096, Placement::Vram);
    for _ in 0..200 {
        let handle = gpu.create(4096, Placement::Vram).into_handle();
        let key = {
            let region = nic.register(&exported.fd, ACCESS_ALL, 4096);
            let key = region.key;
            std::mem::forget(region);
            key
        };
        let number = {
            let qp = nic.create_qp(4, 4);
            let number = qp.number;
            std::mem::forget(qp);
            number
        };
        let all = || {
            [
                gpu.__close(handle),
                nic.__deregister(key),
                nic.__destroy_qp(number),
            ]
        };
        let (first, second) = thread::scope(|scope| {
            let other = scope.spawn(all);
            (all(), other.join().expect("the other thread"))
        });
        let refusals = [Errno::EINVAL, Errno::ENOENT, Errno::ENOENT];
        for ((one, two), refusal) in first.into_iter().zip(second).zip(refusals) {
            let both = [one, two];
            assert!(
                both.contains(&Ok(())) && both.contains(&Err(refusal)),
                "{both:?}"
            );
        }
    }
}
