//! The frame of every page: style sheet and script inside, nothing to load.

use super::svg::escape;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// A whole HTML page around `body`, with `rules` behind the common style sheet.
pub fn document(title: &str, rules: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{} · seqzoo</title>\
         <style>{STYLE}{rules}</style></head><body><main>{body}</main><script>{SCRIPT}</script></body></html>\n",
        escape(title)
    )
}
