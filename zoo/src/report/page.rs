//! The page around the figures: text, tables, legend, style sheet.

use std::fmt::Write;

use super::document::document;
use super::legend::{Key, legend, rules, swatch};
use super::svg::escape;
use super::words::{bytes, count, duration, percent};
use super::{charts, findings, heatmap, style_of, summary};
use crate::compare::{Entry, MapKind, ModelSizes, Results, Status, Training};

/// The page.
pub fn render(results: &Results) -> String {
    let n = results.entries.len();
    let title = match n {
        1 => format!("{}, measured", findings::short(&results.entries[0])),
        n => format!("{} ways to remember a sequence", words_for(n)),
    };
    let mut out = String::new();
    let _ = write!(
        out,
        "<header><p class=\"eyebrow\">seqzoo compare</p><h1>{}</h1><p class=\"lead\">{}</p>{}</header>",
        escape(&title),
        escape(&lead(results)),
        notice(results)
    );
    let headlines = findings::headlines(results);
    if !headlines.is_empty() {
        out.push_str("<ul class=\"findings\">");
        for finding in headlines {
            let (number, sentence) = (escape(&finding.number), escape(&finding.sentence));
            let _ = write!(out, "<li><strong>{number}</strong><span>{sentence}</span></li>");
        }
        out.push_str("</ul>");
    }
    out.push_str(&legend(&keys(results)));
    table(&mut out, results);
    let recall = &results.recall;
    section(
        &mut out,
        "Recall",
        &format!(
            "Multi-query associative recall: a list of key-value pairs, then some of the keys again, and each time the \
             model has to answer with the key's value. {} different tokens, {}, all models at {} parameters, {} numbers of \
             memory per layer where the size is free to choose. All see few pairs first and more later.",
            recall.vocab,
            shape(&recall.model),
            count(recall.model.params as f64),
            recall.model.state
        ),
        &[charts::recall(results), charts::recall_curves(results)],
    );
    let text = &results.text;
    section(
        &mut out,
        "Text, speed and memory",
        &format!(
            "Byte by byte through {}. {} layers of width {}, all models at {} parameters, {} numbers of state per \
             layer where the size is free to choose. Speed is that of the same models, for a single sequence.",
            text.source,
            text.model.depth,
            text.model.d_model,
            count(text.model.params as f64),
            text.model.state
        ),
        &[charts::text(results), charts::decode(results), charts::prefill(results), charts::memory(results)],
    );
    maps(&mut out, results);
    how(&mut out, results);
    let _ = write!(
        out,
        "<footer>Written by seqzoo {}. Timings vary from run to run and machine to machine; every other number \
         follows from the seed.</footer>",
        escape(&results.version)
    );
    document(&title, &rules(&keys(results)), &out)
}

fn words_for(n: usize) -> String {
    const WORDS: [&str; 13] = [
        "No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven",
        "Twelve",
    ];
    WORDS.get(n).map_or_else(|| n.to_string(), |w| w.to_string())
}

fn lead(results: &Results) -> String {
    format!(
        "Each architecture got the same number of parameters, the same batches in the same order and, where it keeps \
         a memory of fixed size, the same number of cells to remember with. Then it read {}, learnt to recall, and \
         ran against the clock.",
        if results.text.source.is_empty() { "text" } else { &results.text.source }
    )
}

fn notice(results: &Results) -> String {
    let note = match results.status {
        Status::Finished => return String::new(),
        Status::Running => "This comparison is still running: reload the page to see more.",
        Status::Interrupted => "This comparison was stopped early: what had not been measured is shown as –.",
    };
    format!("<p class=\"notice\">{note}</p>")
}

/// One key per architecture.
fn keys(results: &Results) -> Vec<Key> {
    let key = |e: &Entry| Key {
        name: e.name.clone(),
        label: findings::short(e),
        style: style_of(results, &e.name),
        hidden: false,
    };
    results.entries.iter().map(key).collect()
}

fn section(out: &mut String, title: &str, intro: &str, figures: &[String]) {
    let _ = write!(
        out,
        "<section><h2>{}</h2><p class=\"intro\">{}</p><div class=\"charts\">{}</div></section>",
        escape(title),
        escape(intro),
        figures.concat()
    );
}

fn table(out: &mut String, results: &Results) {
    let columns = summary::columns(results);
    out.push_str(
        "<section><h2>Summary</h2><p class=\"intro\">The best of each column is set in bold.</p>\
         <div class=\"card summary scroll\" tabindex=\"0\"><table><thead><tr><th scope=\"col\">architecture</th>",
    );
    for column in &columns {
        let _ = write!(out, "<th scope=\"col\">{}</th>", escape(&column.head));
    }
    out.push_str("</tr></thead><tbody>");
    for (row, entry) in results.entries.iter().enumerate() {
        let _ = write!(
            out,
            "<tr><th scope=\"row\"><div>{}<span>{}<small>{}</small></span></div></th>",
            swatch(style_of(results, &entry.name)),
            escape(&findings::short(entry)),
            escape(&entry.state)
        );
        for column in &columns {
            let _ = match &column.cells[row] {
                Some((value, text)) if Some(*value) == column.best() => {
                    write!(out, "<td class=\"best\">{}</td>", escape(text))
                }
                Some((_, text)) => write!(out, "<td>{}</td>", escape(text)),
                None => write!(out, "<td>–</td>"),
            };
        }
        out.push_str("</tr>");
        for failure in &entry.failures {
            let span = columns.len() + 1;
            let _ = write!(out, "<tr><td class=\"failed\" colspan=\"{span}\">{}</td></tr>", escape(failure));
        }
    }
    out.push_str("</tbody></table></div></section>");
}

