// SPDX-License-Identifier: GPL-2.0

//! Which slots are free: a bitmap, and a tree that knows where runs of free slots are.
//!
//! A word of the bitmap has 64 slots. A node of the tree stands for [`FANOUT`] words or nodes of
//! the level below, and says how many free slots there are side by side: at its start, at its end,
//! and anywhere in it. So a run is found wherever one exists, in a number of steps that grows with
//! the height of the tree only.
//!
//! Changes of many slots are made in their order, by groups of words: the children of a lowest node.
//! The tree is repaired behind them, each node once: only that of the *pending* group, the last one
//! changed, and the nodes above it may be out of date.

use super::{
    index,
    SlotId,
    Storage, //
};

/// Slots of a word.
const WORD_BITS: u32 = u64::BITS;
const WORD_SHIFT: u32 = WORD_BITS.trailing_zeros();
const TOP_BIT: u64 = 1 << (WORD_BITS - 1);

/// Children of a node.
const FANOUT: usize = 1 << FANOUT_SHIFT;
const FANOUT_SHIFT: u32 = 3;

/// Levels that any number of slots needs: a root over 2^32 slots.
const MAX_HEIGHT: usize = (32 - WORD_SHIFT).div_ceil(FANOUT_SHIFT) as usize;

/// The runs of free slots in a word or a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Runs {
    /// Free slots before the first one that is not.
    head: u32,
    /// Free slots after the last one that is not.
    tail: u32,
    /// The most free slots side by side.
    longest: u32,
}

impl Runs {
    /// The runs of words side by side.
    fn of_words(words: &[u64]) -> Self {
        let mut head = 0;
        for word in words {
            head += word.trailing_ones();
            if *word != u64::MAX {
                break;
            }
        }
        let mut longest = head;
        // Free slots right before the word.
        let mut run = 0;
        for &word in words {
            match word {
                0 => {
                    longest = longest.max(run);
                    run = 0;
                }
                u64::MAX => run += WORD_BITS,
                // No two side by side.
                _ if word & (word >> 1) == 0 => {
                    longest = longest.max(run + u32::from(word & 1 != 0)).max(1);
                    run = u32::from(word & TOP_BIT != 0);
                }
                _ => {
                    longest = longest.max(run + word.trailing_ones());
                    run = word.leading_ones();
                    // As a rule there is none.
                    if run_in_word(word, longest + 1).is_some() {
                        longest = longest_run(word);
                    }
                }
            }
        }
        Self {
            head,
            tail: run,
            longest: longest.max(run),
        }
    }

    fn of_word(word: u64) -> Self {
        Self {
            head: word.trailing_ones(),
            tail: word.leading_ones(),
            longest: longest_run(word),
        }
    }

    /// The runs of neighbours, of `span` slots each, together.
    fn join(parts: &[Self], span: u32) -> Self {
        let mut head = 0;
        for part in parts {
            head += part.head;
            if part.head != span {
                break;
            }
        }
        let mut longest = head;
        // Free slots right before the part.
        let mut run = 0;
        for part in parts {
            if part.longest == span {
                run += span;
                continue;
            }
            longest = longest.max(run + part.head).max(part.longest);
            run = part.tail;
        }
        Self {
            head,
            tail: run,
            longest: longest.max(run),
        }
    }
}

/// The most ones side by side.
fn longest_run(word: u64) -> u32 {
    if word == 0 || word == u64::MAX {
        return word.count_ones();
    }
    // `starts[i]` has a one where 2^i ones start.
    let mut starts = [word; 6];
    let mut last = word;
    for (shift, next) in (0u32..).zip(starts.iter_mut().skip(1)) {
        last &= last >> (1u32 << shift);
        *next = last;
    }
    let mut found = u64::MAX;
    let mut len = 0;
    for (shift, &start) in (0u32..6).zip(&starts).rev() {
        let longer = found & (start >> len);
        if longer != 0 {
            found = longer;
            len += 1 << shift;
        }
    }
    len
}

