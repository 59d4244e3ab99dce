// SPDX-License-Identifier: GPL-2.0

//! The thread that executes mailbox commands, one at a time, and resets.

use std::sync::{Arc, MutexGuard};
use std::thread;

use crate::counters::Counter;
use crate::engine::Engine;
use crate::inject::What;
use crate::queue::{Phase, QpRef, QueuePair, Ring, le32, le64};
use crate::region::{RegionRef, Segment, SegmentMap};
use crate::regs;
use crate::state::State;
use crate::{requester, responder};

/// Why a command is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// The answer's STATUS.
    Status(u32),
    /// The device is reset or ends: there is no answer.
    Abandoned,
}

/// A command as the mailbox holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Command {
    opcode: u32,
    seq: u32,
    index: u32,
    arg32: u32,
    args: [u64; 6],
    /// The bytes after the arguments are zero.
    clean: bool,
}

impl Command {
    fn decode(b: &[u8; regs::COMMAND_BYTES]) -> Command {
        Command {
            opcode: le32(b, 0),
            seq: le32(b, 4),
            index: le32(b, 8),
            arg32: le32(b, 12),
            args: std::array::from_fn(|i| le64(b, 16 + 8 * i)),
            clean: b[64..].iter().all(|&x| x == 0),
        }
    }

    /// Refuses a command that sets what its opcode does not name.
    fn check_unused(&self, arg32: bool, args: usize) -> Result<(), Refusal> {
        let unused_are_zero = (arg32 || self.arg32 == 0)
            && self.args.iter().skip(args).all(|&arg| arg == 0)
            && self.clean;
        if unused_are_zero {
            Ok(())
        } else {
            Err(Refusal::Status(regs::BAD_COMMAND))
        }
    }
}

/// Executes commands until the device stops.
pub(crate) fn run(engine: &Arc<Engine>) {
    let shared = &engine.shared;
    loop {
        let mut state = shared.lock();
        loop {
            if state.stopping {
                return;
            }
            if state.resetting {
                state = finish_reset(engine, state);
                continue;
            }
            if std::mem::take(&mut state.mailbox.rung) {
                break;
            }
            state = shared.wait(&shared.mailbox, state);
        }
        let addr = state.mailbox.addr;
        let guard = shared.start_dma(&mut state, None, None);
        drop(state);
        let mut bytes = [0; regs::COMMAND_BYTES];
        let read = engine.read_memory(addr, &mut bytes);
        drop(guard);
        match read {
            Ok(()) => serve(engine, addr, &Command::decode(&bytes)),
            Err(error) => shared.complain(format_args!("mailbox at {addr:#x}: {error}")),
        }
    }
}

fn finish_reset<'a>(engine: &'a Engine, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
    let shared = &engine.shared;
    let hangs = || shared.injector.holds(What::HangReset);
    while (state.in_flight > 0 || hangs()) && !state.stopping {
        state = shared.wait(&shared.drained, state);
    }
    if !state.stopping {
        state.regions.clear();
        state.pairs.clear();
        state.resetting = false;
        log::debug!("reset");
    }
    state
}

fn serve(engine: &Arc<Engine>, addr: u64, command: &Command) {
    let status = match execute(engine, command) {
        Ok(()) => 0,
        Err(Refusal::Status(status)) => {
            engine
                .shared
                .complain(format_args!("mailbox error {status}: {command:x?}"));
            status
        }
        Err(Refusal::Abandoned) => return,
    };
    let mut state = engine.shared.lock();
    if state.resetting {
        return;
    }
    let guard = engine.shared.start_dma(&mut state, None, None);
    drop(state);
    let answer = engine
        .write_memory(addr + regs::ANSWER_STATUS, &status.to_le_bytes())
        .and_then(|()| engine.write_memory(addr + regs::ANSWER_SEQ, &command.seq.to_le_bytes()));
    match answer {
        Ok(()) => engine.raise(regs::VECTOR_MAILBOX),
        Err(error) => engine
            .shared
            .complain(format_args!("mailbox answer is lost: {error}")),
    }
    drop(guard);
}

