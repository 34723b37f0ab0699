//! What a sweep measures: presets, and the points they stand for.

use clap::ValueEnum;
use seqzoo_layers::system::Form;

use crate::peers;
use crate::point::{MACHINE, Point, Sizes, Task};

/// How thorough a sweep is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// At most three minutes on two idle cores.
    Quick,
    /// Every form, more lengths and batches: about twenty minutes for the nine.
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
    /// Execution devices, by name.
    pub devices: Vec<String>,
}

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
                positions: &[128, 512, 2048, 8192],
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
        let lengths = choice.lengths.clone();
        let over = |preset: &[usize]| lengths.clone().unwrap_or_else(|| preset.to_vec());
        let mut sizes: Vec<(Task, Form, usize, usize)> = Vec::new();
        let forms = |limit: usize| match &choice.forms {
            Some(forms) => forms.clone(),
            None => std::iter::once(Form::Auto)
                .chain(shape.forms.iter().copied().filter(|_| limit <= shape.form_limit))
                .collect(),
        };
        for time in over(shape.lengths) {
            sizes.extend(forms(time).into_iter().map(|form| (Task::Prefill, form, 1, time)));
        }
        let first = choice.forms.as_ref().and_then(|forms| forms.first().copied()).unwrap_or_default();
        if shape.prefill_constant {
            for &time in shape.train {
                sizes.push((Task::Prefill, first, constant(shape.constant_tokens, time), time));
            }
        }
        for &batch in shape.batches {
            sizes.push((Task::Prefill, first, batch, shape.batch_time));
        }
        for time in over(shape.train) {
            sizes.push((Task::Train, first, constant(shape.constant_tokens, time), time));
            if shape.train_single {
                sizes.push((Task::Train, first, 1, time));
            }
        }
        for time in over(shape.positions) {
            sizes.push((Task::Decode, Form::Auto, 1, time));
        }
        let mut points: Vec<Point> = Vec::new();
        for device in &choice.devices {
            let device = |subject: &str, task, form, batch, time| Point {
                subject: subject.into(),
                task,
                form,
                device: device.clone(),
                batch,
                time,
            };
            let mut add = |point: Point| {
                if !points.contains(&point) {
                    points.push(point);
                }
            };
            if choice.preset == Preset::Tiny {
                add(device(MACHINE, Task::Matmul, Form::Auto, 1, 64));
            } else {
                CEILINGS.iter().for_each(|&(task, n)| add(device(MACHINE, task, Form::Auto, 1, n)));
            }
            for &(task, form, batch, time) in &sizes {
                for subject in &choice.subjects {
                    if peers::offers(subject, task, form) {
                        add(device(subject, task, form, batch, time));
                    }
                }
            }
        }
        Self { points, rounds: shape.rounds, effort: shape.effort, sizes: Sizes::default() }
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
        Choice { preset, subjects, lengths: None, forms: None, devices: vec!["flex".into()] }
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
}
