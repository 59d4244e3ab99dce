// SPDX-License-Identifier: GPL-2.0

//! The thread that executes what the other end asks of a queue pair.

use std::sync::Arc;

use crate::engine::{Engine, Role, Span, Stop, Trail};
use crate::message::{Op, Request};
use crate::queue::{Completion, Phase, QpRef, RecvEntry, Which};
use crate::regs;
use crate::requester::begin;
use crate::state::Touch;

/// A request of which at least one chunk came.
struct Current {
    span: Span,
    op: Op,
    key: u32,
    /// As the other end counts it, to tell a chunk of another request.
    base: u64,
    total: u64,
    /// Place of the next chunk.
    next: u64,
    trail: Trail,
    /// ID of the receive entry that a send fills.
    id: u64,
    _touch: Touch,
}

/// How a chunk failed.
struct Failure {
    /// What the other end is told.
    answer: Stop,
    /// How the receive entry completes, if one was taken: its ID and status.
    receive: Option<(u64, u32)>,
}

impl From<Stop> for Failure {
    fn from(answer: Stop) -> Failure {
        Failure {
            answer,
            receive: None,
        }
    }
}

/// Runs until the queue pair is off the wire.
pub(crate) fn run(engine: &Arc<Engine>, me: QpRef) {
    let mut current = None;
    while let Some((number, request)) = next_request(engine, me) {
        match handle(engine, me, &request, &mut current) {
            Ok(data) => {
                if request.is_last() {
                    finish(engine, me, &request, current.take());
                }
                engine.shared.lock().answer(me, number, regs::OK, data);
            }
            Err(failure) => {
                if let Some(current) = current.take() {
                    engine.settle(current.span, current.trail);
                }
                let Stop::Status(status) = failure.answer else {
                    return;
                };
                let mut state = engine.shared.lock();
                if let Some(qp) = state.pair(me) {
                    qp.receiving = failure.receive.is_some();
                }
                state.answer(me, number, status, Vec::new());
                drop(state);
                if let Some((id, status)) = failure.receive {
                    let completion = Completion {
                        id,
                        status,
                        opcode: regs::RECV,
                        length: 0,
                    };
                    engine.complete(me, Role::Responder, Which::Recv, completion);
                }
            }
        }
    }
}

fn next_request(engine: &Engine, me: QpRef) -> Option<(u32, Request)> {
    let mut state = engine.shared.lock();
    loop {
        let qp = state.pair(me)?;
        match qp.phase {
            Phase::Broken | Phase::Error | Phase::Dead => return None,
            Phase::Idle | Phase::Connecting(_) | Phase::Paired(_) => {}
        }
        if let Some(next) = qp.requests.pop_front() {
            return Some(next);
        }
        let wake = Arc::clone(&qp.wake);
        state = engine.shared.wait(&wake, state);
    }
}

fn finish(engine: &Engine, me: QpRef, request: &Request, current: Option<Current>) {
    let id = current.as_ref().map(|current| current.id);
    // The request has ended when its completion can be seen.
    drop(current);
    if let Some(id) = id.filter(|_| request.op == Op::Send) {
        let completion = Completion {
            id,
            status: regs::OK,
            opcode: regs::RECV,
            length: request.total,
        };
        engine.complete(me, Role::Responder, Which::Recv, completion);
    }
}

fn handle(
    engine: &Arc<Engine>,
    me: QpRef,
    request: &Request,
    current: &mut Option<Current>,
) -> Result<Vec<u8>, Failure> {
    let now = match current {
        Some(now) => now,
        None => {
            let begun = match request.op {
                Op::Send => begin_send(engine, me, request)?,
                Op::Read => begin_access(engine, me, request, regs::REMOTE_READ)?,
                Op::Write => begin_access(engine, me, request, regs::REMOTE_WRITE)?,
            };
            current.insert(begun)
        }
    };
    let wanted = (now.op, now.key, now.base, now.total, now.next);
    if wanted
        != (
            request.op,
            request.key,
            request.base,
            request.total,
            request.at,
        )
    {
        engine.shared.complain(format_args!(
            "the other end sent a chunk of another request"
        ));
        engine.shared.lock().sever();
        return Err(Stop::Gone.into());
    }
    now.next += request.len() as u64;
    let result = match request.op {
        Op::Read => engine.read_chunk(now.span, request.at, request.len()),
        Op::Write | Op::Send => engine
            .write_chunk(
                now.span,
                request.at,
                &request.data,
                &mut now.trail,
                request.is_last(),
            )
            .map(|()| Vec::new()),
    };
    result.map_err(|answer| {
        let receive = match answer {
            Stop::Status(status) if now.op == Op::Send => Some((now.id, status)),
            _ => None,
        };
        Failure { answer, receive }
    })
}

fn begin_access(
    engine: &Arc<Engine>,
    me: QpRef,
    request: &Request,
    rights: u32,
) -> Result<Current, Stop> {
    let (region, touch) = begin(engine, me, request.key, |region| {
        region.allows(request.base, request.total, rights)
    })
    .map_err(|()| Stop::Status(regs::REMOTE_ACCESS))?;
    let span = Span {
        me,
        role: Role::Responder,
        region,
        base: request.base,
    };
    Ok(current(span, request, 0, touch))
}

fn begin_send(engine: &Arc<Engine>, me: QpRef, request: &Request) -> Result<Current, Failure> {
    wait_for_receive(engine, me)?;
    let failure = |id, receive, send| Failure {
        answer: Stop::Status(send),
        receive: Some((id, receive)),
    };
    let Ok(bytes) = engine.fetch(me, Which::Recv).ok_or(Stop::Gone)? else {
        return Err(failure(0, regs::DMA_ERROR, regs::DMA_ERROR));
    };
    let entry = RecvEntry::decode(&bytes);
    if !entry.clean {
        return Err(failure(entry.id, regs::BAD_REQUEST, regs::REMOTE_ACCESS));
    }
    if request.total > entry.length {
        return Err(failure(entry.id, regs::LENGTH, regs::LENGTH));
    }
    let (region, touch) = begin(engine, me, entry.key, |region| {
        region.allows(entry.offset, entry.length, regs::LOCAL_WRITE)
    })
    .map_err(|()| failure(entry.id, regs::LOCAL_ACCESS, regs::REMOTE_ACCESS))?;
    let span = Span {
        me,
        role: Role::Responder,
        region,
        base: entry.offset,
    };
    Ok(current(span, request, entry.id, touch))
}

fn current(span: Span, request: &Request, id: u64, touch: Touch) -> Current {
    Current {
        span,
        op: request.op,
        key: request.key,
        base: request.base,
        total: request.total,
        next: 0,
        trail: Trail::default(),
        id,
        _touch: touch,
    }
}

/// A send waits for a receive entry as long as it takes; that holds up this queue pair alone.
fn wait_for_receive(engine: &Engine, me: QpRef) -> Result<(), Stop> {
    let mut state = engine.shared.lock();
    loop {
        let qp = state.pair(me).ok_or(Stop::Gone)?;
        Role::Responder.check(qp)?;
        if qp.recv.used() > 0 {
            return Ok(());
        }
        let wake = Arc::clone(&qp.wake);
        state = engine.shared.wait(&wake, state);
    }
}