fn execute(engine: &Arc<Engine>, command: &Command) -> Result<(), Refusal> {
    match command.opcode {
        regs::MR_CREATE => {
            command.check_unused(true, 1)?;
            let mut state = living(engine)?;
            let created = state
                .regions
                .create(command.index, command.arg32, command.args[0]);
            created.map_err(Refusal::Status)
        }
        regs::MR_MAP => {
            command.check_unused(true, 1)?;
            map(engine, command)
        }
        regs::MR_INVALIDATE => {
            command.check_unused(false, 0)?;
            invalidate(engine, command.index, false)
        }
        regs::MR_DESTROY => {
            command.check_unused(false, 0)?;
            invalidate(engine, command.index, true)
        }
        regs::QP_CREATE => {
            command.check_unused(true, 3)?;
            create_pair(engine, command)
        }
        regs::QP_CONNECT => {
            command.check_unused(true, 0)?;
            let mut state = living(engine)?;
            match state.pairs.get(&command.index).map(|qp| qp.phase) {
                None => Err(Refusal::Status(regs::BAD_INDEX)),
                Some(Phase::Idle) if command.arg32 < regs::MAX_QUEUE_PAIRS_VALUE => {
                    state.connect(command.index, command.arg32);
                    Ok(())
                }
                Some(_) => Err(Refusal::Status(regs::BAD_ARGUMENT)),
            }
        }
        regs::QP_DESTROY => {
            command.check_unused(false, 0)?;
            destroy_pair(engine, command.index)
        }
        _ => Err(Refusal::Status(regs::BAD_COMMAND)),
    }
}

/// The state, unless a reset ends all commands.
fn living(engine: &Engine) -> Result<MutexGuard<'_, State>, Refusal> {
    let state = engine.shared.lock();
    if state.resetting {
        Err(Refusal::Abandoned)
    } else {
        Ok(state)
    }
}

/// Waits until `idle`, unless a reset comes.
fn drain<'a>(
    engine: &'a Engine,
    mut state: MutexGuard<'a, State>,
    mut idle: impl FnMut(&mut State) -> bool,
) -> Result<MutexGuard<'a, State>, Refusal> {
    loop {
        if state.resetting {
            return Err(Refusal::Abandoned);
        }
        if idle(&mut state) {
            return Ok(state);
        }
        state = engine.shared.wait(&engine.shared.drained, state);
    }
}

fn map(engine: &Arc<Engine>, command: &Command) -> Result<(), Refusal> {
    let bad_argument = Refusal::Status(regs::BAD_ARGUMENT);
    let count = command.arg32;
    let mut state = living(engine)?;
    let (name, region) = state
        .regions
        .find(command.index)
        .ok_or(Refusal::Status(regs::BAD_INDEX))?;
    let length = region.length;
    // A valid region may have DMAs in flight at its old addresses: it must be invalidated first.
    if count == 0
        || count > regs::MAX_SEGMENTS_VALUE
        || region.mapping.is_some()
        || !state.regions.has_room(count as usize)
    {
        return Err(bad_argument);
    }
    let guard = engine.shared.start_dma(&mut state, None, None);
    drop(state);
    let list = read_list(engine, command.args[0], count as usize)?;
    drop(guard);
    let segments = list.chunks_exact(regs::SEGMENT_BYTES).map(|b| Segment {
        addr: le64(b, 0),
        len: le64(b, 8),
    });
    let map = SegmentMap::new(segments, length).map_err(|error| {
        engine
            .shared
            .complain(format_args!("key {:#x}: {error}", command.index));
        bad_argument
    })?;
    let mut state = living(engine)?;
    state.regions.map(name, map);
    state.wake_pairs();
    Ok(())
}

fn read_list(engine: &Engine, addr: u64, count: usize) -> Result<Vec<u8>, Refusal> {
    let mut list = vec![0; count * regs::SEGMENT_BYTES];
    addr.checked_add(list.len() as u64)
        .ok_or(Refusal::Status(regs::MAILBOX_DMA_ERROR))?;
    for (i, part) in list.chunks_mut(regs::CHUNK).enumerate() {
        engine
            .read_memory(addr + (i * regs::CHUNK) as u64, part)
            .map_err(|_| Refusal::Status(regs::MAILBOX_DMA_ERROR))?;
    }
    Ok(list)
}

