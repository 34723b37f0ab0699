//! One self-contained page, or Markdown tables, of measured results: what scales how, where curves cross, how far
//! from the machine's ceilings, and what that means for other machines.

mod charts;
mod page;
mod predictions;
mod table;
mod tables;

use std::collections::BTreeSet;
use std::path::Path;

use seqzoo::compare::{REPRESENTATIVES, Results as Quality};
use seqzoo::registry::architecture;
use seqzoo::report::legend::Key;
use seqzoo::report::svg::STYLES;
use seqzoo_layers::system::Form;

use crate::fit::{AtLength, Fit, fit};
use crate::hardware::Hardware;
use crate::peers::library;
use crate::point::{MACHINE, Task};
use crate::record::Header;
use crate::store::Results;
use crate::summary::{Ceilings, Summary, ceilings, summarise};
use crate::{Error, Result};

pub use page::render;
use table::Table;

/// Lines up to which all are shown at first; of more, the nine and the peers are.
const SHOWN: usize = 26;

/// All that a report is drawn from.
pub struct Data {
    headers: Vec<Header>,
    summaries: Vec<Summary>,
    lines: Vec<Line>,
    quality: Option<Quality>,
    hardware: Vec<Hardware>,
}

/// One subject on one device: a line in every chart.
#[derive(Clone, Debug)]
struct Line {
    subject: String,
    device: String,
    key: Key,
}

impl Data {
    /// Puts the results of one machine together, with a comparison's quality and other hardware beside them.
    ///
    /// # Errors
    /// When there are none, or they are of different machines or sizes.
    pub fn new(results: &[Results], quality: Option<Quality>, hardware: Vec<Hardware>) -> Result<Self> {
        let Some(first) = results.first() else { return Err(Error::Measure("no results to report".into())) };
        for other in &results[1..] {
            let (a, b) = (&first.header, &other.header);
            let same = a.machine.cpu == b.machine.cpu
                && a.machine.threads == b.machine.threads
                && a.threads == b.threads
                && a.sizes == b.sizes;
            if !same {
                let reason = "was measured on another machine, on other threads or at other sizes: one report, one machine";
                return Err(Error::file(&other.path, reason));
            }
        }
        let records: Vec<_> = results.iter().flat_map(|r| r.records.clone()).collect();
        let summaries = summarise(&records);
        let pairs: Vec<(String, String)> = (summaries.iter())
            .filter(|s| s.point.subject != MACHINE)
            .map(|s| (s.point.subject.clone(), s.point.device.clone()))
            .collect();
        let distinct = pairs.iter().collect::<BTreeSet<_>>().len();
        let devices = pairs.iter().map(|(_, device)| device).collect::<BTreeSet<_>>().len();
        let mut lines: Vec<Line> = Vec::new();
        for (subject, device) in pairs {
            if lines.iter().any(|l| l.subject == subject && l.device == device) {
                continue;
            }
            let label = label(&subject);
            let label = if devices > 1 { format!("{label} ({device})") } else { label };
            let known = REPRESENTATIVES.contains(&subject.as_str()) || library(&subject).is_some();
            let hidden = distinct > SHOWN && !known;
            let style = lines.iter().filter(|line| line.key.hidden == hidden).count() % STYLES;
            let key = Key { name: format!("{subject}-{device}"), label, style, hidden };
            lines.push(Line { subject, device, key });
        }
        let headers = results.iter().map(|r| r.header.clone()).collect();
        Ok(Self { headers, summaries, lines, quality, hardware })
    }

