// SPDX-License-Identifier: GPL-2.0
//! Bad arguments of the NIC's ioctls, one function an ioctl.

use crate::gpu::closed_fd;
use crate::{WRONG, nowhere};
use nix::errno::Errno;
use nix::libc;
use p2pguest::gpu::Placement;
use p2pguest::igt;
use p2pguest::map::Mapping;
use p2pguest::nic::{ACCESS_ALL, Argument, Nic};
use p2pguest::rig::Rig;
use p2pguest::sys::uapi::*;
use p2pguest::{must, refused};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Asserts that each argument is refused so.
#[track_caller]
fn all_refused<T: Argument + std::fmt::Debug>(
    nic: &Nic,
    errno: Errno,
    arguments: impl IntoIterator<Item = T>,
) {
    for mut argument in arguments {
        let shown = format!("{argument:?}");
        assert_eq!(nic.__ioctl(&mut argument), Err(errno), "{shown}");
    }
}

pub fn bad_register_fd() {
    let nic = Nic::open(0);
    for fd in [-1, i32::MIN, i32::MAX, closed_fd()] {
        refused(nic.__register(fd, ACCESS_ALL, 0, 4096), Errno::EBADF);
    }
    let null = File::open("/dev/null").expect("/dev/null");
    refused(
        nic.__register(null.as_raw_fd(), ACCESS_ALL, 0, 4096),
        Errno::EINVAL,
    );
    let (reader, _writer) = must(nix::unistd::pipe(), format_args!("pipe"));
    refused(
        nic.__register(reader.as_raw_fd(), ACCESS_ALL, 0, 4096),
        Errno::EINVAL,
    );
    let own = nic.reopen();
    let own = std::os::fd::AsFd::as_fd(&own).as_raw_fd();
    refused(nic.__register(own, ACCESS_ALL, 0, 4096), Errno::EINVAL);
    assert_eq!(nic.query().regions, 0, "a refused call left a region");
}

pub fn bad_register_range() {
    let rig = Rig::open();
    let exported = rig.export(0, 4 * 4096, Placement::Vram);
    let end = 4 * 4096;
    let bad = [
        (0, 0),
        (0, 1),
        (0, 4097),
        (1, 4096),
        (4095, 4096),
        (0, end + 4096),
        (end, 4096),
        (4096, end),
        (1 << 63, 4096),
        (0, 1 << 63),
        (1 << 63, 1 << 63),
        (4096_u64.wrapping_neg(), 4096),
        (4096_u64.wrapping_neg(), 8192),
        (8192, 4096_u64.wrapping_neg()),
    ];
    for (offset, size) in bad {
        let result = rig.nic[0].__register(exported.fd.as_raw_fd(), ACCESS_ALL, offset, size);
        let errno = result.map(|region| region.key);
        assert_eq!(
            errno,
            Err(Errno::EINVAL),
            "{size:#x} bytes from {offset:#x}"
        );
    }
    assert_eq!(exported.bo.info().importers, 0);
}

pub fn bad_register_fields() {
    let rig = Rig::open();
    let exported = rig.export(0, 4096, Placement::Vram);
    let good = p2pnic_reg_region {
        fd: exported.fd.as_raw_fd(),
        size: 4096,
        ..Default::default()
    };
    let bad = [
        p2pnic_reg_region { access: 8, ..good },
        p2pnic_reg_region {
            access: ACCESS_ALL | 1 << 31,
            ..good
        },
        p2pnic_reg_region { pad: 1, ..good },
        p2pnic_reg_region {
            pad: 1 << 31,
            ..good
        },
    ];
    all_refused(&rig.nic[0], Errno::EINVAL, bad);
    assert_eq!(exported.bo.info().importers, 0);
}

