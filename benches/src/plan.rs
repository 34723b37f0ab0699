//! What a sweep measures: presets, and the points they stand for.

use std::fmt::Write;

use clap::ValueEnum;
use seqzoo::compare::REPRESENTATIVES;
use seqzoo_layers::system::Form;

use crate::peers;
use crate::point::{MACHINE, Point, Sizes, Task};

/// How thorough a sweep is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// At most three minutes on two idle cores.
    Quick,
    /// Every architecture unless some are named, in at most 25 minutes; the nine in every form, length and batch.
    Full,
    /// Everything once, on one thread: for quantities that are counted and not timed.
    Counted,
    /// Seconds: shows that everything works, measures nothing well.
    Tiny,
}

/// How long a measurement repeats.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Effort {
    /// Repetitions go on for this long,
    pub seconds: f64,
    /// but are at least so many
    pub least: usize,
    /// and at most so many.
    pub most: usize,
    /// Factor by which each is stretched: 1, or more to see whether `compare` notices.
    pub stretch: f64,
}

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Choice {
    /// How thorough.
    pub preset: Preset,
    /// Architectures and peers.
    pub subjects: Vec<String>,
    /// Lengths instead of the preset's.
    pub lengths: Option<Vec<usize>>,
    /// Forms instead of the preset's.
    pub forms: Option<Vec<Form>>,
    /// Tasks instead of prefill, training and decoding.
    pub tasks: Option<Vec<Task>>,
    /// Sequences at once, at every length, instead of the preset's.
    pub batches: Option<Vec<usize>>,
    /// Execution devices, by name.
    pub devices: Vec<String>,
}

/// Subjects up to which each is measured at everything; of more, only the nine are, the others at what laws need.
const IN_DEPTH: usize = 16;

/// All points of a sweep, and how each is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// In the order of measuring; all of them, then all of them again.
    pub points: Vec<Point>,
    /// How many times.
    pub rounds: usize,
    /// Repetitions in a round.
    pub effort: Effort,
    /// Sizes of the layers.
    pub sizes: Sizes,
}

/// Lengths and batches of one preset.
struct Shape {
    rounds: usize,
    effort: Effort,
    /// Prefill and, where `train_single`, training of one sequence.
    lengths: &'static [usize],
    /// Training and, where `prefill_constant`, prefill of as many sequences as make `constant_tokens`.
    train: &'static [usize],
    constant_tokens: usize,
    train_single: bool,
    prefill_constant: bool,
    /// Decoding after so many tokens.
    positions: &'static [usize],
    /// Sequences at once, each of `batch_time` tokens.
    batches: &'static [usize],
    batch_time: usize,
    /// Forms other than `auto`, up to `form_limit` tokens.
    forms: &'static [Form],
    form_limit: usize,
}

const OTHER_FORMS: &[Form] = &[Form::Recurrent, Form::Chunked { size: 64 }, Form::Parallel];

impl Preset {
    fn shape(self) -> Shape {
        let quick = Shape {
            rounds: 3,
            effort: Effort { seconds: 0.1, least: 3, most: 64, stretch: 1.0 },
            lengths: &[128, 512, 1024, 2048, 4096],
            train: &[128, 512, 2048],
            constant_tokens: 2048,
            train_single: false,
            prefill_constant: false,
            positions: &[128, 1024, 4096],
            batches: &[4, 16],
            batch_time: 128,
            forms: &[],
            form_limit: 0,
        };
        match self {
            Preset::Quick => quick,
            Preset::Full => Shape {
                rounds: 3,
                effort: Effort { seconds: 0.2, least: 3, most: 100, stretch: 1.0 },
                lengths: &[128, 256, 512, 1024, 2048, 4096, 8192],
                train: &[128, 256, 512, 1024, 2048, 4096],
                constant_tokens: 4096,
                train_single: true,
                prefill_constant: true,
                positions: &[128, 512, 2048, 4096, 8192],
                batches: &[2, 4, 8, 16, 32, 64],
                batch_time: 128,
                forms: OTHER_FORMS,
                form_limit: 1024,
            },
            Preset::Counted => Shape {
                rounds: 1,
                effort: Effort { seconds: 0.0, least: 3, most: 3, stretch: 1.0 },
                lengths: &[128, 1024],
                train: &[128],
                constant_tokens: 256,
                positions: &[128, 1024],
                batches: &[4],
                forms: OTHER_FORMS,
                form_limit: 128,
                ..quick
            },
            Preset::Tiny => Shape {
                rounds: 2,
                effort: Effort { seconds: 0.0, least: 2, most: 4, stretch: 1.0 },
                lengths: &[8, 16, 32],
                train: &[8],
                constant_tokens: 16,
                positions: &[8],
                batches: &[2],
                batch_time: 8,
                ..quick
            },
        }
    }

