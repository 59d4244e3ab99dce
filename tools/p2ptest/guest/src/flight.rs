// SPDX-License-Identifier: GPL-2.0
//! Transfers that are to be met in flight.

use crate::host;
use crate::nic::Nic;
use serde_json::json;

/// The next accesses of both NICs take a moment each, however fast the machine is, so that what
/// follows meets one in flight. Without a harness they are as they are.
#[derive(Debug)]
pub struct SlowAccesses;

impl SlowAccesses {
    const COUNT: u32 = 8;

    /// From now on, for some accesses, or until it is dropped.
    #[expect(clippy::new_without_default, reason = "it does something")]
    pub fn new() -> Self {
        Self::set(Self::COUNT);
        Self
    }

    fn set(count: u32) {
        for nic in ["nic0", "nic1"] {
            let rule =
                json!({"cmd": "inject", "what": "delay-chunk", "count": count, "micros": 20_000});
            let _ = host::__control(nic, rule);
        }
    }
}

impl Drop for SlowAccesses {
    fn drop(&mut self) {
        Self::set(0);
    }
}

/// Bytes that a NIC has read from and written to its regions so far.
#[track_caller]
pub fn moved(nic: &Nic) -> u64 {
    let found = nic.query();
    found.peer_read_bytes + found.peer_write_bytes + found.ram_read_bytes + found.ram_write_bytes
}