fn maps(out: &mut String, results: &Results) {
    let _ = write!(
        out,
        "<section><h2>Where each layer looks</h2><p class=\"intro\">One recall sample through the trained recall \
         models: row = position that reads, column = position it reads from, each row divided by its largest weight \
         (<span class=\"ramp\" role=\"img\" aria-label=\"colour scale from minus one to one\"></span> −1 to 1). Of \
         several heads the one that looks most at the right pairs is shown. {}</p><div class=\"maps\">",
        escape(&findings::maps(results))
    );
    for entry in results.entries.iter().filter(|e| !e.maps.is_empty()) {
        let name = findings::short(entry);
        let _ = write!(
            out,
            "<figure class=\"card\"><h3>{}{}</h3><div class=\"pair\">",
            swatch(style_of(results, &entry.name)),
            escape(&name)
        );
        for map in &entry.maps {
            let kind = match map.kind {
                MapKind::Attention => "implied attention",
                MapKind::Influence => "influence ‖∂y/∂x‖",
            };
            let head = map.head.map_or(String::new(), |h| format!(", head {h}"));
            let _ = write!(
                out,
                "<div>{}<p>Layer {}{head}: {kind}, {} on the right pair</p></div>",
                heatmap::svg(map, &name),
                map.layer,
                percent(map.on_target)
            );
        }
        out.push_str("</div></figure>");
    }
    out.push_str("</div></section>");
}

fn training(training: &Training) -> String {
    format!(
        "{} steps of {} sequences of {} tokens, learning rate {}",
        training.steps, training.batch, training.length, training.learning_rate
    )
}

fn sizes(sizes: &ModelSizes) -> String {
    format!("{}, {} parameters, {} numbers of state per layer", shape(sizes), sizes.params, sizes.state)
}

fn shape(sizes: &ModelSizes) -> String {
    let layers = if sizes.depth == 1 { "layer" } else { "layers" };
    let conv = match sizes.conv {
        0 => String::new(),
        kernel => format!(" with a convolution over {kernel} tokens before the mixer"),
    };
    format!("{} {layers} of width {}{conv}", sizes.depth, sizes.d_model)
}

fn how(out: &mut String, results: &Results) {
    let machine = &results.machine;
    let (text, recall) = (&results.text, &results.recall);
    let pairs: Vec<String> = recall.pairs.iter().map(usize::to_string).collect();
    let rows = [
        ("Command", format!("<code>{}</code>", escape(&results.command))),
        ("Seed", results.seed.to_string()),
        ("Started", format!("{}, took {}", escape(&results.started), duration(results.seconds))),
        (
            "Machine",
            escape(&format!(
                "{}, {} threads, {}, device {}",
                machine.cpu, machine.threads, machine.system, machine.device
            )),
        ),
        (
            "Text",
            escape(&format!(
                "{} ({}, of which the last {} are held out); {}; {}",
                text.source,
                bytes(text.bytes as f64),
                bytes(text.held_out as f64),
                sizes(&text.model),
                training(&text.training)
            )),
        ),
        (
            "Recall",
            escape(&format!(
                "vocabulary {}, {} pairs; {}; {}; {} sequences per number of pairs in the evaluation",
                recall.vocab,
                super::words::list(&pairs),
                sizes(&recall.model),
                training(&recall.training),
                recall.samples
            )),
        ),
    ];
    out.push_str("<section><h2>How it was run</h2><div class=\"card\"><dl>");
    for (term, value) in rows {
        let _ = write!(out, "<dt>{term}</dt><dd>{value}</dd>");
    }
    out.push_str(
        "</dl><details><summary>Every model's sizes</summary><div class=\"scroll\" tabindex=\"0\"><table>",
    );
    out.push_str(
        "<thead><tr><th scope=\"col\">architecture</th><th scope=\"col\">task</th><th scope=\"col\">parameters</th>\
         <th scope=\"col\">MLP hidden size</th><th scope=\"col\">state after one sequence</th>\
         <th scope=\"col\">training time</th><th scope=\"col\">mixer</th></tr></thead><tbody>",
    );
    for entry in &results.entries {
        let text = entry.text.as_ref().map(|r| r.seconds);
        let recall = entry.recall.as_ref().map(|r| r.seconds);
        for (task, model, seconds) in
            [("text", &entry.text_model, text), ("recall", &entry.recall_model, recall)]
        {
            let Some(model) = model else { continue };
            let _ = write!(
                out,
                "<tr><th scope=\"row\">{}</th><td>{task}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
                 <td style=\"text-align:left\"><code>{}</code></td></tr>",
                escape(&findings::short(entry)),
                model.params,
                model.mlp_hidden,
                bytes(model.state_bytes as f64),
                seconds.map_or("–".into(), duration),
                escape(&model.mixer.to_string())
            );
        }
    }
    out.push_str("</tbody></table></div></details></div></section>");
}
