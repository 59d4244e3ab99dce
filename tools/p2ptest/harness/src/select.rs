// SPDX-License-Identifier: GPL-2.0
//! Choosing tests by a glob over their ids.

use anyhow::{Context as _, Result};
use globset::{GlobBuilder, GlobMatcher};

/// The user's choice.
#[derive(Debug)]
pub struct Filter {
    glob: Option<GlobMatcher>,
    optional: &'static str,
}

impl Filter {
    /// A filter by this glob; none chooses every test. `*` matches `/` and `@` too.
    /// An id that starts with `optional` may be named without that.
    ///
    /// # Errors
    ///
    /// When the glob is malformed.
    pub fn new(glob: Option<&str>, optional: &'static str) -> Result<Self> {
        let Some(glob) = glob.filter(|g| !g.is_empty()) else {
            return Ok(Self {
                glob: None,
                optional,
            });
        };
        let glob = GlobBuilder::new(glob)
            .literal_separator(false)
            .build()
            .with_context(|| format!("T={glob}"))?;
        Ok(Self {
            glob: Some(glob.compile_matcher()),
            optional,
        })
    }

    /// An id, or the beginning of one, and the other form of it if there is one.
    fn forms<'a>(&self, id: &'a str) -> impl Iterator<Item = &'a str> {
        [Some(id), id.strip_prefix(self.optional)]
            .into_iter()
            .flatten()
    }

    /// Whether a test is chosen.
    pub fn takes(&self, id: &str) -> bool {
        let glob = self.glob.as_ref();
        glob.is_none_or(|glob| self.forms(id).any(|id| glob.is_match(id)))
    }

    /// Whether ids that start so can be chosen at all: what cannot need not be
    /// built or listed. May say yes without need, never no.
    pub fn may_take(&self, prefix: &str) -> bool {
        let Some(glob) = &self.glob else { return true };
        alternatives(glob.glob().glob()).iter().any(|glob| {
            let literal = glob.split(['*', '?', '[', '{', '\\']).next();
            let literal = literal.unwrap_or_default();
            self.forms(prefix)
                .any(|prefix| literal.starts_with(prefix) || prefix.starts_with(literal))
        })
    }
}

/// The globs that a glob which starts with "{a,b}" stands for, of which none starts so.
fn alternatives(glob: &str) -> Vec<String> {
    let Some((inside, rest)) = glob.strip_prefix('{').and_then(split_braces) else {
        return vec![glob.to_owned()];
    };
    let globs = inside.iter().map(|one| format!("{one}{rest}"));
    globs.flat_map(|glob| alternatives(&glob)).collect()
}

/// What stands between the commas of "a,b}rest", and the rest. `None`: it cannot be told by its
/// braces and commas alone, as some of them stand for themselves.
fn split_braces(text: &str) -> Option<(Vec<&str>, &str)> {
    let (mut inside, mut start, mut depth) = (Vec::new(), 0, 0_u32);
    for (at, sign) in text.char_indices() {
        match sign {
            '\\' | '[' => return None,
            '{' => depth += 1,
            ',' if depth == 0 => {
                inside.push(&text[start..at]);
                start = at + 1;
            }
            '}' if depth == 0 => {
                inside.push(&text[start..at]);
                return Some((inside, &text[at + 1..]));
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(glob: &str) -> Filter {
        Filter::new(Some(glob), "").unwrap()
    }

    #[test]
    fn globs() {
        let id = "mapped/p2p_export@unflagged-is-refused";
        for glob in [
            "",
            "*",
            "mapped/*",
            "*@unflagged*",
            "*/p2p_export@*",
            "{mapped,trapped}/p2p_e*",
            id,
        ] {
            assert!(filter(glob).takes(id), "{glob}");
        }
        for glob in ["trapped/*", "p2p_export@*", "mapped/p2p_export"] {
            assert!(!filter(glob).takes(id), "{glob}");
        }
        assert!(Filter::new(Some("["), "").is_err());
    }

    #[test]
    fn prefixes_that_cannot_match_are_left_out() {
        assert!(!filter("mapped/*").may_take("host/"));
        assert!(filter("mapped/p2p_x@y").may_take("mapped/"));
        assert!(filter("ma*").may_take("mapped/"));
        assert!(filter("*x").may_take("host/"));
        assert!(filter("{host,check}/*").may_take("host/"));
        assert!(!filter("{mapped,check}/*").may_take("host/"));
        for glob in ["{{mapped,x},check}/*", "{a,{b,{c,d}e}}*", "{,a}mapped*"] {
            assert!(!filter(glob).may_take("host/"), "{glob}");
        }
        for glob in [
            "{{mapped,host},check}/*",
            "{{x,y}z,{a,{b,ho}st}}/*",
            "{{{mapped,trapped}/p2p_x,host/y}@*,check}",
            "{,mapped}*{x,y}",
            "{a,}{b,host}/*",
            "{mapped,{x,}}host/*",
            "{[{],mapped}/*",
            "{\\{,host}/*",
        ] {
            assert!(filter(glob).may_take("host/"), "{glob}");
        }
        assert!(Filter::new(None, "").unwrap().may_take("host/"));
    }

    #[test]
    fn a_prefix_may_be_left_out() {
        let filter = |glob| Filter::new(Some(glob), "debug-").unwrap();
        for glob in ["mapped/p2p_gem@*", "debug-mapped/*", "*/p2p_gem@a"] {
            assert!(filter(glob).takes("debug-mapped/p2p_gem@a"), "{glob}");
            assert!(filter(glob).may_take("debug-mapped/"), "{glob}");
        }
        assert!(!filter("trapped/*").takes("debug-mapped/p2p_gem@a"));
        assert!(!filter("trapped/*").may_take("debug-mapped/"));
    }
}
