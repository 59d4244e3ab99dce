// SPDX-License-Identifier: GPL-2.0
//! The loop: look, draw, wait for a key or for the next look.

use crate::rates::{self, Rates};
use crate::source::{Problem, Sample, Source};
use crate::terminal::Kind;
use crate::text;
use crate::view::View;
use anyhow::{Context as _, Result};
use ratatui::backend::CrosstermBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::layout::Rect;
use ratatui::widgets::{Paragraph, Widget, Wrap};
use ratatui::{Terminal, TerminalOptions, Viewport};
use std::io::{self, Stdout, Write, stdout};
use std::time::{Duration, Instant};

/// The intervals that keys choose from, in seconds.
const INTERVALS: [f64; 9] = [0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];
const KEYS: &str = "q quit   left/right device   +/- interval   p pause";

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Seconds between two looks
    pub interval: f64,
    /// The device to begin with
    pub device: String,
    /// Whether to use colours
    pub color: bool,
}

/// Shows the devices until the user has enough.
///
/// # Errors
///
/// When the terminal cannot be read or written. What is wrong with a device is
/// shown, and looked at again.
pub fn run(source: Source, settings: &Settings, kind: Kind) -> Result<()> {
    let mut app = App::new(source, settings);
    enable_raw_mode().context("keys need a terminal on stdin (or use --once)")?;
    let _raw = Undo(|| {
        let _ = disable_raw_mode();
    });
    match kind {
        Kind::Lines { width } => app.run(&mut Printer { width }),
        Kind::Screen { fixed } => {
            execute!(stdout(), EnterAlternateScreen, Hide)?;
            let _screen = Undo(|| {
                let _ = execute!(stdout(), LeaveAlternateScreen, Show);
            });
            let viewport = match fixed {
                Some((width, height)) => Viewport::Fixed(Rect::new(0, 0, width, height)),
                None => Viewport::Fullscreen,
            };
            let backend = CrosstermBackend::new(stdout());
            let mut terminal = Terminal::with_options(backend, TerminalOptions { viewport })?;
            // Terminal::clear() would ask where the cursor is, which not all can tell.
            execute!(stdout(), Clear(ClearType::All))?;
            app.run(&mut terminal)
        }
    }
}

/// Undoes something however the loop ends.
struct Undo<F: FnMut()>(F);

impl<F: FnMut()> Drop for Undo<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Where pictures go.
trait Output {
    fn show(&mut self, app: &App) -> io::Result<()>;
    /// Whether pictures stay, so that one is printed for each look only.
    fn only_prints(&self) -> bool;
}

impl Output for Terminal<CrosstermBackend<Stdout>> {
    fn show(&mut self, app: &App) -> io::Result<()> {
        self.draw(|frame| app.draw(frame.area(), frame.buffer_mut()))?;
        Ok(())
    }

    fn only_prints(&self) -> bool {
        false
    }
}

struct Printer {
    width: usize,
}

impl Output for Printer {
    fn show(&mut self, app: &App) -> io::Result<()> {
        // The terminal is raw: it does not add the carriage return.
        let text = app.text(self.width).replace('\n', "\r\n");
        let mut out = stdout().lock();
        write!(out, "{text}\r\n")?;
        out.flush()
    }

    fn only_prints(&self) -> bool {
        true
    }
}

/// What a look gave.
enum Look {
    /// What the device showed, and what happens in it
    Good(Box<Sample>, Option<Rates>),
    /// Why it shows nothing
    Bad(String),
}

/// The state between two pictures.
struct App {
    source: Source,
    pci: String,
    devices: Vec<String>,
    look: Look,
    interval: f64,
    paused: bool,
    color: bool,
}

/// What follows from a key.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Nothing,
    Draw,
    Look,
    Quit,
}

impl App {
    fn new(source: Source, settings: &Settings) -> Self {
        let mut app = Self {
            source,
            pci: settings.device.clone(),
            devices: Vec::new(),
            look: Look::Bad(String::new()),
            interval: settings.interval,
            paused: false,
            color: settings.color,
        };
        app.look();
        app
    }