    /// Minutes after which a sweep ends, whatever is left.
    pub fn budget(self) -> Option<f64> {
        (self == Preset::Full).then_some(25.0)
    }

    /// Threads a measurement may use; `None` for as many as it likes.
    pub fn threads(self) -> Option<usize> {
        (self == Preset::Counted).then_some(1)
    }
}

/// Sizes of the machine's own measurements: side of the matrices, numbers of the copy.
const CEILINGS: [(Task, usize); 2] = [(Task::Matmul, 1024), (Task::Copy, 4 << 20)];

impl Plan {
    /// The points of a choice: the machine's ceilings first, then task by task, short before long, all subjects
    /// side by side at each size.
    pub fn new(choice: &Choice) -> Self {
        let shape = choice.preset.shape();
        let deep = |subject: &str| choice.subjects.len() <= IN_DEPTH || REPRESENTATIVES.contains(&subject);
        let mut points: Vec<Point> = Vec::new();
        for device in &choice.devices {
            let mut add = |subject: &str, (task, form, batch, time): Size| {
                let (subject, device) = (subject.to_string(), device.clone());
                let point = Point { subject, task, form, device, batch, time };
                if !points.contains(&point) {
                    points.push(point);
                }
            };
            if choice.preset == Preset::Tiny {
                add(MACHINE, (Task::Matmul, Form::Auto, 1, 64));
            } else {
                CEILINGS.iter().for_each(|&(task, n)| add(MACHINE, (task, Form::Auto, 1, n)));
            }
            let (all, laws) = (shape.sizes(choice), shape.laws(choice));
            for &size in &all {
                for subject in &choice.subjects {
                    let wanted = deep(subject) || laws.contains(&size);
                    if wanted && peers::offers(subject, size.0, size.1) {
                        add(subject, size);
                    }
                }
            }
        }
        Self { points, rounds: shape.rounds, effort: shape.effort, sizes: Sizes::default() }
    }

    /// Without the points of a peer or an architecture that have nothing beside them.
    pub fn paired(mut self) -> Self {
        let all = self.points.clone();
        let beside =
            |a: &Point, b: &Point| peers::peer(&a.subject).is_some_and(|peer| peer.counterpart == b.subject);
        self.points.retain(|point| {
            let pair = |other: &Point| point.matches(other) && (beside(point, other) || beside(other, point));
            point.subject == MACHINE || all.iter().any(pair)
        });
        self
    }

    /// Measurements in all.
    pub fn measurements(&self) -> usize {
        self.rounds * self.points.len()
    }

    /// Seconds that the sweep takes at least: starting each process and repeating for as long as the effort says.
    pub fn least_seconds(&self) -> f64 {
        let start = |point: &Point| match peers::library(&point.subject) {
            Some("torch" | "fla") => TORCH_START,
            Some("transformers") => TRANSFORMERS_START,
            _ => START,
        };
        let once: f64 = self.points.iter().map(|point| self.effort.seconds + start(point)).sum();
        self.rounds as f64 * once
    }

    /// What would be measured, in words.
    pub fn describe(&self, budget: Option<f64>) -> String {
        let minutes = self.least_seconds() / 60.0;
        let end = budget.map_or(String::new(), |budget| format!(", ends after {budget} at the latest"));
        let mut out = format!(
            "{} points in {} rounds, {} measurements: at least {minutes:.1} minutes{end}\n",
            self.points.len(),
            self.rounds,
            self.measurements()
        );
        for task in Task::SEQUENCE {
            let of: Vec<&Point> = self.points.iter().filter(|p| p.task == task).collect();
            let subjects: std::collections::BTreeSet<&str> = of.iter().map(|p| p.subject.as_str()).collect();
            let times = || of.iter().map(|p| p.time);
            if let (Some(low), Some(high)) = (times().min(), times().max()) {
                let (points, subjects) = (of.len(), subjects.len());
                let _ =
                    writeln!(out, "{task}: {points} points of {subjects} subjects, {low} to {high} tokens");
            }
        }
        out
    }
}

