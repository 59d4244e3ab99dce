// SPDX-License-Identifier: GPL-2.0
//! The picture at certain sizes, character by character.

use super::*;
use crate::fixture;
use crate::text::{lines, picture};
use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

/// Draws as the loop does, on a terminal of this size.
fn screen(view: &View<'_>, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| view.draw(frame.area(), frame.buffer_mut()))
        .unwrap();
    terminal.backend().buffer().clone()
}

fn view<'a>(sample: &'a Sample, rates: Option<&'a Rates>) -> View<'a> {
    View {
        sample,
        rates,
        place: (1, 2),
        status: "1 s",
        keys: "q quit",
    }
}

#[test]
fn eighty_by_twenty_four() {
    let (sample, rates) = (fixture::sample(), fixture::rates());
    let buffer = screen(&view(&sample, Some(&rates)), 80, 24);
    assert_eq!(lines(&buffer), SCREEN_80X24);
}

#[test]
fn rates_are_dashes_until_known() {
    let sample = fixture::sample();
    let text = lines(&screen(&view(&sample, None), 80, 24));
    let row = text.lines().find(|line| line.starts_with("per second"));
    assert_eq!(
        row.unwrap().split_whitespace().skip(2).collect::<String>(),
        "-------"
    );
}

#[test]
fn colours_are_those_of_the_states() {
    let sample = fixture::sample();
    let buffer = screen(&view(&sample, None), 80, 24);
    // Rows of the map are 512 slots: reserved ones first, free ones at the end.
    let at = |slot: u16| &buffer[(9 + slot % 512 / 8, 4 + slot / 512)];
    for (slot, state) in [
        (0, State::Reserved),
        (1024, State::Pinned),
        (1096, State::Lent),
        (3000, State::Cpu),
    ] {
        assert_eq!(at(slot).symbol(), state.symbol().to_string());
        assert_eq!((at(slot).fg, at(slot).bg), (Color::Black, state.color()));
    }
    // Of these 8 slots 6 drain: the letter is red, the block is not.
    let mixed = at(1384);
    assert_eq!(mixed.symbol(), "d");
    assert_eq!((mixed.fg, mixed.bg), (Color::Red, Color::Reset));
    assert_eq!(at(4095).symbol(), ".");
    assert_eq!(at(4095).fg, Color::DarkGray);
}

#[test]
fn a_small_screen_keeps_the_head_and_the_keys() {
    let sample = fixture::sample();
    let text = lines(&screen(&view(&sample, None), 40, 12));
    assert_eq!(text, SCREEN_40X12);
}

#[test]
fn a_wide_screen_shows_each_slot() {
    let sample = fixture::sample();
    let text = lines(&screen(&view(&sample, None), 270, 70));
    assert!(text.contains("a character is a slot"));
    let symbols: String = text
        .lines()
        .skip(4)
        .take(16)
        .map(|line| &line[MARGIN..])
        .collect();
    let expected: String = fixture::slots()
        .iter()
        .map(|state| state.symbol())
        .collect();
    assert_eq!(symbols, expected);
}

#[test]
fn a_picture_has_all_objects() {
    let mut sample = fixture::sample();
    let text = picture(
        &View {
            keys: "",
            status: "",
            ..view(&sample, None)
        },
        80,
    );
    assert_eq!(text, ONCE);
    let one = sample.objects[0].clone();
    sample.objects = (0..100).map(|id| Object { id, ..one.clone() }).collect();
    let text = picture(
        &View {
            keys: "",
            ..view(&sample, None)
        },
        80,
    );
    assert_eq!(text.matches("1024/1024").count(), 100);
    assert!(!text.contains("more"));
}

#[test]
fn what_does_not_fit_is_counted() {
    let mut sample = fixture::sample();
    let one = sample.objects[0].clone();
    sample.objects = vec![one; 100];
    let text = lines(&screen(&view(&sample, None), 80, 24));
    let shown = text.matches("1024/1024").count();
    assert!(shown > 3);
    assert!(text.contains(&format!("and {} more", 100 - shown)));
    assert!(text.ends_with("q quit\n"));
}

#[test]
fn a_large_aperture_fits_eighty_columns() {
    let mut sample = fixture::sample();
    sample.aperture.slots = vec![State::Cpu; 1 << 20];
    sample.aperture.slots[777_777] = State::Pinned;
    let text = lines(&screen(&view(&sample, None), 80, 24));
    assert!(text.contains("4 GiB: 1048576 slots"));
    assert!(text.contains("a character is 2048 slots"));
    assert!(text.contains("P pinned 1"));
    let marked = text.lines().skip(4).filter(|line| line.contains("cP"));
    assert_eq!(marked.count(), 1);
}

#[test]
fn sizes_are_short() {
    for (n, text) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1023 << 10, "1023 KiB"),
        (100_000, "97.6 KiB"),
        ((1 << 20) - 1, "1023 KiB"),
        (16 << 20, "16 MiB"),
        (u64::MAX, "15.9 EiB"),
        (1 << 63, "8 EiB"),
    ] {
        assert_eq!(bytes(n), text);
    }
    for (n, text) in [
        (9_999, "9999"),
        (10_000, "10k"),
        (1_234_567, "1M"),
        (u64::MAX, "18E"),
    ] {
        assert_eq!(short(n), text);
    }
}

