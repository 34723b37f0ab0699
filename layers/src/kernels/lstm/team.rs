//! One row of a recurrence by several threads in step: each has some of the units, and after every token they tell one
//! another what all of them read.
//!
//! A pool of threads does not promise that two tasks ever run at the same time, and a machine not that a thread goes on
//! running. So the first member begins with all units and shares them out in a session once all others have come; when
//! one of them is late, it ends the session and goes on alone until they have come again. What is computed is the same,
//! whoever does it.

use std::hint::spin_loop;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::yield_now;

use crate::kernels::vector::{Vector, Work, vectorised};

/// One row of a recurrence. Its numbers are blocks of as many as there are units.
pub(super) trait Recurrence<E>: Sync {
    /// The first blocks, of which every member reads all units.
    const READ: usize;

    /// Blocks of a member's results, some of which may be for its own use.
    const BLOCKS: usize;

    /// The first blocks, of which somebody wants to know all units.
    fn told(&self) -> usize;

    /// Steps.
    fn steps(&self) -> usize;

    /// Units.
    fn units(&self) -> usize;

    /// The units of each member.
    fn members(&self) -> &[Range<usize>];

    /// Fills `new: [BLOCKS, units of the member]`, from `all: [told, units]` before the step, where what lies after the
    /// blocks that all read is known of the member's units only.
    fn advance<const FUSED: bool>(&self, step: usize, member: usize, all: &[E], new: &mut [E]);
}

/// Reads all steps: `all: [told, units]` is the start and becomes the end, and `keep` sees it after every step.
pub(super) fn run<E: Vector, R: Recurrence<E>>(row: &R, all: &mut [E], keep: impl FnMut(usize, &[E]) + Send) {
    let team = Team::<E, R>::new(row);
    rayon::scope(|scope| {
        for member in 1..row.members().len() {
            let team = &team;
            scope.spawn(move |_| vectorised(Follow { team, member }));
        }
        vectorised(Lead { team: &team, all, keep });
    });
}

/// The epoch of a row that is done.
const OVER: u64 = u64::MAX;

/// Tries until somebody who is waited for is late: some ten times what a step of some thousand numbers takes.
const PATIENCE: usize = 500;

/// What members share.
struct Team<'a, E, R> {
    row: &'a R,
    /// Members beside the first who wait for a session
    come: AtomicUsize,
    /// Counts beginnings and ends of sessions: odd in one
    epoch: AtomicU64,
    /// The step at which the session began
    begun: AtomicUsize,
    /// All numbers before that step
    handed: Vec<AtomicU64>,
    /// Of each member
    told: Vec<Told>,
    numbers: PhantomData<fn() -> E>,
}

/// What a member tells, apart from what others write, so that they don't wait for the same line of a cache.
#[repr(align(128))]
struct Told {
    /// The session's epoch and the steps done, see [`stamp`]
    done: AtomicU64,
    /// After even and odd steps: the next one may be told while another member still reads the last
    numbers: [Vec<AtomicU64>; 2],
}

/// When `steps` are done in a session.
fn stamp(epoch: u64, steps: usize) -> u64 {
    (epoch << 40) + steps as u64
}

fn zeros(count: usize) -> Vec<AtomicU64> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

/// Exact for `f32` too.
#[inline(always)]
fn tell<E: Vector>(to: &[AtomicU64], numbers: &[E]) {
    let numbers = &numbers[..to.len()];
    for (i, to) in to.iter().enumerate() {
        to.store(numbers[i].to_f64().to_bits(), Ordering::Relaxed);
    }
}

#[inline(always)]
fn hear<E: Vector>(from: &[AtomicU64], numbers: &mut [E]) {
    let from = &from[..numbers.len()];
    for (i, number) in numbers.iter_mut().enumerate() {
        *number = E::of(f64::from_bits(from[i].load(Ordering::Relaxed)));
    }
}

