//! A table that can be HTML or Markdown.

use std::fmt::Write;

use seqzoo::report::svg::escape;

/// Rows of text under a head.
pub(super) struct Table {
    pub(super) title: String,
    pub(super) note: String,
    pub(super) head: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(title: &str, note: impl Into<String>, head: &[&str]) -> Self {
        let head = head.iter().map(ToString::to_string).collect();
        Self { title: title.into(), note: note.into(), head, rows: Vec::new() }
    }

    /// A section of the page; nothing where there are no rows.
    pub(super) fn html(&self) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let mut out = format!(
            "<section><h2>{}</h2><p class=\"intro\">{}</p><div class=\"card scroll\" tabindex=\"0\"><table><thead><tr>",
            escape(&self.title),
            escape(&self.note)
        );
        for head in &self.head {
            let _ = write!(out, "<th scope=\"col\">{}</th>", escape(head));
        }
        out.push_str("</tr></thead><tbody>");
        for row in &self.rows {
            out.push_str("<tr>");
            for (i, cell) in row.iter().enumerate() {
                let (open, close) = if i == 0 { ("<th scope=\"row\">", "</th>") } else { ("<td>", "</td>") };
                let _ = write!(out, "{open}{}{close}", escape(cell));
            }
            out.push_str("</tr>");
        }
        out + "</tbody></table></div></section>"
    }

    /// A Markdown section; nothing where there are no rows.
    pub(super) fn markdown(&self) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let row = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let align: Vec<&str> = (0..self.head.len()).map(|i| if i == 0 { "---" } else { "---:" }).collect();
        let mut out = format!("## {}\n\n{}\n\n{}", self.title, self.note, row(&self.head));
        let _ = writeln!(out, "| {} |", align.join(" | "));
        out.extend(self.rows.iter().map(|cells| row(cells)));
        out.push('\n');
        out
    }
}
