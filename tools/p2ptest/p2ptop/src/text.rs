// SPDX-License-Identifier: GPL-2.0
//! A picture as plain text, for pipes and for terminals that do nothing but print.

use crate::view::View;
use ratatui::buffer::Buffer;
use ratatui::style::Style;

/// Rows of the map, where nothing limits the height.
const MAP_ROWS: usize = 16;

/// The whole picture, as high as it has to be; no line ends with blanks.
pub fn picture(view: &View<'_>, width: usize) -> String {
    let mut text = String::new();
    for line in view.lines(width, MAP_ROWS, usize::MAX) {
        // Every character of ours is one column wide.
        let line: String = line.to_string().chars().take(width).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The characters of a buffer.
pub fn lines(buffer: &Buffer) -> String {
    let mut text = String::new();
    for row in buffer
        .content()
        .chunks(usize::from(buffer.area.width).max(1))
    {
        let line: String = row.iter().map(|cell| cell.symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Takes colours and brightness out of what was drawn.
pub fn without_style(buffer: &mut Buffer) {
    buffer.set_style(buffer.area, Style::reset());
}
