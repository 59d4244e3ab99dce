// SPDX-License-Identifier: GPL-2.0
//! The picture of a device, as lines of any width.

use crate::map::{self, Cell};
use crate::parse::{Object, Placement};
use crate::rates::Rates;
use crate::source::Sample;
use crate::state::{Counts, State};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Widget};

/// What is shown of one device.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// What it showed last
    pub sample: &'a Sample,
    /// What happens in it, once that is known
    pub rates: Option<&'a Rates>,
    /// Which of the devices it is, from 0, and how many there are
    pub place: (usize, usize),
    /// The right end of the first line
    pub status: &'a str,
    /// The last line
    pub keys: &'a str,
}

/// What the counters of `activity` are called, and how wide their columns are.
const ACTIVITY: [(&str, &str, usize); 7] = [
    ("cpu_faults", "CPU faults", 10),
    ("peer_maps", "maps", 8),
    ("peer_unmaps", "unmaps", 8),
    ("invalidations", "invalidated", 11),
    ("fall_backs", "fall-backs", 10),
    ("refusals", "refusals", 8),
    ("flushes", "flushes", 8),
];
/// Columns before the first cell of a row: its first slot and a blank.
const MARGIN: usize = 9;
/// Of the picture's height, the map takes this part at most.
const MAP_PART: usize = 3;

impl View<'_> {
    /// Draws into an area, whatever its size: what does not fit is left out.
    pub fn draw(&self, area: Rect, buffer: &mut Buffer) {
        let height = usize::from(area.height);
        let keys = usize::from(!self.keys.is_empty());
        let room = height.saturating_sub(keys);
        let mut lines = self.lines(area.width.into(), height / MAP_PART, room);
        lines.truncate(room);
        Paragraph::new(lines).render(area, buffer);
        if keys != 0 && area.height != 0 {
            let last = Rect {
                y: area.bottom() - 1,
                height: 1,
                ..area
            };
            Line::styled(self.keys, Modifier::DIM).render(last, buffer);
        }
    }

    /// The picture without the keys. Of the objects, as many as there is `room` for
    /// in all its lines; the others are counted.
    pub fn lines(&self, width: usize, map_rows: usize, room: usize) -> Vec<Line<'static>> {
        let mut lines = self.head(width);
        lines.extend(self.map(width, map_rows));
        lines.extend(self.activity());
        let left = room.saturating_sub(lines.len());
        lines.extend(self.objects(width, left));
        lines
    }

    fn head(&self, width: usize) -> Vec<Line<'static>> {
        let sample = self.sample;
        let aperture = &sample.aperture;
        let slots = aperture.slots.len() as u64;
        let mut title = format!(
            "GPU {}  {} of {}  aperture {}: {slots} slots of {}",
            sample.pci,
            self.place.0 + 1,
            self.place.1,
            bytes(slots.saturating_mul(aperture.slot_size)),
            bytes(aperture.slot_size),
        );
        let gap = width.saturating_sub(title.len() + self.status.len()).max(1);
        title.extend(std::iter::repeat_n(' ', gap));
        title.push_str(self.status);

        let counts = Counts::of(&aperture.slots);
        let legend = State::ALL.map(|state| {
            vec![
                symbol(state, true),
                Span::raw(format!(" {} {}", title_of(state), counts.get(state))),
            ]
        });
        let mut lines = vec![Line::styled(title, Modifier::BOLD)];
        lines.extend(flow(legend.to_vec(), width));
        lines.extend(flow(self.resources(), width));
        lines
    }

    fn resources(&self) -> Vec<Vec<Span<'static>>> {
        let number = |name: &str| self.sample.resources.get(name).copied();
        let texts = [
            number("objects").map(|n| format!("objects {n}")),
            number("vram_used").map(|n| format!("VRAM used {}", bytes(n))),
            number("slots_promised").map(|n| format!("slots promised {n}")),
        ];
        let words = texts.into_iter().flatten();
        words.map(|text| vec![Span::raw(text)]).collect()
    }

    fn map(&self, width: usize, rows: usize) -> Vec<Line<'static>> {
        let room = width.saturating_sub(MARGIN);
        let map = map::scale(&self.sample.aperture.slots, room, rows);
        let caption = match map.group {
            1 => "a character is a slot".to_owned(),
            group => format!("a character is {group} slots: the last of . c L R P d among them"),
        };
        let mut lines = vec![Line::from(format!("{:>7}  {caption}", "slot"))];
        lines.extend(map.rows().map(|(first, cells)| {
            let mut spans = vec![Span::raw(format!("{first:>7}  "))];
            spans.extend(runs(cells));
            Line::from(spans)
        }));
        lines
    }

    fn activity(&self) -> Vec<Line<'static>> {
        let row = |label: &str, value: &dyn Fn(&str, &str) -> String| {
            let mut text = format!("{label:<10}");
            for (name, title, width) in ACTIVITY {
                text.push_str(&format!(" {:>width$}", value(name, title)));
            }
            text
        };
        let head = row("", &|_, title| title.to_owned());
        let rates = row("per second", &|name, _| {
            let rate = self.rates.and_then(|rates| rates.get(name));
            rate.map_or("-".to_owned(), |rate| format!("{rate:.1}"))
        });
        let totals = row("in all", &|name, _| {
            let total = self.sample.activity.get(name);
            total.map_or("-".to_owned(), u64::to_string)
        });
        vec![
            Line::styled(head, Modifier::REVERSED),
            Line::from(rates),
            Line::from(totals),
        ]
    }

    /// At most `room` lines; those that hold most slots first.
    fn objects(&self, width: usize, room: usize) -> Vec<Line<'static>> {
        let mut objects: Vec<_> = self.sample.objects.iter().collect();
        objects.sort_by_key(|object| (std::cmp::Reverse((object.held, object.slots)), object.id));
        let head = format!(
            "{:<11} {:>8} {:<4} {:<4} {:>9} {:>4} {:>5} {:>5} {:>4} importers",
            "object", "size", "in", "flag", "held/slot", "pins", "maps", "inval", "back"
        );
        let mut lines = vec![Line::styled(format!("{head:<width$}"), Modifier::REVERSED)];
        let shown = match objects.len() {
            all if all < room => all,
            // The header, and the line that says how many there are more.
            _ => room.saturating_sub(2),
        };
        lines.extend(objects.iter().take(shown).map(|o| object_line(o, width)));
        if shown < objects.len() {
            lines.push(Line::from(format!("and {} more", objects.len() - shown)));
        }
        lines.truncate(room);
        lines
    }
}