    /// Looks at the device again.
    fn look(&mut self) {
        let found = self.source.devices().and_then(|devices| {
            self.devices = devices;
            self.source.sample(&self.pci)
        });
        self.look = match found {
            Ok(now) => {
                let rates = match &self.look {
                    Look::Good(before, _) if before.pci == now.pci => rates::between(before, &now),
                    Look::Good(..) | Look::Bad(_) => None,
                };
                Look::Good(Box::new(now), rates)
            }
            Err(problem) => Look::Bad(explain(&problem)),
        };
    }

    fn run(&mut self, output: &mut impl Output) -> Result<()> {
        loop {
            output.show(self).context("writing to the terminal")?;
            if self.wait(output)? == Next::Quit {
                return Ok(());
            }
        }
    }

    /// Waits until there is something new to show.
    fn wait(&mut self, output: &mut impl Output) -> Result<Next> {
        let start = Instant::now();
        loop {
            let interval = Duration::from_secs_f64(self.interval);
            let left = interval.saturating_sub(start.elapsed());
            let next = if self.paused || event::poll(left).context("waiting for a key")? {
                self.event(&event::read().context("reading a key")?)
            } else {
                Next::Look
            };
            match next {
                Next::Look => self.look(),
                Next::Draw if output.only_prints() => continue,
                Next::Nothing => continue,
                Next::Draw | Next::Quit => {}
            }
            return Ok(next);
        }
    }

    fn event(&mut self, event: &Event) -> Next {
        match event {
            Event::Key(key) if key.kind == KeyEventKind::Press => self.key(key),
            Event::Resize(..) => Next::Draw,
            _ => Next::Nothing,
        }
    }

    fn key(&mut self, key: &KeyEvent) -> Next {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c' | 'd') if control => Next::Quit,
            KeyCode::Char('q') | KeyCode::Esc => Next::Quit,
            KeyCode::Char('p' | ' ') => {
                self.paused = !self.paused;
                Next::Draw
            }
            KeyCode::Char('+' | '=') => self.change_interval(1),
            KeyCode::Char('-') => self.change_interval(-1),
            KeyCode::Right | KeyCode::Char('l') => self.change_device(1),
            KeyCode::Left | KeyCode::Char('h') => self.change_device(-1),
            _ => Next::Nothing,
        }
    }

    fn change_interval(&mut self, step: isize) -> Next {
        let chosen = match step {
            1.. => INTERVALS.into_iter().find(|&other| other > self.interval),
            _ => INTERVALS.into_iter().rfind(|&other| other < self.interval),
        };
        self.interval = chosen.unwrap_or(self.interval);
        Next::Draw
    }

    fn change_device(&mut self, step: isize) -> Next {
        let count = self.devices.len();
        if count == 0 {
            return Next::Nothing;
        }
        let next = match self.devices.iter().position(|pci| *pci == self.pci) {
            Some(at) => at.wrapping_add_signed(step).wrapping_add(count) % count,
            None => 0,
        };
        self.pci.clone_from(&self.devices[next]);
        Next::Look
    }

    fn draw(&self, area: Rect, buffer: &mut Buffer) {
        let status = self.status();
        match &self.look {
            Look::Good(sample, rates) => self
                .view(sample, rates.as_ref(), &status, KEYS)
                .draw(area, buffer),
            Look::Bad(why) => Paragraph::new(format!("{why}\n\n{KEYS}"))
                .wrap(Wrap { trim: true })
                .render(area, buffer),
        }
        if !self.color {
            text::without_style(buffer);
        }
    }

    fn text(&self, width: usize) -> String {
        let status = self.status();
        match &self.look {
            Look::Good(sample, rates) => {
                text::picture(&self.view(sample, rates.as_ref(), &status, ""), width)
            }
            Look::Bad(why) => format!("{why}\n"),
        }
    }

    fn view<'a>(
        &self,
        sample: &'a Sample,
        rates: Option<&'a Rates>,
        status: &'a str,
        keys: &'a str,
    ) -> View<'a> {
        let at = self.devices.iter().position(|pci| *pci == self.pci);
        View {
            sample,
            rates,
            place: (at.unwrap_or(0), self.devices.len()),
            status,
            keys,
        }
    }

    fn status(&self) -> String {
        match self.paused {
            true => "PAUSED".to_owned(),
            false => format!("{} s", self.interval),
        }
    }
}

