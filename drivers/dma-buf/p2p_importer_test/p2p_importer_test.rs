// SPDX-License-Identifier: GPL-2.0

//! Importers of dma-bufs, and of user addresses, that behave as a test wants: what a test of an
//! exporter drives, by the ioctls that `include/uapi/linux/p2p_importer_test.h` describes.
//!
//! # Lock order
//!
//! 1. an importer's attachment
//! 2. an importer's kernel mapping
//! 3. the dma-buf's reservation lock
//! 4. an importer's record and its access

use kernel::{
    miscdevice::{
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    prelude::*,
    InPlaceModule, //
};

mod addresses;
mod file;
mod importer;
mod ioctl;
mod target;

#[pin_data]
struct Module {
    #[pin]
    _misc: MiscDeviceRegistration<file::OpenFile>,
}

impl InPlaceModule for Module {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        let options = MiscDeviceOptions {
            name: c"p2p_importer_test",
        };
        try_pin_init!(Self {
            _misc <- MiscDeviceRegistration::register(options),
        })
    }
}

module! {
    type: Module,
    name: "p2p_importer_test",
    authors: ["The p2pgpu developers"],
    description: "Importers of dma-bufs for tests of exporters",
    license: "GPL v2",
    imports_ns: ["DMA_BUF"],
}
