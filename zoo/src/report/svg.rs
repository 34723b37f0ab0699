//! Line charts as inline SVG: scales with nice ticks, lines, markers, labels at the ends of lines.
//!
//! Colours and fonts come from the style sheet of [`super::document()`]: a series of style `k` has the classes `s`
//! and `sk`.

use std::fmt::Write;

/// Width of every chart in its own units; the page scales it to the screen.
pub const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 360.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 44.0;
const LEFT: f64 = 80.0;
/// Space between two labels at the ends of lines.
const LABEL_STEP: f64 = 14.5;
/// Number of colours and marker shapes in the style sheet.
pub const STYLES: usize = 10;

/// Escapes text for HTML and SVG, also inside attributes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// Maps values to the unit interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// Equal differences are equally far apart.
    Linear {
        /// Value at 0.
        low: f64,
        /// Value at 1.
        high: f64,
    },
    /// Equal ratios are equally far apart.
    Log {
        /// Value at 0, positive.
        low: f64,
        /// Value at 1.
        high: f64,
    },
}

impl Scale {
    /// A linear scale around the values, ending on round numbers.
    pub fn linear(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = range(values).unwrap_or((0.0, 1.0));
        let (low, high) = if high > low { (low, high) } else { (low - 0.5, high + 0.5) };
        let step = nice_step((high - low) / 5.0);
        Scale::Linear { low: (low / step).floor() * step, high: (high / step).ceil() * step }
    }

    /// A logarithmic scale around the positive values, with a little air.
    pub fn log(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = range(values.filter(|&v| v > 0.0)).unwrap_or((1.0, 10.0));
        let air = (high / low).powf(0.06).max(1.6);
        Scale::Log { low: low / air, high: high * air }
    }

    /// A logarithmic scale exactly around the positive values.
    pub fn log_tight(values: impl Iterator<Item = f64>) -> Self {
        match range(values.filter(|&v| v > 0.0)) {
            Some((low, high)) if high > low => Scale::Log { low, high },
            Some((low, _)) => Scale::Log { low: low / 2.0, high: low * 2.0 },
            None => Scale::Log { low: 1.0, high: 10.0 },
        }
    }

    /// Where a value lies, 0 to 1 inside the scale.
    pub fn place(self, value: f64) -> f64 {
        match self {
            Scale::Linear { low, high } => (value - low) / (high - low),
            Scale::Log { low, high } => (value / low).ln() / (high / low).ln(),
        }
    }

    /// Round values inside the scale.
    pub fn ticks(self) -> Vec<f64> {
        match self {
            Scale::Linear { low, high } => {
                let step = nice_step((high - low) / 5.0);
                let first = (low / step - 1e-9).ceil() as i64;
                let last = (high / step + 1e-9).floor() as i64;
                (first..=last).map(|i| i as f64 * step).collect()
            }
            Scale::Log { low, high } => {
                let all: Vec<f64> = (low.log10().floor() as i32..=high.log10().ceil() as i32)
                    .flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)))
                    .filter(|v| (low * 0.999..=high * 1.001).contains(v))
                    .collect();
                let tens: Vec<f64> =
                    all.iter().copied().filter(|v| (v.log10() - v.log10().round()).abs() < 1e-9).collect();
                if tens.len() >= 4 || all.len() > 7 { tens } else { all }
            }
        }
    }
}

fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|v| v.is_finite()).fold(None, |range, v| {
        let (low, high) = range.unwrap_or((v, v));
        Some((f64::min(low, v), f64::max(high, v)))
    })
}

/// 1, 2, 2.5 or 5 times a power of ten, at least `rough`.
fn nice_step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.log10().floor());
    let digit = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|d| d * power >= rough * 0.999_999);
    digit.unwrap_or(10.0) * power
}

/// One axis.
pub struct Axis {
    /// What it shows, with its unit.
    pub label: String,
    /// Its scale.
    pub scale: Scale,
    /// Marked values, each with its text.
    pub ticks: Vec<(f64, String)>,
}

/// One line.
#[derive(Default)]
pub struct Series {
    /// Index into the style sheet's colours and marker shapes.
    pub style: usize,
    /// Class by which the legend finds it.
    pub class: String,
    /// Its name, written at its end.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64)>,
    /// Points without a line through them.
    pub loose: bool,
    /// Hidden until the legend shows it: makes no room for its name.
    pub hidden: bool,
}