/// Until `ready`, or until it is clear that this takes long.
fn soon(ready: impl Fn() -> bool) -> bool {
    for _ in 0..PATIENCE {
        if ready() {
            return true;
        }
        spin_loop();
    }
    false
}

/// Until `ready`, without keeping others from running who may be waited for.
fn wait(ready: impl Fn() -> bool) {
    while !soon(&ready) {
        yield_now();
    }
}

impl<'a, E: Vector, R: Recurrence<E>> Team<'a, E, R> {
    fn new(row: &'a R) -> Self {
        let told = |units: &Range<usize>| Told {
            done: AtomicU64::new(0),
            numbers: [0, 1].map(|_| zeros(row.told() * units.len())),
        };
        Self {
            row,
            come: AtomicUsize::new(0),
            epoch: AtomicU64::new(0),
            begun: AtomicUsize::new(0),
            handed: zeros(row.told() * row.units()),
            told: row.members().iter().map(told).collect(),
            numbers: PhantomData,
        }
    }

    /// Room for all members' results, one after the other.
    fn room(&self) -> Vec<E> {
        vec![E::default(); R::BLOCKS * self.row.units()]
    }

    /// The part of the room that is a member's.
    #[inline(always)]
    fn of<'b>(&self, member: usize, room: &'b mut [E]) -> &'b mut [E] {
        let Range { start, end } = self.row.members()[member];
        &mut room[R::BLOCKS * start..R::BLOCKS * end]
    }

    /// Puts a member's results where they belong in `all`.
    #[inline(always)]
    fn place(&self, member: usize, room: &[E], all: &mut [E]) {
        let (n, Range { start, end }) = (self.row.units(), self.row.members()[member].clone());
        let (new, count) = (&room[R::BLOCKS * start..], end - start);
        for block in 0..self.row.told() {
            all[block * n + start..][..count].copy_from_slice(&new[block * count..][..count]);
        }
    }

    /// Computes a member's step and tells its first `tells` blocks.
    #[inline(always)]
    fn advance<const FUSED: bool>(
        &self,
        (epoch, step): (u64, usize),
        member: usize,
        all: &[E],
        room: &mut [E],
        tells: usize,
    ) {
        self.row.advance::<FUSED>(step, member, all, self.of(member, room));
        let (mine, count) = (&self.told[member], self.row.members()[member].len());
        tell(&mine.numbers[step % 2][..tells * count], self.of(member, room));
        mine.done.store(stamp(epoch, step + 1), Ordering::Release);
    }

    /// Whether another member's step is done.
    fn done(&self, (epoch, step): (u64, usize), member: usize) -> bool {
        let done = self.told[member].done.load(Ordering::Acquire);
        (stamp(epoch, step + 1)..stamp(epoch + 1, 0)).contains(&done)
    }

    /// Puts a member's results and the first `hears` blocks of all others' where they belong in `all`.
    #[inline(always)]
    fn gather(&self, step: usize, member: usize, all: &mut [E], room: &[E], hears: usize) {
        self.place(member, room, all);
        let n = self.row.units();
        for (other, units) in self.row.members().iter().enumerate() {
            for block in 0..if other == member { 0 } else { hears } {
                let from = &self.told[other].numbers[step % 2][block * units.len()..][..units.len()];
                hear(from, &mut all[block * n + units.start..][..units.len()]);
            }
        }
    }
}

/// Tells the others that the row is done, or that nobody does it any more.
struct Close<'a>(&'a AtomicU64);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.0.store(OVER, Ordering::Release);
    }
}

/// The first member's work.
struct Lead<'a, E, R, K> {
    team: &'a Team<'a, E, R>,
    all: &'a mut [E],
    keep: K,
}

