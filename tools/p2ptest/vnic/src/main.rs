// SPDX-License-Identifier: GPL-2.0

//! Serves the NIC over vfio-user.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use anyhow::Context;
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use p2p_vfio_user::{Backing, Bar, Config, Server};
use vnic::control::Control;
use vnic::{Mode, Nic, regs};

/// Virtual NIC (Documentation/gpu/p2pgpu/hardware.rst), served over vfio-user.
#[derive(Debug, Parser)]
struct Options {
    /// Socket for QEMU's vfio-user-pci
    #[arg(long)]
    socket: PathBuf,
    #[command(flatten)]
    wire: Wire,
    /// Control socket: one JSON object a line
    #[arg(long)]
    control: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct Wire {
    /// The wire: wait for another vnic at this socket
    #[arg(long, value_name = "PATH")]
    wire_listen: Option<PathBuf>,
    /// The wire: connect to the vnic that listens at this socket
    #[arg(long, value_name = "PATH")]
    wire_connect: Option<PathBuf>,
    /// The wire's other end is this NIC itself
    #[arg(long)]
    loopback: bool,
}

fn config() -> Config {
    let registers = Bar {
        size: regs::REGISTER_BAR_SIZE,
        is_64bit: false,
        prefetchable: false,
        backing: Backing::Trapped,
    };
    Config {
        vendor: regs::VENDOR,
        device: regs::DEVICE,
        class: regs::CLASS,
        revision: 0,
        bars: [Some(registers), None, None, None, None, None],
        msix_vectors: regs::VECTORS,
    }
}

fn main() -> anyhow::Result<()> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let options = Options::parse();

    // Before any thread, so that all inherit the mask and only the waiting thread gets them.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("blocking signals")?;

    let mut server = Server::bind(&options.socket, config())
        .with_context(|| format!("socket {}", options.socket.display()))?;
    let stop = server.stop_handle();
    let mut nic = Nic::start(server.bus(), server.interrupts(), options.wire.loopback)?;
    let mode = options
        .wire
        .wire_listen
        .map(Mode::Listen)
        .or(options.wire.wire_connect.map(Mode::Connect));
    if let Some(mode) = mode {
        nic.wire(mode.clone())
            .with_context(|| format!("wire {mode:?}"))?;
    }
    let (remove, bus) = (stop.clone(), server.bus());
    let _control = options
        .control
        .map(|path| {
            Control::serve(
                &path,
                Arc::clone(nic.shared()),
                bus,
                Arc::new(move || remove.disconnect()),
            )
            .with_context(|| format!("control socket {}", path.display()))
        })
        .transpose()?;

    thread::Builder::new()
        .name("signals".into())
        .spawn(move || match signals.wait() {
            Ok(signal) => {
                log::info!("{signal}");
                stop.stop();
            }
            Err(error) => log::error!("waiting for signals: {error}"),
        })?;
    server.run(&mut nic.registers())?;
    Ok(())
}
