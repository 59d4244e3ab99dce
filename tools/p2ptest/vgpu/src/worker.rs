// SPDX-License-Identifier: GPL-2.0

//! The threads: one worker a ring, and the service thread.
//!
//! Only they hold the bus and the interrupts.

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use p2p_vfio_user::bus::{Bus, Interrupts};

use crate::aperture::{Checkpoint, Stopped};
use crate::command::{self, Command};
use crate::engine::{Engine, Failure};
use crate::regs::{
    COMMAND_BYTES, Error, FAULT_VECTOR, RINGS, STATUS_DONE, STATUS_ERROR, STATUS_ERROR_FENCE,
};
use crate::ring::{Job, Ring};
use crate::state::Core;

/// The running threads of a device. They end when this is dropped.
pub struct Workers {
    core: Arc<Core>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts the threads of `core` on a bus.
    pub fn start(
        core: &Arc<Core>,
        bus: &Arc<dyn Bus>,
        interrupts: &Arc<dyn Interrupts>,
    ) -> io::Result<Self> {
        let mut workers = Self {
            core: Arc::clone(core),
            threads: Vec::new(),
        };
        for (index, vector) in (0..RINGS).zip(0u16..) {
            let mut worker = RingWorker {
                core: Arc::clone(core),
                index,
                vector,
                engine: Engine::new(Arc::clone(bus), Arc::clone(core)),
                interrupts: Arc::clone(interrupts),
            };
            let thread = Builder::new().name(format!("ring{index}"));
            workers.threads.push(thread.spawn(move || worker.run())?);
        }
        let (core, interrupts) = (Arc::clone(core), Arc::clone(interrupts));
        let thread = Builder::new().name("service".into());
        workers
            .threads
            .push(thread.spawn(move || serve(&core, &*interrupts))?);
        Ok(workers)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.core.quit();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a worker panicked");
            }
        }
    }
}

fn raise(core: &Core, interrupts: &dyn Interrupts, vector: u16) {
    if core.injections.interrupt(vector) {
        log::info!("interrupt {vector} dropped by injection");
    } else {
        interrupts.raise(vector);
    }
}

/// The service thread: raises the fault vector and ends resets, for those who must not wait.
fn serve(core: &Core, interrupts: &dyn Interrupts) {
    loop {
        let calls = core.bell.wait();
        if calls.quit {
            return;
        }
        if calls.fault {
            raise(core, interrupts, FAULT_VECTOR);
        }
        core.finish_reset();
    }
}

/// Stops a command when its ring is stopped, and slows it if that is injected.
struct Pace<'a> {
    ring: &'a Ring,
    slow: Option<Duration>,
}

impl Checkpoint for Pace<'_> {
    fn reached(&self) -> Result<(), Stopped> {
        match self.slow {
            Some(pause) => self.ring.rest(Some(pause)),
            None => self.ring.check(),
        }
    }
}

struct RingWorker {
    core: Arc<Core>,
    index: usize,
    vector: u16,
    engine: Engine,
    interrupts: Arc<dyn Interrupts>,
}

impl RingWorker {
    fn run(&mut self) {
        let core = Arc::clone(&self.core);
        let ring = &core.rings[self.index];
        while let Some(job) = ring.next() {
            match job {
                Job::BadTail => self.fail(ring, Error::BadTail, 0),
                Job::Command(at) => {
                    // Without the command there is no fence to name.
                    let fetched = at.ok_or(Error::Dma).and_then(|at| self.fetch(at));
                    match fetched {
                        Ok(bytes) => self.command(ring, &bytes),
                        Err(error) => self.fail(ring, error, 0),
                    }
                }
            }
            // An abandoned command may have left writes to a peer on their way.
            if self.engine.dma().settle().is_err() {
                log::debug!("ring {}: a peer does not answer", self.index);
            }
            ring.done();
        }
    }

    fn fetch(&self, at: u64) -> Result<[u8; COMMAND_BYTES], Error> {
        let mut bytes = [0; COMMAND_BYTES];
        self.engine.dma().read(at, &mut bytes)?;
        Ok(bytes)
    }

    fn command(&mut self, ring: &Ring, bytes: &[u8; COMMAND_BYTES]) {
        let fence = command::fence(bytes);
        let result = self.execute(ring, bytes);
        let ended = match result {
            Ok(irq) => {
                ring.advance();
                let dma = self.engine.dma();
                dma.write(ring.status() + STATUS_DONE, &fence.to_le_bytes())
                    .and_then(|()| dma.settle())
                    .map(|()| irq)
            }
            Err(Failure::Stopped) => return,
            Err(Failure::Error(error)) => Err(error),
        };
        match ended {
            Ok(true) => raise(&self.core, &*self.interrupts, self.vector),
            Ok(false) => {}
            Err(error) => self.fail(ring, error, fence),
        }
    }

    /// Executes a command; says whether its completion raises the interrupt.
    fn execute(&mut self, ring: &Ring, bytes: &[u8; COMMAND_BYTES]) -> Result<bool, Failure> {
        let plan = self.core.injections.command(self.index);
        if let Some(delay) = plan.delay {
            ring.rest(Some(delay))?;
        }
        if plan.stall {
            ring.rest(None)?;
        }
        if plan.error {
            return Err(Error::Injected.into());
        }
        let command = Command::parse(bytes)?;
        let pace = Pace {
            ring,
            slow: plan.slow,
        };
        self.engine.execute(&command, &pace)?;
        Ok(command.irq)
    }

    /// Tells software that the ring halts. Where memory takes nothing any more, the interrupt and
    /// STATE tell it.
    fn fail(&self, ring: &Ring, error: Error, fence: u64) {
        log::debug!("ring {} halts: {error:?}, fence {fence}", self.index);
        let dma = self.engine.dma();
        let status = ring.status();
        let told = dma
            .write(status + STATUS_ERROR_FENCE, &fence.to_le_bytes())
            .and_then(|()| dma.write(status + STATUS_ERROR, &(error as u32).to_le_bytes()))
            .and_then(|()| dma.settle());
        if told.is_err() {
            log::debug!("ring {}: the status block takes no error", self.index);
        }
        ring.halt();
        raise(&self.core, &*self.interrupts, self.vector);
    }
}
