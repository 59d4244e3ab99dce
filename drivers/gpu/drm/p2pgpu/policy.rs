// SPDX-License-Identifier: GPL-2.0

//! The policy of a device: which importing devices may have its objects.
//!
//! A list of rules, one a line; the first that fits an importer decides:
//!
//! ```text
//! allow pci 0000:04:00.0
//! deny driver p2pnic
//! default deny
//! ```
//!
//! Without a `default` line, which is the last one, all others are allowed.

use crate::{
    driver::DrmDriver,
    migrate, //
};
use core::fmt::Write;
use kernel::{
    device::attribute::Attribute,
    drm::RegisteredRef,
    fmt,
    new_mutex,
    prelude::*,
    str::Formatter,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Mutex, //
    }, //
};

/// The rules in force.
struct Policy {
    rules: KVec<Rule>,
    default_allow: bool,
}

struct Rule {
    allow: bool,
    who: Who,
}

/// Whom a rule is for.
enum Who {
    Pci(PciAddress),
    Driver(KVec<u8>),
}

/// Segment, bus, device and function.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct PciAddress(pub(crate) [u16; 4]);

impl PciAddress {
    /// Reads an address as sysfs writes it: `0000:04:00.0`.
    fn parse(text: &str) -> Option<Self> {
        let number = |text: &str, digits, max| {
            let sound = text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
            let value = u16::from_str_radix(text, 16).ok()?;
            (sound && value <= max).then_some(value)
        };
        let (domain, rest) = text.split_once(':')?;
        let (bus, rest) = rest.split_once(':')?;
        let (device, function) = rest.split_once('.')?;
        Some(Self([
            number(domain, 4, u16::MAX)?,
            number(bus, 2, 0xff)?,
            number(device, 2, 0x1f)?,
            number(function, 1, 7)?,
        ]))
    }

    /// The address of a PCI device by the name that the bus gave it.
    pub(crate) fn of_name(name: &CStr) -> Option<Self> {
        Self::parse(name.to_str().ok()?)
    }
}

/// The policy of a device, that anybody may ask.
#[pin_data]
pub(crate) struct SharedPolicy {
    /// There are rules, or the default is not to allow. Set with the lock held.
    asks: Atomic<bool>,
    #[pin]
    policy: Mutex<Policy>,
}

impl SharedPolicy {
    /// Everybody is allowed.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            asks: Atomic::new(false),
            policy <- new_mutex!(Policy::new(), "p2pgpu::policy"),
        })
    }

    /// As [`Policy::allows`]; `driver` is called only if somebody may be refused.
    pub(crate) fn allows<'a>(
        &self,
        pci: Option<PciAddress>,
        driver: impl FnOnce() -> Option<&'a CStr>,
    ) -> bool {
        !self.asks.load(Relaxed) || self.policy.lock().allows(pci, driver())
    }

    fn set(&self, policy: Policy) {
        let mut current = self.policy.lock();
        self.asks.store(!policy.allows_all(), Relaxed);
        let old = core::mem::replace(&mut *current, policy);
        drop(current);
        drop(old);
    }
}

impl Policy {
    /// Everybody is allowed.
    const fn new() -> Self {
        Self {
            rules: KVec::new(),
            default_allow: true,
        }
    }

    fn allows_all(&self) -> bool {
        self.rules.is_empty() && self.default_allow
    }

    /// Reads rules. `EINVAL`: a line is no rule, or follows the default.
    fn parse(text: &str) -> Result<Self> {
        let mut policy = Self::new();
        let mut ended = false;
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            let Some(first) = words.next() else {
                continue;
            };
            let (second, third) = (words.next().ok_or(EINVAL)?, words.next());
            if ended || words.next().is_some() {
                return Err(EINVAL);
            }
            if first == "default" && third.is_none() {
                policy.default_allow = verdict(second)?;
                ended = true;
                continue;
            }
            let name = third.ok_or(EINVAL)?;
            let who = match second {
                "pci" => Who::Pci(PciAddress::parse(name).ok_or(EINVAL)?),
                "driver" => {
                    let mut bytes = KVec::new();
                    bytes.extend_from_slice(name.as_bytes(), GFP_KERNEL)?;
                    Who::Driver(bytes)
                }
                _ => return Err(EINVAL),
            };
            let allow = verdict(first)?;
            policy.rules.push(Rule { allow, who }, GFP_KERNEL)?;
        }
        Ok(policy)
    }

    /// Whether a device may be an importer: by its PCI address, if it is of that bus, and its
    /// driver, if it has one.
    fn allows(&self, pci: Option<PciAddress>, driver: Option<&CStr>) -> bool {
        let fits = |rule: &&Rule| match &rule.who {
            Who::Pci(address) => Some(*address) == pci,
            Who::Driver(name) => driver.is_some_and(|driver| driver.to_bytes() == &**name),
        };
        let rule = self.rules.iter().find(fits);
        rule.map_or(self.default_allow, |rule| rule.allow)
    }

    fn show(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for rule in &self.rules {
            let word = word(rule.allow);
            match &rule.who {
                Who::Pci(PciAddress([domain, bus, device, function])) => writeln!(
                    f,
                    "{word} pci {domain:04x}:{bus:02x}:{device:02x}.{function:x}"
                )?,
                Who::Driver(name) => {
                    let name = core::str::from_utf8(name).map_err(|_| fmt::Error)?;
                    writeln!(f, "{word} driver {name}")?
                }
            }
        }
        writeln!(f, "default {}", word(self.default_allow))
    }
}

fn verdict(word: &str) -> Result<bool> {
    match word {
        "allow" => Ok(true),
        "deny" => Ok(false),
        _ => Err(EINVAL),
    }
}

fn word(allow: bool) -> &'static str {
    match allow {
        true => "allow",
        false => "deny",
    }
}

/// The policy as a file. New rules hold for every attach and map from now on; importers that have
/// mappings, and can be told, map again by them.
pub(crate) struct PolicyFile(RegisteredRef<DrmDriver>);

impl PolicyFile {
    pub(crate) fn new(drm: RegisteredRef<DrmDriver>) -> Self {
        Self(drm)
    }
}

impl Attribute for PolicyFile {
    const NAME: &'static CStr = c"peer_policy";

    fn show(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let dev = self.0.registration_guard().ok_or(fmt::Error)?;
        let policy = dev.policy.policy.lock();
        policy.show(f)
    }

    fn store(&self, text: &str) -> Result {
        let dev = self.0.registration_guard().ok_or(ENODEV)?;
        let new = Policy::parse(text)?;
        dev.policy.set(new);
        dev.for_each_attached_unlocked(|obj| {
            let guard = obj.resv().lock();
            if obj.state.lock().pins == 0 {
                // One that does not let go has been told, and maps by the new rules next time.
                let _ = migrate::invalidate(obj, guard.held());
            }
        });
        Ok(())
    }
}