impl<E: Vector, R: Recurrence<E>, K: FnMut(usize, &[E])> Work for Lead<'_, E, R, K> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { team, all, mut keep } = self;
        let (row, others) = (team.row, 1..team.row.members().len());
        let _close = Close(&team.epoch);
        let (mut room, mut epoch) = (team.room(), 0);
        for step in 0..row.steps() {
            if epoch % 2 == 0 && team.come.load(Ordering::Acquire) == others.len() {
                epoch += 1;
                tell(&team.handed, all);
                team.begun.store(step, Ordering::Relaxed);
                team.come.store(0, Ordering::Relaxed);
                team.epoch.store(epoch, Ordering::Release);
            }
            if epoch % 2 == 1 {
                team.advance::<FUSED>((epoch, step), 0, all, &mut room, R::READ);
                if others.clone().all(|other| soon(|| team.done((epoch, step), other))) {
                    team.gather(step, 0, all, &room, row.told());
                    keep(step, all);
                    continue;
                }
                epoch += 1;
                team.epoch.store(epoch, Ordering::Release);
            }
            for member in 0..=others.len() {
                row.advance::<FUSED>(step, member, all, team.of(member, &mut room));
            }
            for member in 0..=others.len() {
                team.place(member, &room, all);
            }
            keep(step, all);
        }
    }
}

/// Another member's work.
struct Follow<'a, E, R> {
    team: &'a Team<'a, E, R>,
    member: usize,
}

