// SPDX-License-Identifier: GPL-2.0
//! What any DRM driver is expected to do, whatever its device: the subjects of IGT's
//! `core_*` and `device_reset` as far as they concern a driver that only renders.

use nix::errno::Errno;
use nix::unistd::{Gid, Uid, setgid, setuid};
use p2pguest::binding::{Removed, Unbound, gpu_is_there, wait_until};
use p2pguest::drm::{self, Node, PciAddress};
use p2pguest::gpu::{Bo, Gpu, Placement};
use p2pguest::igt::{self, Subtest};
use p2pguest::pattern::Pattern;
use p2pguest::primary::Primary;
use p2pguest::rig::Rig;
use p2pguest::sys::uapi::*;
use p2pguest::{refused, subtests};
use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const SUBTESTS: &[Subtest] = subtests![
    /// The driver tells its name, what it is and a date; libdrm finds it by both nodes.
    version,
    /// A client learns of itself, and of no other.
    client,
    /// Statistics, of which there are none, can be asked for.
    statistics,
    /// Each client has a number of its own, for as long as it is open.
    magics_are_apart,
    /// A master authenticates a client by its number, once.
    authentication,
    /// Who is not the master authenticates nobody; a number of nobody is refused.
    bad_authentication,
    /// The master gives up its role and takes it again.
    master_drop_and_set,
    /// So does one that is not root.
    master_drop_and_set_by_a_user,
    /// Another process that has the file, and no privilege, can do neither.
    master_is_not_for_others,
    /// The render node has no master and no authentication.
    render_node_has_no_master,
    /// All that the driver and the DRM core show in debugfs can be read.
    debugfs_read_all,
    /// All that the device shows in sysfs can be read, or says why not.
    sysfs_read_all,
    /// Files of debugfs that are open when the driver lets go of the device.
    debugfs_files_outlast_the_device,
    /// A device is reset while no driver has it, and works afterwards.
    unbind_reset_and_bind,
    /// The driver takes the device again while a file of before is open.
    rebind_while_open,
    /// The same, but that file is closed when the new ones work.
    rebind_and_close_late,
    /// A device is unplugged and found again while a file of before is open.
    replug_while_open,
    /// The same, but that file is closed when the new ones work.
    replug_and_close_late,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

/// A user without privileges.
const NOBODY: u32 = 65534;

/// The first GPU; skips the subtest if there is none.
#[track_caller]
fn node() -> Node {
    Gpu::open(0).node().clone()
}

fn version() {
    let node = node();
    for primary in [Primary::open(&node), Primary::render(&node)] {
        let version = drm::version(&primary).expect("drmGetVersion");
        assert_eq!(version.name, "p2pgpu");
        assert!(!version.description.is_empty(), "no description");
        assert!(!version.date.is_empty(), "no date");
    }
}

/// The kernel's user id of those that it does not tell: `DEFAULT_OVERFLOWUID`.
const OVERFLOW_UID: u32 = 65534;

fn client() {
    let primary = Primary::open(&node());
    let client = primary.client();
    assert!(client.authenticated, "root is authenticated");
    // The core tells nobody's user id to anybody.
    assert_eq!((client.pid, client.uid), (std::process::id(), OVERFLOW_UID));
    for index in [1, i32::MAX] {
        refused(primary.__client(index), Errno::EINVAL);
    }
}

fn statistics() {
    assert_eq!(Primary::open(&node()).__stats(), Ok(0));
}

fn magics_are_apart() {
    let node = node();
    let clients: Vec<_> = (0..64).map(|_| Primary::open(&node)).collect();
    let magics: BTreeSet<_> = clients.iter().map(Primary::magic).collect();
    assert_eq!(magics.len(), clients.len());
    assert!(!magics.contains(&0), "0 stands for none");
    for (client, again) in clients.iter().zip(clients.iter().map(Primary::magic)) {
        assert_eq!(client.magic(), again, "a client's number changes");
    }
}

fn authentication() {
    let node = node();
    let _shared = Shared::new(&node);
    // Root is authenticated always.
    igt::fork(|| {
        become_nobody();
        let master = Primary::open(&node);
        let client = Primary::open(&node);
        assert!(master.is_master() && !client.is_master());
        assert!(!client.client().authenticated);
        let magic = client.magic();
        assert_eq!(master.__authenticate(magic), Ok(()));
        assert!(client.client().authenticated);
        refused(master.__authenticate(magic), Errno::EINVAL);
    })
    .join();
}

fn bad_authentication() {
    let node = node();
    let master = Primary::open(&node);
    let client = Primary::open(&node);
    let magic = client.magic();
    refused(client.__authenticate(magic), Errno::EACCES);
    for nobody in [0, magic + 1, u32::MAX] {
        refused(master.__authenticate(nobody), Errno::EINVAL);
    }
    drop(client);
    refused(master.__authenticate(magic), Errno::EINVAL);
}

#[track_caller]
fn drop_and_set(node: &Node) {
    let master = Primary::open(node);
    assert!(master.is_master(), "the first to open it is the master");
    assert_eq!(master.__drop_master(), Ok(()));
    assert!(!master.is_master());
    refused(master.__drop_master(), Errno::EINVAL);
    assert_eq!(master.__set_master(), Ok(()));
    assert!(master.is_master());
    let other = Primary::open(node);
    assert!(!other.is_master(), "there are two masters");
}

fn master_drop_and_set() {
    drop_and_set(&node());
}

/// Lets this process, which is a child, go on without privileges.
#[track_caller]
fn become_nobody() {
    setgid(Gid::from_raw(NOBODY)).expect("setgid");
    setuid(Uid::from_raw(NOBODY)).expect("setuid");
}

/// A primary node that all may open, until this is dropped.
struct Shared(PathBuf, Permissions);

impl Shared {
    #[track_caller]
    fn new(node: &Node) -> Self {
        let path = node.primary.as_ref().expect("a primary node");
        let before = fs::metadata(path).expect("the node").permissions();
        fs::set_permissions(path, Permissions::from_mode(0o666)).expect("chmod");
        Self(path.clone(), before)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Err(error) = fs::set_permissions(&self.0, self.1.clone()) {
            println!("{}: {error}", self.0.display());
        }
    }
}

fn master_drop_and_set_by_a_user() {
    let node = node();
    let _shared = Shared::new(&node);
    igt::fork(|| {
        become_nobody();
        drop_and_set(&node);
    })
    .join();
}

fn master_is_not_for_others() {
    let master = Primary::open(&node());
    igt::fork(|| {
        become_nobody();
        assert!(master.is_master(), "the file is still the master's");
        refused(master.__drop_master(), Errno::EACCES);
        refused(master.__set_master(), Errno::EACCES);
    })
    .join();
    assert!(master.is_master());
}

fn render_node_has_no_master() {
    let render = Primary::render(&node());
    assert!(!render.is_master());
    refused(render.__set_master(), Errno::EACCES);
    refused(render.__magic(), Errno::EACCES);
    refused(render.__client(0), Errno::EACCES);
}

/// All files in a folder, and in those in it; links are not followed.
#[track_caller]
fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) => panic!("{}: {error}", folder.display()),
        };
        for entry in entries {
            let entry = entry.expect("an entry");
            match entry.file_type().expect("the kind of an entry") {
                kind if kind.is_dir() => folders.push(entry.path()),
                kind if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files.sort();
    files
}

/// Far more than any file has that is not a BAR.
const MOST: u64 = 1 << 20;

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MOST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether a file says that it can be read.
fn is_readable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|about| about.permissions().mode() & 0o444 != 0)
}

