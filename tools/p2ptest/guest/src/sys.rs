// SPDX-License-Identifier: GPL-2.0
//! Declarations generated from the uapi headers and from libdrm's header, as
//! they are in C. Nothing is written here by hand but the tests.

// The headers document these; bindgen keeps C's names.
#![allow(missing_docs, non_camel_case_types, non_snake_case)]
// Generated code is not ours to argue about.
#![allow(clippy::all, clippy::undocumented_unsafe_blocks)]

/// `p2pgpu_drm.h`, `p2pnic.h` and `p2p_importer_test.h` of `include/uapi`.
pub mod uapi {
    include!(concat!(env!("OUT_DIR"), "/uapi.rs"));
}

/// What of the kernel's own headers is used: dma-bufs, and who makes some.
pub mod linux {
    include!(concat!(env!("OUT_DIR"), "/linux.rs"));
}

/// What of `xf86drm.h` is used.
pub mod libdrm {
    include!(concat!(env!("OUT_DIR"), "/libdrm.rs"));
}

#[cfg(test)]
mod tests {
    use super::uapi::*;
    use std::mem::{align_of, offset_of, size_of};

    /// The size field of an ioctl number.
    fn encoded_size(request: u32) -> usize {
        usize::try_from(request >> 16 & 0x3fff).unwrap()
    }

    #[test]
    fn ioctl_numbers_encode_their_structures() {
        let table = [
            (
                DRM_IOCTL_P2PGPU_GETPARAM,
                size_of::<drm_p2pgpu_getparam>(),
                16,
            ),
            (
                DRM_IOCTL_P2PGPU_GEM_CREATE,
                size_of::<drm_p2pgpu_gem_create>(),
                24,
            ),
            (
                DRM_IOCTL_P2PGPU_GEM_MMAP_OFFSET,
                size_of::<drm_p2pgpu_gem_mmap_offset>(),
                16,
            ),
            (
                DRM_IOCTL_P2PGPU_GEM_INFO,
                size_of::<drm_p2pgpu_gem_info>(),
                96,
            ),
            (
                DRM_IOCTL_P2PGPU_GEM_SET_PEER,
                size_of::<drm_p2pgpu_gem_set_peer>(),
                8,
            ),
            (
                DRM_IOCTL_P2PGPU_PEER_QUERY,
                size_of::<drm_p2pgpu_peer_query>(),
                56,
            ),
            (
                DRM_IOCTL_P2PGPU_GEM_MOVE,
                size_of::<drm_p2pgpu_gem_move>(),
                16,
            ),
            (
                DRM_IOCTL_P2PGPU_GEM_COPY,
                size_of::<drm_p2pgpu_gem_copy>(),
                32,
            ),
            (
                DRM_IOCTL_P2PGPU_GEM_CHECKSUM,
                size_of::<drm_p2pgpu_gem_checksum>(),
                56,
            ),
            (
                DRM_IOCTL_P2PGPU_GEM_EXPORT_RANGE,
                size_of::<drm_p2pgpu_gem_export_range>(),
                32,
            ),
            (
                DRM_IOCTL_P2PGPU_CONTEXT_CREATE,
                size_of::<drm_p2pgpu_context_create>(),
                8,
            ),
            (
                DRM_IOCTL_P2PGPU_CONTEXT_DESTROY,
                size_of::<drm_p2pgpu_context_destroy>(),
                8,
            ),
            (
                DRM_IOCTL_P2PGPU_CONTEXT_QUERY,
                size_of::<drm_p2pgpu_context_query>(),
                24,
            ),
            (DRM_IOCTL_P2PGPU_SUBMIT, size_of::<drm_p2pgpu_submit>(), 48),
            (
                DRM_IOCTL_P2PGPU_GEM_MADVISE,
                size_of::<drm_p2pgpu_gem_madvise>(),
                16,
            ),
            (P2PNIC_IOCTL_QUERY, size_of::<p2pnic_query>(), 96),
            (P2PNIC_IOCTL_REG_REGION, size_of::<p2pnic_reg_region>(), 32),
            (
                P2PNIC_IOCTL_DEREG_REGION,
                size_of::<p2pnic_dereg_region>(),
                8,
            ),
            (
                P2PNIC_IOCTL_REGION_INFO,
                size_of::<p2pnic_region_info>(),
                32,
            ),
            (P2PNIC_IOCTL_CREATE_QP, size_of::<p2pnic_create_qp>(), 16),
            (P2PNIC_IOCTL_CONNECT_QP, size_of::<p2pnic_connect_qp>(), 8),
            (P2PNIC_IOCTL_DESTROY_QP, size_of::<p2pnic_destroy_qp>(), 8),
            (P2PNIC_IOCTL_POST_SEND, size_of::<p2pnic_post_send>(), 48),
            (P2PNIC_IOCTL_POST_RECV, size_of::<p2pnic_post_recv>(), 32),
            (P2PNIC_IOCTL_POLL, size_of::<p2pnic_poll>(), 32),
            (P2PNIC_IOCTL_REG_USER, size_of::<p2pnic_reg_user>(), 24),
            (
                P2P_IMPORTER_IOCTL_ATTACH,
                size_of::<p2p_importer_attach>(),
                40,
            ),
            (P2P_IMPORTER_IOCTL_MAP, size_of::<p2p_importer_map>(), 16),
            (P2P_IMPORTER_IOCTL_UNMAP, size_of::<p2p_importer_unmap>(), 8),
            (
                P2P_IMPORTER_IOCTL_RANGES,
                size_of::<p2p_importer_ranges>(),
                24,
            ),
            (P2P_IMPORTER_IOCTL_CYCLE, size_of::<p2p_importer_cycle>(), 8),
            (P2P_IMPORTER_IOCTL_INFO, size_of::<p2p_importer_info>(), 48),
            (P2P_IMPORTER_IOCTL_TIME, size_of::<p2p_importer_time>(), 16),
            (
                P2P_IMPORTER_IOCTL_VREAD,
                size_of::<p2p_importer_access>(),
                24,
            ),
            (
                P2P_IMPORTER_IOCTL_VWRITE,
                size_of::<p2p_importer_access>(),
                24,
            ),
            (
                P2P_IMPORTER_IOCTL_REGISTER,
                size_of::<p2p_importer_register>(),
                40,
            ),
            (
                P2P_IMPORTER_IOCTL_REGION,
                size_of::<p2p_importer_region>(),
                24,
            ),
        ];
        for (request, size, fixed) in table {
            assert_eq!(size, fixed, "ioctl {request:#x}: size of its structure");
            assert_eq!(
                encoded_size(request),
                fixed,
                "ioctl {request:#x}: encoded size"
            );
            assert_eq!(fixed % 4, 0);
        }
    }

