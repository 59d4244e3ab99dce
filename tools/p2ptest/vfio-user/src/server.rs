// SPDX-License-Identifier: GPL-2.0

//! The listening socket, and what outlives a client.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use crate::bus::{Bus, Interrupts};
use crate::connection::{Connection, ConnectionError};
use crate::dma::Dma;
use crate::msix::Msix;
use crate::session::Session;
use crate::{Config, ConfigError, Device};

/// Why a server could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device's description is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The listening socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Ends [`Server::run`], from any thread, once and for all.
#[derive(Clone, Debug)]
pub struct Stop(Arc<Stopping>);

#[derive(Debug)]
struct Stopping {
    asked: AtomicBool,
    /// Wakes the wait for a client.
    wake: OwnedFd,
    connection: Mutex<Option<Arc<Connection>>>,
}

impl Stop {
    /// Makes [`Server::run`] return soon; a client that is connected loses its connection.
    pub fn stop(&self) {
        self.0.asked.store(true, Ordering::SeqCst);
        // Fails only if it was called 2^64 times.
        let _ = rustix::io::write(&self.0.wake, &1u64.to_ne_bytes());
        self.disconnect();
    }

    /// Cuts the client off, if there is one; the server waits for the next.
    pub fn disconnect(&self) {
        if let Some(connection) = &*self.connection() {
            connection.shut_down();
        }
    }

    fn connection(&self) -> std::sync::MutexGuard<'_, Option<Arc<Connection>>> {
        self.0
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn asked(&self) -> bool {
        self.0.asked.load(Ordering::SeqCst)
    }
}

/// A device on a socket.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    listener: UnixListener,
    config: Config,
    dma: Arc<Dma>,
    msix: Arc<Msix>,
    stop: Stop,
}

impl Server {
    /// Listens on `path`. An error if something is there already; removed when dropped.
    pub fn bind(path: impl AsRef<Path>, config: Config) -> Result<Self, Error> {
        config.check()?;
        let wake =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from)?;
        let listener = UnixListener::bind(&path)?;
        let server = Self {
            path: path.as_ref().to_owned(),
            listener,
            dma: Arc::default(),
            msix: Arc::new(Msix::new(config.msix_vectors)),
            config,
            stop: Stop(Arc::new(Stopping {
                asked: AtomicBool::new(false),
                wake,
                connection: Mutex::new(None),
            })),
        };
        // A client that gives up before it is accepted must not leave the accept waiting.
        server.listener.set_nonblocking(true)?;
        Ok(server)
    }

    /// DMA, for engine threads. Without a client it fails.
    pub fn bus(&self) -> Arc<dyn Bus> {
        Arc::clone(&self.dma) as Arc<dyn Bus>
    }

    /// Interrupts, for engine threads. Without a client they are dropped.
    pub fn interrupts(&self) -> Arc<dyn Interrupts> {
        Arc::clone(&self.msix) as Arc<dyn Interrupts>
    }

    /// A handle that ends [`run`](Self::run).
    pub fn stop_handle(&self) -> Stop {
        self.stop.clone()
    }

    /// Serves clients, one after another, until told to stop. A client's misbehaviour ends its
    /// connection only. Another client waits until the first has gone.
    pub fn run(&mut self, device: &mut dyn Device) -> Result<(), Error> {
        while let Some(stream) = self.next_client()? {
            let connection = Arc::new(Connection::new(stream)?);
            *self.stop.connection() = Some(Arc::clone(&connection));
            if self.stop.asked() {
                connection.shut_down();
            }
            let session = Session::new(&self.config, connection, (&self.dma, &self.msix), device);
            match session.serve() {
                ConnectionError::Closed => log::info!("client gone"),
                error => log::warn!("client dropped: {error}"),
            }
            *self.stop.connection() = None;
        }
        Ok(())
    }

    /// The next client, or `None` when it is time to stop.
    fn next_client(&self) -> io::Result<Option<UnixStream>> {
        loop {
            if self.stop.asked() {
                return Ok(None);
            }
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    return Ok(Some(stream));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait()?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn wait(&self) -> io::Result<()> {
        let mut fds = [
            PollFd::new(&self.listener, PollFlags::IN),
            PollFd::new(&self.stop.0.wake, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            log::warn!("{}: {error}", self.path.display());
        }
    }
}
