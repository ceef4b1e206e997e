//! One chart as inline SVG: an axis with round numbers, lines, markers, and names written where the lines end.
//!
//! Colours are classes that the page's style defines, so one drawing serves light and dark. Knows nothing of
//! training; called by the report alone.

use std::fmt::Write;

/// A point: horizontal value, vertical value.
pub(super) type Point = (f64, f64);

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mark {
    /// A thin line; with more points than the frame has pixels, the band it covers and its mean.
    Thin,
    /// A line with a circle at each point.
    Circles,
    /// A line with a diamond at each point.
    Diamonds,
}

/// One line of a chart.
pub(super) struct Series<'a> {
    /// The style class that colours it.
    pub class: &'a str,
    /// Written at its end; nothing where empty.
    pub label: String,
    /// How it is drawn.
    pub mark: Mark,
    /// Its points, left to right; those that are no finite numbers are left out.
    pub points: Vec<Point>,
    /// A point to ring.
    pub ringed: Option<Point>,
}

/// How the vertical axis is cut and numbered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scale {
    /// From near the lowest value; a first steep fall may leave the frame through its top.
    Settled,
    /// From zero; a first peak may leave the frame.
    SettledFromZero,
    /// From zero to above the highest value.
    FromZero,
}

/// What is drawn, and how large.
pub(super) struct Chart<'a> {
    /// Said to those who cannot see it.
    pub title: &'a str,
    /// What the vertical axis counts.
    pub unit: &'a str,
    /// Width of the drawing in pixels.
    pub width: f64,
    /// Height of the drawing in pixels.
    pub height: f64,
    /// Room to the right of the frame, for names.
    pub right: f64,
    /// The last step.
    pub steps: f64,
    /// The vertical axis.
    pub scale: Scale,
    /// The lines, first one lowest.
    pub series: Vec<Series<'a>>,
}

/// The part of the first steps in which a loss falls from where chance put it.
const FALL: f64 = 0.01;
/// Points a thin line may have before it becomes a band and its mean.
const THIN_POINTS: usize = 1000;
/// Buckets of such a band.
const BUCKETS: usize = 400;
/// Points of a marked line; more are thinned evenly, the last one kept.
const MARKED_POINTS: usize = 400;
/// Markers that stand apart; of more points only some are marked.
const MARKERS: usize = 64;
/// Height of the frame at least, as a part of the largest value.
const LEAST_SPAN: f64 = 0.02;
/// Height of a line of names.
const NAME_HEIGHT: f64 = 16.0;

const LEFT: f64 = 46.0;
const TOP: f64 = 32.0;
const BOTTOM: f64 = 38.0;

struct Axis {
    low: f64,
    high: f64,
    /// Distance of two ticks.
    step: f64,
}

impl Axis {
    fn ticks(&self) -> impl Iterator<Item = f64> {
        let (first, step, high) = ((self.low / self.step - 1e-6).ceil(), self.step, self.high);
        // The bound holds whatever rounding does to extreme values.
        (0..24)
            .map(move |i| (first + f64::from(i)) * step)
            .take_while(move |&tick| tick <= high + 1e-6 * step)
    }

    fn part(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }
}

