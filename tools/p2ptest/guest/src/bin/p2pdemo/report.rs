// SPDX-License-Identifier: GPL-2.0
//! What the demo prints. The console is a serial line: plain lines only.

use crate::transfer::{Counts, Delivery};
use crate::{Digest256, MIN_ROUND_TRIPS};
use anyhow::{Context, Result};
use nix::errno::Errno;
use p2pguest::gpu::Placement;
use p2pguest::rig::Rig;
use p2pguest::sys::uapi::*;
use std::path::Path;
use std::time::{Duration, Instant};

/// All that a run found out.
pub struct Outcome {
    /// Bytes of the file
    pub bytes: u64,
    /// SHA-256 of the file
    pub source: Digest256,
    /// SHA-256 of what GPU 1's VRAM held
    pub found: Digest256,
    /// What the transfers met
    pub delivery: Delivery,
    /// What the NICs counted
    pub counts: Counts,
    /// Device faults of both GPUs
    pub faults: u64,
    /// Time of the whole run
    pub elapsed: Duration,
}

/// A number with its thousands apart.
pub fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub fn hex(digest: &Digest256) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// How a long step goes on: a line now and then, and one at the end.
pub struct Progress {
    what: &'static str,
    total: u64,
    done: u64,
    last: Instant,
    percent: u64,
}

impl Progress {
    /// Fewest seconds between two lines.
    const INTERVAL: Duration = Duration::from_secs(2);

    pub fn new(what: &'static str, total: u64) -> Self {
        Self {
            what,
            total,
            done: 0,
            last: Instant::now(),
            percent: 0,
        }
    }

    /// Counts bytes, and prints if there is something to say.
    pub fn advance(&mut self, bytes: u64) {
        if let Some(line) = self.step(bytes, self.last.elapsed()) {
            println!("{line}");
            self.last = Instant::now();
        }
    }

    fn step(&mut self, bytes: u64, since_last: Duration) -> Option<String> {
        self.done += bytes;
        let percent = self.done * 100 / self.total;
        let over = self.done == self.total;
        if percent == self.percent || (!over && since_last < Self::INTERVAL) {
            return None;
        }
        self.percent = percent;
        let (done, total) = (mib(self.done), mib(self.total));
        Some(format!(
            "{}: {percent}% ({done:.1} of {total:.1} MiB)",
            self.what
        ))
    }
}

/// Prints the devices, and whether their chunks can be mapped.
pub fn print_devices(rig: &Rig, chunk: u64) -> Result<()> {
    for (index, gpu) in rig.gpu.iter().enumerate() {
        let mode = match gpu.__param(P2PGPU_PARAM_MAPPED).context("GETPARAM")? {
            1 => "mapped",
            _ => "trapped",
        };
        println!(
            "GPU {index} at {}: {:.0} MiB of VRAM, {:.0} MiB of aperture ({mode} mode)",
            gpu.pci(),
            mib(gpu.vram),
            mib(gpu.aperture())
        );
    }
    for (index, nic) in rig.nic.iter().enumerate() {
        let probe = rig.gpu[index]
            .__create(chunk, Placement::Vram)
            .context("GEM_CREATE")?;
        probe
            .__set_peer(P2PGPU_PEER_EXPORTABLE)
            .context("GEM_SET_PEER")?;
        let answer = rig.gpu[index]
            .__query(probe.handle, nic.pci())
            .context("PEER_QUERY")?;
        println!(
            "NIC {index} at {}: may it map a chunk of GPU {index}? {} ({}), {} of {} slots are \
             needed",
            nic.pci(),
            verdict_name(answer.verdict),
            route_name(answer.route),
            answer.slots_needed,
            answer.slots_total,
        );
    }
    Ok(())
}

/// Prints what will be done and with what.
pub fn print_setup(rig: &Rig, file: &Path, size: u64, chunk: u64) -> Result<()> {
    print_devices(rig, chunk)?;
    let chunks = match size.div_ceil(chunk) {
        1 => "one chunk".to_owned(),
        chunks => format!("{chunks} chunks of up to {}", number(chunk)),
    };
    println!("{}: {} bytes in {chunks}", file.display(), number(size));
    Ok(())
}

fn verdict_name(verdict: u32) -> &'static str {
    match verdict {
        P2PGPU_PEER_YES => "yes",
        P2PGPU_PEER_NOT_FLAGGED => "no: not flagged",
        P2PGPU_PEER_NO_ROUTE => "no: no peer-to-peer route",
        P2PGPU_PEER_NO_SLOTS => "no: too few slots",
        P2PGPU_PEER_TOO_LARGE => "no: larger than the aperture",
        P2PGPU_PEER_DENIED => "no: denied by the device's policy",
        _ => "unknown verdict",
    }
}

fn route_name(route: u32) -> &'static str {
    match route {
        P2PGPU_ROUTE_NONE => "no route",
        P2PGPU_ROUTE_SWITCH => "through the switch",
        P2PGPU_ROUTE_HOST_BRIDGE => "through the host bridge",
        P2PGPU_ROUTE_IOMMU => "through the host bridge and the IOMMU",
        _ => "unknown route",
    }
}

