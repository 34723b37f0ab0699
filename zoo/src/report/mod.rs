//! One self-contained page from the results of a comparison: no network, no assets, complete without
//! JavaScript, in light and dark, on a phone.

mod charts;
mod document;
pub mod figure;
mod findings;
mod heatmap;
pub mod legend;
mod page;
mod summary;
pub mod svg;
pub mod words;

use std::path::Path;

use crate::compare::Results;
use crate::{Result, files};

pub use document::document;
pub use page::render;
pub use summary::table;

/// Writes the page, whole or not at all.
///
/// # Errors
/// When the file cannot be written; an older one stays.
pub fn write(results: &Results, path: &Path) -> Result<()> {
    files::replace(path, render(results).as_bytes())
}

/// Index of an architecture's colour and marker: no two in a report share one as long as there are enough.
fn style_of(results: &Results, name: &str) -> usize {
    results.entries.iter().position(|e| e.name == name).unwrap_or(0) % svg::STYLES
}

#[cfg(test)]
mod tests;