impl<E: Vector, R: Recurrence<E>> Work for Follow<'_, E, R> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { team, member } = self;
        let (mut room, mut all) = (team.room(), vec![E::default(); team.handed.len()]);
        let (steps, count) = (team.row.steps(), team.row.members().len());
        let epoch_now = || team.epoch.load(Ordering::Acquire);
        let mut last = 0;
        while last != OVER {
            team.come.fetch_add(1, Ordering::AcqRel);
            wait(|| epoch_now() > last);
            let epoch = epoch_now();
            // Even: a session began and ended before this thread saw it.
            if epoch != OVER && epoch % 2 == 1 {
                let over = || epoch_now() != epoch;
                hear(&team.handed, &mut all);
                for step in team.begun.load(Ordering::Relaxed)..steps {
                    team.advance::<FUSED>((epoch, step), member, &all, &mut room, team.row.told());
                    for other in (0..count).filter(|&other| other != member) {
                        wait(|| team.done((epoch, step), other) || over());
                    }
                    if over() {
                        break;
                    }
                    team.gather(step, member, &mut all, &room, R::READ);
                }
                wait(over);
            }
            // No session begins without this thread, so this is the end of that one.
            last = epoch_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;
    use std::time::Duration;

    use super::*;

    /// Every unit becomes a mixture of all, beside a count of its own.
    struct Mixture {
        steps: usize,
        members: Vec<Range<usize>>,
    }

    impl Recurrence<f32> for Mixture {
        const READ: usize = 1;
        const BLOCKS: usize = 3;

        fn told(&self) -> usize {
            2
        }

        fn steps(&self) -> usize {
            self.steps
        }

        fn units(&self) -> usize {
            self.members.last().unwrap().end
        }

        fn members(&self) -> &[Range<usize>] {
            &self.members
        }

        fn advance<const FUSED: bool>(&self, step: usize, member: usize, all: &[f32], new: &mut [f32]) {
            let (n, Range { start, end }) = (self.units(), self.members[member].clone());
            for unit in start..end {
                let mixed: f32 =
                    (0..n).map(|other| all[other] * ((unit * 7 + other * 3 + step) as f32).sin()).sum();
                new[unit - start] = mixed.sin();
                new[end - start + unit - start] = all[n + unit] + mixed;
                new[2 * (end - start) + unit - start] = f32::NAN;
            }
        }
    }

    /// All numbers after every step, where the others come when the first has done `alone` steps, if ever.
    fn trace<R: Recurrence<f32>>(row: &R, alone: usize) -> Vec<Vec<f32>> {
        let n = row.units();
        let (team, mut seen) = (Team::<f32, _>::new(row), Vec::new());
        let mut all: Vec<f32> = (0..2 * n).map(|i| (i as f32).cos()).collect();
        let follow = |member| vectorised(Follow { team: &team, member });
        std::thread::scope(|scope| {
            let others = row.members().len() - 1;
            let enter = |step: usize| {
                if step == alone {
                    (1..=others).for_each(|member| drop(scope.spawn(move || follow(member))));
                    wait(|| team.come.load(Ordering::Acquire) == others);
                }
            };
            enter(0);
            let keep = |step: usize, all: &[f32]| {
                seen.push(all.to_vec());
                enter(step + 1);
            };
            vectorised(Lead { team: &team, all: &mut all, keep });
        });
        assert_eq!(seen.len(), row.steps());
        seen
    }

    #[test]
    fn it_does_not_matter_when_the_others_come() {
        for members in [vec![0..3, 3..5], vec![0..2, 2..4, 4..7]] {
            let row = Mixture { steps: 40, members };
            let alone = trace(&row, usize::MAX);
            assert!(alone.concat().iter().all(|x| x.is_finite()));
            for late in [0, 1, 2, 17, 39, 40] {
                assert_eq!(trace(&row, late), alone, "after {late} steps");
            }
        }
    }

    /// A recurrence at some of whose steps something happens to those who follow.
    struct Disturbed<F> {
        row: Mixture,
        leader: std::thread::ThreadId,
        happens: F,
    }

    impl<F: Fn(usize) + Sync> Recurrence<f32> for Disturbed<F> {
        const READ: usize = 1;
        const BLOCKS: usize = 3;

        fn told(&self) -> usize {
            self.row.told()
        }

        fn steps(&self) -> usize {
            self.row.steps()
        }

        fn units(&self) -> usize {
            self.row.units()
        }

        fn members(&self) -> &[Range<usize>] {
            self.row.members()
        }

        fn advance<const FUSED: bool>(&self, step: usize, member: usize, all: &[f32], new: &mut [f32]) {
            if std::thread::current().id() != self.leader {
                (self.happens)(step);
            }
            self.row.advance::<FUSED>(step, member, all, new);
        }
    }

    fn disturbed<F: Fn(usize) + Sync>(members: &[Range<usize>], happens: F) -> Disturbed<F> {
        let row = Mixture { steps: 400, members: members.to_vec() };
        Disturbed { row, leader: std::thread::current().id(), happens }
    }

    #[test]
    fn who_is_late_is_not_waited_for() {
        for members in [vec![0..3, 3..5], vec![0..2, 2..4, 4..7]] {
            let seen = AtomicUsize::new(0);
            let row = disturbed(&members, |_| {
                if seen.fetch_add(1, Ordering::Relaxed) % 5 == 4 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let alone = trace(&row.row, usize::MAX);
            // Those who follow may sleep through all of a short row.
            while seen.load(Ordering::Relaxed) < 25 {
                assert_eq!(trace(&row, 0), alone);
            }
        }
    }

    #[test]
    fn who_came_and_is_gone_is_not_waited_for() {
        let row = Mixture { steps: 9, members: vec![0..2, 2..4] };
        let (team, mut seen) = (Team::<f32, _>::new(&row), Vec::new());
        team.come.store(1, Ordering::Release);
        let mut all: Vec<f32> = (0..8).map(|i| (i as f32).cos()).collect();
        vectorised(Lead { team: &team, all: &mut all, keep: |_, all: &[f32]| seen.push(all.to_vec()) });
        assert_eq!(seen, trace(&row, usize::MAX));
    }

    #[test]
    fn nobody_waits_for_a_first_member_that_panicked() {
        let row = Mixture { steps: 9, members: vec![0..2, 2..4] };
        let team = Team::<f32, _>::new(&row);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| vectorised(Follow { team: &team, member: 1 }));
            let keep = |step: usize, _: &[f32]| assert!(step < 3, "broken");
            let lead = || vectorised(Lead { team: &team, all: &mut [0.5; 8], keep });
            assert!(std::panic::catch_unwind(AssertUnwindSafe(lead)).is_err());
            assert!(other.join().is_ok());
        });
    }
}