/// Where `len` ones side by side start in `word`, the lowest such place; `len` is not 0.
fn run_in_word(word: u64, len: u32) -> Option<u32> {
    let mut starts = word;
    let mut have = 1;
    while have < len && starts != 0 {
        let step = have.min(len - have);
        // At most 32, as `have` has doubled from 1 and `len` is at most 64 for what is left.
        starts &= starts.checked_shr(step).unwrap_or(0);
        have += step;
    }
    (starts != 0).then(|| starts.trailing_zeros())
}

/// Ones from bit `from` on, `len` of them; those past the word's end are left out.
fn mask(from: u32, len: u32) -> u64 {
    let ones = match len {
        WORD_BITS.. => u64::MAX,
        _ => (1 << len) - 1,
    };
    ones.checked_shl(from).unwrap_or(0)
}

/// The nodes of one level, in the array of all nodes.
#[derive(Clone, Copy, Default)]
struct Level {
    start: usize,
    len: usize,
}

/// The free slots of an aperture.
///
/// # Invariants
///
/// Bits past the last slot are zeros. `count` is the number of ones. Except in the methods that
/// take a pending group, every node has the runs of its children.
#[derive(Clone)]
pub(super) struct FreeMap<M: Storage> {
    total: u32,
    count: u32,
    words: M::Array<u64>,
    nodes: M::Array<Runs>,
    /// From the parents of words up to the root.
    levels: [Level; MAX_HEIGHT],
    height: usize,
}

/// What may be out of date while groups of words change one after the other.
struct Pending {
    /// The group that was changed last.
    group: Option<usize>,
    /// The lowest level at which its node may be out of date.
    from: usize,
}

impl Pending {
    /// Nothing yet. The nodes of changed groups are repaired from this level on.
    fn above(from: usize) -> Self {
        Self { group: None, from }
    }
}

impl<M: Storage> FreeMap<M> {
    /// A map of `total` free slots.
    pub(super) fn new(total: u32) -> Result<Self, M::Error> {
        let words = index(total.div_ceil(WORD_BITS));
        let mut levels = [Level::default(); MAX_HEIGHT];
        let (mut height, mut nodes, mut below) = (0, 0, words);
        for level in &mut levels {
            let len = below.div_ceil(FANOUT);
            *level = Level { start: nodes, len };
            nodes += len;
            height += 1;
            below = len;
            if len <= 1 {
                break;
            }
        }
        let mut this = Self {
            total,
            count: total,
            words: M::filled(u64::MAX, words)?,
            nodes: M::filled(Runs::default(), nodes)?,
            levels,
            height,
        };
        let past = total % WORD_BITS;
        if let Some(last) = this.words.last_mut().filter(|_| past != 0) {
            *last = mask(0, past);
        }
        for height in 0..this.height {
            for node in 0..levels.get(height).map_or(0, |level| level.len) {
                this.refresh(height, node);
            }
        }
        Ok(this)
    }

    /// Number of free slots.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Whether a slot is free.
    pub(super) fn has(&self, id: SlotId) -> bool {
        self.word(index(id >> WORD_SHIFT)) & mask(id % WORD_BITS, 1) != 0
    }

    /// Takes the `count` lowest free slots, or as many as there are, and passes each on. Returns
    /// how many.
    pub(super) fn take_each(&mut self, count: u32, mut each: impl FnMut(SlotId)) -> u32 {
        let count = count.min(self.count);
        self.count -= count;
        let mut left = count;
        let mut pending = Pending::above(1);
        let mut next = self.first_group(0).filter(|_| left != 0);
        while let Some(group) = next {
            // There is no group past the last slot, which has a number.
            let mut first = slot(group << FANOUT_SHIFT, 0).unwrap_or(0);
            let words = children_mut(&mut self.words, group);
            for word in words.iter_mut() {
                if *word == u64::MAX && left >= WORD_BITS {
                    (first..first + WORD_BITS).for_each(&mut each);
                    left -= WORD_BITS;
                    *word = 0;
                }
                let mut rest = *word;
                while rest != 0 && left != 0 {
                    each(first | rest.trailing_zeros());
                    rest &= rest - 1;
                    left -= 1;
                }
                *word = rest;
                first += WORD_BITS;
            }
            // Nothing is left of a group that was not enough.
            let runs = match left {
                0 => Runs::of_words(words),
                _ => Runs::default(),
            };
            self.put(0, group, runs);
            // Right of a group, all nodes are up to date.
            next = self.first_group(group + 1).filter(|_| left != 0);
            self.follow(&mut pending, group);
        }
        self.settle(pending);
        count
    }

