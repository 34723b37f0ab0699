//! Sentences computed from the results: what the numbers say, and only that.

use super::words::{bytes, digits, length, list, percent};
use crate::compare::{Entry, Results};

/// A number worth a large font, and the sentence that explains it.
pub(super) struct Finding {
    pub(super) number: String,
    pub(super) sentence: String,
}

/// Accuracy from which recall counts as solved.
const SOLVED: f64 = 0.95;

/// The name shown in charts: the title without its parenthesis.
pub(super) fn short(entry: &Entry) -> String {
    let title = entry.title.split([':', '(', ',']).next().unwrap_or_default().trim();
    if title.is_empty() { entry.name.clone() } else { title.to_string() }
}

/// Whether the state grows with the text; `None` before two lengths are measured.
pub(super) fn grows(entry: &Entry) -> Option<bool> {
    let (first, last) = (entry.speed.first()?, entry.speed.last()?);
    (first.length < last.length).then_some(last.state_bytes > first.state_bytes)
}

/// What stands at the top of the page.
pub(super) fn headlines(results: &Results) -> Vec<Finding> {
    [recall_headline(results), text_headline(results), decode_headline(results), memory_headline(results)]
        .into_iter()
        .flatten()
        .collect()
}

fn recall_headline(results: &Results) -> Option<Finding> {
    let scores = hardest(results);
    let (worst, accuracy) = scores.last()?;
    Some(Finding {
        number: format!("{} → {}", percent(scores[0].1), percent(*accuracy)),
        sentence: format!(
            "is the range of recall at {} key-value pairs, from {} down to {}.",
            pairs(results),
            short(scores[0].0),
            short(worst)
        ),
    })
}

fn text_headline(results: &Results) -> Option<Finding> {
    let scores = text_scores(results);
    let (best, bits) = scores.first()?;
    let spread = scores.last()?.1 - bits;
    Some(Finding {
        number: format!("{bits:.2} bits"),
        sentence: format!(
            "per byte of held-out text for the best, {}; the last of {} is {spread:.2} bits behind.",
            short(best),
            scores.len()
        ),
    })
}

fn decode_headline(results: &Results) -> Option<Finding> {
    let (entry, first, last) = (results.entries.iter())
        .filter(|e| grows(e) == Some(true))
        .filter_map(|e| Some((e, e.speed.first()?, e.speed.last()?)))
        .max_by(|a, b| a.2.decode_ms.total_cmp(&b.2.decode_ms))?;
    Some(Finding {
        number: format!("× {}", digits((last.decode_ms / first.decode_ms * 10.0).round() / 10.0)),
        sentence: format!(
            "is how much slower {} writes a token after {} tokens than after {}: its cache grows.",
            short(entry),
            length(last.length as f64),
            length(first.length as f64)
        ),
    })
}

fn memory_headline(results: &Results) -> Option<Finding> {
    let last = |grown: bool| {
        (results.entries.iter())
            .filter(move |e| grows(e) == Some(grown))
            .filter_map(|e| e.speed.last().map(|s| (e, *s)))
    };
    let (big, cache) = last(true).max_by_key(|(_, s)| s.state_bytes)?;
    let (small, fixed) = last(false).max_by_key(|(_, s)| s.state_bytes)?;
    if cache.length != fixed.length || fixed.state_bytes == 0 {
        return None;
    }
    Some(Finding {
        number: format!("× {:.0}", cache.state_bytes as f64 / fixed.state_bytes as f64),
        sentence: format!(
            "is the memory of {} at {} tokens ({}) over the largest fixed state ({}, {}).",
            short(big),
            length(cache.length as f64),
            bytes(cache.state_bytes as f64),
            short(small),
            bytes(fixed.state_bytes as f64)
        ),
    })
}

fn pairs(results: &Results) -> usize {
    results.recall.pairs.iter().copied().max().unwrap_or(0)
}

/// Entries with their accuracy at the most pairs, best first.
fn hardest(results: &Results) -> Vec<(&Entry, f64)> {
    let mut scores: Vec<_> =
        (results.entries.iter()).filter_map(|e| Some((e, e.recall.as_ref()?.hardest()?.accuracy))).collect();
    scores.sort_by(|a, b| b.1.total_cmp(&a.1));
    scores
}

/// Entries with their bits per byte, best first.
fn text_scores(results: &Results) -> Vec<(&Entry, f64)> {
    let mut scores: Vec<_> =
        (results.entries.iter()).filter_map(|e| Some((e, e.text.as_ref()?.bits_per_byte?))).collect();
    scores.sort_by(|a, b| a.1.total_cmp(&b.1));
    scores
}

/// Names, or how many where there are too many to read.
fn names<'a>(entries: impl Iterator<Item = &'a Entry>) -> String {
    let names: Vec<String> = entries.map(short).collect();
    if names.len() > 4 { format!("{} architectures", names.len()) } else { list(&names) }
}

/// What the recall chart shows.
pub(super) fn recall(results: &Results) -> String {
    let scores = hardest(results);
    let (solved, rest) = scores.split_at(scores.partition_point(|(_, accuracy)| *accuracy >= SOLVED));
    let at = pairs(results);
    match (solved, rest) {
        ([], []) => "Not measured yet.".into(),
        ([], rest) => format!(
            "No architecture reached 95 % at {at} pairs; {} came closest with {}.",
            short(rest[0].0),
            percent(rest[0].1)
        ),
        (_, []) => format!("Every architecture still recalls at least 95 % at {at} pairs."),
        (solved, rest) => format!(
            "With {at} pairs to keep apart, at least 95 % of the queries are still answered right by {}; {} fall to {}.",
            names(solved.iter().map(|s| s.0)),
            names(rest.iter().map(|s| s.0)),
            if rest.len() == 1 {
                percent(rest[0].1)
            } else {
                format!("{} – {}", percent(rest[rest.len() - 1].1), percent(rest[0].1))
            }
        ),
    }
}

