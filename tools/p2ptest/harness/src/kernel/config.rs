// SPDX-License-Identifier: GPL-2.0
//! The kernel's configuration from our fragments: what they ask for is what the
//! result has, or the build stops and names the line.

use std::collections::BTreeMap;

/// Lines of a fragment as symbol and value; `n` is "is not set".
pub fn symbols(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| {
            let line = line.trim();
            if let Some(name) = line
                .strip_prefix("# CONFIG_")
                .and_then(|l| l.strip_suffix(" is not set"))
            {
                return Some((name.to_owned(), "n".to_owned()));
            }
            let (name, value) = line.strip_prefix("CONFIG_")?.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        })
        .collect()
}

/// The fragment's lines that do not hold in a finished configuration, each with
/// what stands there instead.
pub fn unmet(fragment: &str, config: &str) -> Vec<String> {
    let config = symbols(config);
    symbols(fragment)
        .into_iter()
        .filter_map(|(name, value)| {
            let is = config.get(&name).map_or("n", String::as_str);
            (is != value).then(|| format!("CONFIG_{name}={value} (the result has {is})"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_forms() {
        let s = symbols("# a comment\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x=y\"\n");
        assert_eq!(s.len(), 3);
        assert_eq!(s["B"], "n");
        assert_eq!(s["C"], "\"x=y\"");
    }

    #[test]
    fn names_what_does_not_hold() {
        let fragment = "CONFIG_A=y\nCONFIG_B=m\nCONFIG_C=n\nCONFIG_D=n\n";
        let config = "CONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\n";
        assert_eq!(unmet(fragment, config), ["CONFIG_B=m (the result has y)"]);
        assert_eq!(
            unmet("CONFIG_E=y", config),
            ["CONFIG_E=y (the result has n)"]
        );
    }
}
