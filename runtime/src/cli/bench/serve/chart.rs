//! Plots as SVG, drawn here: steps or dots over two axes.

use std::fmt::Write as _;

/// Of the whole picture, in its own units.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 260.0;
/// Room for the names of ticks and axes: left, right, top, bottom.
const ROOM: [f64; 4] = [56.0, 14.0, 12.0, 42.0];
/// More points than this can't be told apart in a line.
const MOST_POINTS: usize = 600;

/// How points are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Each value holds until the next point.
    Steps,
    Dots,
}

/// A plot.
#[derive(Clone, Debug)]
pub struct Chart<'n> {
    /// What it shows, for those who can't see it.
    pub title: &'n str,
    pub x: &'n str,
    pub y: &'n str,
    /// Times over several powers of ten.
    pub has_log_x: bool,
    pub kind: Kind,
    /// In the order in which lines go through them.
    pub points: Vec<(f64, f64)>,
}

/// Where values lie along an axis.
struct Axis {
    least: f64,
    most: f64,
    is_log: bool,
    ticks: Vec<f64>,
}

impl Axis {
    /// Over all values; from zero unless powers of ten are equally far apart.
    fn over(values: impl Iterator<Item = f64>, is_log: bool) -> Self {
        let values: Vec<f64> = values.filter(|value| value.is_finite() && (!is_log || *value > 0.0)).collect();
        let most = values.iter().copied().reduce(f64::max).filter(|&most| most > 0.0).unwrap_or(1.0);
        if !is_log {
            let step = step(most / 5.0);
            let n = (most / step).ceil().max(1.0);
            let ticks = (0..=n as u32).map(|place| f64::from(place) * step).collect();
            return Self { least: 0.0, most: n * step, is_log, ticks };
        }
        let least = values.iter().copied().reduce(f64::min).unwrap_or(most / 10.0);
        // From one tick of 1, 2 or 5 to another.
        let (mut down, mut up) = (least, most);
        let all: Vec<f64> =
            (-9..=9).flat_map(|power| [1.0, 2.0, 5.0].map(|digit: f64| digit * 10_f64.powi(power))).collect();
        down = all.iter().copied().filter(|tick| *tick <= down * 1.000_001).reduce(f64::max).unwrap_or(down);
        up = all.iter().copied().find(|tick| *tick >= up * 0.999_999).unwrap_or(up);
        if up <= down {
            up = down * 10.0;
        }
        let mut ticks: Vec<f64> = all.into_iter().filter(|tick| (down..=up * 1.000_001).contains(tick)).collect();
        if ticks.len() > 8 {
            ticks.retain(|tick| (tick.log10() - tick.log10().round()).abs() < 1e-6);
        }
        Self { least: down, most: up, is_log, ticks }
    }

    /// Where a value lies, 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let share = match self.is_log {
            true => (value.max(self.least) / self.least).ln() / (self.most / self.least).ln(),
            false => (value - self.least) / (self.most - self.least),
        };
        share.clamp(0.0, 1.0)
    }
}

/// 1, 2 or 5 times a power of ten, no less than `value`.
fn step(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0]
        .map(|digit| digit * power)
        .into_iter()
        .find(|&step| step >= value * 0.999_999)
        .unwrap_or(10.0 * power)
}