pub fn bad_register_user() {
    let nic = Nic::open(0);
    let map = Mapping::anonymous(4 * 4096);
    let start = map.address().get();
    let bad = [
        (start, 0),
        (start, 1),
        (start, 4095),
        (start, 4097),
        (start + 1, 4096),
        (start + 8, 4088),
        (start, 1 << 63),
        (start, 4096_u64.wrapping_neg()),
        (usize::MAX - 4095, 4096),
        (usize::MAX - 4095, 2 * 4096),
        (1 << 63, 4096),
        (0, 1 << 63),
    ];
    for (address, size) in bad {
        let result = nic
            .__register_user(address, 0, size)
            .map(|region| region.key);
        assert_eq!(
            result,
            Err(Errno::EINVAL),
            "{size:#x} bytes at {address:#x}"
        );
    }
    for access in [8, 1 << 31, u32::MAX] {
        refused(nic.__register_map(&map, access), Errno::EINVAL);
    }
    // No memory for lists of so many pages, but it is not malformed.
    refused(nic.__register_user(0, 0, 1 << 46), Errno::ENOMEM);
    assert_eq!(nic.query().regions, 0, "a refused call left a region");
}

pub fn bad_deregister() {
    let rig = Rig::open();
    let nic = &rig.nic[0];
    let exported = rig.export(0, 4096, Placement::Vram);
    all_refused(
        nic,
        Errno::ENOENT,
        WRONG.map(|key| p2pnic_dereg_region { key, pad: 0 }),
    );
    let key = nic.register(&exported.fd, 0, 4096).key;
    // The guard has deregistered it: this is the second time.
    refused(nic.__deregister(key), Errno::ENOENT);
    let held = nic.register(&exported.fd, 0, 4096);
    all_refused(
        nic,
        Errno::EINVAL,
        [p2pnic_dereg_region {
            key: held.key,
            pad: 1,
        }],
    );
    held.info();
    // The same place, another generation.
    refused(nic.__deregister(held.key ^ 0x0100_0000), Errno::ENOENT);
    held.deregister();
}

pub fn bad_region_info() {
    let rig = Rig::open();
    let exported = rig.export(0, 4096, Placement::Vram);
    let with = |key| p2pnic_region_info {
        key,
        ..Default::default()
    };
    all_refused(&rig.nic[0], Errno::ENOENT, WRONG.map(with));
    let region = rig.nic[0].register(&exported.fd, 0, 4096);
    let key = region.key;
    region.deregister();
    all_refused(&rig.nic[0], Errno::ENOENT, [with(key)]);
    all_refused(&rig.nic[1], Errno::ENOENT, [with(key)]);
}

pub fn bad_create_qp() {
    let nic = Nic::open(0);
    let with = |send_entries, recv_entries| p2pnic_create_qp {
        send_entries,
        recv_entries,
        ..Default::default()
    };
    let bad = [0, 1, 2, 3, 5, 100, 4096, 1 << 31, u32::MAX];
    all_refused(&nic, Errno::EINVAL, bad.map(|entries| with(entries, 4)));
    all_refused(&nic, Errno::EINVAL, bad.map(|entries| with(4, entries)));
    all_refused(
        &nic,
        Errno::EINVAL,
        [p2pnic_create_qp {
            pad: 1,
            ..with(4, 4)
        }],
    );
}

pub fn bad_connect() {
    let rig = Rig::open();
    let nic = &rig.nic[0];
    let with = |qp, remote_qp| p2pnic_connect_qp { qp, remote_qp };
    all_refused(
        nic,
        Errno::ENOENT,
        [63, 64, 1 << 31, u32::MAX].map(|qp| with(qp, 0)),
    );
    let qp = nic.create_qp(4, 4);
    let past = nic.query().max_queue_pairs;
    let remote = [past, 1 << 31, u32::MAX];
    all_refused(
        nic,
        Errno::EINVAL,
        remote.map(|remote| with(qp.number, remote)),
    );
    must(qp.__connect(0), format_args!("CONNECT_QP"));
    refused(qp.__connect(0), Errno::EISCONN);
    refused(qp.__connect(1), Errno::EISCONN);
}

