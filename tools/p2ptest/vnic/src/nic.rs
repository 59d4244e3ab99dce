// SPDX-License-Identifier: GPL-2.0

//! The whole device: its threads, started and ended.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use p2p_vfio_user::bus::{Bus, Interrupts};

use crate::device::Registers;
use crate::engine::Engine;
use crate::link::Link;
use crate::state::Shared;
use crate::wire::{self, Mode};
use crate::{events, mailbox};

/// A running NIC. Dropping it ends its threads and removes the wire's socket.
#[derive(Debug)]
pub struct Nic {
    shared: Arc<Shared>,
    /// The socket that this end listens at.
    listening: Option<PathBuf>,
}

impl Nic {
    /// Starts the device's threads. In loopback the wire's other end is the device itself.
    pub fn start(
        bus: Arc<dyn Bus>,
        interrupts: Arc<dyn Interrupts>,
        loopback: bool,
    ) -> io::Result<Nic> {
        let shared = Shared::new(Link::new(loopback));
        let engine = Engine::new(Arc::clone(&shared), bus, interrupts);
        let nic = Nic {
            shared,
            listening: None,
        };
        let own = Arc::clone(&engine);
        thread::Builder::new()
            .name("mailbox".into())
            .spawn(move || mailbox::run(&own))?;
        thread::Builder::new()
            .name("events".into())
            .spawn(move || events::run(&engine))?;
        Ok(nic)
    }

    /// Makes the wire, and makes it again whenever it breaks.
    pub fn wire(&mut self, mode: Mode) -> io::Result<()> {
        let listener = match &mode {
            Mode::Listen(path) => {
                let listener = wire::listen(path)?;
                self.listening = Some(path.clone());
                Some(listener)
            }
            Mode::Connect(_) => None,
        };
        let shared = Arc::clone(&self.shared);
        thread::Builder::new()
            .name("wire".into())
            .spawn(move || wire::run(&shared, &mode, listener.as_ref()))?;
        Ok(())
    }

    /// Uses a connected socket as the wire until it breaks.
    pub fn attach(&self, stream: UnixStream) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        thread::Builder::new().name("wire".into()).spawn(move || {
            if let Err(error) = wire::session(&shared, stream) {
                log::info!("the wire broke: {error}");
            }
        })?;
        Ok(())
    }

    /// The registers, for the guest.
    pub fn registers(&self) -> Registers {
        Registers::new(Arc::clone(&self.shared))
    }

    /// The inside, for counters, fault injection and looking at.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Drop for Nic {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(path) = self.listening.take() {
            // Gets the wire's thread out of accept(), to see that it is over.
            let _ = UnixStream::connect(&path);
            let _ = fs::remove_file(&path);
        }
    }
}