impl Chart<'_> {
    /// The highest value that the frame leaves out, if any.
    pub fn beyond(&self) -> Option<f64> {
        let highest = self.values().map(|(_, y)| y).fold(f64::NEG_INFINITY, f64::max);
        (highest > self.vertical().high).then_some(highest)
    }

    /// The drawing.
    pub fn svg(&self) -> String {
        let (right, bottom) = (self.width - self.right, self.height - BOTTOM);
        let (horizontal, vertical) = (self.horizontal(right - LEFT), self.vertical());
        let place = |(x, y): Point| {
            // Far beyond the frame a coordinate need not be exact, but it must stay a number that SVG can read.
            let down = (1.0 - vertical.part(y)).clamp(-50.0, 50.0);
            (LEFT + (right - LEFT) * horizontal.part(x), TOP + (bottom - TOP) * down)
        };
        let mut svg = format!(
            "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">",
            self.width,
            self.height,
            super::escape(self.title)
        );
        self.draw_axes(&mut svg, &horizontal, &vertical, right, bottom);
        if self.values().next().is_none() {
            let (x, y) = ((LEFT + right) / 2.0, (TOP + bottom) / 2.0);
            let _ = write!(
                svg,
                "<text class=\"quiet middle\" x=\"{x:.1}\" y=\"{y:.1}\">nothing measured yet</text>"
            );
        }
        // A nested svg clips what leaves the frame, without an id that a second chart would share.
        let _ = write!(
            svg,
            "<svg x=\"{LEFT}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\" viewBox=\"{LEFT} {TOP} {0:.1} {1:.1}\">",
            right - LEFT,
            bottom - TOP
        );
        for series in &self.series {
            draw_lines(&mut svg, series, &place);
        }
        svg.push_str("</svg>");
        let inside = |&(_, y): &Point| y <= vertical.high;
        for series in &self.series {
            draw_markers(&mut svg, series, &place, &inside);
        }
        self.draw_names(&mut svg, right, bottom, &place);
        svg.push_str("</svg>");
        svg
    }

    fn values(&self) -> impl Iterator<Item = Point> {
        self.series.iter().flat_map(|series| drawable(&series.points))
    }

    fn horizontal(&self, width: f64) -> Axis {
        let last = self.values().map(|(x, _)| x).fold(self.steps.max(1.0), f64::max);
        let step = round_step(last / (width / 80.0).max(2.0)).max(1.0);
        // A run ends one step before a round number: close enough to show that number.
        let round = (last / step).ceil() * step;
        Axis { low: 0.0, high: if round <= last * 1.015 { round } else { last }, step }
    }

    fn vertical(&self) -> Axis {
        let mut low = self.values().map(|(_, y)| y).fold(f64::INFINITY, f64::min);
        let mut high = self.values().map(|(_, y)| y).fold(f64::NEG_INFINITY, f64::max);
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if self.scale != Scale::Settled {
            low = low.min(0.0);
        }
        if self.scale != Scale::FromZero {
            let last = self.values().map(|(x, _)| x).fold(0.0, f64::max);
            let settled: Vec<f64> =
                self.values().filter(|(x, _)| *x >= FALL * last).map(|(_, y)| y).collect();
            let top = settled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            if settled.len() >= 8 && high - low > 1.4 * (top - low) && top > low {
                high = top;
            }
        }
        // Values that hardly differ are shown as such, and their numbers stay short.
        let room = ((LEAST_SPAN * high.abs().max(low.abs())).max(1e-6) - (high - low)) / 2.0;
        if room > 0.0 {
            (low, high) = (if low == 0.0 { 0.0 } else { low - room }, high + room);
        }
        let step = round_step((high - low) / ((self.height - TOP - BOTTOM) / 42.0).max(2.0));
        // The lowest line keeps clear of the axis, and the highest of the frame's edge.
        let (below, above) = ((low - 0.25 * step) / step, (high + 0.1 * step) / step);
        let low = if low == 0.0 { 0.0 } else { (below * 2.0).floor() / 2.0 * step };
        Axis { low, high: (above * 2.0).ceil() / 2.0 * step, step }
    }

    fn draw_axes(&self, svg: &mut String, horizontal: &Axis, vertical: &Axis, right: f64, bottom: f64) {
        let power = power_of(vertical);
        let unit = if power == 0 {
            super::escape(self.unit)
        } else {
            format!(
                "{} (×10<tspan class=\"power\" dy=\"-4\">{}</tspan><tspan dy=\"4\">)</tspan>",
                super::escape(self.unit),
                minus(&power.to_string())
            )
        };
        let _ = write!(svg, "<text class=\"unit\" x=\"0\" y=\"12\">{unit}</text>");
        for tick in vertical.ticks() {
            let y = TOP + (bottom - TOP) * (1.0 - vertical.part(tick));
            let _ = write!(
                svg,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right:.1}\"/><text class=\"tick end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                LEFT - 8.0,
                y + 4.0,
                number(tick, vertical.step, power)
            );
        }
        let _ = write!(svg, "<path class=\"axis\" d=\"M{LEFT} {bottom:.1}H{right:.1}\"/>");
        for tick in horizontal.ticks() {
            let x = LEFT + (right - LEFT) * horizontal.part(tick);
            let _ = write!(
                svg,
                "<path class=\"axis\" d=\"M{x:.1} {bottom:.1}v5\"/><text class=\"tick middle\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
                bottom + 18.0,
                super::grouped(tick)
            );
        }
        let _ = write!(
            svg,
            "<text class=\"unit middle\" x=\"{:.1}\" y=\"{:.1}\">step</text>",
            (LEFT + right) / 2.0,
            bottom + 34.0
        );
    }

    fn draw_names(&self, svg: &mut String, right: f64, bottom: f64, place: &dyn Fn(Point) -> Point) {
        let mut names: Vec<(f64, &Series)> = self
            .series
            .iter()
            .filter(|series| !series.label.is_empty())
            .filter_map(|series| Some((place(drawable(&series.points).last()?).1, series)))
            .collect();
        names.sort_by(|a, b| a.0.total_cmp(&b.0));
        let wanted: Vec<f64> = names.iter().map(|(y, _)| *y).collect();
        for (y, (_, series)) in spread(&wanted, TOP, bottom).into_iter().zip(names) {
            let _ = write!(
                svg,
                "<text class=\"name {}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                series.class,
                right + 12.0,
                y + 4.0,
                super::escape(&series.label)
            );
        }
    }
}

