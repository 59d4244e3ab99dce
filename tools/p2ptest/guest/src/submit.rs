// SPDX-License-Identifier: GPL-2.0
//! Contexts, and the jobs that are submitted to them.

use crate::gpu::{Bo, Gpu};
use crate::syncobj::Syncobj;
use crate::sys::uapi::*;
use crate::{must, swsync};
use nix::errno::Errno;

/// An operation.
pub type Op = drm_p2pgpu_op;

/// A copy from the start of an object to that of another.
pub fn copy(from: &Bo<'_>, to: &Bo<'_>, size: u64) -> Op {
    between(P2PGPU_OP_COPY, from, to, size)
}

/// An operation from the start of an object to that of another.
pub fn between(op: u32, from: &Bo<'_>, to: &Bo<'_>, size: u64) -> Op {
    Op {
        op,
        src_handle: from.handle,
        dst_handle: to.handle,
        size,
        ..Default::default()
    }
}

/// A fill of the start of an object.
pub fn fill(to: &Bo<'_>, value: u32, size: u64) -> Op {
    Op {
        op: P2PGPU_OP_FILL,
        value,
        dst_handle: to.handle,
        size,
        ..Default::default()
    }
}

/// A syncobj's only place.
pub fn binary(syncobj: &Syncobj<'_>) -> drm_p2pgpu_sync {
    point(syncobj, 0)
}

/// A syncobj's place for a point.
pub fn point(syncobj: &Syncobj<'_>, point: u64) -> drm_p2pgpu_sync {
    drm_p2pgpu_sync {
        handle: syncobj.handle,
        flags: 0,
        point,
    }
}

/// A job of `context` that does not run before the timeline advances.
#[track_caller]
pub fn gated(gpu: &Gpu, context: &Context<'_>, ops: &[Op]) -> swsync::Timeline {
    let timeline = swsync::Timeline::new();
    let gate = Syncobj::new(gpu);
    gate.import_sync_file(&timeline.fence(1));
    context.submit(ops, &[binary(&gate)], &[]);
    timeline
}

/// A context, destroyed when dropped.
#[derive(Debug)]
pub struct Context<'g> {
    gpu: &'g Gpu,
    /// The id, in the GPU's open file
    pub id: u32,
}

impl<'g> Context<'g> {
    /// `CONTEXT_CREATE`.
    pub fn __new(gpu: &'g Gpu) -> Result<Self, Errno> {
        let mut arg = drm_p2pgpu_context_create::default();
        gpu.__ioctl(&mut arg)?;
        Ok(Self { gpu, id: arg.id })
    }

    /// `CONTEXT_CREATE`.
    #[track_caller]
    pub fn new(gpu: &'g Gpu) -> Self {
        must(Self::__new(gpu), format_args!("CONTEXT_CREATE"))
    }

    /// `CONTEXT_QUERY`.
    #[track_caller]
    pub fn query(&self) -> drm_p2pgpu_context_query {
        let mut arg = drm_p2pgpu_context_query {
            id: self.id,
            ..Default::default()
        };
        must(self.gpu.__ioctl(&mut arg), format_args!("CONTEXT_QUERY"));
        arg
    }

    /// The argument of a submission.
    pub fn argument(
        &self,
        ops: &[Op],
        ins: &[drm_p2pgpu_sync],
        outs: &[drm_p2pgpu_sync],
    ) -> drm_p2pgpu_submit {
        drm_p2pgpu_submit {
            context: self.id,
            ops: ops.as_ptr() as u64,
            in_: ins.as_ptr() as u64,
            out: outs.as_ptr() as u64,
            op_count: ops.len() as u32,
            in_count: ins.len() as u32,
            out_count: outs.len() as u32,
            ..Default::default()
        }
    }

    /// `SUBMIT`.
    pub fn __submit(
        &self,
        ops: &[Op],
        ins: &[drm_p2pgpu_sync],
        outs: &[drm_p2pgpu_sync],
    ) -> Result<(), Errno> {
        self.gpu.__ioctl(&mut self.argument(ops, ins, outs))
    }

    /// `SUBMIT`.
    #[track_caller]
    pub fn submit(&self, ops: &[Op], ins: &[drm_p2pgpu_sync], outs: &[drm_p2pgpu_sync]) {
        must(self.__submit(ops, ins, outs), format_args!("SUBMIT"));
    }

    /// `SUBMIT`, and waits for the job.
    #[track_caller]
    pub fn run(&self, ops: &[Op]) {
        let done = Syncobj::new(self.gpu);
        self.submit(ops, &[], &[binary(&done)]);
        done.wait();
    }
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // The device may be gone; the context goes with its file.
        let _ = self.gpu.__ioctl(&mut drm_p2pgpu_context_destroy {
            id: self.id,
            pad: 0,
        });
    }
}