/// A tick's number, without needless digits.
fn label(value: f64) -> String {
    match value {
        _ if value >= 1e6 => format!("{}M", trimmed(value / 1e6)),
        _ if value >= 1e4 => format!("{}k", trimmed(value / 1e3)),
        _ => trimmed(value),
    }
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Text within a page.
pub fn escaped(text: &str) -> String {
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

/// At most [`MOST_POINTS`] of the points, evenly taken, the last one among them.
fn thinned(points: &[(f64, f64)], most: usize) -> Vec<(f64, f64)> {
    if points.len() <= most {
        return points.to_vec();
    }
    let place = |n: usize| n * (points.len() - 1) / (most - 1);
    (0..most).filter_map(|n| points.get(place(n)).copied()).collect()
}

impl Chart<'_> {
    /// The picture; colours are those of the classes `grid`, `line` and `dot` in the page.
    pub fn svg(&self) -> String {
        let x_axis = Axis::over(self.points.iter().map(|point| point.0), self.has_log_x);
        let y_axis = Axis::over(self.points.iter().map(|point| point.1), false);
        let [left, right, top, bottom] = ROOM;
        let x = |value: f64| left + x_axis.place(value) * (WIDTH - left - right);
        let y = |value: f64| HEIGHT - bottom - y_axis.place(value) * (HEIGHT - top - bottom);
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{0}\"><title>{0}</title>",
            escaped(self.title)
        );
        // Writing to a string does not fail.
        for &tick in &y_axis.ticks {
            let (at, end) = (y(tick), WIDTH - right);
            let _ = write!(out, "<path class=\"grid\" d=\"M{left} {at:.1}H{end}\"/>");
            let (to, low) = (left - 6.0, at + 4.0);
            let _ = write!(out, "<text x=\"{to}\" y=\"{low:.1}\" text-anchor=\"end\">{}</text>", label(tick));
        }
        let low = HEIGHT - bottom;
        for &tick in &x_axis.ticks {
            let at = x(tick);
            let _ = write!(out, "<path class=\"grid\" d=\"M{at:.1} {top}V{low}\"/>");
            let _ =
                write!(out, "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>", low + 16.0, label(tick));
        }
        let (middle, under) = (left + (WIDTH - left - right) / 2.0, HEIGHT - 6.0);
        let _ = write!(
            out,
            "<text class=\"axis\" x=\"{middle}\" y=\"{under}\" text-anchor=\"middle\">{}</text>",
            escaped(self.x)
        );
        let halfway = top + (HEIGHT - top - bottom) / 2.0;
        let _ = write!(
            out,
            "<text class=\"axis\" transform=\"translate(13 {halfway}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            escaped(self.y)
        );
        if self.kind == Kind::Dots {
            for (across, up) in thinned(&self.points, 5 * MOST_POINTS) {
                let _ = write!(out, "<circle class=\"dot\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\"/>", x(across), y(up));
            }
        } else {
            let mut path = String::new();
            for (across, up) in thinned(&self.points, MOST_POINTS) {
                let (across, up) = (x(across), y(up));
                let begin =
                    if path.is_empty() { format!("M{across:.1} {up:.1}") } else { format!("H{across:.1}V{up:.1}") };
                path.push_str(&begin);
            }
            let _ = write!(out, "<path class=\"line\" d=\"{path}\"/>");
        }
        out.push_str("</svg>");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_hold_all_values() {
        let axis = Axis::over([3.0, 47.0].into_iter(), false);
        assert_eq!((axis.ticks.as_slice(), axis.most), (&[0.0, 10.0, 20.0, 30.0, 40.0, 50.0][..], 50.0));
        let axis = Axis::over([0.3, 12.0].into_iter(), true);
        assert_eq!((axis.least, axis.most, axis.ticks.len()), (0.2, 20.0, 7));
        assert_eq!((axis.place(0.2), axis.place(20.0), axis.place(0.0)), (0.0, 1.0, 0.0));
        for nothing in [Axis::over(std::iter::empty(), true), Axis::over([0.0, f64::NAN].into_iter(), false)] {
            assert!(nothing.most > nothing.least && nothing.ticks.len() > 1);
        }
        assert_eq!([0.0, 0.05, 1500.0, 25_000.0, 2e6].map(label), ["0", "0.05", "1500", "25k", "2M"]);
    }

    #[test]
    fn lines_keep_their_ends_when_they_are_thinned() {
        let points: Vec<(f64, f64)> = (0..10_000).map(|n| (f64::from(n), 0.0)).collect();
        let thin = thinned(&points, MOST_POINTS);
        assert_eq!((thin.len(), thin[0].0, thin[MOST_POINTS - 1].0), (MOST_POINTS, 0.0, 9999.0));
    }

    #[test]
    fn pictures_hold_texts_as_texts() {
        let chart =
            Chart { title: "<a>", x: "x", y: "&y", has_log_x: false, kind: Kind::Dots, points: vec![(1.0, 2.0); 2] };
        let svg = chart.svg();
        assert!(svg.contains("&lt;a&gt;") && svg.contains("&amp;y") && svg.matches("<circle").count() == 2, "{svg}");
    }
}