fn draw_lines(svg: &mut String, series: &Series, place: &dyn Fn(Point) -> Point) {
    let points: Vec<Point> = drawable(&series.points).collect();
    let line = match series.mark {
        Mark::Thin if points.len() > THIN_POINTS => {
            let buckets: Vec<Bucket> =
                points.chunks(points.len().div_ceil(BUCKETS)).map(Bucket::of).collect();
            let upper = buckets.iter().map(|bucket| (bucket.x, bucket.high));
            let lower = buckets.iter().rev().map(|bucket| (bucket.x, bucket.low));
            let outline = path(upper.chain(lower).map(place));
            let _ = write!(svg, "<path class=\"band {}\" d=\"{outline}Z\"/>", series.class);
            buckets.iter().map(|bucket| (bucket.x, bucket.mean)).collect()
        }
        Mark::Thin => points,
        Mark::Circles | Mark::Diamonds => thinned(&points, MARKED_POINTS),
    };
    let weight = if series.mark == Mark::Thin { "thin" } else { "line" };
    if line.len() > 1 {
        let _ = write!(
            svg,
            "<path class=\"{weight} {}\" d=\"{}\"/>",
            series.class,
            path(line.into_iter().map(place))
        );
    }
}

fn draw_markers(
    svg: &mut String,
    series: &Series,
    place: &dyn Fn(Point) -> Point,
    inside: &dyn Fn(&Point) -> bool,
) {
    let points: Vec<Point> = drawable(&series.points).collect();
    // A thin line has no markers, but a lone point is no line.
    if series.mark == Mark::Thin && points.len() > 1 {
        return;
    }
    for (x, y) in thinned(&points, MARKERS).into_iter().filter(inside).map(place) {
        let _ = match series.mark {
            Mark::Diamonds => {
                write!(
                    svg,
                    "<path class=\"dot {}\" d=\"M{x:.1} {:.1}l3.6 3.6l-3.6 3.6l-3.6 -3.6Z\"/>",
                    series.class,
                    y - 3.6
                )
            }
            _ => {
                write!(svg, "<circle class=\"dot {}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.7\"/>", series.class)
            }
        };
    }
    if let Some((x, y)) = series.ringed.filter(inside).map(place) {
        let _ = write!(svg, "<circle class=\"ring {}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"7\"/>", series.class);
    }
}

struct Bucket {
    x: f64,
    low: f64,
    high: f64,
    mean: f64,
}

impl Bucket {
    fn of(points: &[Point]) -> Bucket {
        let mean = |part: fn(&Point) -> f64| points.iter().map(part).sum::<f64>() / points.len() as f64;
        Bucket {
            x: mean(|point| point.0),
            low: points.iter().map(|point| point.1).fold(f64::INFINITY, f64::min),
            high: points.iter().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max),
            mean: mean(|point| point.1),
        }
    }
}

/// At most `limit` of the points, evenly, the last one among them.
pub(super) fn thinned<T: Copy>(points: &[T], limit: usize) -> Vec<T> {
    let stride = points.len().div_ceil(limit).max(1);
    let mut kept: Vec<T> = points.iter().rev().step_by(stride).copied().collect();
    kept.reverse();
    kept
}