/// The rows of the table.
fn rows(outcome: &Outcome) -> Vec<(&'static str, String)> {
    let (delivery, counts) = (&outcome.delivery, &outcome.counts);
    let seconds = delivery.time.as_secs_f64();
    let moved = mib(counts.peer_write_bytes + counts.ram_write_bytes);
    vec![
        ("bytes", number(outcome.bytes)),
        ("SHA-256 of the source", hex(&outcome.source)),
        ("SHA-256 of GPU 1's VRAM", hex(&outcome.found)),
        (
            "slots used, GPU 0 / GPU 1",
            format!("{} / {}", delivery.slots[0], delivery.slots[1]),
        ),
        ("migrations, there and back", number(delivery.round_trips)),
        ("invalidations", number(delivery.invalidations)),
        (
            "  that met a transfer in flight",
            number(delivery.met_in_flight),
        ),
        (
            "mappings, aperture / system",
            format!("{} / {}", delivery.peer_maps, delivery.system_maps),
        ),
        ("requests", number(delivery.requests)),
        (
            "  parked / resumed",
            format!("{} / {}", counts.parked, counts.resumed),
        ),
        ("bytes read from BARs", number(counts.peer_read_bytes)),
        ("bytes written to BARs", number(counts.peer_write_bytes)),
        (
            "bytes read from guest memory",
            number(counts.ram_read_bytes),
        ),
        (
            "bytes written to guest memory",
            number(counts.ram_write_bytes),
        ),
        ("device faults", number(outcome.faults)),
        (
            "time of the transfers",
            format!(
                "{seconds:.2} s ({:.1} MiB/s)",
                if seconds > 0.0 { moved / seconds } else { 0.0 }
            ),
        ),
        (
            "time in all",
            format!("{:.2} s", outcome.elapsed.as_secs_f64()),
        ),
    ]
}

/// Prints the table.
pub fn print_table(outcome: &Outcome) {
    print_rows(&rows(outcome));
}

/// Prints a table of these rows.
pub fn print_rows(rows: &[(&'static str, String)]) {
    let width = rows
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or_default();
    let value_width = rows
        .iter()
        .map(|(_, value)| value.len())
        .max()
        .unwrap_or_default();
    let rule = format!(
        "+{}+{}+",
        "-".repeat(width + 2),
        "-".repeat(value_width + 2)
    );
    println!("{rule}");
    for (name, value) in rows {
        println!("| {name:width$} | {value:value_width$} |");
    }
    println!("{rule}");
}

/// What is not as it must be.
fn complaints(outcome: &Outcome, refused: Option<Errno>) -> Vec<&'static str> {
    let delivery = &outcome.delivery;
    [
        (outcome.source != outcome.found, "the hashes differ"),
        (
            delivery.met_in_flight == 0,
            "no invalidation met a transfer in flight",
        ),
        (
            delivery.round_trips < MIN_ROUND_TRIPS,
            "the destination moved fewer than two times",
        ),
        (outcome.faults != 0, "the device logged faults"),
        (
            refused != Some(Errno::EPERM),
            "an object without the flag was not refused with EPERM",
        ),
    ]
    .into_iter()
    .filter_map(|(wrong, complaint)| wrong.then_some(complaint))
    .collect()
}

/// Prints how the run ended; whether it was a success.
pub fn print_verdict(outcome: &Outcome, refused: Option<Errno>) -> bool {
    match refused {
        Some(errno) => println!("Without GEM_SET_PEER the export is refused: {errno}"),
        None => println!("Without GEM_SET_PEER the export is NOT refused"),
    }
    print_complaints(complaints(outcome, refused).into_iter())
}

/// Prints what is wrong, or that nothing is; whether that is so.
pub fn print_complaints(complaints: impl Iterator<Item = &'static str>) -> bool {
    let complaints: Vec<_> = complaints.collect();
    if complaints.is_empty() {
        println!("p2pdemo: success");
        return true;
    }
    println!("p2pdemo: FAILED: {}", complaints.join("; "));
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Outcome {
        Outcome {
            bytes: 1,
            source: [1; 32],
            found: [1; 32],
            delivery: Delivery {
                met_in_flight: 1,
                round_trips: 2,
                ..Default::default()
            },
            counts: Counts::default(),
            faults: 0,
            elapsed: Duration::ZERO,
        }
    }

    #[test]
    fn numbers_are_readable() {
        let texts = [0, 999, 1000, 123_456, 1_234_567].map(number);
        assert_eq!(texts, ["0", "999", "1,000", "123,456", "1,234,567"]);
        assert!(hex(&[0xa5; 32]).starts_with("a5a5"));
    }

    #[test]
    fn a_good_run_is_a_success() {
        assert_eq!(complaints(&good(), Some(Errno::EPERM)), [""; 0]);
    }

    #[test]
    fn each_condition_alone_makes_a_failure() {
        let one = |outcome: Outcome| complaints(&outcome, Some(Errno::EPERM)).len();
        assert_eq!(
            one(Outcome {
                found: [2; 32],
                ..good()
            }),
            1
        );
        assert_eq!(
            one(Outcome {
                faults: 1,
                ..good()
            }),
            1
        );
        let delivery = Delivery {
            round_trips: 2,
            ..Default::default()
        };
        assert_eq!(one(Outcome { delivery, ..good() }), 1);
        let delivery = Delivery {
            met_in_flight: 1,
            round_trips: 1,
            ..Default::default()
        };
        assert_eq!(one(Outcome { delivery, ..good() }), 1);
        assert_eq!(complaints(&good(), None).len(), 1);
        assert_eq!(complaints(&good(), Some(Errno::EINVAL)).len(), 1);
    }

    #[test]
    fn progress_prints_now_and_then_and_at_the_end() {
        let mut progress = Progress::new("copy", 4 << 20);
        assert_eq!(
            progress.step(1 << 20, Duration::ZERO),
            None,
            "too early for a line"
        );
        let line = progress.step(1 << 20, Duration::from_secs(3));
        assert_eq!(line.as_deref(), Some("copy: 50% (2.0 of 4.0 MiB)"));
        assert_eq!(
            progress.step(1, Duration::from_secs(3)),
            None,
            "nothing new"
        );
        let line = progress.step((2 << 20) - 1, Duration::ZERO);
        assert_eq!(line.as_deref(), Some("copy: 100% (4.0 of 4.0 MiB)"));
    }
}