/// What the recall training curves show.
pub(super) fn recall_curves(results: &Results) -> String {
    let first_above = |e: &Entry| {
        let run = e.recall.as_ref()?;
        Some((run.curve.iter().find(|p| p.value >= 0.9)?.step, short(e)))
    };
    let mut steps: Vec<_> = results.entries.iter().filter_map(first_above).collect();
    steps.sort();
    match steps.as_slice() {
        [] => "No architecture crossed 90 % on the mean over all numbers of pairs.".into(),
        [(step, name)] => {
            format!("Only {name} crosses 90 % on the mean over all numbers of pairs, at step {step}.")
        }
        [(step, name), .., (last, slow)] => format!(
            "Recall is learnt suddenly: {name} crosses 90 % first, at step {step}, and {slow} last of the {} \
             that do, at step {last}.",
            steps.len()
        ),
    }
}

/// What the text curves show.
pub(super) fn text(results: &Results) -> String {
    let scores = text_scores(results);
    match scores.as_slice() {
        [] => "Not measured yet.".into(),
        [(only, bits)] => format!("{} ends at {bits:.2} bits per byte of held-out text.", short(only)),
        [(best, bits), .., (last, worst)] => format!(
            "On the same batches {} learns most ({bits:.2} bits per byte of held-out text) and {} least \
             ({worst:.2}).",
            short(best),
            short(last)
        ),
    }
}

/// What the chart of time per token shows.
pub(super) fn decode(results: &Results) -> String {
    let ratio = |e: &Entry| Some(e.speed.last()?.decode_ms / e.speed.first()?.decode_ms);
    let of = |grown: bool| results.entries.iter().filter(move |e| grows(e) == Some(grown));
    let fixed = of(false).filter_map(ratio).fold(f64::NAN, f64::max);
    match (of(true).filter_map(|e| Some((e, ratio(e)?))).max_by(|a, b| a.1.total_cmp(&b.1)), fixed.is_nan()) {
        (None, true) => "Not measured yet.".into(),
        (None, false) => format!("A fixed state costs the same at every length: within × {fixed:.1} here."),
        (Some((grown, ratio)), true) => {
            format!("{}'s time per token grows × {ratio:.1} over these lengths.", short(grown))
        }
        (Some((grown, ratio)), false) => format!(
            "A cache is read in full for every token, so {}'s line rises (× {ratio:.1}); a fixed state costs the \
             same at every length (at most × {fixed:.1}).",
            short(grown)
        ),
    }
}

/// What the prefill chart shows.
pub(super) fn prefill(results: &Results) -> String {
    let ends = |e: &Entry| Some((e.speed.first()?.prefill, e.speed.last()?.prefill));
    let slowed = (results.entries.iter())
        .filter(|e| e.speed.len() > 1)
        .filter_map(|e| ends(e).map(|(first, last)| (e, first / last)))
        .max_by(|a, b| a.1.total_cmp(&b.1));
    let best = (results.entries.iter())
        .filter_map(|e| e.speed.last().map(|s| (e, s)))
        .max_by(|a, b| a.1.prefill.total_cmp(&b.1.prefill));
    match (slowed, best) {
        (Some((slow, ratio)), Some((fast, speed))) => format!(
            "At {} tokens {} reads fastest ({} tokens per second); {} loses most with length (× {ratio:.1} slower).",
            length(speed.length as f64),
            short(fast),
            super::words::count(speed.prefill),
            short(slow)
        ),
        _ => "Not measured yet.".into(),
    }
}

/// What the memory chart shows.
pub(super) fn memory(results: &Results) -> String {
    let growing: Vec<_> = results.entries.iter().filter(|e| grows(e) == Some(true)).collect();
    let fixed: Vec<_> = results.entries.iter().filter(|e| grows(e) == Some(false)).collect();
    let last = |e: &Entry| e.speed.last().map_or(0, |s| s.state_bytes);
    match (growing.as_slice(), fixed.as_slice()) {
        ([], []) => "Not measured yet.".into(),
        ([], _) => "Every state here has the same size at every length.".into(),
        (_, []) => format!("{} keep every token they have read.", names(growing.iter().copied())),
        _ => {
            let most = growing.iter().map(|e| last(e)).max().unwrap_or(0);
            let least = fixed.iter().map(|e| last(e)).min().unwrap_or(0);
            let largest = fixed.iter().map(|e| last(e)).max().unwrap_or(0);
            format!(
                "Caches grow in proportion to the text, to {}; the fixed states stay at {}.",
                bytes(most as f64),
                if least == largest {
                    bytes(least as f64)
                } else {
                    format!("{} – {}", bytes(least as f64), bytes(largest as f64))
                }
            )
        }
    }
}

/// What the maps show.
pub(super) fn maps(results: &Results) -> String {
    let best = |e: &Entry| e.maps.iter().map(|m| m.on_target).fold(f64::NAN, f64::max);
    let mut scores: Vec<_> =
        (results.entries.iter()).filter(|e| !e.maps.is_empty()).map(|e| (e, best(e))).collect();
    scores.sort_by(|a, b| b.1.total_cmp(&a.1));
    match scores.as_slice() {
        [] => "Not measured yet.".into(),
        [(top, share), ..] => format!(
            "Rings mark, for each query, the value it has to find: a model that solves recall by looking it up \
             lights up inside the rings, most clearly {} with {} of its weight there.",
            short(top),
            percent(*share)
        ),
    }
}
