//! A table that can be HTML or Markdown.

use std::fmt::Write;

use seqzoo::report::svg::escape;

/// Head of a column of commands.
const COMMAND: &str = "command";
/// Rows beyond which a table is folded in.
const LONG: usize = 30;

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

    /// The column of commands.
    fn code(&self) -> Option<usize> {
        self.head.iter().position(|head| head == COMMAND)
    }

    /// A section of the page; nothing where there are no rows.
    pub(super) fn html(&self) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let code = self.code();
        let mut out =
            format!("<section><h2>{}</h2><p class=\"intro\">{}</p>", escape(&self.title), escape(&self.note));
        let long = self.rows.len() > LONG;
        if long {
            let _ = write!(out, "<details><summary>{} rows</summary>", self.rows.len());
        }
        out.push_str("<div class=\"card scroll\" tabindex=\"0\"><table><thead><tr>");
        for head in &self.head {
            let _ = write!(out, "<th scope=\"col\">{}</th>", escape(head));
        }
        out.push_str("</tr></thead><tbody>");
        for row in &self.rows {
            out.push_str("<tr>");
            for (i, cell) in row.iter().enumerate() {
                let (open, close) = match i {
                    0 => ("<th scope=\"row\">", "</th>"),
                    i if Some(i) == code => ("<td><code>", "</code></td>"),
                    _ => ("<td>", "</td>"),
                };
                let _ = write!(out, "{open}{}{close}", escape(cell));
            }
            out.push_str("</tr>");
        }
        out + "</tbody></table></div>" + if long { "</details></section>" } else { "</section>" }
    }

    /// A Markdown section; nothing where there are no rows.
    pub(super) fn markdown(&self) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let code = self.code();
        let row = |cells: &[String], code: Option<usize>| {
            let cell = |(i, cell): (usize, &String)| {
                let cell = cell.replace('|', "\\|");
                if Some(i) == code { format!("`{cell}`") } else { cell }
            };
            format!("| {} |\n", cells.iter().enumerate().map(cell).collect::<Vec<_>>().join(" | "))
        };
        let left = |i: usize| i == 0 || Some(i) == code;
        let align: Vec<&str> = (0..self.head.len()).map(|i| if left(i) { "---" } else { "---:" }).collect();
        let mut out = format!("## {}\n\n{}\n\n{}", self.title, self.note, row(&self.head, None));
        let _ = writeln!(out, "| {} |", align.join(" | "));
        out.extend(self.rows.iter().map(|cells| row(cells, code)));
        out.push('\n');
        out
    }
}
