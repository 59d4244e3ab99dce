// SPDX-License-Identifier: GPL-2.0
//! Tests of what the drivers do when a device fails: the host makes it fail.

use p2pguest::gpu::{Gpu, Placement};
use p2pguest::host;
use p2pguest::igt::{self, Subtest};
use p2pguest::pattern::Pattern;
use p2pguest::subtests;
use serde_json::json;
use std::process::ExitCode;

const SUBTESTS: &[Subtest] = subtests![
    /// The host refuses what is not for guests, and goes on.
    host_refuses_strange_requests,
    /// A command whose interrupt is lost is seen to be done all the same.
    lost_interrupt,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

fn host_refuses_strange_requests() {
    host::require();
    for command in [
        json!({"execute": "quit"}),
        json!({"execute": "device_del", "arguments": {"id": "port0"}}),
        json!({"execute": "device_add", "arguments": {"driver": "edu"}}),
        json!({"execute": "query-pci", "arguments": {}}),
    ] {
        assert!(host::__qmp(command.clone()).is_err(), "{command}");
    }
    let long = "x".repeat(8192);
    let faults = json!({"cmd": "faults"});
    assert!(host::__control("gpu7", faults.clone()).is_err());
    assert!(host::__control("gpu0", json!({"cmd": long})).is_err());
    assert_eq!(host::control("gpu0", faults)["count"], 0);
    let status = host::qmp(json!({"execute": "query-status"}));
    assert_eq!(status["status"], "running");
}

fn lost_interrupt() {
    let gpu = Gpu::open(0);
    let bo = gpu.create(gpu.page, Placement::Vram);
    host::control(
        "gpu0",
        json!({"cmd": "inject", "what": "drop-interrupt", "ring": 0, "count": 1}),
    );
    let pattern = Pattern(7);
    bo.fill(pattern);
    bo.assert_holds(pattern);
}