/// The folders of debugfs that belong to a device.
fn debugfs_folders(pci: PciAddress) -> [PathBuf; 2] {
    ["p2pgpu", "dri"].map(|of| {
        Path::new("/sys/kernel/debug")
            .join(of)
            .join(pci.to_string())
    })
}

/// Something for the files to tell of.
#[track_caller]
fn busy(rig: &Rig) -> Bo<'_> {
    let registered = rig.register(0, 8 * rig.gpu[0].page, Placement::Vram);
    registered.bo.fill(Pattern(1));
    registered.bo
}

fn debugfs_read_all() {
    let rig = Rig::open();
    let _busy = busy(&rig);
    for folder in debugfs_folders(rig.gpu[0].pci()) {
        let files = files_in(&folder);
        assert!(!files.is_empty(), "{} is empty", folder.display());
        for path in files.iter().filter(|path| is_readable(path)) {
            let bytes = match read(path) {
                Ok(bytes) => bytes,
                Err(error) => panic!("{}: {error}", path.display()),
            };
            assert!((bytes.len() as u64) < MOST, "{} never ends", path.display());
            let text = String::from_utf8(bytes);
            assert!(text.is_ok(), "{} is not text", path.display());
        }
    }
}

fn sysfs_read_all() {
    let rig = Rig::open();
    let _busy = busy(&rig);
    let mut read_well = BTreeSet::new();
    for path in files_in(&rig.gpu[0].pci().sysfs()) {
        // What cannot be read says so by an error: a BAR, for one.
        if is_readable(&path)
            && read(&path).is_ok()
            && let Some(name) = path.file_name()
        {
            read_well.insert(name.display().to_string());
        }
    }
    for name in ["config", "resource", "uevent", "vendor", "dev"] {
        assert!(read_well.contains(name), "{name} could not be read");
    }
}

