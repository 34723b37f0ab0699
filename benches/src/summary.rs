//! Records of one point put together over the rounds.

use std::collections::HashMap;

use crate::point::{Point, Task};
use crate::record::{Counted, Measurement, Outcome, Record};
use crate::stats::{median, quantile};

/// All that is known of one point.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The point.
    pub point: Point,
    /// Seconds of the repetitions, by round; none of a round without numbers.
    pub rounds: Vec<Vec<f64>>,
    /// Seconds of the first repetition of each round's process.
    pub first: Vec<f64>,
    /// Largest heap of all rounds.
    pub peak_bytes: u64,
    /// The counted quantities, of the last round.
    pub counted: Counted,
    /// The latest outcome without numbers.
    pub trouble: Option<Outcome>,
}

impl Summary {
    fn new(point: &Point) -> Self {
        Self {
            point: point.clone(),
            rounds: Vec::new(),
            first: Vec::new(),
            peak_bytes: 0,
            counted: Counted::default(),
            trouble: None,
        }
    }

    fn add(&mut self, round: usize, m: &Measurement) {
        if self.rounds.len() <= round {
            self.rounds.resize(round + 1, Vec::new());
        }
        self.rounds[round].clone_from(&m.seconds);
        self.first.push(m.first_seconds);
        self.peak_bytes = self.peak_bytes.max(m.peak_bytes);
        self.counted = m.counted;
    }

    /// Whether there are numbers.
    pub fn measured(&self) -> bool {
        self.rounds.iter().any(|round| !round.is_empty())
    }

    /// All repetitions.
    pub fn samples(&self) -> Vec<f64> {
        self.rounds.iter().flatten().copied().collect()
    }

    /// Seconds of a repetition.
    pub fn seconds(&self) -> f64 {
        median(&self.samples())
    }

    /// A quantile of the seconds of a repetition.
    pub fn quantile(&self, q: f64) -> f64 {
        quantile(&self.samples(), q)
    }

    /// Seconds of the first repetition in a fresh process.
    pub fn first_seconds(&self) -> f64 {
        median(&self.first)
    }

    /// Tokens in a second.
    pub fn tokens_per_second(&self) -> f64 {
        self.point.tokens() as f64 / self.seconds()
    }

    /// Operations in a second.
    pub fn flops_per_second(&self) -> f64 {
        self.counted.flops / self.seconds()
    }
}

/// Every point of the records once, in the order of their first record.
pub fn summarise(records: &[Record]) -> Vec<Summary> {
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut out: Vec<Summary> = Vec::new();
    for record in records {
        let place = *places.entry(record.point.to_string()).or_insert_with(|| {
            out.push(Summary::new(&record.point));
            out.len() - 1
        });
        match &record.outcome {
            Outcome::Done(measurement) => out[place].add(record.round, measurement),
            other => out[place].trouble = Some(other.clone()),
        }
    }
    out
}

/// The machine's ceilings on a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// Operations in a second, of a large product of matrices.
    pub flops: f64,
    /// Bytes in a second, read and written one after the other.
    pub bandwidth: f64,
}

impl Ceilings {
    /// Seconds that operations and bytes take at least.
    pub fn floor(&self, counted: &Counted) -> f64 {
        (counted.flops / self.flops).max(counted.bytes / self.bandwidth)
    }
}

/// The ceilings, where both were measured: the best of all repetitions.
pub fn ceilings(summaries: &[Summary], device: &str) -> Option<Ceilings> {
    let best = |task: Task| {
        let s = summaries.iter().find(|s| s.point.task == task && s.point.device == device)?;
        s.measured().then(|| (s.counted, s.quantile(0.0)))
    };
    let (matmul, copy) = (best(Task::Matmul)?, best(Task::Copy)?);
    Some(Ceilings { flops: matmul.0.flops / matmul.1, bandwidth: copy.0.bytes / copy.1 })
}
