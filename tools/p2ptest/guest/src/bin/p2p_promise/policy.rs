// SPDX-License-Identifier: GPL-2.0
//! The policy of a device, and its limits, as files in sysfs.

use crate::{assert_refused, hold, open, refusals, registered};
use nix::errno::Errno;
use p2pguest::gpu::{Gpu, Placement};
use p2pguest::nic::ACCESS_ALL;
use p2pguest::refused;
use p2pguest::setting::Setting;
use p2pguest::sys::uapi::*;
use std::fs;
use std::os::fd::AsRawFd;

#[track_caller]
fn policy(gpu: &Gpu) -> Setting {
    let policy = Setting::new(gpu.pci(), "peer_policy");
    assert_eq!(policy.read(), "default allow\n");
    policy
}

pub fn policy_is_read_back() {
    let gpu = Gpu::open(0);
    let policy = policy(&gpu);
    for (text, shown) in [
        ("default deny", "default deny\n"),
        ("\n", "default allow\n"),
        (
            "  deny pci 0000:ff:1F.7 \n\nallow driver p2pnic\ndefault deny\n",
            "deny pci 0000:ff:1f.7\nallow driver p2pnic\ndefault deny\n",
        ),
        (
            "allow driver a\nallow driver a",
            "allow driver a\nallow driver a\ndefault allow\n",
        ),
    ] {
        policy.write(text);
        assert_eq!(policy.read(), shown);
    }
}

pub fn policy_malformed() {
    let gpu = Gpu::open(0);
    let policy = policy(&gpu);
    policy.write("deny driver nobody");
    let before = policy.read();
    for text in [
        "deny",
        "deny pci",
        "deny pci 04:00.0",
        "deny pci 0000:04:00.8",
        "deny pci 0000:04:20.0",
        "deny pci 0000:4:00.0",
        "deny pci 0000:+4:00.0",
        "deny pci 10000:04:00.0",
        "deny pci 0000:04:00.0 x",
        "deny driver",
        "deny driver a b",
        "maybe driver a",
        "deny bus a",
        "default",
        "default maybe",
        "default deny now",
        "default deny\nallow driver a",
        "default deny\ndefault deny",
        "allow driver a\nnonsense",
    ] {
        refused(policy.__write(text), Errno::EINVAL);
        assert_eq!(policy.read(), before, "after {text:?}");
    }
    // Not UTF-8.
    let bytes = fs::write(policy.path(), b"deny driver \xff");
    assert_eq!(
        bytes.expect_err("malformed").raw_os_error(),
        Some(Errno::EINVAL as i32)
    );
}

pub fn policy_decides() {
    let rig = open();
    let gpu = &rig.gpu[0];
    let policy = policy(gpu);
    let [near, far] = rig.nic.each_ref().map(|nic| nic.pci());
    for (text, allowed) in [
        (format!("deny pci {near}"), [false, true]),
        (format!("deny pci {near}\ndefault deny"), [false, false]),
        (format!("allow pci {near}\ndefault deny"), [true, false]),
        (
            format!("allow pci {far}\ndeny driver p2pnic"),
            [false, true],
        ),
        (
            format!("deny driver p2pnic\nallow pci {far}"),
            [false, false],
        ),
        ("deny driver p2p".into(), [true, true]),
        ("allow driver p2pnic\ndefault deny".into(), [true, true]),
    ] {
        policy.write(&text);
        let exported = rig.export(0, gpu.page, Placement::Vram);
        for (nic, allowed) in rig.nic.iter().zip(allowed) {
            let answer = exported.bo.query(nic.pci());
            let verdict = match allowed {
                true => P2PGPU_PEER_YES,
                false => P2PGPU_PEER_DENIED,
            };
            assert_eq!(answer.verdict, verdict, "{text:?}: {}", nic.pci());
            let fd = exported.fd.as_raw_fd();
            let before = refusals(gpu, "policy");
            match nic.__register(fd, ACCESS_ALL, 0, gpu.page) {
                Ok(_) => assert!(allowed, "{text:?}"),
                Err(errno) => {
                    assert_eq!((allowed, errno), (false, Errno::EPERM), "{text:?}");
                    assert_eq!(refusals(gpu, "policy"), before + 1);
                }
            }
        }
    }
}

pub fn policy_takes_effect_at_once() {
    let rig = open();
    let policy = policy(&rig.gpu[0]);
    let held = registered(&rig, 4);
    hold(&rig, &held);
    policy.write("allow driver p2pnic");
    assert_eq!(held.bo.info().invalidations, 1);
    hold(&rig, &held);
    policy.write("deny driver p2pnic");
    assert_eq!(held.bo.info().peer_slots, 0);
    assert_refused(&rig, &held, Errno::EPERM);
}

pub fn limits_are_numbers() {
    let gpu = Gpu::open(0);
    for (name, expected, min, max) in [
        ("pin_limit", gpu.slots - gpu.slots / 4, 0, u32::MAX),
        ("pin_limit_process", gpu.slots / 2, 0, u32::MAX),
        ("peer_grace_ms", 20, 0, 60_000),
        ("copy_timeout_ms", 10_000, 1, 600_000),
        ("job_timeout_ms", 5_000, 1, 600_000),
        ("flush_timeout_ms", 10_000, 1, 600_000),
        ("reset_timeout_ms", 10_000, 1, 600_000),
        ("importer_timeout_ms", 10_000, 1, 600_000),
    ] {
        Setting::new(gpu.pci(), name).assert_takes(expected, min..=max);
    }
}

pub fn limits_can_be_asked_for() {
    let gpu = Gpu::open(0);
    for (name, param) in [
        ("pin_limit", P2PGPU_PARAM_PIN_LIMIT),
        ("pin_limit_process", P2PGPU_PARAM_PIN_LIMIT_PROCESS),
        ("reserve_limit", P2PGPU_PARAM_RESERVE_LIMIT),
        ("reserve_limit_process", P2PGPU_PARAM_RESERVE_LIMIT_PROCESS),
    ] {
        let limit = Setting::new(gpu.pci(), name);
        assert_eq!(limit.read(), format!("{}\n", gpu.param(param)), "{name}");
        limit.write("17");
        assert_eq!(gpu.param(param), 17, "{name}");
    }
    let most = gpu.param(P2PGPU_PARAM_SYSTEM_SIZE_MAX);
    refused(
        gpu.__create(most + gpu.page, Placement::System).map(drop),
        Errno::E2BIG,
    );
}