    /// The tables as Markdown.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        for table in tables::all(self) {
            out.push_str(&table.markdown());
        }
        out
    }

    /// Peers against ours as Markdown: machine, command and notes, then the tables.
    pub fn peers(&self) -> String {
        let mut out = String::from("# Against other libraries\n\n");
        for header in &self.headers {
            let machine = &header.machine;
            out.push_str(&format!(
                "{}, {} threads, {}; {}, seqzoo-bench {}:\n\n```sh\n{}\n```\n\n",
                machine.cpu,
                header.threads.unwrap_or(machine.threads),
                machine.system,
                header.started,
                header.version,
                header.command
            ));
            out.extend(header.notes.iter().map(|note| format!("- {note}\n")));
            if !header.notes.is_empty() {
                out.push('\n');
            }
        }
        out.extend(tables::peers(self).iter().map(Table::markdown));
        out
    }

    /// Measured points of a line at a task, in its usual form, that `keep` keeps, by length.
    fn points(&self, line: &Line, task: Task, keep: impl Fn(&Summary) -> bool) -> Vec<&Summary> {
        let mut points: Vec<&Summary> = (self.summaries.iter())
            .filter(|s| s.point.subject == line.subject && s.point.device == line.device)
            .filter(|s| s.point.task == task && s.point.form == self.usual_form(line, task))
            .filter(|s| s.measured() && keep(s))
            .collect();
        points.sort_by_key(|s| (s.point.time, s.point.batch));
        points
    }

    /// `auto`, or the only form that was measured.
    fn usual_form(&self, line: &Line, task: Task) -> Form {
        let of = |s: &&Summary| {
            s.point.subject == line.subject && s.point.device == line.device && s.point.task == task
        };
        let auto = self.summaries.iter().filter(of).any(|s| s.point.form == Form::Auto);
        let first = self.summaries.iter().find(of).map(|s| s.point.form);
        if auto { Form::Auto } else { first.unwrap_or_default() }
    }

    /// Points of one sequence at a time.
    fn single(&self, line: &Line, task: Task) -> Vec<&Summary> {
        self.points(line, task, |s| s.point.batch == 1)
    }

    /// Points whose batch and length make the most common number of tokens, at least three lengths of it.
    fn constant_tokens(&self, line: &Line, task: Task) -> Vec<&Summary> {
        let all = self.points(line, task, |_| true);
        let count = |tokens: usize| all.iter().filter(|s| s.point.tokens() == tokens).count();
        let tokens = all.iter().map(|s| s.point.tokens()).max_by_key(|&tokens| (count(tokens), tokens));
        match tokens {
            Some(tokens) if count(tokens) > 2 => {
                all.into_iter().filter(|s| s.point.tokens() == tokens).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The scaling law of a line at a task, one sequence at a time.
    fn law(&self, line: &Line, task: Task) -> Option<Fit> {
        let points: Vec<AtLength> =
            (self.single(line, task).iter()).map(|s| (s.point.time as f64, s.rounds.clone())).collect();
        fit(&points)
    }

    /// Whether the state of a line grows with the text; `None` where its size is not known at two lengths.
    fn grows(&self, line: &Line) -> Option<bool> {
        let points = self.single(line, Task::Prefill);
        let (first, last) = (points.first()?, points.last()?);
        (first.point.time < last.point.time && last.counted.state_bytes > 0)
            .then_some(last.counted.state_bytes > first.counted.state_bytes)
    }

    fn ceilings(&self, device: &str) -> Option<Ceilings> {
        ceilings(&self.summaries, device)
    }

    /// Seconds by length of one sequence.
    fn curve(&self, line: &Line, task: Task) -> Vec<(f64, f64)> {
        self.single(line, task).iter().map(|s| (s.point.time as f64, s.seconds())).collect()
    }
}

/// The name shown: an architecture's title without its parenthesis, a peer's own name.
fn label(subject: &str) -> String {
    let title = architecture(subject).map_or(subject, |a| a.title);
    title.split([':', '(', ',']).next().unwrap_or(subject).trim().to_string()
}

/// Writes the page, whole or not at all.
///
/// # Errors
/// When the file cannot be written; an older one stays.
pub fn write(data: &Data, path: &Path) -> Result<()> {
    Ok(seqzoo::files::replace(path, render(data).as_bytes())?)
}

#[cfg(test)]
mod tests;