/// The points that can be placed: finite, and small enough for differences of them to be.
fn drawable(points: &[Point]) -> impl DoubleEndedIterator<Item = Point> {
    points.iter().copied().filter(|(x, y)| x.abs() < 1e30 && y.abs() < 1e30)
}

fn path(points: impl Iterator<Item = Point>) -> String {
    let mut text = String::new();
    for (index, (x, y)) in points.enumerate() {
        let _ = write!(text, "{}{x:.1} {y:.1}", if index == 0 { 'M' } else { 'L' });
    }
    text
}

/// The smallest of 1, 2, 5 times a power of ten that is not below `least`.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0]
        .map(|digit| digit * power)
        .into_iter()
        .find(|step| *step >= least * 0.999_999)
        .unwrap_or(10.0 * power)
}

/// The power of ten named beside the unit, where plain numbers would be long; else 0.
fn power_of(axis: &Axis) -> i32 {
    let largest = axis.low.abs().max(axis.high.abs());
    if !(0.01..1e9).contains(&largest) { largest.log10().floor() as i32 } else { 0 }
}

/// A tick's number with just the decimals that the distance of two ticks needs.
fn number(tick: f64, step: f64, power: i32) -> String {
    if tick.abs() < 1e-6 * step {
        return "0".to_string();
    }
    let unit = 10f64.powi(power);
    let (tick, step) = (tick / unit, step / unit);
    let (tick, step, suffix) = match step.abs().max(tick.abs()) {
        largest if largest >= 1e6 => (tick / 1e6, step / 1e6, "M"),
        largest if largest >= 1e4 => (tick / 1e3, step / 1e3, "k"),
        _ => (tick, step, ""),
    };
    let decimals = (-step.log10() - 1e-9).ceil().clamp(0.0, 8.0) as usize;
    minus(&format!("{tick:.decimals$}{suffix}"))
}

fn minus(text: &str) -> String {
    text.replace('-', "\u{2212}")
}

