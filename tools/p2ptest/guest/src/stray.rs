// SPDX-License-Identifier: GPL-2.0
//! What a NIC's model holds, and accesses that it makes outside of any region: a
//! device that kept an address for too long, or made one up.

use crate::drm::PciAddress;
use crate::host;
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

/// The kernel cuts longer records.
const RECORD: usize = 8192;

/// Where a stray access went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stray {
    /// Guest memory, with the bytes that were read or written
    Ram(Vec<u8>),
    /// Another device's BAR, with the bytes that were read or written
    Peer(Vec<u8>),
    /// Nowhere, and why
    Refused(String),
}

/// DMA address and length of each segment that NIC `index` holds for a region; none
/// if the region is invalid.
#[track_caller]
pub fn segments(index: usize, key: u32) -> Vec<(u64, u64)> {
    let regions = host::control(&format!("nic{index}"), json!({"cmd": "regions"}));
    let regions = regions.as_array().expect("a list of regions");
    let Some(region) = regions.iter().find(|region| region["key"] == key) else {
        panic!("NIC {index} knows no region {key:#x}");
    };
    let number = |value: &Value| value.as_u64().expect("a number");
    let segments = region["segments"].as_array();
    segments
        .map_or(&[][..], Vec::as_slice)
        .iter()
        .map(|segment| (number(&segment[0]), number(&segment[1])))
        .collect()
}

#[track_caller]
fn access(index: usize, write: bool, addr: u64, data: &[u8]) -> Stray {
    let answer = host::control(
        &format!("nic{index}"),
        json!({"cmd": "stray", "write": write, "addr": addr, "data": data}),
    );
    let data = || {
        let bytes = answer["data"].as_array().expect("bytes");
        let byte = |value: &Value| value.as_u64().and_then(|n| u8::try_from(n).ok());
        bytes.iter().map(|b| byte(b).expect("a byte")).collect()
    };
    match (answer["ok"].as_bool(), answer["target"].as_str()) {
        (Some(true), Some("ram")) => Stray::Ram(data()),
        (Some(true), Some("peer")) => Stray::Peer(data()),
        (Some(false), _) => Stray::Refused(answer["why"].to_string()),
        _ => panic!("NIC {index} answers {answer}"),
    }
}

/// Makes NIC `index` write to a DMA address, whether it has any business there or
/// not. On return the bytes are there, or refused.
#[track_caller]
pub fn write(index: usize, addr: u64, data: &[u8]) -> Stray {
    access(index, true, addr, data)
}

/// Makes NIC `index` read from a DMA address, as for [`write`].
#[track_caller]
pub fn read(index: usize, addr: u64, len: usize) -> Stray {
    access(index, false, addr, &vec![0; len])
}

/// The kernel's log from a moment on.
#[derive(Debug)]
pub struct Log(File);

impl Log {
    /// From now on.
    #[track_caller]
    pub fn from_now() -> Self {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .expect("the kernel's log");
        file.seek(SeekFrom::End(0)).expect("the log's end");
        Self(file)
    }

    /// Whether one of the lines since the last call has this text.
    #[track_caller]
    pub fn has(&mut self, text: &str) -> bool {
        let mut found = false;
        let mut record = vec![0; RECORD];
        loop {
            match self.0.read(&mut record) {
                Ok(n) => found |= String::from_utf8_lossy(&record[..n]).contains(text),
                // Lines were lost because others came: the next read goes on.
                Err(e) if e.kind() == ErrorKind::BrokenPipe => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return found,
                Err(e) => panic!("the kernel's log: {e}"),
            }
        }
    }
}

/// What the kernel logs when its IOMMU refuses an access of this device to this
/// address. It logs a few in five seconds only.
pub fn refusal_line(device: PciAddress, write: bool, addr: u64) -> String {
    let kind = if write { "Write" } else { "Read" };
    let page = addr & !0xfff;
    format!("[DMA {kind} NO_PASID] Request device [{device}] fault addr {page:#x} ")
}
