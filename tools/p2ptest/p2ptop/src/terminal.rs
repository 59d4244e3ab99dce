// SPDX-License-Identifier: GPL-2.0
//! What the terminal can do: a serial line knows neither its size nor its kind.

use ratatui::crossterm::terminal::window_size;
use std::env;
use std::io::{IsTerminal as _, stdout};

/// Columns and lines of a terminal that does not tell.
pub const DEFAULT_SIZE: (u16, u16) = (80, 24);

/// How a terminal is drawn on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Character by character, at its size, or at one that it does not tell
    Screen {
        /// Columns and lines, `None` if it tells them, also when they change
        fixed: Option<(u16, u16)>,
    },
    /// One picture after the other: it only prints
    Lines {
        /// Columns
        width: usize,
    },
}

/// What the environment says.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `TERM`
    pub term: Option<String>,
    /// `COLUMNS`
    pub columns: Option<String>,
    /// `LINES`
    pub lines: Option<String>,
    /// `NO_COLOR`
    pub no_color: Option<String>,
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        let get = |name| env::var(name).ok();
        Self {
            term: get("TERM"),
            columns: get("COLUMNS"),
            lines: get("LINES"),
            no_color: get("NO_COLOR"),
        }
    }

    /// Whether colours are welcome.
    pub fn color(&self) -> bool {
        self.no_color.as_deref().unwrap_or_default().is_empty()
    }

    /// How to draw on a terminal that states this size; 0 is unknown.
    pub fn kind(&self, stated: (u16, u16)) -> Kind {
        if matches!(self.term.as_deref(), None | Some("" | "dumb")) {
            return Kind::Lines {
                width: self.size(stated).0.into(),
            };
        }
        let known = stated.0 != 0 && stated.1 != 0;
        Kind::Screen {
            fixed: (!known).then(|| self.size(stated)),
        }
    }

    /// The size stated, or else the environment's, or else the default.
    pub fn size(&self, stated: (u16, u16)) -> (u16, u16) {
        let pick = |stated, variable: &Option<String>, default| match stated {
            0 => variable
                .as_deref()
                .and_then(|text| text.parse().ok())
                .filter(|&n| n != 0)
                .unwrap_or(default),
            known => known,
        };
        (
            pick(stated.0, &self.columns, DEFAULT_SIZE.0),
            pick(stated.1, &self.lines, DEFAULT_SIZE.1),
        )
    }
}

/// The size that the terminal states; zeros if it does not, or if the output is
/// none.
pub fn stated_size() -> (u16, u16) {
    if !stdout().is_terminal() {
        return (0, 0);
    }
    window_size().map_or((0, 0), |size| (size.columns, size.rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(term: &str, columns: &str, lines: &str) -> Environment {
        Environment {
            term: Some(term.into()),
            columns: Some(columns.into()),
            lines: Some(lines.into()),
            no_color: None,
        }
    }

    #[test]
    fn a_size_that_is_stated_counts() {
        let kind = environment("xterm", "100", "30").kind((132, 50));
        assert_eq!(kind, Kind::Screen { fixed: None });
        assert_eq!(environment("xterm", "100", "30").size((132, 50)), (132, 50));
    }

    #[test]
    fn a_serial_line_is_80_by_24_unless_told() {
        let fixed = |fixed| Kind::Screen { fixed: Some(fixed) };
        assert_eq!(environment("linux", "", "").kind((0, 0)), fixed((80, 24)));
        assert_eq!(
            environment("linux", "120", "40").kind((0, 0)),
            fixed((120, 40))
        );
        assert_eq!(environment("vt100", "x", "0").size((0, 0)), (80, 24));
        assert_eq!(environment("vt100", "70000", "9").size((0, 0)), (80, 9));
    }

    #[test]
    fn a_dumb_terminal_only_prints() {
        let lines = |width| Kind::Lines { width };
        assert_eq!(environment("dumb", "", "").kind((72, 24)), lines(72));
        assert_eq!(Environment::default().kind((0, 0)), lines(80));
    }

    #[test]
    fn no_color_is_obeyed() {
        let mut environment = Environment::default();
        assert!(environment.color());
        environment.no_color = Some(String::new());
        assert!(environment.color());
        environment.no_color = Some("1".into());
        assert!(!environment.color());
    }
}