#[test]
fn importers_that_do_not_fit_are_counted() {
    let devices: Vec<String> = (4..8).map(|bus| format!("0000:{bus:02x}:00.0")).collect();
    assert_eq!(importers(&[], 0), "-");
    assert_eq!(importers(&devices, 31), "04:00.0 05:00.0 06:00.0 07:00.0");
    assert_eq!(importers(&devices, 30), "04:00.0 05:00.0 06:00.0 +1");
    assert_eq!(importers(&devices, 10), "04:00.0 +3");
    assert_eq!(importers(&devices, 0), "04:00.0 +3");
    assert_eq!(importers(&["0001:04:00.0".into()], 0), "0001:04:00.0");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any size: the picture is cut off, and nothing else happens.
    #[test]
    fn any_size_can_be_drawn(width in 0u16..300, height in 0u16..100) {
        let (sample, rates) = (fixture::sample(), fixture::rates());
        let area = Rect::new(0, 0, width, height);
        let mut buffer = Buffer::empty(area);
        view(&sample, Some(&rates)).draw(area, &mut buffer);
        let text = picture(&view(&sample, Some(&rates)), width.into());
        prop_assert!(text.lines().all(|line| line.chars().count() <= usize::from(width)));
    }
}

const SCREEN_80X24: &str = "\
GPU 0000:03:00.0  2 of 2  aperture 16 MiB: 4096 slots of 4 KiB               1 s
. free 2200  c CPU 510  L lent 290  R reserved 1024  P pinned 64  d draining 8
objects 6  VRAM used 69.4 MiB  slots promised 1088
   slot  a character is 8 slots: the last of . c L R P d among them
      0  RRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRR
    512  RRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRR
   1024  PPPPPPPPLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLdd..................
   1536  ................................................................
   2048  ................................................................
   2560  ........................................cccccccccccccccccccccccc
   3072  ccccccccccccccccccccccccccccccccccccccccc.......................
   3584  ................................................................
           CPU faults     maps   unmaps invalidated fall-backs refusals  flushes
per second      512.0      2.0      1.5         1.5        0.5      0.0      5.0
in all            512       21       18          21          4        2       60
object          size in   flag held/slot pins  maps inval back importers
0x100000000    4 MiB vram ER   1024/1024    0     4     2    0 04:00.0 06:00.0
0x100440000  1.1 MiB vram ESO    290/300    0    17    16    0 06:00.0
0x100400000  256 KiB vram E        64/64    1     1     0    0 04:00.0
0x100580000   64 MiB vram -        0/500    0     0     0    0 -
0x104580000    8 KiB sys  E          0/0    0     4     3    4 04:00.0


q quit
";

const SCREEN_40X12: &str = "\
GPU 0000:03:00.0  2 of 2  aperture 16 Mi
. free 2200  c CPU 510  L lent 290
R reserved 1024  P pinned 64
d draining 8
objects 6  VRAM used 69.4 MiB
slots promised 1088
   slot  a character is 64 slots: the la
      0  RRRRRRRRRRRRRRRR
   1024  PLLLLd..........
   2048  .............ccc
   3072  cccccc..........
q quit
";

const ONCE: &str = "\
GPU 0000:03:00.0  2 of 2  aperture 16 MiB: 4096 slots of 4 KiB
. free 2200  c CPU 510  L lent 290  R reserved 1024  P pinned 64  d draining 8
objects 6  VRAM used 69.4 MiB  slots promised 1088
   slot  a character is 4 slots: the last of . c L R P d among them
      0  RRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRR
    256  RRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRR
    512  RRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRR
    768  RRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRR
   1024  PPPPPPPPPPPPPPPPLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLL
   1280  LLLLLLLLLLLLLLLLLLLLLLLLddd.....................................
   1536  ................................................................
   1792  ................................................................
   2048  ................................................................
   2304  ................................................................
   2560  ................................................................
   2816  .................ccccccccccccccccccccccccccccccccccccccccccccccc
   3072  cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc
   3328  ccccccccccccccccc...............................................
   3584  ................................................................
   3840  ................................................................
           CPU faults     maps   unmaps invalidated fall-backs refusals  flushes
per second          -        -        -           -          -        -        -
in all            512       21       18          21          4        2       60
object          size in   flag held/slot pins  maps inval back importers
0x100000000    4 MiB vram ER   1024/1024    0     4     2    0 04:00.0 06:00.0
0x100440000  1.1 MiB vram ESO    290/300    0    17    16    0 06:00.0
0x100400000  256 KiB vram E        64/64    1     1     0    0 04:00.0
0x100580000   64 MiB vram -        0/500    0     0     0    0 -
0x104580000    8 KiB sys  E          0/0    0     4     3    4 04:00.0
";