    /// Takes the lowest `len` free slots that lie side by side, and returns the first.
    pub(super) fn take_run(&mut self, len: u32) -> Option<SlotId> {
        let first = self.find_run(len)?;
        let (mut at, mut left) = (first, len);
        let mut pending = Pending::above(0);
        while left != 0 {
            let word = index(at >> WORD_SHIFT);
            let here = left.min(WORD_BITS - at % WORD_BITS);
            self.clear(word, mask(at % WORD_BITS, here));
            self.follow(&mut pending, word >> FANOUT_SHIFT);
            at += here;
            left -= here;
        }
        self.settle(pending);
        Some(first)
    }

    /// Makes the slots free that are not, except those of the `kept` bits of a word. Slots in order
    /// cost the least.
    pub(super) fn give_each(
        &mut self,
        ids: impl IntoIterator<Item = SlotId>,
        kept: impl Fn(usize) -> u64,
    ) {
        let mut pending = Pending::above(0);
        // What is given back of one word is set at once.
        let (mut at, mut bits) = (0, 0);
        for id in ids {
            if id >> WORD_SHIFT != at {
                self.set(index(at), bits & !kept(index(at)), &mut pending);
                (at, bits) = (id >> WORD_SHIFT, 0);
            }
            bits |= 1 << (id % WORD_BITS);
        }
        self.set(index(at), bits & !kept(index(at)), &mut pending);
        self.settle(pending);
    }

    fn word(&self, at: usize) -> u64 {
        self.words.get(at).copied().unwrap_or(0)
    }

    /// Sets bits of a word, but those past the last slot.
    fn set(&mut self, at: usize, bits: u64, pending: &mut Pending) {
        let past = match at + 1 == self.words.len() {
            true => !mask(0, self.total - slot(at, 0).unwrap_or(0)),
            false => 0,
        };
        let Some(word) = self.words.get_mut(at) else {
            return;
        };
        let fresh = bits & !*word & !past;
        if fresh != 0 {
            *word |= fresh;
            self.count += fresh.count_ones();
            self.follow(pending, at >> FANOUT_SHIFT);
        }
    }

    fn clear(&mut self, at: usize, bits: u64) {
        if let Some(word) = self.words.get_mut(at) {
            self.count -= (*word & bits).count_ones();
            *word &= !bits;
        }
    }

    /// The runs of a node of the level, or of a word for `None`.
    fn runs(&self, level: Option<usize>, at: usize) -> Runs {
        match level {
            None => Runs::of_word(self.word(at)),
            Some(level) => self
                .levels
                .get(level)
                .filter(|level| at < level.len)
                .and_then(|level| self.nodes.get(level.start + at))
                .copied()
                .unwrap_or_default(),
        }
    }

    /// Slots of a child of a node of the level.
    fn child_span(level: usize) -> u32 {
        // The shift is below 32: see `MAX_HEIGHT`.
        u32::try_from(level).map_or(0, |level| {
            WORD_BITS
                .checked_shl(level * FANOUT_SHIFT)
                .unwrap_or(u32::MAX)
        })
    }

    /// Recomputes a node of the level.
    fn refresh(&mut self, level: usize, at: usize) {
        let runs = match level.checked_sub(1) {
            None => {
                let words = children(&self.words, 0, self.words.len(), at);
                Runs::of_words(words)
            }
            Some(below) => {
                let Level { start, len } = self.levels.get(below).copied().unwrap_or_default();
                let nodes = children(&self.nodes, start, len, at);
                Runs::join(nodes, Self::child_span(level))
            }
        };
        self.put(level, at, runs);
    }

    fn put(&mut self, level: usize, at: usize, runs: Runs) {
        let place = self
            .levels
            .get(level)
            .filter(|level| at < level.len)
            .and_then(|level| self.nodes.get_mut(level.start + at));
        if let Some(place) = place {
            *place = runs;
        }
    }

