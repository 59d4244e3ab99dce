// SPDX-License-Identifier: GPL-2.0
//! Makes Rust declarations of the uapi headers and of the part of libdrm
//! that the tests call. Needs libclang, and libdrm's headers (pkg-config).

use std::env;
use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let uapi = manifest.join("../../../include/uapi");
    let gpu = uapi.join("drm/p2pgpu_drm.h");
    let nic = uapi.join("linux/p2pnic.h");
    let importer = uapi.join("linux/p2p_importer_test.h");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    println!("cargo::rerun-if-changed=build.rs");
    for header in [&gpu, &nic, &importer] {
        println!("cargo::rerun-if-changed={}", header.display());
    }

    let libdrm = pkg_config::Config::new()
        .atleast_version("2.4.100")
        .probe("libdrm")?;
    let include = libdrm
        .include_paths
        .iter()
        .map(|path| format!("-I{}", path.display()));
    let builder = || {
        bindgen::Builder::default()
            .clang_args(include.clone())
            .derive_default(true)
            .derive_eq(true)
            .prepend_enum_name(false)
            .generate_comments(false)
    };

    builder()
        .header(gpu.display().to_string())
        .header(nic.display().to_string())
        .header(importer.display().to_string())
        .allowlist_type("drm_p2pgpu_.*|p2pnic_.*|p2p_importer_.*")
        .allowlist_var("P2PGPU_.*|P2PNIC_.*|P2P_IMPORTER_.*|DRM_IOCTL_P2PGPU_.*")
        .generate()?
        .write_to_file(out.join("uapi.rs"))?;

    builder()
        .header_contents(
            "linux.h",
            "#include <drm.h>\n#include <linux/dma-buf.h>\n#include <linux/dma-heap.h>\n\
             #include <linux/sync_file.h>\n#include <linux/udmabuf.h>\n",
        )
        .allowlist_type(
            "dma_buf_sync|dma_buf_export_sync_file|dma_buf_import_sync_file\
             |dma_heap_allocation_data|sync_file_info|udmabuf_create|drm_mode_create_dumb",
        )
        .allowlist_var("DMA_BUF_SYNC_.*|UDMABUF_FLAGS_CLOEXEC")
        .generate()?
        .write_to_file(out.join("linux.rs"))?;

    builder()
        .header_contents("libdrm.h", "#include <xf86drm.h>\n")
        .allowlist_function(
            "drmIoctl|drmOpenRender|drmGetVersion|drmFreeVersion|drmGetNodeTypeFromFd\
             |drmPrimeHandleToFD|drmPrimeFDToHandle|drmCloseBufferHandle\
             |drmGetDevices2|drmFreeDevices|drmGetCap|drmSyncobj.*\
             |drmIsMaster|drmSetMaster|drmDropMaster|drmGetMagic|drmAuthMagic\
             |drmGetClient|drmGetStats",
        )
        .allowlist_var(
            "DRM_NODE_.*|DRM_BUS_PCI|DRM_RDWR|DRM_CLOEXEC|DRM_CAP_SYNCOBJ.*|DRM_SYNCOBJ_.*",
        )
        .generate()?
        .write_to_file(out.join("libdrm.rs"))?;
    Ok(())
}