pub fn bad_destroy_qp() {
    let nic = Nic::open(0);
    let wrong = [0, 63, 64, 1 << 31, u32::MAX];
    all_refused(
        &nic,
        Errno::ENOENT,
        wrong.map(|qp| p2pnic_destroy_qp { qp, pad: 0 }),
    );
    let number = nic.create_qp(4, 4).number;
    // The guard has destroyed it: this is the second time.
    refused(nic.__destroy_qp(number), Errno::ENOENT);
    let held = nic.create_qp(4, 4);
    all_refused(
        &nic,
        Errno::EINVAL,
        [p2pnic_destroy_qp {
            qp: held.number,
            pad: 1,
        }],
    );
}

pub fn bad_post_send() {
    let nic = Nic::open(0);
    let qp = nic.create_qp(4, 4);
    let good = p2pnic_post_send {
        qp: qp.number,
        opcode: P2PNIC_OP_WRITE,
        ..Default::default()
    };
    let send = p2pnic_post_send {
        opcode: P2PNIC_OP_SEND,
        ..good
    };
    let wrong = [63, 64, u32::MAX].map(|qp| p2pnic_post_send { qp, ..good });
    all_refused(&nic, Errno::ENOENT, wrong);
    let bad = [
        p2pnic_post_send { opcode: 0, ..good },
        p2pnic_post_send {
            opcode: P2PNIC_OP_RECV,
            ..good
        },
        p2pnic_post_send {
            opcode: u32::MAX,
            ..good
        },
        p2pnic_post_send {
            size: (1 << 31) + 1,
            ..good
        },
        p2pnic_post_send {
            size: 1 << 63,
            ..good
        },
        p2pnic_post_send {
            size: u64::MAX,
            ..send
        },
        p2pnic_post_send {
            remote_key: 1,
            ..send
        },
        p2pnic_post_send {
            remote_offset: 1,
            ..send
        },
    ];
    all_refused(&nic, Errno::EINVAL, bad);
    // Nothing was posted: the queue has all its room.
    for _ in 0..4 {
        qp.post_send(good);
    }
}

pub fn bad_post_recv() {
    let nic = Nic::open(0);
    let qp = nic.create_qp(4, 4);
    let good = p2pnic_post_recv {
        qp: qp.number,
        ..Default::default()
    };
    let wrong = [63, 64, u32::MAX].map(|qp| p2pnic_post_recv { qp, ..good });
    all_refused(&nic, Errno::ENOENT, wrong);
    let sizes = [(1 << 31) + 1, 1 << 63, u64::MAX];
    all_refused(
        &nic,
        Errno::EINVAL,
        sizes.map(|size| p2pnic_post_recv { size, ..good }),
    );
}

pub fn bad_poll() {
    let rig = Rig::open();
    let nic = &rig.nic[0];
    let (source, target) = (
        rig.register(0, 4096, Placement::Vram),
        rig.register(1, 4096, Placement::Vram),
    );
    let wire = rig.connect(4);
    let mut room = [p2pnic_completion::default(); 4];
    let good = p2pnic_poll {
        qp: wire.near.number,
        capacity: 4,
        completions: room.as_mut_ptr() as u64,
        ..Default::default()
    };
    let poll = |mut arg: p2pnic_poll| {
        // SAFETY: what the arguments of this test point to is `room`, which is
        // as large as the capacities that the driver accepts, or nowhere.
        unsafe { nic.__ioctl_raw(P2PNIC_IOCTL_POLL, (&raw mut arg).cast()) }
    };
    for qp in [63, 64, u32::MAX] {
        refused(poll(p2pnic_poll { qp, ..good }), Errno::ENOENT);
    }
    for capacity in [0, 4097, u32::MAX] {
        refused(poll(p2pnic_poll { capacity, ..good }), Errno::EINVAL);
    }
    refused(poll(p2pnic_poll { pad: 1, ..good }), Errno::EINVAL);
    wire.write(&source.region, &target.region);
    wire.start_write(&source.region, &target.region);
    let at_nowhere = nowhere().addr() as u64;
    let waiting = p2pnic_poll {
        timeout_ns: 10_000_000_000,
        ..good
    };
    refused(
        poll(p2pnic_poll {
            completions: at_nowhere,
            ..waiting
        }),
        Errno::EFAULT,
    );
}

