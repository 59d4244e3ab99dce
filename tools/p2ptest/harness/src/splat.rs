// SPDX-License-Identifier: GPL-2.0
//! Which lines of the kernel's log mean that the kernel found something wrong.

/// Beginnings of a message that is a finding, whatever follows.
const STARTS: [&str; 20] = [
    "BUG: ",
    "BUG at ",
    "WARNING: ",
    "Oops: ",
    "Kernel panic",
    "kernel BUG at ",
    "general protection fault",
    "Unable to handle ",
    "INFO: task ",
    "INFO: rcu",
    "rcu: INFO: ",
    "watchdog: BUG",
    "UBSAN: ",
    "DMA-API: ",
    "ODEBUG: ",
    "kmemleak: ",
    "list_add corruption",
    "list_del corruption",
    "INFO: trying to register non-static key",
    "INFO: lockdep is turned off",
];

/// What the checkers say when all is well: beginnings, and parts.
const EVERYDAY: [(&str, &str); 5] = [
    ("DMA-API: preallocated ", " debug entries"),
    ("DMA-API: debugging enabled", ""),
    ("DMA-API: dma_debug_entry pool grown", ""),
    ("kmemleak: Kernel memory leak detector initialized", ""),
    // The leaks themselves are asked for.
    ("kmemleak: ", " new suspected memory leaks"),
];

/// Parts of a message that are a finding wherever they stand.
const PARTS: [&str; 13] = [
    "blocked for more than",
    "possible circular locking dependency",
    "possible recursive locking detected",
    "inconsistent lock state",
    "suspicious RCU usage",
    "bad unlock balance",
    "held lock freed",
    "sleeping function called from invalid context",
    "unreferenced object",
    "DMA-API: device driver",
    "turning off the locking correctness validator",
    "refcount_t: ",
    "panicked at ",
];

/// Whether a line says that the kernel found something wrong.
pub fn is_splat(text: &str) -> bool {
    let text = without_decoration(text);
    if EVERYDAY
        .iter()
        .any(|(start, part)| text.starts_with(start) && text.contains(part))
    {
        return false;
    }
    STARTS.iter().any(|s| text.starts_with(s)) || PARTS.iter().any(|p| text.contains(p))
}

/// A console line without its time ("[    1.234567] ") and a caller's id.
fn without_decoration(text: &str) -> &str {
    let mut text = text.trim_start();
    while let Some(rest) = text.strip_prefix('[') {
        match rest.split_once(']') {
            Some((inside, rest))
                if inside
                    .trim()
                    .starts_with(|c: char| c.is_ascii_digit() || c == 'T' || c == 'C') =>
            {
                text = rest.trim_start();
            }
            _ => break,
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings() {
        for line in [
            "WARNING: CPU: 1 PID: 80 at drivers/dma-buf/dma-buf.c:1100 dma_buf_pin+0x1/0x2",
            "[    3.141592] WARNING: possible circular locking dependency detected",
            "[    3.141592][   T80] BUG: kernel NULL pointer dereference, address: 0",
            "INFO: task p2p_gem:80 blocked for more than 30 seconds.",
            "rust_kernel: panicked at rust/kernel/x.rs:1:2:",
            "BUG: KASAN: slab-use-after-free in x",
            "DMA-API: device driver frees DMA memory with wrong function",
            "Oops: general protection fault, probably for non-canonical address",
            "DMA-API: p2pgpu 0000:03:00.0: device driver failed to check map error",
            "DMA-API: debugging out of memory - disabling",
            "ODEBUG: free active (active state 0) object: 0 object type: work_struct",
            "kmemleak: Cannot allocate a kmemleak_object structure",
            "BUG: sleeping function called from invalid context at mm/x.c:1",
            "WARNING: possible irq lock inversion dependency detected",
            "INFO: trying to register non-static key.",
            "turning off the locking correctness validator.",
            "list_del corruption. prev->next should be 0, but was 1.",
        ] {
            assert!(is_splat(line), "{line}");
        }
    }

    #[test]
    fn everyday_lines() {
        for line in [
            "[    0.000000] Linux version 7.3.4-p2pgpu",
            "p2ptest: begin mapped/p2p_export@bad-WARNING: x",
            "[drm] Initialized p2pgpu 1.0.0 for 0000:03:00.0 on minor 0",
            "ACPI: [Firmware Bug]: something minor",
            "rcu: Hierarchical RCU implementation.",
            "DMA-API: preallocated 65536 debug entries",
            "DMA-API: debugging enabled by kernel config",
            "kmemleak: Kernel memory leak detector initialized (mem pool available: 1)",
            "kmemleak: 2 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
            "",
        ] {
            assert!(!is_splat(line), "{line}");
        }
    }
}
