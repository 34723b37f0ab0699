//! The record of a run: one row per step, as CSV and as JSON lines.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{EvalMetrics, StepMetrics};
use crate::{Error, Result};

/// One row: a step, and the evaluation after it where there was one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The step, counted from 1.
    pub step: usize,
    /// Training loss in nats.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Length of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens read per second.
    pub tokens_per_second: f64,
    /// Seconds of training so far.
    pub elapsed: f64,
    /// Loss on data not trained on.
    pub validation_loss: Option<f64>,
    /// Accuracy on data not trained on.
    pub validation_accuracy: Option<f64>,
}

impl Row {
    /// Joins a step with its evaluation.
    pub fn new(step: &StepMetrics, validation: Option<&EvalMetrics>) -> Self {
        let StepMetrics { step, loss, lr, grad_norm, tokens_per_second, elapsed } = *step;
        let validation_loss = validation.map(|v| v.loss);
        let validation_accuracy = validation.map(|v| v.accuracy);
        Self { step, loss, lr, grad_norm, tokens_per_second, elapsed, validation_loss, validation_accuracy }
    }
}

/// Writes `metrics.csv` and `metrics.jsonl` in a training folder.
#[derive(Debug)]
pub struct MetricsLog {
    csv: csv::Writer<File>,
    lines: BufWriter<File>,
    csv_path: PathBuf,
    lines_path: PathBuf,
}

impl MetricsLog {
    /// Continues the record of a folder after `step` steps: later rows, of a run that was cut short
    /// after its last checkpoint, are dropped. At step 0 the record starts anew.
    ///
    /// # Errors
    /// When the folder cannot be written or an existing record is damaged.
    pub fn open(dir: &Path, step: usize) -> Result<Self> {
        let (csv_path, lines_path) = (dir.join("metrics.csv"), dir.join("metrics.jsonl"));
        let kept: Vec<Row> = match step {
            0 => Vec::new(),
            _ => read_rows(&lines_path)?.into_iter().filter(|row| row.step <= step).collect(),
        };
        // Written aside and renamed, so that a full disk does not cost the rows there were.
        let [csv_new, lines_new] = [&csv_path, &lines_path].map(|path| path.with_added_extension("new"));
        let create = |path: &Path| File::create(path).map_err(|e| Error::io(path, e));
        let csv = csv::Writer::from_writer(create(&csv_new)?);
        let lines = BufWriter::new(create(&lines_new)?);
        let mut log = Self { csv, lines, csv_path, lines_path };
        kept.iter().try_for_each(|row| log.push(row))?;
        log.flush()?;
        for (new, path) in [(&csv_new, &log.csv_path), (&lines_new, &log.lines_path)] {
            fs::rename(new, path).map_err(|e| Error::io(path, e))?;
        }
        Ok(log)
    }

    /// Adds a row.
    ///
    /// # Errors
    /// When writing fails.
    pub fn push(&mut self, row: &Row) -> Result<()> {
        let written = self.csv.serialize(row).map_err(std::io::Error::other);
        written.map_err(|e| Error::io(&self.csv_path, e))?;
        let line = serde_json::to_string(row).map_err(|e| Error::Data(e.to_string()))?;
        writeln!(self.lines, "{line}").map_err(|e| Error::io(&self.lines_path, e))
    }

    /// Brings everything to the disk.
    ///
    /// # Errors
    /// When writing fails.
    pub fn flush(&mut self) -> Result<()> {
        self.csv.flush().map_err(|e| Error::io(&self.csv_path, e))?;
        self.lines.flush().map_err(|e| Error::io(&self.lines_path, e))
    }
}

/// Rows of a `metrics.jsonl`; an unfinished last line, from a run that was killed, is left out.
fn read_rows(path: &Path) -> Result<Vec<Row>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(path, e)),
    };
    let lines: Vec<&str> = text.lines().collect();
    let mut rows = Vec::with_capacity(lines.len());
    for (i, line) in lines.iter().enumerate() {
        match serde_json::from_str(line) {
            Ok(row) => rows.push(row),
            Err(_) if i + 1 == lines.len() => break,
            Err(e) => return Err(Error::Data(format!("{} line {}: {e}", path.display(), i + 1))),
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: usize) -> Row {
        let step = StepMetrics {
            step,
            loss: 1.0 / 3.0,
            lr: 0.1,
            grad_norm: 2.0,
            tokens_per_second: 9.0,
            elapsed: 1.5,
        };
        Row::new(&step, (step.step == 2).then_some(&EvalMetrics { loss: 0.5, accuracy: 0.25 }))
    }

    #[test]
    fn both_files_hold_every_row_and_a_resume_drops_what_came_after() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::open(dir.path(), 0).unwrap();
        (1..=4).for_each(|step| log.push(&row(step)).unwrap());
        log.flush().unwrap();
        drop(log);
        let lines = dir.path().join("metrics.jsonl");
        // A killed run leaves half a line.
        let mut text = fs::read_to_string(&lines).unwrap();
        text.push_str("{\"step\":5,\"lo");
        fs::write(&lines, text).unwrap();

        let mut log = MetricsLog::open(dir.path(), 2).unwrap();
        log.push(&row(3)).unwrap();
        log.flush().unwrap();
        assert_eq!(read_rows(&lines).unwrap(), [row(1), row(2), row(3)]);
        let csv = fs::read_to_string(dir.path().join("metrics.csv")).unwrap();
        let mut reader = csv::Reader::from_reader(csv.as_bytes());
        let rows: Vec<Row> = reader.deserialize().collect::<Result<_, _>>().unwrap();
        assert_eq!(rows, [row(1), row(2), row(3)]);
    }

    #[test]
    fn a_damaged_record_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("metrics.jsonl"), "nonsense\n{}\n").unwrap();
        let error = MetricsLog::open(dir.path(), 1).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl line 1"), "{error}");
    }
}
