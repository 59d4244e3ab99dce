// SPDX-License-Identifier: GPL-2.0

//! The thread that executes a queue pair's send queue, and that completes what is posted when the
//! pair is broken or in the error state.

use std::sync::Arc;

use crate::engine::{Engine, Role, Span, Stop, Trail};
use crate::message::{Op, Request, chunk_len};
use crate::queue::{Completion, Phase, QpRef, RecvEntry, Reply, SendEntry, WINDOW, Which};
use crate::region::{Region, RegionRef};
use crate::regs;
use crate::state::Touch;

/// What to do with the oldest entry.
#[derive(Clone, Copy, Debug)]
enum Job {
    Execute,
    Fail(Which, u32),
}

/// Runs until the queue pair is gone.
pub(crate) fn run(engine: &Arc<Engine>, me: QpRef) {
    while let Some(job) = next_job(engine, me) {
        let completion = match job {
            Job::Execute => execute(engine, me),
            Job::Fail(which, status) => fail(engine, me, which, status),
        };
        let which = if let Job::Fail(which, _) = job {
            which
        } else {
            Which::Send
        };
        let Some(completion) = completion else { return };
        engine.complete(me, Role::Requester, which, completion);
    }
}

fn next_job(engine: &Engine, me: QpRef) -> Option<Job> {
    let mut state = engine.shared.lock();
    loop {
        let qp = state.pair(me)?;
        let posted = match (qp.send.used() > 0, qp.recv.used() > 0) {
            (true, _) => Some(Which::Send),
            (false, true) if !qp.receiving => Some(Which::Recv),
            (false, _) => None,
        };
        match (qp.phase, posted) {
            (Phase::Paired(_), Some(Which::Send)) => return Some(Job::Execute),
            (Phase::Broken, Some(which)) => return Some(Job::Fail(which, regs::LINK_DOWN)),
            (Phase::Error, Some(which)) if qp.cq.has_room() => {
                return Some(Job::Fail(which, regs::FLUSHED));
            }
            _ => {}
        }
        let wake = Arc::clone(&qp.wake);
        state = engine.shared.wait(&wake, state);
    }
}

fn fail(engine: &Engine, me: QpRef, which: Which, status: u32) -> Option<Completion> {
    // An entry that cannot be read is completed without its ID.
    let (id, opcode) = match which {
        Which::Send => engine
            .fetch(me, which)?
            .map(|bytes| SendEntry::decode(&bytes))
            .map_or((0, 0), |entry| (entry.id, entry.opcode)),
        Which::Recv => engine
            .fetch(me, which)?
            .map(|bytes| RecvEntry::decode(&bytes))
            .map_or((0, regs::RECV), |entry| (entry.id, regs::RECV)),
    };
    Some(Completion {
        id,
        status,
        opcode,
        length: 0,
    })
}

fn execute(engine: &Arc<Engine>, me: QpRef) -> Option<Completion> {
    let Ok(bytes) = engine.fetch(me, Which::Send)? else {
        return Some(Completion {
            id: 0,
            status: regs::DMA_ERROR,
            opcode: 0,
            length: 0,
        });
    };
    let entry = SendEntry::decode(&bytes);
    let mut moved = 0;
    let status = match transfer(engine, me, &entry, &mut moved) {
        Ok(()) => regs::OK,
        Err(Stop::Status(status)) => status,
        Err(Stop::Gone) => return None,
    };
    Some(Completion {
        id: entry.id,
        status,
        opcode: entry.opcode,
        length: moved,
    })
}

fn transfer(
    engine: &Arc<Engine>,
    me: QpRef,
    entry: &SendEntry,
    moved: &mut u64,
) -> Result<(), Stop> {
    let (op, rights) = match entry.opcode {
        regs::WRITE => (Op::Write, 0),
        regs::READ => (Op::Read, regs::LOCAL_WRITE),
        regs::SEND => (Op::Send, 0),
        _ => return Err(Stop::Status(regs::BAD_REQUEST)),
    };
    if !entry.clean || entry.length > regs::MAX_LENGTH {
        return Err(Stop::Status(regs::BAD_REQUEST));
    }
    let (region, touch) = begin(engine, me, entry.local_key, |region| {
        region.allows(entry.local_offset, entry.length, rights)
    })
    .map_err(|()| Stop::Status(regs::LOCAL_ACCESS))?;
    let span = Span {
        me,
        role: Role::Requester,
        region,
        base: entry.local_offset,
    };
    let mut trail = Trail::default();
    let result = pump(engine, span, op, entry, &mut trail, moved);
    if result.is_err() {
        engine.settle(span, trail);
    }
    drop(touch);
    result
}

/// Finds the region of a key and counts the request in, if `allowed`.
pub(crate) fn begin(
    engine: &Engine,
    me: QpRef,
    key: u32,
    allowed: impl Fn(&Region) -> bool,
) -> Result<(RegionRef, Touch), ()> {
    let mut state = engine.shared.lock();
    let name = state
        .regions
        .find(key)
        .filter(|(_, region)| allowed(region))
        .map(|(name, _)| name);
    let touch = name.and_then(|name| Some((name, engine.shared.touch(&mut state, name)?)));
    drop(state);
    touch.ok_or_else(|| {
        engine.shared.complain(format_args!(
            "queue pair {}: key {key:#x} does not allow the access",
            me.number
        ));
    })
}

/// Keeps the window full of chunks until all are answered.
fn pump(
    engine: &Engine,
    span: Span,
    op: Op,
    entry: &SendEntry,
    trail: &mut Trail,
    moved: &mut u64,
) -> Result<(), Stop> {
    let chunks = entry.length.div_ceil(regs::CHUNK as u64).max(1);
    let (mut asked, mut answered) = (0, 0);
    while answered < chunks {
        if asked < chunks && asked - answered < WINDOW as u64 {
            let at = asked * regs::CHUNK as u64;
            let data = match op {
                Op::Read => Vec::new(),
                Op::Write | Op::Send => engine.read_chunk(span, at, chunk_len(entry.length, at))?,
            };
            let (key, base, total) = (entry.remote_key, entry.remote_offset, entry.length);
            ask(
                engine,
                span.me,
                Request {
                    op,
                    key,
                    base,
                    total,
                    at,
                    data,
                },
            )?;
            asked += 1;
            continue;
        }
        let reply = next_answer(engine, span.me)?;
        let at = answered * regs::CHUNK as u64;
        answered += 1;
        if op == Op::Read {
            engine.write_chunk(span, at, &reply.data, trail, answered == chunks)?;
        }
        *moved += chunk_len(entry.length, at) as u64;
    }
    Ok(())
}

fn ask(engine: &Engine, me: QpRef, request: Request) -> Result<(), Stop> {
    let mut state = engine.shared.lock();
    Role::Requester.check(state.pair(me).ok_or(Stop::Gone)?)?;
    state.ask(me, request);
    Ok(())
}

fn next_answer(engine: &Engine, me: QpRef) -> Result<Reply, Stop> {
    let mut state = engine.shared.lock();
    loop {
        let qp = state.pair(me).ok_or(Stop::Gone)?;
        match qp.answers.pop_front() {
            Some(reply) if reply.status == regs::OK => return Ok(reply),
            Some(reply) => return Err(Stop::Status(reply.status)),
            None => Role::Requester.check(qp)?,
        }
        let wake = Arc::clone(&qp.wake);
        state = engine.shared.wait(&wake, state);
    }
}
