// SPDX-License-Identifier: GPL-2.0
//! What a guest may ask the host for, and doing it. The guest is not trusted: it
//! names devices of its own rig, and everything else that a command needs is the
//! host's.

use anyhow::{Context as _, Result, bail, ensure};
use p2p_init::{Answer, Ask, MAX_ANSWER};
use serde_json::{Map, Value};

use crate::models::Models;
use crate::qemu::Guest;
use crate::qmp::Qmp;

/// Does what a guest asks for.
pub fn answer(guest: &Guest, models: &mut Models, qmp: &mut Qmp, ask: &Ask) -> Answer {
    let done = run(guest, models, qmp, ask).map_err(|e| format!("{e:#}"))?;
    match serde_json::to_string(&done) {
        Ok(text) if text.len() <= MAX_ANSWER => Ok(done),
        Ok(text) => Err(format!("the answer has {} bytes", text.len())),
        Err(e) => Err(e.to_string()),
    }
}

fn run(guest: &Guest, models: &mut Models, qmp: &mut Qmp, ask: &Ask) -> Result<Value> {
    match ask {
        // The session sees to it.
        Ask::Retire => Ok(Value::Null),
        Ask::Control { model, command } => models.control(model, command),
        Ask::Restart { model } => models.restart(model).map(|()| Value::Null),
        Ask::Qmp { command } => {
            let (command, arguments) = allowed(guest, command)?;
            qmp.execute(&command, arguments)
        }
    }
}

/// The command that QEMU gets for what the guest wants of it.
fn allowed(guest: &Guest, wanted: &Value) -> Result<(String, Value)> {
    let wanted = wanted.as_object().context("not an object")?;
    only(wanted, &["execute", "arguments"])?;
    let command = wanted.get("execute").and_then(Value::as_str);
    let command = command.context("no command")?.to_owned();
    let arguments = wanted.get("arguments");
    let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match command.as_str() {
        query if query.starts_with("query-") && query.chars().all(known) => {
            ensure!(arguments.is_none(), "{command} takes no arguments here");
            Ok((command, Value::Null))
        }
        "device_add" | "device_del" => {
            let arguments = arguments.and_then(Value::as_object);
            let arguments = arguments.context("no arguments")?;
            only(arguments, &["id"])?;
            let id = arguments.get("id").and_then(Value::as_str);
            let id = id.context("no id")?;
            let device = guest.device(id).context("no such device")?;
            let arguments = match command.as_str() {
                "device_add" => device,
                _ => serde_json::json!({ "id": id }),
            };
            Ok((command, arguments))
        }
        _ => bail!("{command:?} is not for guests"),
    }
}

fn only(object: &Map<String, Value>, names: &[&str]) -> Result<()> {
    match object.keys().find(|key| !names.contains(&key.as_str())) {
        Some(key) => bail!("unknown {key:?}"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asked(wanted: &Value) -> Result<(String, Value)> {
        allowed(&Guest::sample(), wanted)
    }

    #[test]
    fn queries_and_the_rigs_own_devices() {
        let (command, arguments) = asked(&json!({"execute": "query-pci"})).unwrap();
        assert_eq!((command.as_str(), arguments), ("query-pci", Value::Null));
        let unplug = json!({"execute": "device_del", "arguments": {"id": "nic0"}});
        let (command, arguments) = asked(&unplug).unwrap();
        assert_eq!(
            (command.as_str(), arguments),
            ("device_del", json!({"id": "nic0"}))
        );
        let plug = json!({"execute": "device_add", "arguments": {"id": "nic0"}});
        let (_, arguments) = asked(&plug).unwrap();
        assert_eq!(arguments["driver"], "vfio-user-pci");
        assert_eq!(arguments["socket"]["path"], "/s1");
    }

    #[test]
    fn nothing_else() {
        for wanted in [
            json!(null),
            json!([]),
            json!({}),
            json!({"execute": "quit"}),
            json!({"execute": "human-monitor-command", "arguments": {"command-line": "quit"}}),
            json!({"execute": "query-pci", "arguments": {}}),
            json!({"execute": "query-pci", "id": 1}),
            json!({"execute": "query-x quit"}),
            json!({"execute": "device_del"}),
            json!({"execute": "device_del", "arguments": {"id": "port0"}}),
            json!({"execute": "device_del", "arguments": {"id": 0}}),
            json!({"execute": "device_add", "arguments": {"id": "nic0", "driver": "edu"}}),
            json!({"execute": "device_add", "arguments": {"driver": "edu"}}),
        ] {
            assert!(asked(&wanted).is_err(), "{wanted}");
        }
    }
}