pub fn bad_nic_pointer() {
    let nic = Nic::open(0);
    let requests = [
        P2PNIC_IOCTL_QUERY,
        P2PNIC_IOCTL_REG_REGION,
        P2PNIC_IOCTL_DEREG_REGION,
        P2PNIC_IOCTL_REGION_INFO,
        P2PNIC_IOCTL_CREATE_QP,
        P2PNIC_IOCTL_CONNECT_QP,
        P2PNIC_IOCTL_DESTROY_QP,
        P2PNIC_IOCTL_POST_SEND,
        P2PNIC_IOCTL_POST_RECV,
        P2PNIC_IOCTL_POLL,
        P2PNIC_IOCTL_REG_USER,
    ];
    for request in requests {
        // SAFETY: this process has no memory there.
        let result = unsafe { nic.__ioctl_raw(request, nowhere()) };
        assert_eq!(result, Err(Errno::EFAULT), "ioctl {request:#x}");
    }
}

pub fn bad_nic_ioctl() {
    let nic = Nic::open(0);
    let requests = [
        // The number after the last one; another type; another size.
        (P2PNIC_IOCTL_POLL & !0xff) | 0xcb,
        P2PNIC_IOCTL_QUERY ^ 0xff00,
        P2PNIC_IOCTL_QUERY ^ 0x0008_0000,
        0,
        u32::MAX,
    ];
    for request in requests {
        // SAFETY: there is no such ioctl, and no memory there.
        let result = unsafe { nic.__ioctl_raw(request, nowhere()) };
        assert_eq!(result, Err(Errno::ENOTTY), "ioctl {request:#x}");
    }
}

/// `struct udmabuf_create` of linux/udmabuf.h.
#[repr(C)]
struct UdmabufCreate {
    memfd: u32,
    flags: u32,
    offset: u64,
    size: u64,
}

/// `UDMABUF_CREATE`: _IOW('u', 0x42, struct udmabuf_create).
const UDMABUF_CREATE: libc::c_ulong = 0x4018_7542;

/// Makes a dma-buf of a page of ordinary memory; skips without udmabuf.
fn udmabuf(size: u64) -> OwnedFd {
    let Ok(device) = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/udmabuf")
    else {
        igt::skip("/dev/udmabuf");
    };
    // SAFETY: the name is a C string; the descriptor is ours.
    let memfd = unsafe {
        let fd = libc::memfd_create(c"p2ptest".as_ptr(), libc::MFD_ALLOW_SEALING);
        File::from(OwnedFd::from_raw_fd(must(
            Errno::result(fd),
            format_args!("memfd_create"),
        )))
    };
    memfd.set_len(size).expect("the memfd's size");
    // SAFETY: takes numbers only.
    let sealed = unsafe { libc::fcntl(memfd.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) };
    must(Errno::result(sealed), format_args!("F_ADD_SEALS"));
    let create = UdmabufCreate {
        memfd: memfd.as_raw_fd().cast_unsigned(),
        flags: 0,
        offset: 0,
        size,
    };
    // SAFETY: the ioctl reads this structure; what it returns is a new file.
    unsafe {
        let fd = libc::ioctl(device.as_raw_fd(), UDMABUF_CREATE, &raw const create);
        OwnedFd::from_raw_fd(must(Errno::result(fd), format_args!("UDMABUF_CREATE")))
    }
}

pub fn foreign_dma_buf() {
    let rig = Rig::open();
    let foreign = udmabuf(4 * 4096);
    let region = rig.nic[0].register(&foreign, ACCESS_ALL, 4 * 4096);
    let far = rig.register(1, 4 * 4096, Placement::Vram);
    far.bo.upload(0, &[0xff; 4 * 4096]);
    rig.connect(4).write(&region, &far.region);
    assert_eq!(far.bo.download(0, 4 * 4096), [0; 4 * 4096]);
}
