// SPDX-License-Identifier: GPL-2.0

//! Serves the example device on a socket: `mover SOCKET [mapped]`.

mod model;

use std::sync::Arc;

use p2p_vfio_user::{Backing, Server, SharedMemory};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    env_logger::init();
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: mover SOCKET [mapped]")?;
    let window = match arguments.next() {
        Some(_) => Backing::Mapped(Arc::new(SharedMemory::new(model::WINDOW)?)),
        None => Backing::Trapped,
    };
    let mut server = Server::bind(path, model::config(window))?;
    let mut device = model::Mover::new(server.bus(), server.interrupts())?;
    server.run(&mut device)?;
    Ok(())
}