fn title_of(state: State) -> &'static str {
    match state {
        State::Cpu => "CPU",
        other => other.name(),
    }
}

/// A cell: a block of colour if the whole group is in the state.
fn symbol(state: State, whole: bool) -> Span<'static> {
    Span::styled(state.symbol().to_string(), style(state, whole))
}

fn style(state: State, whole: bool) -> Style {
    match (state, whole) {
        (State::Free, _) | (_, false) => Style::new().fg(state.color()),
        (_, true) => Style::new().fg(Color::Black).bg(state.color()),
    }
}

/// The cells as spans of one style each.
fn runs(cells: &[Cell]) -> impl Iterator<Item = Span<'static>> {
    cells.chunk_by(|a, b| a == b).map(|run| {
        let Cell { state, whole } = run[0];
        let text: String = std::iter::repeat_n(state.symbol(), run.len()).collect();
        Span::styled(text, style(state, whole))
    })
}

/// Lays out items, two blanks between them, in as many lines as they need.
fn flow(items: Vec<Vec<Span<'static>>>, width: usize) -> Vec<Line<'static>> {
    let mut lines: Vec<Line<'static>> = Vec::new();
    for item in items {
        let len: usize = item.iter().map(Span::width).sum();
        match lines.last_mut() {
            Some(line) if line.width() + 2 + len <= width => {
                line.push_span("  ");
                line.spans.extend(item);
            }
            _ => lines.push(Line::from(item)),
        }
    }
    lines
}

fn object_line(object: &Object, width: usize) -> Line<'static> {
    let place = match object.placement {
        Placement::Vram => "vram",
        Placement::System => "sys",
    };
    let text = format!(
        "{:<11} {:>8} {place:<4} {:<4} {:>9} {:>4} {:>5} {:>5} {:>4} ",
        format!("{:#x}", object.id),
        bytes(object.size),
        flags(object),
        format!("{}/{}", object.held, object.slots),
        object.pins,
        short(object.peer_maps.saturating_add(object.system_maps)),
        short(object.invalidations),
        short(object.fall_backs),
    );
    let room = width.saturating_sub(text.len());
    Line::from(text + &importers(&object.importers, room))
}

/// A letter a flag, in the order of the letters below.
fn flags(object: &Object) -> String {
    let letters = [
        ("exportable", 'E'),
        ("reserve", 'R'),
        ("strict", 'S'),
        ("read_only", 'O'),
    ];
    let set = letters
        .iter()
        .filter(|(name, _)| object.flags.iter().any(|flag| flag == name));
    match set.map(|(_, letter)| letter).collect::<String>() {
        none if none.is_empty() => "-".to_owned(),
        some => some,
    }
}

/// As many devices as there is room for, without the domain where it is 0.
fn importers(devices: &[String], room: usize) -> String {
    let mut names: Vec<&str> = devices
        .iter()
        .map(|device| device.strip_prefix("0000:").unwrap_or(device))
        .collect();
    if names.is_empty() {
        return "-".to_owned();
    }
    let all = names.join(" ");
    if all.len() <= room {
        return all;
    }
    let mut left = 0;
    while names.len() > 1 {
        names.pop();
        left += 1;
        let some = format!("{} +{left}", names.join(" "));
        if some.len() <= room || names.len() == 1 {
            return some;
        }
    }
    all
}

/// A size in at most 8 characters, rounded down.
fn bytes(n: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = n.checked_ilog2().unwrap_or(0) / 10;
    let unit = UNITS[power as usize];
    let (whole, rest) = (n >> (10 * power), n & ((1 << (10 * power)) - 1));
    match (whole, rest) {
        (_, 0) | (100.., _) => format!("{whole} {unit}"),
        _ => format!("{whole}.{} {unit}", (rest * 10) >> (10 * power)),
    }
}

/// A count in at most 4 characters.
fn short(n: u64) -> String {
    const UNITS: [char; 6] = ['k', 'M', 'G', 'T', 'P', 'E'];
    if n < 10_000 {
        return n.to_string();
    }
    let (mut n, mut unit) = (n / 1_000, 0);
    while n >= 1_000 {
        n /= 1_000;
        unit += 1;
    }
    format!("{n}{}", UNITS[unit])
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
