// SPDX-License-Identifier: GPL-2.0
//! Locks between runs.

use std::fs::{File, OpenOptions};
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};

/// Holds a lock file until dropped.
pub type Lock = Flock<File>;

/// Takes the lock, waiting for whoever has it and saying so.
///
/// # Errors
///
/// When the file cannot be opened or locked.
pub fn take(path: &Path, what: &str) -> Result<Lock> {
    let open = || {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("opening {}", path.display()))
    };
    match Flock::lock(open()?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
            eprintln!("p2ptest: another run {what}: waiting for it to end");
            Flock::lock(file, FlockArg::LockExclusive)
                .map_err(|(_, e)| e)
                .with_context(|| format!("locking {}", path.display()))
        }
        Err((_, e)) => Err(e).with_context(|| format!("locking {}", path.display())),
    }
}