/// A chart of lines.
pub struct LineChart {
    /// Unique in the page.
    pub id: &'static str,
    /// Title, read by screen readers.
    pub title: String,
    /// One sentence, read by screen readers.
    pub description: String,
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis.
    pub y: Axis,
    /// Lines.
    pub series: Vec<Series>,
    /// Horizontal lines to compare with, each with its text.
    pub references: Vec<(f64, String)>,
    /// Writes a value of the horizontal axis in tooltips.
    pub show_x: fn(f64) -> String,
    /// Writes a value of the vertical axis in tooltips.
    pub show_y: fn(f64) -> String,
}

impl LineChart {
    /// The `<svg>` element in its frame.
    pub fn svg(&self) -> String {
        let shown = self.series.iter().filter(|s| !s.hidden);
        let longest = shown.map(|s| s.name.chars().count()).max().unwrap_or(0);
        let right = WIDTH - 22.0 - 6.3 * longest as f64;
        let (top, bottom) = (TOP, HEIGHT - BOTTOM);
        let px = |x: f64| LEFT + self.x.scale.place(x).clamp(0.0, 1.0) * (right - LEFT);
        let py = |y: f64| bottom - self.y.scale.place(y).clamp(0.0, 1.0) * (bottom - top);

        let mut out = String::new();
        // Share of the width without the names, which a narrow screen leaves out.
        let plot = (right + 12.0) / WIDTH;
        let (id, title, description) = (self.id, escape(&self.title), escape(&self.description));
        let _ = write!(
            out,
            "<div class=\"plot\"><svg class=\"chart\" id=\"{id}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
             tabindex=\"0\" style=\"--plot:{plot:.3}\" aria-labelledby=\"{id}-t {id}-d\"><title id=\"{id}-t\">{title}</title>\
             <desc id=\"{id}-d\">{description}</desc><g class=\"axis\">"
        );
        for (value, text) in &self.y.ticks {
            let y = py(*value);
            let _ = write!(
                out,
                "<path d=\"M{LEFT} {y:.1}H{right:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{}</text>",
                LEFT - 7.0,
                y + 4.0,
                escape(text)
            );
        }
        for (value, text) in &self.x.ticks {
            let x = px(*value);
            let _ = write!(
                out,
                "<path d=\"M{x:.1} {bottom}v5\"/><text x=\"{x:.1}\" y=\"{:.1}\" \
                 text-anchor=\"middle\">{}</text>",
                bottom + 18.0,
                escape(text)
            );
        }
        let _ = write!(
            out,
            "<path class=\"base\" d=\"M{LEFT} {bottom}H{right:.1}\"/>\
             <text class=\"label\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text class=\"label\" transform=\"translate(11 {:.1}) rotate(-90)\" \
             text-anchor=\"middle\">{}</text></g>",
            (LEFT + right) / 2.0,
            HEIGHT - 6.0,
            escape(&self.x.label),
            (top + bottom) / 2.0,
            escape(&self.y.label)
        );
        for (value, text) in &self.references {
            let y = py(*value);
            let _ = write!(
                out,
                "<g class=\"reference\"><path d=\"M{LEFT} {y:.1}H{right:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
                LEFT + 6.0,
                y - 5.0,
                escape(text)
            );
        }
        out.push_str("<path class=\"cross\" d=\"\"/>");

        let ends = self.label_positions(&py, top, bottom);
        for (series, label_y) in self.series.iter().zip(ends) {
            self.line(&mut out, series, label_y, right, &px, &py);
        }
        out.push_str("</svg></div>");
        out
    }

