//! Files of results: appended to line by line, so that whatever stops a sweep, finished lines stay.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::record::{Header, Line, Record, SCHEMA};
use crate::{Error, Result};

/// What to do about a file that should be new.
pub const THERE: &str =
    "is there already: go on with `--resume`, or name another file with `--out` (`--baseline-out`)";

/// A file that a sweep appends to.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    file: File,
}

/// All that a file holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Results {
    /// Where it came from.
    pub path: PathBuf,
    /// Its first line.
    pub header: Header,
    /// All others.
    pub records: Vec<Record>,
}

impl Store {
    /// Goes on with a file or starts a new one; what it holds already is returned.
    ///
    /// # Errors
    /// As of [`Store::resume`] and [`Store::create`].
    pub fn open(path: &Path, header: &Header, resume: bool) -> Result<(Self, Vec<Record>)> {
        if resume { Self::resume(path, header) } else { Ok((Self::create(path, header)?, Vec::new())) }
    }

    /// Starts a new file.
    ///
    /// # Errors
    /// When there is one already, or it cannot be written.
    pub fn create(path: &Path, header: &Header) -> Result<Self> {
        let file =
            OpenOptions::new().write(true).create_new(true).open(path).map_err(|e| match e.kind() {
                std::io::ErrorKind::AlreadyExists => Error::file(path, THERE),
                _ => Error::io(path, e),
            })?;
        let mut store = Self { path: path.to_path_buf(), file };
        store.line(&Line::Header(header.clone()))?;
        Ok(store)
    }

    /// Goes on with a file, or starts it where there is none; a half-written last line is cut off.
    ///
    /// # Errors
    /// When it was measured on another machine or at other sizes, or cannot be read or written.
    pub fn resume(path: &Path, header: &Header) -> Result<(Self, Vec<Record>)> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Ok((Self::create(path, header)?, Vec::new()));
            }
            Err(e) => return Err(Error::io(path, e)),
        };
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let mut file = OpenOptions::new().append(true).open(path).map_err(|e| Error::io(path, e))?;
        let records = if whole == 0 {
            Vec::new()
        } else {
            let old = parse(path, &text[..whole])?;
            let same = old.header.machine == header.machine
                && old.header.sizes == header.sizes
                && old.header.threads == header.threads;
            if !same {
                let reason = "was measured on another machine, device or thread count, or at other sizes: \
                              its rest cannot be added here; name another file with `--out`";
                return Err(Error::file(path, reason));
            }
            old.records
        };
        file.set_len(whole as u64).map_err(|e| Error::io(path, e))?;
        file.flush().map_err(|e| Error::io(path, e))?;
        let mut store = Self { path: path.to_path_buf(), file };
        if whole == 0 {
            store.line(&Line::Header(header.clone()))?;
        }
        Ok((store, records))
    }

    /// Adds a record, in one write.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        self.line(&Line::Record(record.clone()))
    }

    fn line(&mut self, line: &Line) -> Result<()> {
        let mut json = serde_json::to_vec(line).map_err(|e| Error::file(&self.path, e.to_string()))?;
        json.push(b'\n');
        let written = self.file.write_all(&json).and_then(|()| self.file.sync_data());
        written.map_err(|e| Error::io(&self.path, e))
    }
}

impl Results {
    /// Reads a file that `run` or `peers` wrote, finished or not: a half-written last line is left out.
    ///
    /// # Errors
    /// When it cannot be read or a line is damaged; the message names the line.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        parse(path, &text[..whole])
    }
}

fn parse(path: &Path, text: &[u8]) -> Result<Results> {
    let mut header = None;
    let mut records = Vec::new();
    for (i, line) in text.split(|&byte| byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
        let bad = |reason: String| Error::Line { path: path.to_path_buf(), line: i + 1, reason };
        if header.is_none() {
            check_schema(line).map_err(bad)?;
        }
        match (serde_json::from_slice(line).map_err(|e| bad(e.to_string()))?, &header) {
            (Line::Header(new), None) => header = Some(new),
            (Line::Record(record), Some(_)) => records.push(record),
            (Line::Header(_), Some(_)) => return Err(bad("a second header".into())),
            (Line::Record(_), None) => return Err(bad("a record before the header".into())),
        }
    }
    let empty = || Error::file(path, "holds no results; `seqzoo-bench run` writes them");
    Ok(Results { path: path.to_path_buf(), header: header.ok_or_else(empty)?, records })
}

/// Refuses other files and other versions before their fields are looked at.
fn check_schema(line: &[u8]) -> Result<(), String> {
    let value: serde_json::Value = serde_json::from_slice(line).map_err(|e| format!("not JSON: {e}"))?;
    match value.get("schema").and_then(serde_json::Value::as_u64) {
        Some(schema) if schema == u64::from(SCHEMA) => Ok(()),
        Some(other) => Err(format!("its layout is version {other}, this program reads {SCHEMA}")),
        None => Err("no header of a sweep: it has no `schema` number".into()),
    }
}