fn explain(problem: &Problem) -> String {
    format!("p2ptop: {problem}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Fake;

    fn app(fake: &Fake) -> App {
        let settings = Settings {
            interval: 1.0,
            device: fake.devices()[0].clone(),
            color: true,
        };
        App::new(fake.source(), &settings)
    }

    fn press(app: &mut App, code: KeyCode) -> Next {
        app.key(&KeyEvent::new(code, KeyModifiers::NONE))
    }

    fn screen(app: &App) -> String {
        let area = Rect::new(0, 0, 80, 24);
        let mut buffer = Buffer::empty(area);
        app.draw(area, &mut buffer);
        text::lines(&buffer)
    }

    #[test]
    fn keys_quit() {
        let fake = Fake::new(1);
        let mut app = app(&fake);
        assert_eq!(press(&mut app, KeyCode::Char('q')), Next::Quit);
        assert_eq!(press(&mut app, KeyCode::Esc), Next::Quit);
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(app.key(&control_c), Next::Quit);
        assert_eq!(press(&mut app, KeyCode::Char('c')), Next::Nothing);
    }

    #[test]
    fn keys_change_the_device_round_and_round() {
        let fake = Fake::new(3);
        let devices = fake.devices();
        let mut app = app(&fake);
        for index in [1, 2, 0, 1] {
            assert_eq!(press(&mut app, KeyCode::Right), Next::Look);
            app.look();
            assert_eq!(app.pci, devices[index]);
            let place = format!("GPU {}  {} of 3", devices[index], index + 1);
            assert!(screen(&app).starts_with(&place));
        }
        for index in [0, 2] {
            assert_eq!(press(&mut app, KeyCode::Left), Next::Look);
            assert_eq!(app.pci, devices[index]);
        }
    }

    #[test]
    fn keys_change_the_interval_within_limits() {
        let fake = Fake::new(1);
        let mut app = app(&fake);
        press(&mut app, KeyCode::Char('+'));
        assert_eq!(app.interval, 2.0);
        for _ in 0..20 {
            press(&mut app, KeyCode::Char('-'));
        }
        assert_eq!(app.interval, INTERVALS[0]);
        for _ in 0..20 {
            press(&mut app, KeyCode::Char('+'));
        }
        assert_eq!(app.interval, INTERVALS[INTERVALS.len() - 1]);
        app.interval = 0.3;
        press(&mut app, KeyCode::Char('-'));
        assert_eq!(app.interval, 0.25);
    }

    #[test]
    fn a_pause_is_shown() {
        let fake = Fake::new(1);
        let mut app = app(&fake);
        assert!(!screen(&app).contains("PAUSED"));
        press(&mut app, KeyCode::Char('p'));
        assert!(screen(&app).lines().next().unwrap().ends_with("PAUSED"));
        press(&mut app, KeyCode::Char('p'));
        assert!(!screen(&app).contains("PAUSED"));
    }

    #[test]
    fn the_second_look_has_rates() {
        let fake = Fake::new(2);
        let mut app = app(&fake);
        assert!(matches!(&app.look, Look::Good(_, None)));
        app.look();
        assert!(matches!(&app.look, Look::Good(_, Some(_))));
        press(&mut app, KeyCode::Right);
        app.look();
        assert!(matches!(&app.look, Look::Good(_, None)));
    }

    #[test]
    fn a_device_that_goes_is_told_and_may_come_back() {
        let fake = Fake::new(2);
        let mut app = app(&fake);
        fake.remove(0);
        app.look();
        assert!(screen(&app).contains("is gone"), "{}", screen(&app));
        assert!(app.text(80).contains("is gone"));
        fake.add(0);
        app.look();
        assert!(screen(&app).starts_with("GPU 0000:03:00.0"));
        fake.remove(0);
        app.look();
        press(&mut app, KeyCode::Right);
        app.look();
        assert!(screen(&app).starts_with("GPU 0000:04:00.0"));
    }

    #[test]
    fn without_colour_nothing_has_a_style() {
        let fake = Fake::new(1);
        let mut app = app(&fake);
        let area = Rect::new(0, 0, 80, 24);
        let mut colored = Buffer::empty(area);
        app.draw(area, &mut colored);
        app.color = false;
        let mut plain = Buffer::empty(area);
        app.draw(area, &mut plain);
        assert_eq!(text::lines(&plain), text::lines(&colored));
        let fg = plain.content()[0].style();
        assert!(plain.content().iter().all(|cell| cell.style() == fg));
        assert!(colored.content().iter().any(|cell| cell.style() != fg));
    }
}
