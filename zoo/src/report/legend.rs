//! The legend of a page: one key per line, which hides and highlights it in every chart, without a script.

use std::fmt::Write;

use super::svg::{self, escape};

/// One line's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its name, unique in the page.
    pub name: String,
    /// What is written.
    pub label: String,
    /// Index of its colour and marker.
    pub style: usize,
    /// Whether its lines are hidden until it is ticked.
    pub hidden: bool,
}

impl Key {
    /// The class by which the legend finds the lines of this key.
    pub fn class(&self) -> String {
        format!("a-{}", slug(&self.name))
    }
}

/// Letters, digits, `_` and `-` only: usable in class names and ids.
pub fn slug(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect()
}

/// A piece of the line, with its marker.
pub fn swatch(style: usize) -> String {
    format!(
        "<svg class=\"swatch s{style}\" viewBox=\"0 0 24 14\" aria-hidden=\"true\"><path d=\"M1 7H23\"/>\
         <path class=\"mark\" d=\"{}\"/></svg>",
        svg::marker(style, 12.0, 7.0)
    )
}

/// The keys, each with a box to untick; those of hidden lines are folded in, each with a box to tick.
pub fn legend(keys: &[Key]) -> String {
    let (hidden, shown): (Vec<&Key>, Vec<&Key>) = keys.iter().partition(|key| key.hidden);
    let mut out = boxes("Architectures: untick to hide", &shown);
    if !hidden.is_empty() {
        let title = format!("{} more, in all tables; tick to draw", hidden.len());
        let _ = write!(
            out,
            "<details class=\"others\"><summary>{title}</summary>{}</details>",
            boxes(&title, &hidden)
        );
    }
    out
}

fn boxes(title: &str, keys: &[&Key]) -> String {
    let mut out = format!("<fieldset class=\"keys\"><legend>{title}</legend>");
    for key in keys {
        let _ = write!(
            out,
            "<label class=\"key s{} {}\"><input type=\"checkbox\"{} id=\"show-{}\">{}{}</label>",
            key.style,
            key.class(),
            if key.hidden { "" } else { " checked" },
            slug(&key.name),
            swatch(key.style),
            escape(&key.label)
        );
    }
    out + "</fieldset>"
}

/// The style rules that make the legend work.
pub fn rules(keys: &[Key]) -> String {
    let mut out = String::new();
    for key in keys {
        let slug = slug(&key.name);
        let _ = write!(
            out,
            "body:has(#show-{slug}:not(:checked)) .chart .a-{slug}{{display:none}}\
             body:has(.key.a-{slug}:hover,#show-{slug}:focus-visible) .chart .s:not(.a-{slug}){{opacity:.13}}"
        );
    }
    out
}
