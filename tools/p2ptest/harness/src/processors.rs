// SPDX-License-Identifier: GPL-2.0
//! The host's processors, which the guests of a run share.

use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The processors. Guests run things beside each other, each on its share of them, or one has
/// all.
///
/// QEMU asks a model at each access to a register, and waits for its answer. To wake a thread
/// costs least where the one that wakes it runs, so that a guest stays with its models.
#[derive(Debug, Clone)]
pub struct Processors(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Their numbers.
    all: Vec<usize>,
    /// Who runs something beside others reads, who has all processors writes.
    turns: RwLock<()>,
    guests: Mutex<Guests>,
}

#[derive(Debug, Default)]
struct Guests {
    /// Those that there are, the oldest first.
    seats: Vec<u64>,
    /// What the next one is called.
    next: u64,
    /// One of them has all processors.
    alone: bool,
}

impl Processors {
    /// Those that the calling thread may use; none if they have no numbers that are known.
    pub fn new() -> Self {
        let set = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
        let is_ours = |&number: &usize| set.is_set(number).unwrap_or_default();
        Self::of((0..CpuSet::count()).filter(is_ours).collect())
    }

    fn of(all: Vec<usize>) -> Self {
        Self(Arc::new(Shared {
            all,
            turns: RwLock::default(),
            guests: Mutex::default(),
        }))
    }

    /// A guest's, as long as it runs.
    pub fn seat(&self) -> Seat {
        let mut guests = self.guests();
        let number = guests.next;
        guests.next += 1;
        guests.seats.push(number);
        Seat {
            of: self.clone(),
            number,
            has: Vec::new(),
        }
    }

    /// Waits while another guest has all of them. Who runs something takes one turn, and
    /// none within it.
    pub fn beside_others<R>(&self, f: impl FnOnce() -> R) -> R {
        let _turn = self.0.turns.read().unwrap_or_else(PoisonError::into_inner);
        f()
    }

    /// Waits until no other guest runs anything, and has all of them meanwhile.
    pub fn alone<R>(&self, f: impl FnOnce() -> R) -> R {
        let _turn = self.0.turns.write().unwrap_or_else(PoisonError::into_inner);
        self.guests().alone = true;
        let result = f();
        self.guests().alone = false;
        result
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.0.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A guest's place among the others.
#[derive(Debug)]
pub struct Seat {
    of: Processors,
    number: u64,
    /// What it was moved to.
    has: Vec<usize>,
}

impl Seat {
    /// Moves these processes to what is the guest's share now, and the calling thread with
    /// them, for what it starts: shares grow as other guests end.
    pub fn settle(&mut self, processes: impl IntoIterator<Item = u32>) {
        let share = self.share();
        if share == self.has {
            return;
        }
        let mut set = CpuSet::new();
        if share.iter().any(|&number| set.set(number).is_err()) {
            return;
        }
        let threads = processes.into_iter().flat_map(threads);
        for thread in threads.chain([Pid::from_raw(0)]) {
            // One that has ended needs none; where it is not permitted, it takes longer.
            let _ = sched_setaffinity(thread, &set);
        }
        self.has = share;
    }

    fn share(&self) -> Vec<usize> {
        let all = &self.of.0.all;
        let guests = self.of.guests();
        let rank = guests.seats.iter().position(|&seat| seat == self.number);
        match rank {
            Some(rank) if !guests.alone => share(all, guests.seats.len(), rank).to_vec(),
            _ => all.clone(),
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.of.guests().seats.retain(|&seat| seat != self.number);
    }
}

/// The share of one of so many guests: neighbours, or one that it shares with others.
fn share(all: &[usize], guests: usize, rank: usize) -> &[usize] {
    let parts = guests.min(all.len()).max(1);
    let part = rank % parts;
    &all[all.len() * part / parts..all.len() * (part + 1) / parts]
}

/// All threads of a process.
fn threads(process: u32) -> Vec<Pid> {
    let entries = fs::read_dir(format!("/proc/{process}/task"));
    let names = entries.into_iter().flatten().flatten();
    let ids = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.map(Pid::from_raw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stop;
    use std::process::Command;
    use std::thread;

    #[test]
    fn shares_are_fair() {
        for (processors, guests) in (1..9).flat_map(|p| (1..9).map(move |g| (p, g))) {
            let all: Vec<_> = (0..processors).collect();
            let mut on = vec![0; processors];
            let mut sizes = Vec::new();
            for rank in 0..guests {
                let share = share(&all, guests, rank);
                sizes.push(share.len());
                share.iter().for_each(|&processor| on[processor] += 1);
            }
            for counts in [&on, &sizes] {
                let (least, most) = (counts.iter().min(), counts.iter().max());
                let (least, most) = (*least.unwrap(), *most.unwrap());
                assert!(least > 0 && most - least <= 1, "{on:?} {sizes:?}");
            }
        }
        assert!(share(&[], 2, 1).is_empty());
    }

    #[test]
    fn shares_grow_and_one_has_all() {
        let processors = Processors::of(vec![2, 5]);
        let [first, second] = [(); 2].map(|()| processors.seat());
        assert_eq!((first.share(), second.share()), (vec![2], vec![5]));
        processors.alone(|| assert_eq!(second.share(), [2, 5]));
        assert_eq!(second.share(), [5]);
        drop(first);
        assert_eq!(second.share(), [2, 5]);
    }

    #[test]
    fn processes_are_moved() {
        let affinity = |thread| {
            let set = sched_getaffinity(thread).unwrap();
            let is_set = |&number: &usize| set.is_set(number).unwrap();
            (0..CpuSet::count()).filter(is_set).collect::<Vec<_>>()
        };
        // In a thread of its own, which is moved as well.
        let moved = thread::spawn(move || {
            let mut child = stop::spawn(Command::new("sleep").arg("100")).unwrap();
            let id = Pid::from_raw(child.id().cast_signed());
            let processors = Processors::new();
            let all = processors.0.all.clone();
            assert_eq!(affinity(id), all);
            let mut seats = [(); 2].map(|()| processors.seat());
            seats[1].settle([child.id()]);
            assert_eq!(affinity(id), share(&all, 2, 1));
            assert_eq!(affinity(Pid::from_raw(0)), share(&all, 2, 1));
            processors.alone(|| seats[1].settle([child.id()]));
            assert_eq!(affinity(id), all);
            child.end();
        });
        moved.join().unwrap();
    }
}