/// Moves places apart until names fit under each other, within the frame where they can; `wanted` is in order.
fn spread(wanted: &[f64], top: f64, bottom: f64) -> Vec<f64> {
    let mut places: Vec<f64> = wanted.iter().map(|y| y.clamp(top, bottom)).collect();
    for index in 1..places.len() {
        places[index] = places[index].max(places[index - 1] + NAME_HEIGHT);
    }
    let mut limit = bottom;
    for place in places.iter_mut().rev() {
        *place = place.min(limit);
        limit = *place - NAME_HEIGHT;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(scale: Scale, points: Vec<Point>) -> Chart<'static> {
        let series = Series { class: "val", label: "val".into(), mark: Mark::Circles, points, ringed: None };
        Chart {
            title: "t",
            unit: "u",
            width: 900.0,
            height: 400.0,
            right: 100.0,
            steps: 0.0,
            scale,
            series: vec![series],
        }
    }

    /// A loss that falls from 4.3 to near 2, evaluated every 100 of 5000 steps.
    fn falling() -> Vec<Point> {
        (0..=50).map(|i| (f64::from(i) * 100.0, 2.0 + 2.3 / (1.0 + 4.0 * f64::from(i)))).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        for (least, step) in
            [(0.9, 1.0), (1.0, 1.0), (1.1, 2.0), (2.5, 5.0), (6.0, 10.0), (0.03, 0.05), (1e-4, 1e-4)]
        {
            assert!((round_step(least) - step).abs() <= 1e-9 * step, "{least}: {}", round_step(least));
        }
        let axis = Axis { low: 1.9, high: 2.85, step: 0.2 };
        let ticks: Vec<String> = axis.ticks().map(|tick| number(tick, axis.step, 0)).collect();
        assert_eq!(ticks, ["2.0", "2.2", "2.4", "2.6", "2.8"]);
    }

    #[test]
    fn numbers_have_the_decimals_they_need() {
        assert_eq!(number(0.25, 0.05, 0), "0.25");
        assert_eq!(number(3.0, 1.0, 0), "3");
        assert_eq!(number(-0.5, 0.5, 0), "\u{2212}0.5");
        assert_eq!(number(150_000.0, 50_000.0, 0), "150k");
        assert_eq!(number(1_500_000.0, 500_000.0, 0), "1.5M");
        assert_eq!(number(6e-4, 2e-4, -4), "6");
        assert_eq!(number(-0.0, 1.0, 0), "0");
    }

    #[test]
    fn the_first_fall_leaves_the_frame_and_later_peaks_do_not() {
        let steep = chart(Scale::Settled, falling());
        assert!(steep.beyond().is_some_and(|value| value > 4.2));
        assert!(steep.vertical().high < 3.0);

        let mut peaked = falling();
        peaked[30].1 = 9.0;
        assert_eq!(chart(Scale::Settled, peaked).beyond(), None);
        assert_eq!(chart(Scale::FromZero, falling()).beyond(), None);
        assert_eq!(chart(Scale::Settled, vec![(0.0, 4.0), (10.0, 2.0)]).beyond(), None, "too few to judge");
    }

    #[test]
    fn every_axis_can_be_drawn_whatever_it_holds() {
        let odd = [
            vec![],
            vec![(0.0, 0.0)],
            vec![(7.0, 4.2)],
            vec![(0.0, 1.0), (1.0, 1.0)],
            vec![(0.0, f64::NAN), (1.0, f64::INFINITY), (2.0, 3.0)],
            vec![(0.0, 1e300), (1.0, -1e300)],
            vec![(0.0, 1e-300), (1.0, 2e-300)],
            vec![(0.0, 1e16), (1.0, 1e16 + 2.0)],
            vec![(0.0, f64::MAX), (1.0, f64::MIN)],
            vec![(1e18, 1.0), (2e18, 2.0)],
        ];
        for points in odd {
            for scale in [Scale::Settled, Scale::SettledFromZero, Scale::FromZero] {
                let svg = chart(scale, points.clone()).svg();
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{points:?}: {svg}");
                assert!(svg.len() < 20_000, "{points:?}: {} bytes", svg.len());
                assert_eq!(svg.matches("<svg").count(), svg.matches("</svg>").count());
            }
        }
    }

    #[test]
    fn the_last_round_step_is_shown() {
        let points = vec![(0.0, 1.0), (4999.0, 2.0)];
        let axis = chart(Scale::Settled, points).horizontal(750.0);
        assert_eq!(axis.ticks().last(), Some(5000.0));
        let axis = chart(Scale::Settled, vec![(0.0, 1.0), (4700.0, 2.0)]).horizontal(750.0);
        assert_eq!((axis.high, axis.ticks().last()), (4700.0, Some(4000.0)));
    }

    #[test]
    fn names_never_cover_each_other() {
        for wanted in
            [vec![100.0, 101.0, 102.0], vec![390.0, 399.0, 400.0], vec![-500.0, 20.0, 900.0], vec![50.0]]
        {
            let places = spread(&wanted, 26.0, 362.0);
            assert!(places.windows(2).all(|pair| pair[1] - pair[0] >= NAME_HEIGHT - 1e-9), "{places:?}");
            assert!(places.iter().all(|y| (26.0..=362.0).contains(y)), "{places:?}");
        }
    }

    #[test]
    fn a_long_line_becomes_a_band_that_keeps_its_peaks() {
        let mut points: Vec<Point> = (0..100_000).map(|i| (f64::from(i), 2.0)).collect();
        points[77_777].1 = 6.0;
        let mut drawing = chart(Scale::Settled, points);
        drawing.series[0].mark = Mark::Thin;
        let svg = drawing.svg();
        assert!(svg.contains("class=\"band val\""));
        assert!(svg.len() < 60_000, "{} bytes", svg.len());
        assert!(drawing.vertical().high >= 6.0);
        let buckets: Vec<Bucket> =
            drawing.series[0].points.chunks(100_000usize.div_ceil(BUCKETS)).map(Bucket::of).collect();
        assert_eq!(buckets.iter().filter(|bucket| bucket.high == 6.0).count(), 1);
        assert!(buckets.iter().all(|bucket| bucket.low <= bucket.mean && bucket.mean <= bucket.high));
    }

    #[test]
    fn thinning_keeps_the_last_and_the_order() {
        let many: Vec<u32> = (0..1001).collect();
        let kept = thinned(&many, 64);
        assert!(kept.len() <= 64 && kept.last() == Some(&1000));
        assert!(kept.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(thinned(&many[..3], 64), [0, 1, 2]);
        assert_eq!(thinned(&many[..0], 64), [0u32; 0]);
    }
}