    /// The group changes. Repairs the nodes that are above the pending group, but not above this
    /// one, which takes its place.
    fn follow(&mut self, pending: &mut Pending, group: usize) {
        let old = pending.group.replace(group).unwrap_or(group);
        if old != group {
            self.repair(pending.from, old, group);
        }
    }

    /// Repairs the nodes above one group that are not above the other.
    fn repair(&mut self, from: usize, old: usize, new: usize) {
        for level in from..self.height {
            let shift = child_shift(level);
            let at = old >> shift;
            if at == new >> shift {
                break;
            }
            self.refresh(level, at);
        }
    }

    /// Repairs the nodes above the pending group: the tree is up to date then.
    fn settle(&mut self, pending: Pending) {
        let Some(group) = pending.group else {
            return;
        };
        for level in pending.from..self.height {
            self.refresh(level, group >> child_shift(level));
        }
    }

    /// The first group from `from` on with a free slot. Nodes left of it may be out of date.
    fn first_group(&self, from: usize) -> Option<usize> {
        let (mut level, mut at) = (0, from);
        loop {
            // All of these siblings are right of what may be out of date.
            let end = (at | (FANOUT - 1)) + 1;
            let found = (at..end).find(|&at| self.has_free(level, at));
            match found {
                Some(found) => return Some(self.leftmost(level, found)),
                None if level + 1 >= self.height => return None,
                None => (level, at) = (level + 1, end >> FANOUT_SHIFT),
            }
        }
    }

    fn has_free(&self, level: usize, at: usize) -> bool {
        self.runs(Some(level), at).longest != 0
    }

    /// The first group with a free slot below a node that has one.
    fn leftmost(&self, level: usize, at: usize) -> usize {
        let mut at = at;
        for below in (0..level).rev() {
            let first = at << FANOUT_SHIFT;
            at = (first..first + FANOUT)
                .find(|&child| self.has_free(below, child))
                .unwrap_or(first);
        }
        at
    }

    /// Where the lowest run of `len` free slots starts.
    fn find_run(&self, len: u32) -> Option<SlotId> {
        let root = self.height.checked_sub(1)?;
        if len == 0 || self.runs(Some(root), 0).longest < len {
            return None;
        }
        let (mut level, mut at) = (root, 0);
        loop {
            let below = level.checked_sub(1);
            let span = Self::child_span(level);
            let first = at << FANOUT_SHIFT;
            // Free slots right before the child.
            let mut before = 0;
            let child = (first..first + FANOUT).find(|&child| {
                let runs = self.runs(below, child);
                if before + runs.head >= len || runs.longest >= len {
                    return true;
                }
                before = match runs.longest == span {
                    true => before + span,
                    false => runs.tail,
                };
                false
            })?;
            let start = u32::try_from(child).ok()?.checked_mul(span)?;
            if before + self.runs(below, child).head >= len {
                return start.checked_sub(before);
            }
            match below {
                None => return start.checked_add(run_in_word(self.word(child), len)?),
                Some(below) => (level, at) = (below, child),
            }
        }
    }
}

/// The children of node `at`, of which there can be less than [`FANOUT`] at the end, among the `len`
/// items from `start` on that are their level.
fn children<T>(items: &[T], start: usize, len: usize, at: usize) -> &[T] {
    let first = at << FANOUT_SHIFT;
    let end = len.min(first + FANOUT);
    items.get(start + first..start + end).unwrap_or(&[])
}

/// The words of a group, of which there can be less than [`FANOUT`] at the end.
fn children_mut(words: &mut [u64], group: usize) -> &mut [u64] {
    let first = group << FANOUT_SHIFT;
    let end = words.len().min(first + FANOUT);
    words.get_mut(first..end).unwrap_or(&mut [])
}

/// How far a group's number goes to the right for that of its node at the level.
fn child_shift(level: usize) -> u32 {
    u32::try_from(level).map_or(0, |level| level * FANOUT_SHIFT)
}

/// The slot of a bit of a word.
fn slot(at: usize, bit: u32) -> Option<SlotId> {
    let first = u32::try_from(at).ok()?.checked_mul(WORD_BITS)?;
    first.checked_add(bit)
}
