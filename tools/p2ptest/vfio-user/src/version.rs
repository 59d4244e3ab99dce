// SPDX-License-Identifier: GPL-2.0

//! The first message: version and capabilities of both sides.

use rustix::io::Errno;
use serde_json::{Value, json};

use crate::wire::{DEFAULT_MAX_DATA, Fields, MAX_DATA, MAX_FDS, MAX_MAPS};

/// What the client said of itself, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Most data bytes in a message to the client; not 0.
    pub max_data: u64,
}

impl Client {
    /// Takes the payload of `VERSION` apart: major, minor, then JSON that ends with a NUL.
    pub fn parse(payload: &[u8]) -> Result<Self, Errno> {
        let mut fields = Fields(payload);
        let (major, _minor) = (fields.u16()?, fields.u16()?);
        if major != 0 {
            return Err(Errno::INVAL);
        }
        let text = match fields.rest() {
            [] => b"{}",
            [text @ .., 0] => text,
            _ => return Err(Errno::INVAL),
        };
        let value: Value = serde_json::from_slice(text).map_err(|_| Errno::INVAL)?;
        let max_data = match &value["capabilities"]["max_data_xfer_size"] {
            Value::Null => DEFAULT_MAX_DATA,
            size => size.as_u64().filter(|&size| size > 0).ok_or(Errno::INVAL)?,
        };
        Ok(Self { max_data })
    }
}

/// The answer. QEMU takes one no longer than its own message, so it names little.
pub fn reply() -> Vec<u8> {
    let capabilities = json!({ "capabilities": {
        "max_msg_fds": MAX_FDS,
        "max_data_xfer_size": MAX_DATA,
        "max_dma_maps": MAX_MAPS,
        "write_multiple": true,
    }});
    let mut bytes = vec![0; 4]; // version 0.0
    bytes.extend_from_slice(capabilities.to_string().as_bytes());
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(json: &str) -> Vec<u8> {
        [&[0, 0, 1, 0], json.as_bytes(), &[0]].concat()
    }

    #[test]
    fn limits_are_taken_over() {
        let text = r#"{"capabilities":{"max_data_xfer_size":4096,"other":[1]}}"#;
        assert_eq!(Client::parse(&message(text)), Ok(Client { max_data: 4096 }));
        let none = Client {
            max_data: DEFAULT_MAX_DATA,
        };
        assert_eq!(Client::parse(&message("{}")), Ok(none));
        assert_eq!(Client::parse(&[0; 4]), Ok(none));
    }

    #[test]
    fn bad_versions_are_refused() {
        assert_eq!(Client::parse(&[1, 0, 0, 0]), Err(Errno::INVAL));
        assert_eq!(Client::parse(&[0, 0, 0]), Err(Errno::INVAL));
        assert_eq!(Client::parse(b"\0\0\0\0{}"), Err(Errno::INVAL));
        assert_eq!(Client::parse(&message("{")), Err(Errno::INVAL));
        assert_eq!(
            Client::parse(&message(&"[".repeat(60000))),
            Err(Errno::INVAL)
        );
        for size in ["0", "-1", "1.5", "\"x\"", "{}"] {
            let text = format!(r#"{{"capabilities":{{"max_data_xfer_size":{size}}}}}"#);
            assert_eq!(Client::parse(&message(&text)), Err(Errno::INVAL), "{size}");
        }
    }
}
