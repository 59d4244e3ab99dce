// SPDX-License-Identifier: GPL-2.0
//! The user's variables. `scripts/inside` hands them on with a prefix, as what the harness
//! starts has variables of the same names: kbuild compiles everything anew where DEBUG is
//! not what it was.

const PREFIX: &str = "P2PGPU_";

/// What the user gave for a variable, if anything; `name` is the one that the user knows.
pub fn text(name: &str) -> Option<String> {
    std::env::var(format!("{PREFIX}{name}"))
        .ok()
        .filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    /// What runs this test stands for all that the harness starts.
    #[test]
    fn nobody_else_sees_them() {
        for name in ["DEBUG", "MODE", "T", "TARGET"] {
            assert_eq!(std::env::var_os(name), None, "{name}");
        }
    }
}