    /// 64-bit fields at multiples of 8 and no hidden padding: what makes the
    /// structures the same for a 32-bit process.
    #[test]
    fn wide_fields_are_aligned_by_hand() {
        let offsets = [
            offset_of!(drm_p2pgpu_gem_mmap_offset, offset),
            offset_of!(drm_p2pgpu_gem_info, size),
            offset_of!(drm_p2pgpu_gem_info, invalidations),
            offset_of!(drm_p2pgpu_gem_copy, src_offset),
            offset_of!(drm_p2pgpu_gem_checksum, offset),
            offset_of!(drm_p2pgpu_gem_export_range, offset),
            offset_of!(drm_p2pgpu_context_query, engine_ns),
            offset_of!(drm_p2pgpu_op, src_offset),
            offset_of!(drm_p2pgpu_sync, point),
            offset_of!(drm_p2pgpu_submit, ops),
            offset_of!(p2pnic_query, peer_read_bytes),
            offset_of!(p2pnic_reg_region, offset),
            offset_of!(p2pnic_reg_user, size),
            offset_of!(p2pnic_region_info, maps),
            offset_of!(p2pnic_post_send, id),
            offset_of!(p2pnic_post_send, local_offset),
            offset_of!(p2pnic_post_recv, id),
            offset_of!(p2pnic_completion, id),
            offset_of!(p2pnic_poll, timeout_ns),
            offset_of!(p2pnic_poll, completions),
        ];
        for offset in offsets {
            assert_eq!(offset % 8, 0);
        }
        assert_eq!(offset_of!(drm_p2pgpu_gem_info, size), 8);
        assert_eq!(offset_of!(drm_p2pgpu_gem_info, invalidations), 48);
        assert_eq!(offset_of!(p2pnic_query, peer_read_bytes), 32);
        assert_eq!(offset_of!(p2pnic_post_send, local_key), 16);
        assert_eq!(offset_of!(p2pnic_poll, count), 24);
        assert_eq!(size_of::<p2pnic_completion>(), 24);
        assert_eq!(size_of::<drm_p2pgpu_op>(), 40);
        assert_eq!(size_of::<drm_p2pgpu_sync>(), 16);
        assert_eq!(align_of::<drm_p2pgpu_gem_set_peer>(), 4);
    }

    #[test]
    fn export_flags_are_those_of_open() {
        let open = [nix::libc::O_RDWR, nix::libc::O_CLOEXEC].map(i32::cast_unsigned);
        assert_eq!([P2PGPU_EXPORT_RDWR, P2PGPU_EXPORT_CLOEXEC], open);
    }

    #[test]
    fn gpu_ioctls_are_driver_private() {
        // DRM_COMMAND_BASE is 0x40 and the type is 'd'.
        assert_eq!(DRM_IOCTL_P2PGPU_GETPARAM & 0xffff, 0x6440);
        assert_eq!(DRM_IOCTL_P2PGPU_GEM_CHECKSUM & 0xffff, 0x6448);
        assert_eq!(P2PNIC_IOCTL_QUERY & 0xffff, 0x4ec0);
    }
}