/// Seconds to start a process of ours, one that imports torch, and one that imports transformers.
const START: f64 = 0.05;
const TORCH_START: f64 = 1.5;
const TRANSFORMERS_START: f64 = 4.0;

/// Task, form, sequences and tokens of each.
type Size = (Task, Form, usize, usize);

impl Shape {
    /// Every size, short before long, task by task.
    fn sizes(&self, choice: &Choice) -> Vec<Size> {
        let over = |preset: &[usize]| choice.lengths.clone().unwrap_or_else(|| preset.to_vec());
        let form = choice.forms.as_ref().and_then(|forms| forms.first().copied()).unwrap_or_default();
        let forms = |time: usize| match &choice.forms {
            Some(forms) => forms.clone(),
            None => std::iter::once(Form::Auto)
                .chain(self.forms.iter().copied().filter(|_| time <= self.form_limit))
                .collect(),
        };
        let mut sizes: Vec<Size> = Vec::new();
        if let Some(batches) = &choice.batches {
            let each = |times: Vec<usize>| -> Vec<(usize, usize)> {
                times.iter().flat_map(|&time| batches.iter().map(move |&batch| (batch, time))).collect()
            };
            for (batch, time) in each(over(self.lengths)) {
                sizes.extend(forms(time).into_iter().map(|form| (Task::Prefill, form, batch, time)));
            }
            sizes.extend(each(over(self.train)).into_iter().map(|(b, t)| (Task::Train, form, b, t)));
            sizes.extend(
                each(over(self.positions)).into_iter().map(|(b, t)| (Task::Decode, Form::Auto, b, t)),
            );
        } else {
            for time in over(self.lengths) {
                sizes.extend(forms(time).into_iter().map(|form| (Task::Prefill, form, 1, time)));
            }
            if self.prefill_constant {
                let batch = |time| constant(self.constant_tokens, time);
                sizes.extend(self.train.iter().map(|&time| (Task::Prefill, form, batch(time), time)));
            }
            sizes.extend(self.batches.iter().map(|&batch| (Task::Prefill, form, batch, self.batch_time)));
            for time in over(self.train) {
                sizes.push((Task::Train, form, constant(self.constant_tokens, time), time));
                if self.train_single {
                    sizes.push((Task::Train, form, 1, time));
                }
            }
            sizes.extend(over(self.positions).into_iter().map(|time| (Task::Decode, Form::Auto, 1, time)));
        }
        sizes.retain(|size| choice.tasks.as_ref().is_none_or(|tasks| tasks.contains(&size.0)));
        sizes
    }

    /// The sizes that laws are fitted to, one sequence at every second length; every size that the user chose.
    fn laws(&self, choice: &Choice) -> Vec<Size> {
        if choice.lengths.is_some() || choice.batches.is_some() {
            return self.sizes(choice);
        }
        let mut sizes = self.sizes(choice);
        let every_second = |times: &'static [usize]| times.iter().step_by(2).copied().collect::<Vec<_>>();
        let [read, train, decode] = [self.lengths, self.train, self.positions].map(every_second);
        let auto = choice.forms.as_ref().and_then(|forms| forms.first().copied()).unwrap_or_default();
        sizes.retain(|&(task, form, batch, time)| {
            let times = match task {
                Task::Train => &train,
                Task::Decode => &decode,
                _ => &read,
            };
            let alone = batch == 1 || (task == Task::Train && !self.train_single);
            alone && times.contains(&time) && (form == auto || task == Task::Decode)
        });
        sizes
    }
}