    fn line(
        &self,
        out: &mut String,
        series: &Series,
        label_y: f64,
        right: f64,
        px: &dyn Fn(f64) -> f64,
        py: &dyn Fn(f64) -> f64,
    ) {
        let places: Vec<(f64, f64)> = series.points.iter().map(|&(x, y)| (px(x), py(y))).collect();
        let Some(&(end_x, end_y)) = places.last() else { return };
        let style = series.style % STYLES;
        let data: Vec<_> = (series.points.iter().zip(&places))
            .map(|(&(x, y), &(px, py))| {
                let round = |v: f64| (v * 10.0).round() / 10.0;
                (round(px), round(py), (self.show_x)(x), (self.show_y)(y))
            })
            .collect();
        let data = serde_json::to_string(&data).unwrap_or_default();
        let _ = write!(
            out,
            "<g class=\"s s{style} {}\" data-name=\"{}\" data-points=\"{}\">",
            escape(&series.class),
            escape(&series.name),
            escape(&data)
        );
        if !series.loose {
            out.push_str("<path class=\"line\" d=\"");
            for (i, (x, y)) in places.iter().enumerate() {
                let _ = write!(out, "{}{x:.1} {y:.1}", if i == 0 { "M" } else { "L" });
            }
            out.push_str("\"/>");
        }
        // Long curves carry a few markers only: enough to tell lines apart without their colour.
        let every = if series.loose { 1 } else { places.len().div_ceil(9).max(1) };
        let offset = if every > 1 { style * every / STYLES } else { 0 };
        for (i, &(x, y)) in places.iter().enumerate().filter(|(i, _)| i % every == offset) {
            let (vx, vy) = series.points[i];
            let _ = write!(
                out,
                "<path class=\"mark\" d=\"{}\"><title>{}: {} at {}</title></path>",
                marker(style, x, y),
                escape(&series.name),
                escape(&(self.show_y)(vy)),
                escape(&(self.show_x)(vx))
            );
        }
        let _ = write!(
            out,
            "<path class=\"leader\" d=\"M{:.1} {end_y:.1}L{:.1} {label_y:.1}\"/>\
             <text class=\"name\" x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
            end_x + 5.0,
            right + 13.0,
            right + 16.0,
            label_y + 4.0,
            escape(&series.name)
        );
    }

    /// Heights of the names at the ends of lines: as close to the ends as they fit without overlap.
    fn label_positions(&self, py: &dyn Fn(f64) -> f64, top: f64, bottom: f64) -> Vec<f64> {
        let end = |s: &Series| s.points.last().map_or(bottom, |&(_, y)| py(y));
        let shown: Vec<f64> = self.series.iter().filter(|s| !s.hidden).map(end).collect();
        let step = LABEL_STEP.min((bottom - top) / shown.len().saturating_sub(1).max(1) as f64);
        let mut placed = spread(&shown, step, top, bottom).into_iter();
        let place = |s: &Series| if s.hidden { end(s) } else { placed.next().unwrap_or(bottom) };
        self.series.iter().map(place).collect()
    }
}

/// Moves positions apart to at least `step`, keeping their order and staying inside `[low, high]`
/// where there is room.
fn spread(wanted: &[f64], step: f64, low: f64, high: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|&a, &b| wanted[a].total_cmp(&wanted[b]));
    let mut placed = wanted.to_vec();
    let mut least = low;
    for &i in &order {
        placed[i] = placed[i].max(least);
        least = placed[i] + step;
    }
    let mut most = high;
    for &i in order.iter().rev() {
        placed[i] = placed[i].min(most);
        most = placed[i] - step;
    }
    placed
}

