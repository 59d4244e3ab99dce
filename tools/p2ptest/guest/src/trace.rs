// SPDX-License-Identifier: GPL-2.0
//! Trace events of the GPUs' driver, read from an instance of tracefs of the
//! test's own.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where the guest's init mounts tracefs.
const TRACEFS: &str = "/sys/kernel/tracing";

/// The driver's events.
const SYSTEM: &str = "p2pgpu";

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its name, without the driver's
    pub name: String,
    /// Its fields, as text
    pub fields: BTreeMap<String, String>,
}

impl Event {
    /// The event of a line of the file `trace`; `None` for another driver's.
    fn parse(line: &str) -> Option<Self> {
        let (_, rest) = line.split_once(&format!(" {SYSTEM}_"))?;
        let (name, rest) = rest.split_once(": ")?;
        let fields = rest.split_whitespace().map(|field| {
            let (key, value) = field.split_once('=')?;
            Some((key.to_owned(), value.to_owned()))
        });
        Some(Self {
            name: name.to_owned(),
            fields: fields.collect::<Option<_>>()?,
        })
    }

    /// A field.
    #[track_caller]
    pub fn field(&self, name: &str) -> &str {
        match self.fields.get(name) {
            Some(value) => value,
            None => panic!("no field {name}: {self:?}"),
        }
    }
}

/// A buffer that events go to from its making on, until it is dropped.
#[derive(Debug)]
pub struct Trace {
    instance: PathBuf,
}

impl Trace {
    /// Starts to trace.
    ///
    /// # Panics
    ///
    /// Where that does not work.
    #[track_caller]
    pub fn start() -> Self {
        let name = format!("{SYSTEM}-{}", std::process::id());
        let instance = Path::new(TRACEFS).join("instances").join(name);
        let this = Self { instance };
        let started = fs::create_dir(&this.instance).and_then(|()| this.enable(true));
        started.expect("an instance of tracefs");
        this
    }

    fn enable(&self, enable: bool) -> io::Result<()> {
        let value = if enable { "1" } else { "0" };
        fs::write(self.events_folder().join("enable"), value)
    }

    fn events_folder(&self) -> PathBuf {
        self.instance.join("events").join(SYSTEM)
    }

    /// The names of all events that there are, sorted.
    #[track_caller]
    pub fn names(&self) -> Vec<String> {
        let folder = fs::read_dir(self.events_folder()).expect("the events");
        let names = folder.map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<_> = names
            .filter_map(|name| {
                let name = name.to_str().expect("UTF-8");
                Some(name.strip_prefix(SYSTEM)?.strip_prefix('_')?.to_owned())
            })
            .collect();
        names.sort();
        names
    }

    /// What has happened since it was started, or since this was last called.
    #[track_caller]
    pub fn take(&self) -> Vec<Event> {
        let file = self.instance.join("trace");
        let text = fs::read_to_string(&file).expect("the trace");
        fs::write(&file, "").expect("the trace can be emptied");
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| Event::parse(line).unwrap_or_else(|| panic!("no event: {line:?}")))
            .collect()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let ended = self
            .enable(false)
            .and_then(|()| fs::remove_dir(&self.instance));
        if let Err(error) = ended {
            // A panic in a drop would hide the reason for which the test fails.
            println!("{}: {error}", self.instance.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood() {
        let line = "     p2p_trace-76      [001] .....     9.512: p2pgpu_refuse: \
                    dev=0000:03:00.0 object=0x10 reason=policy error=-1";
        let event = Event::parse(line).expect("an event");
        assert_eq!(event.name, "refuse");
        assert_eq!(event.field("error"), "-1");
        assert_eq!(event.fields.len(), 4);
        assert_eq!(Event::parse("x-1 [000] ..... 9.5: other: a=1"), None);
        assert_eq!(Event::parse("x-1 [000] ..... 9.5: p2pgpu_map: a"), None);
    }
}
