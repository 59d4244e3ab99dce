// SPDX-License-Identifier: GPL-2.0

//! Serves one virtual GPU on a UNIX socket until SIGTERM or SIGINT.

#![forbid(unsafe_code)]

use std::fs::remove_file;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use anyhow::Context;
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use p2p_vfio_user::{Backing, Bar, Config, Server};
use vgpu::control::Control;
use vgpu::inject::Rule;
use vgpu::regions::Regions;
use vgpu::regs;
use vgpu::state::{Core, Mode, Parameters};
use vgpu::worker::Workers;

/// Model of the virtual GPU, served over vfio-user.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// The socket that QEMU's vfio-user-pci device connects to.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// VRAM: bytes, or with K, M, G or T.
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    vram: u64,
    /// The aperture (BAR2): a power of two.
    #[arg(long, value_name = "SIZE", default_value = "16M", value_parser = parse_size)]
    aperture: u64,
    /// How the aperture is served.
    #[arg(long, value_enum, default_value_t = Mode::Trapped)]
    mode: Mode,
    /// A socket for counters, faults and fault injection: one JSON object a line.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// A fault to inject from the start, as on the control socket; may be repeated.
    #[arg(long, value_name = "JSON", value_parser = parse_rule)]
    inject: Vec<Rule>,
}

fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(['K', 'M', 'G', 'T']);
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err("one suffix of K, M, G, T".into()),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "not a size such as 256M".to_owned())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "too large".into())
}

fn parse_rule(text: &str) -> Result<Rule, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// The control socket's file, gone when this is dropped.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        match remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("{}: {error}", self.0.display());
            }
            _ => {}
        }
    }
}

fn config(core: &Core, parameters: &Parameters) -> Config {
    let registers = Bar {
        size: regs::REGISTER_BAR_SIZE,
        is_64bit: false,
        prefetchable: false,
        backing: Backing::Trapped,
    };
    let aperture = Bar {
        size: parameters.aperture,
        is_64bit: true,
        prefetchable: true,
        backing: match core.aperture.window() {
            Some(window) => Backing::Mapped(Arc::clone(window)),
            None => Backing::Trapped,
        },
    };
    let mut bars = [const { None }; 6];
    bars[usize::from(regs::REGISTER_BAR)] = Some(registers);
    bars[usize::from(regs::APERTURE_BAR)] = Some(aperture);
    Config {
        vendor: regs::VENDOR_ID,
        device: regs::DEVICE_ID,
        class: regs::CLASS,
        revision: 0,
        bars,
        msix_vectors: regs::VECTORS as u16,
    }
}

/// Answers the control socket from a thread of its own, which lives as long as the process.
fn start_control(path: &Path, control: Arc<Control>) -> anyhow::Result<SocketFile> {
    let listener =
        UnixListener::bind(path).with_context(|| format!("control socket {}", path.display()))?;
    let file = SocketFile(path.to_owned());
    Builder::new().name("control".into()).spawn(move || {
        if let Err(error) = control.serve(&listener) {
            log::error!("control socket: {error}");
        }
    })?;
    Ok(file)
}

/// Ends when a signal asks the process to end. The signals are blocked in all other threads, so
/// this comes before any.
fn await_signals(on_signal: impl FnOnce() + Send + 'static) -> anyhow::Result<JoinHandle<()>> {
    let signals = signals();
    Ok(Builder::new().name("signals".into()).spawn(move || {
        match signals.wait() {
            Ok(signal) => log::info!("{signal}"),
            Err(error) => log::error!("waiting for signals: {error}"),
        }
        on_signal();
    })?)
}

fn signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT].into_iter().collect()
}

fn main() -> anyhow::Result<()> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let options = Options::parse();
    signals().thread_block()?;

    let parameters = Parameters {
        vram: options.vram,
        aperture: options.aperture,
        mode: options.mode,
    };
    let core = Core::new(&parameters)?;
    for rule in options.inject {
        core.injections.add(rule).context("--inject")?;
    }

    let mut server = Server::bind(&options.socket, config(&core, &parameters))
        .with_context(|| format!("socket {}", options.socket.display()))?;
    let _workers = Workers::start(&core, &server.bus(), &server.interrupts())?;

    let stop = server.stop_handle();
    let signals = await_signals(move || stop.stop())?;
    let removed = Arc::new(AtomicBool::new(false));
    let _control = match &options.control {
        Some(path) => {
            let (stop, removed) = (server.stop_handle(), Arc::clone(&removed));
            let remove = move || {
                removed.store(true, Ordering::Relaxed);
                stop.stop();
            };
            Some(start_control(
                path,
                Control::new(Arc::clone(&core), remove),
            )?)
        }
        None => None,
    };

    server.run(&mut Regions::new(core))?;
    if removed.load(Ordering::Relaxed) {
        // The card is out of its slot, yet what it counted can still be asked for.
        drop(server);
        log::info!("removed");
        if signals.join().is_err() {
            log::error!("the signal thread panicked");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_one_suffix_and_fit() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("256M"), Ok(256 << 20));
        assert_eq!(parse_size("1T"), Ok(1 << 40));
        for bad in ["", "M", "1MM", "1KM", "-1", "1m", "99999999T", "0x10"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_options_are_consistent() {
        use clap::CommandFactory;
        Options::command().debug_assert();
    }
}