/// A marker shape centred on a point.
pub fn marker(style: usize, x: f64, y: f64) -> String {
    let polygon = |corners: &[(f64, f64)]| {
        let mut path = String::new();
        for (i, (dx, dy)) in corners.iter().enumerate() {
            let _ = write!(path, "{}{:.1} {:.1}", if i == 0 { "M" } else { "L" }, x + dx, y + dy);
        }
        path + "Z"
    };
    match style % STYLES {
        0 => format!("M{:.1} {y:.1}a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0 -7.2 0Z", x - 3.6),
        1 => polygon(&[(-3.3, -3.3), (3.3, -3.3), (3.3, 3.3), (-3.3, 3.3)]),
        2 => polygon(&[(0.0, -4.4), (4.2, 3.2), (-4.2, 3.2)]),
        3 => polygon(&[(0.0, -4.8), (4.8, 0.0), (0.0, 4.8), (-4.8, 0.0)]),
        4 => polygon(&[(0.0, 4.4), (4.2, -3.2), (-4.2, -3.2)]),
        5 => polygon(&[
            (-1.4, -4.4),
            (1.4, -4.4),
            (1.4, -1.4),
            (4.4, -1.4),
            (4.4, 1.4),
            (1.4, 1.4),
            (1.4, 4.4),
            (-1.4, 4.4),
            (-1.4, 1.4),
            (-4.4, 1.4),
            (-4.4, -1.4),
            (-1.4, -1.4),
        ]),
        6 => polygon(&[(-4.4, 0.0), (3.2, -4.2), (3.2, 4.2)]),
        7 => polygon(&[(4.4, 0.0), (-3.2, -4.2), (-3.2, 4.2)]),
        8 => polygon(&[(-2.3, -4.0), (2.3, -4.0), (4.6, 0.0), (2.3, 4.0), (-2.3, 4.0), (-4.6, 0.0)]),
        _ => polygon(&[
            (0.0, -5.0),
            (1.4, -1.4),
            (5.0, 0.0),
            (1.4, 1.4),
            (0.0, 5.0),
            (-1.4, 1.4),
            (-5.0, 0.0),
            (-1.4, -1.4),
        ]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let scale = Scale::linear([1.83, 5.4].into_iter());
        assert_eq!(scale.ticks(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(Scale::linear([0.0, 1.0].into_iter()).ticks().len(), 6);
        let log = Scale::Log { low: 0.3, high: 4.0 }.ticks();
        assert_eq!(log, [0.5, 1.0, 2.0]);
        assert_eq!(Scale::Log { low: 1.0, high: 10_000.0 }.ticks(), [1.0, 10.0, 100.0, 1e3, 1e4]);
    }

    #[test]
    fn degenerate_values_still_make_a_scale() {
        for scale in [
            Scale::linear(std::iter::empty()),
            Scale::linear([3.0].into_iter()),
            Scale::linear([f64::NAN, 2.0].into_iter()),
            Scale::log([5.0, 5.0].into_iter()),
            Scale::log([0.0, -1.0].into_iter()),
            Scale::log_tight([7.0].into_iter()),
        ] {
            assert!(scale.place(3.0).is_finite(), "{scale:?}");
            assert!(!scale.ticks().is_empty(), "{scale:?}");
        }
    }

    #[test]
    fn labels_keep_their_distance_and_stay_inside() {
        let placed = spread(&[100.0, 101.0, 99.0, 300.0], 14.0, 0.0, 305.0);
        let mut sorted = placed.clone();
        sorted.sort_by(f64::total_cmp);
        assert!(sorted.windows(2).all(|w| w[1] - w[0] >= 14.0 - 1e-9), "{placed:?}");
        assert!(placed[2] < placed[0] && placed[0] < placed[1]);
        let low = spread(&[304.0, 305.0], 14.0, 0.0, 305.0);
        assert_eq!(low, [291.0, 305.0]);
    }

    #[test]
    fn hidden_lines_take_no_room_and_loose_points_have_no_line() {
        let series = |n: usize, hidden: bool, loose: bool| Series {
            name: format!("line {n}"),
            points: (0..12).map(|x| (1.0 + x as f64, 5.0)).collect(),
            hidden,
            loose,
            ..Series::default()
        };
        let axis =
            || Axis { label: String::new(), scale: Scale::Log { low: 1.0, high: 12.0 }, ticks: vec![] };
        let chart = |series: Vec<Series>| LineChart {
            id: "id",
            title: String::new(),
            description: String::new(),
            x: axis(),
            y: axis(),
            series,
            references: vec![],
            show_x: |x| x.to_string(),
            show_y: |y| y.to_string(),
        };
        let (top, bottom) = (0.0, 300.0);
        let places = |chart: LineChart| chart.label_positions(&|_| 100.0, top, bottom);
        let few =
            places(chart(vec![series(0, false, false), series(1, true, false), series(2, false, false)]));
        assert_eq!(few, [100.0, 100.0, 100.0 + LABEL_STEP]);
        let many = places(chart((0..31).map(|n| series(n, false, false)).collect()));
        let step = many.windows(2).map(|w| w[1] - w[0]).fold(f64::INFINITY, f64::min);
        assert!(step > 9.9 && many.iter().all(|y| (top..=bottom + 1e-9).contains(y)), "{many:?}");
        let svg = chart(vec![series(0, false, true)]).svg();
        assert_eq!((svg.matches("class=\"line\"").count(), svg.matches("class=\"mark\"").count()), (0, 12));
        assert_eq!(chart(vec![series(0, false, false)]).svg().matches("class=\"line\"").count(), 1);
    }

    #[test]
    fn names_cannot_break_out_of_the_page() {
        assert_eq!(escape("<a href='x'>&\""), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;");
    }
}