/// Sequences of `time` tokens that make `tokens`, at least one.
fn constant(tokens: usize, time: usize) -> usize {
    (tokens / time.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(preset: Preset) -> Choice {
        let subjects = vec!["attention".to_string(), "lstm".into()];
        let devices = vec!["flex".into()];
        Choice { preset, subjects, lengths: None, forms: None, tasks: None, batches: None, devices }
    }

    #[test]
    fn no_point_is_measured_twice_and_ceilings_come_first() {
        for preset in [Preset::Quick, Preset::Full, Preset::Counted, Preset::Tiny] {
            let plan = Plan::new(&choice(preset));
            let keys: std::collections::BTreeSet<String> = plan.points.iter().map(Point::to_string).collect();
            assert_eq!(keys.len(), plan.points.len());
            assert_eq!(plan.points[0].task, Task::Matmul);
            for task in [Task::Prefill, Task::Train, Task::Decode] {
                assert!(plan.points.iter().any(|p| p.task == task), "{preset:?}: no {task}");
            }
        }
    }

    #[test]
    fn subjects_take_turns_at_each_size_and_filters_replace_the_preset() {
        let mut choice = choice(Preset::Quick);
        choice.lengths = Some(vec![64]);
        choice.forms = Some(vec![Form::Recurrent]);
        let plan = Plan::new(&choice);
        let reads: Vec<&Point> =
            plan.points.iter().filter(|p| p.task == Task::Prefill && p.batch == 1).collect();
        assert_eq!(reads.iter().map(|p| p.subject.as_str()).collect::<Vec<_>>(), ["attention", "lstm"]);
        assert!(reads.iter().all(|p| p.time == 64 && p.form == Form::Recurrent));
        let train = plan.points.iter().find(|p| p.task == Task::Train).unwrap();
        assert_eq!((train.batch, train.time), (32, 64));
    }
    #[test]
    fn of_all_architectures_each_has_its_laws_and_the_nine_have_everything() {
        let mut choice = choice(Preset::Full);
        let alone = Plan::new(&Choice { subjects: vec!["attention".into()], ..choice.clone() });
        choice.subjects = seqzoo::registry::MixerConfig::NAMES.iter().map(ToString::to_string).collect();
        let plan = Plan::new(&choice);
        let of = |plan: &Plan, subject: &str, task| {
            let wanted = |p: &&Point| p.subject == subject && p.task == task && p.form == Form::Auto;
            plan.points.iter().filter(wanted).cloned().collect::<Vec<Point>>()
        };
        for subject in &choice.subjects {
            for task in Task::SEQUENCE {
                let single = of(&plan, subject, task).iter().filter(|p| p.batch == 1).count();
                assert!(single >= 3, "{subject} {task}: {single} lengths make no law");
            }
        }
        let count = |plan: &Plan, subject: &str| plan.points.iter().filter(|p| p.subject == subject).count();
        assert_eq!(count(&plan, "attention"), count(&alone, "attention"));
        assert!(count(&plan, "mesa_net") < count(&plan, "attention"));
        let minutes = plan.least_seconds() / 60.0;
        assert!(minutes < Preset::Full.budget().unwrap(), "{minutes} minutes are beyond the budget");
    }

    #[test]
    fn what_has_nothing_beside_it_is_left_out() {
        let subjects = ["lstm", "burn/lstm", "attention", "burn/attention", "gla"].map(String::from).to_vec();
        let plan = Plan::new(&Choice { subjects, ..choice(Preset::Quick) }).paired();
        let has = |subject: &str, task| plan.points.iter().any(|p| p.subject == subject && p.task == task);
        assert!(has("lstm", Task::Decode) && has("burn/lstm", Task::Decode));
        assert!(has("attention", Task::Train) && has("burn/attention", Task::Train));
        assert!(!has("attention", Task::Decode), "Burn's attention does not decode");
        assert!(!has("gla", Task::Prefill) && has(MACHINE, Task::Matmul));
    }

    #[test]
    fn one_row_of_a_table_is_one_point() {
        let choice = Choice {
            lengths: Some(vec![64]),
            tasks: Some(vec![Task::Train]),
            batches: Some(vec![3]),
            ..choice(Preset::Quick)
        };
        let plan = Plan::new(&choice);
        let rest: Vec<&Point> = plan.points.iter().filter(|p| p.subject != MACHINE).collect();
        assert_eq!(rest.len(), 2);
        assert!(rest.iter().all(|p| (p.task, p.batch, p.time) == (Task::Train, 3, 64)));
        let words = plan.describe(Some(25.0));
        assert!(words.contains("4 points in 3 rounds, 12 measurements"), "{words}");
        assert!(words.contains("train: 2 points of 2 subjects, 64 to 64 tokens"), "{words}");
        assert!(words.contains("25"), "{words}");
    }
}