fn invalidate(engine: &Arc<Engine>, key: u32, destroy: bool) -> Result<(), Refusal> {
    let mut state = living(engine)?;
    let (name, region) = state
        .regions
        .find(key)
        .ok_or(Refusal::Status(regs::BAD_INDEX))?;
    let busy = region.busy();
    if state.regions.unmap(name) {
        engine.shared.counters.add(Counter::Invalidations, 1);
        engine
            .shared
            .counters
            .add(Counter::InvalidationsBusy, u64::from(busy));
    }
    if destroy && let Some(region) = state.regions.any(name) {
        region.dying = true;
        state.events.pending.retain(|event| event.region != name);
        state.wake_pairs();
    }
    let mut state = drain(engine, state, |state| is_idle(state, name))?;
    if let Some(addr) = state
        .regions
        .any(name)
        .and_then(|region| region.last_peer.take())
    {
        let guard = engine.shared.start_dma(&mut state, None, Some(name));
        drop(state);
        // Where the peer does not answer any more, there is nothing left to push home.
        if let Err(error) = engine.read_back(addr) {
            engine.shared.complain(format_args!(
                "key {key:#x}: read-back at {addr:#x}: {error}"
            ));
        }
        drop(guard);
        state = living(engine)?;
    }
    if destroy {
        state.regions.remove(name);
    }
    Ok(())
}

fn is_idle(state: &mut State, name: RegionRef) -> bool {
    state
        .regions
        .any(name)
        .is_none_or(|region| region.in_flight == 0)
}

fn create_pair(engine: &Arc<Engine>, command: &Command) -> Result<(), Refusal> {
    let number = command.index;
    let bad_argument = Refusal::Status(regs::BAD_ARGUMENT);
    let mut state = living(engine)?;
    if number >= regs::MAX_QUEUE_PAIRS_VALUE || state.pairs.contains_key(&number) {
        return Err(Refusal::Status(regs::BAD_INDEX));
    }
    let [send, recv, cq, reserved] = command.arg32.to_le_bytes().map(u32::from);
    if reserved != 0
        || [send, recv, cq]
            .iter()
            .any(|log2| !regs::QUEUE_LOG2.contains(log2))
    {
        return Err(bad_argument);
    }
    let ring = |i: usize, log2, entry| Ring::new(command.args[i], log2, entry).ok_or(bad_argument);
    let send = ring(0, send, regs::SEND_ENTRY_BYTES)?;
    let recv = ring(1, recv, regs::RECV_ENTRY_BYTES)?;
    let cq = ring(2, cq, regs::COMPLETION_BYTES)?;

    let guard = engine.shared.start_dma(&mut state, None, None);
    drop(state);
    for ring in [send, recv, cq] {
        engine
            .read_memory(ring.base, &mut [0; 4])
            .map_err(|_| Refusal::Status(regs::MAILBOX_DMA_ERROR))?;
    }
    drop(guard);

    let mut state = living(engine)?;
    state.next_serial += 1;
    let me = QpRef {
        number,
        serial: state.next_serial,
    };
    state
        .pairs
        .insert(number, QueuePair::new(me.serial, send, recv, cq));
    drop(state);
    let started = spawn(engine, "requester", me, requester::run)
        .and_then(|()| spawn(engine, "responder", me, responder::run));
    if let Err(error) = started {
        log::error!("queue pair {number}: {error}");
        destroy_pair(engine, number)?;
        return Err(bad_argument);
    }
    Ok(())
}

fn spawn(
    engine: &Arc<Engine>,
    role: &str,
    me: QpRef,
    run: fn(&Arc<Engine>, QpRef),
) -> std::io::Result<()> {
    let engine = Arc::clone(engine);
    thread::Builder::new()
        .name(format!("{role} {}", me.number))
        .spawn(move || run(&engine, me))
        .map(|_| ())
}

fn destroy_pair(engine: &Engine, number: u32) -> Result<(), Refusal> {
    let mut state = living(engine)?;
    if !state.pairs.contains_key(&number) {
        return Err(Refusal::Status(regs::BAD_INDEX));
    }
    state.leave(number, Phase::Dead);
    let mut state = drain(engine, state, |state| {
        state.pairs.get(&number).is_none_or(|qp| qp.in_flight == 0)
    })?;
    state.pairs.remove(&number);
    Ok(())
}
