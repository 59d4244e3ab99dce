// SPDX-License-Identifier: GPL-2.0

//! Tests of the whole model, with a fake machine around it: no guest, no socket.

mod act;
mod aperture;
mod engine;
mod hardware_rst;
mod hostile;
mod machine;
mod registers;
mod rings;
