// SPDX-License-Identifier: GPL-2.0
//! An object of one GPU that the other one imports, and copies that take as long as
//! a test likes.

use crate::gpu::{Bo, Placement};
use crate::host;
use crate::must;
use crate::pattern::Pattern;
use crate::rig::{Exported, Rig};
use serde_json::json;

/// Pages of a shared object: in trapped mode each word of them is a message.
pub const PAGES: u64 = 4;

/// An object of GPU 0 that holds a pattern, and the same imported by GPU 1.
#[derive(Debug)]
pub struct Shared<'r> {
    // Field order: the import goes first.
    /// The import
    pub there: Bo<'r>,
    /// The object
    pub here: Exported<'r>,
}

/// Makes and imports an object in VRAM.
#[track_caller]
pub fn share(rig: &Rig, pattern: Pattern) -> Shared<'_> {
    let here = rig.export(0, PAGES * rig.gpu[0].page, Placement::Vram);
    here.bo.fill(pattern);
    let there = rig.gpu[1].import(&here.fd);
    Shared { there, here }
}

impl Shared<'_> {
    /// GPU 1 copies from GPU 0, and the other way round.
    #[track_caller]
    pub fn assert_copies(&self, pattern: Pattern) {
        let gpu = self.there.gpu();
        let local = gpu.create(self.there.size, Placement::Vram);
        must(
            self.there.__copy_to(&local, local.size),
            format_args!("GEM_COPY from the import"),
        );
        local.assert_holds(pattern);
        let next = Pattern(pattern.0 + 1);
        local.fill(next);
        must(
            local.__copy_to(&self.there, local.size),
            format_args!("GEM_COPY into the import"),
        );
        self.here.bo.assert_holds(next);
    }
}

/// Stalls the next command of a GPU's engine; goes on when dropped.
#[derive(Debug)]
pub struct Stalled(&'static str);

impl Stalled {
    /// The next command of `model`, "gpu0" or "gpu1", is to stall.
    #[track_caller]
    pub fn new(model: &'static str) -> Self {
        let rule = json!({"cmd": "inject", "what": "stall", "ring": 0});
        host::control(model, rule);
        Self(model)
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        // What stays shows in the tests that follow.
        let _ = host::__control(self.0, json!({"cmd": "clear"}));
    }
}