fn debugfs_files_outlast_the_device() {
    let rig = Rig::open();
    let pci = rig.gpu[0].pci();
    let busy = busy(&rig);
    let files: Vec<_> = debugfs_folders(pci)
        .iter()
        .flat_map(|folder| files_in(folder))
        .filter(|path| is_readable(path))
        .map(|path| File::open(&path).expect("a file of debugfs"))
        .collect();
    assert!(files.len() > 5, "only {} files", files.len());
    let unbound = Unbound::new("p2pgpu", pci);
    for mut file in &files {
        // Nothing, an error, or what was true: no matter, if it ends.
        let _ = file.read(&mut [0; 4096]);
    }
    drop((busy, unbound));
    for mut file in &files {
        let _ = file.read(&mut [0; 4096]);
    }
    drop(files);
    assert_works(pci);
}

/// Asserts that a device is there and does what it is for.
#[track_caller]
fn assert_works(pci: PciAddress) {
    wait_until("the GPU is there", || gpu_is_there(pci));
    let nodes = Gpu::nodes().expect("the list of GPUs");
    let node = nodes.iter().find(|node| node.pci == pci);
    let node = node.expect("the GPU that is there");
    let gpu = Gpu::__open(node).expect("a file of the GPU");
    let bo = gpu.create(4 * gpu.page, Placement::Vram);
    bo.fill(Pattern(7));
    bo.assert_holds(Pattern(7));
    assert_eq!(bo.map().load(8), Pattern(7).word(1));
    assert!(Primary::open(node).is_master());
    for folder in debugfs_folders(pci) {
        assert!(folder.is_dir(), "there is no {}", folder.display());
    }
}

fn unbind_reset_and_bind() {
    let pci = node().pci;
    for _ in 0..3 {
        let unbound = Unbound::new("p2pgpu", pci);
        let reset = pci.sysfs().join("reset");
        if let Err(error) = fs::write(&reset, "1") {
            panic!("{}: {error}", reset.display());
        }
        drop(unbound);
        assert_works(pci);
    }
}

/// A device goes and comes while files of before are open. `Gone` brings it back when it
/// is dropped.
#[track_caller]
fn goes_and_comes<Gone>(take: impl FnOnce(PciAddress) -> Gone, late: bool) {
    let gpu = Gpu::open(0);
    let pci = gpu.pci();
    let bo = gpu.create(4 * gpu.page, Placement::Vram);
    let map = bo.map();
    let primary = Primary::open(gpu.node());
    let assert_gone = || {
        refused(gpu.__param(P2PGPU_PARAM_VRAM_SIZE), Errno::ENODEV);
        refused(bo.__info(), Errno::ENODEV);
        refused(primary.__magic(), Errno::ENODEV);
    };
    let gone = take(pci);
    assert_gone();
    drop(gone);
    if late {
        assert_works(pci);
    }
    wait_until("the GPU is there", || gpu_is_there(pci));
    assert_gone();
    drop((map, bo, primary));
    drop(gpu);
    assert_works(pci);
}

fn rebind_while_open() {
    goes_and_comes(|pci| Unbound::new("p2pgpu", pci), false);
}

fn rebind_and_close_late() {
    goes_and_comes(|pci| Unbound::new("p2pgpu", pci), true);
}

fn replug_while_open() {
    goes_and_comes(Removed::new, false);
}

fn replug_and_close_late() {
    goes_and_comes(Removed::new, true);
}
