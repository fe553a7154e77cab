//! Axes with readable ticks, linear or logarithmic.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

/// How values are laid out along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scale {
    /// Evenly.
    #[default]
    Linear,
    /// By their logarithm; values that are not positive are left out.
    Log,
    /// By their square root, below 0 by that of their size.
    Sqrt,
}

impl Scale {
    /// Whether a value has a place on such an axis. Beyond 1e300 differences would overflow.
    pub(super) fn shows(self, value: f64) -> bool {
        value.abs() <= 1e300 && (self != Self::Log || value >= 1e-300)
    }

    fn place(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Log => libm::log10(value),
            Self::Sqrt => value.abs().sqrt().copysign(value),
        }
    }

    /// Returns the value at a place.
    fn value(self, place: f64) -> f64 {
        match self {
            Self::Linear => place,
            Self::Log => libm::exp10(place),
            Self::Sqrt => place * place.abs(),
        }
    }
}

/// About how many ticks an axis gets, as far as it has room for their labels.
const TICKS: f64 = 8.0;
/// How many it gets, in turn, where it has not.
const FEWER_TICKS: [f64; 5] = [6.0, 5.0, 4.0, 3.0, 2.0];

/// An axis over the range of some values.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    ticks: Vec<f64>,
    step: f64,
}

impl Axis {
    /// Covers those of `values` that can be shown, with room on both sides of `margin` times their range.
    pub(super) fn covering(scale: Scale, values: impl Iterator<Item = f64>, margin: f64) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| scale.shows(*value)) {
            low = low.min(value);
            high = high.max(value);
        }
        if low > high {
            // Nothing to show: an empty frame.
            (low, high) = (if scale == Scale::Log { 0.1 } else { 0.0 }, 1.0);
        }
        let (mut start, mut end) = (scale.place(low), scale.place(high));
        if end - start <= 1e-12 * start.abs().max(end.abs()) {
            let room = if start == 0.0 { 0.5 } else { 0.1 * start.abs() };
            (start, end) = (start - room, end + room);
        }
        let room = margin * (end - start);
        (start, end) = (start - room, end + room);
        let (ticks, step) = ticks(scale, start..end, TICKS);
        Self {
            scale,
            low: start,
            high: end,
            ticks,
            step,
        }
    }

    /// With so many ticks that no two labels meet: `length` is that of the axis, `extent` the room that a label takes
    /// along it.
    pub(super) fn fitted(mut self, length: i32, extent: impl Fn(&str) -> i32) -> Self {
        let scale = f64::from(length) / (self.high - self.low);
        let meet = |axis: &Self| {
            axis.ticks.windows(2).any(|pair| {
                let [one, next] = [pair[0], pair[1]].map(|tick| axis.scale.place(tick) * scale);
                let [first, second] = [pair[0], pair[1]].map(|tick| extent(&axis.label(tick)));
                next - one < f64::from(first + second) / 2.0
            })
        };
        for count in FEWER_TICKS {
            if !meet(&self) {
                break;
            }
            (self.ticks, self.step) = ticks(self.scale, self.low..self.high, count);
        }
        self
    }

    /// The labels of its ticks.
    pub(super) fn labels(&self) -> impl Iterator<Item = String> {
        self.ticks.iter().map(|tick| self.label(*tick))
    }

    /// The least value that is shown.
    pub(super) fn floor(&self) -> f64 {
        self.scale.value(self.low)
    }

    /// Writes a number so that neighbouring ticks differ and no zeros trail.
    pub(super) fn label(&self, value: f64) -> String {
        if value == 0.0 {
            return "0".to_owned();
        }
        let magnitude = libm::log10(value.abs());
        // The ticks of an axis are written alike; on a square-root axis, which has 0, each by its size.
        let (least, greatest) = match self.scale {
            Scale::Linear => {
                let greatest = libm::log10(self.low.abs().max(self.high.abs()));
                (greatest, greatest)
            }
            Scale::Log => (self.low, self.high),
            Scale::Sqrt => (magnitude, magnitude),
        };
        let plain = match self.scale {
            Scale::Log => -3.0..4.0,
            Scale::Linear | Scale::Sqrt => -4.0..6.0,
        };
        if plain.contains(&least) && plain.contains(&greatest) {
            let finest = libm::log10(self.step).min(magnitude);
            let decimals = (-(finest + 1e-9).floor()).max(0.0) as usize;
            return with_minus(&format!("{value:.decimals$}"));
        }
        let digits = (magnitude + 1e-9).floor() - (libm::log10(self.step) + 1e-9).floor();
        let digits = digits.clamp(0.0, 12.0) as usize;
        let text = format!("{value:.digits$e}");
        let Some((mantissa, exponent)) = text.split_once('e') else {
            return text;
        };
        let mantissa = if mantissa.contains('.') {
            mantissa.trim_end_matches('0').trim_end_matches('.')
        } else {
            mantissa
        };
        let times = match mantissa {
            "1" => String::new(),
            "-1" => MINUS.to_owned(),
            _ => format!("{}\u{d7}", with_minus(mantissa)),
        };
        format!("{times}10{}", superscript(exponent))
    }
}

/// The sign of a negative number, which is wider than a hyphen.
const MINUS: &str = "\u{2212}";

fn with_minus(number: &str) -> String {
    number.replace('-', MINUS)
}

/// Writes a whole number above the line.
fn superscript(number: &str) -> String {
    const DIGITS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    number
        .chars()
        .map(|sign| match sign.to_digit(10) {
            Some(digit) => DIGITS[digit as usize],
            None => '⁻',
        })
        .collect()
}

/// About `count` ticks between two places, and the difference of neighbours as far as it matters for their labels.
fn ticks(scale: Scale, places: Range<f64>, count: f64) -> (Vec<f64>, f64) {
    let Range { start, end } = places;
    match scale {
        Scale::Linear => linear_ticks(start, end, count),
        Scale::Log => log_ticks(start, end, count),
        Scale::Sqrt => sqrt_ticks(start, end, count),
    }
}

/// Multiples of 1, 2 or 5 times a power of ten.
fn linear_ticks(start: f64, end: f64, count: f64) -> (Vec<f64>, f64) {
    let rough = (end - start) / count;
    let power = libm::exp10(libm::log10(rough).floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(rough);
    let first = (start / step).ceil();
    let ticks = (0..50)
        .map(|index| (first + f64::from(index)) * step)
        .take_while(|tick| *tick <= end)
        .collect();
    (ticks, step)
}

/// Powers of ten; with few of them 1, 2 and 5 times each; within one such step evenly spaced values.
fn log_ticks(start: f64, end: f64, count: f64) -> (Vec<f64>, f64) {
    let decades = ((end - start) / count).ceil().max(1.0) as i32;
    let factors: &[f64] = if 3.0 * (end - start) < count {
        &[1.0, 2.0, 5.0]
    } else {
        &[1.0]
    };
    let mut ticks = Vec::new();
    for exponent in start.floor() as i32..=end.ceil() as i32 {
        if exponent.rem_euclid(decades) != 0 {
            continue;
        }
        ticks.extend(
            factors
                .iter()
                .map(|factor| factor * 10f64.powi(exponent))
                .filter(|tick| (start..=end).contains(&libm::log10(*tick))),
        );
    }
    if ticks.len() < 2 {
        return linear_ticks(libm::exp10(start), libm::exp10(end), count);
    }
    (ticks, f64::INFINITY)
}

/// 0 and 1, 2 and 5 times powers of ten, as far as they are not too near to others; in a range that holds few
/// of them evenly spaced values.
fn sqrt_ticks(start: f64, end: f64, count: f64) -> (Vec<f64>, f64) {
    let scale = Scale::Sqrt;
    let greatest = scale.value(start.abs().max(end.abs()));
    let power = libm::log10(greatest).ceil() as i32;
    let sizes = (power - 4..=power).flat_map(|power| {
        let factors = [1.0, 2.0, 5.0];
        factors.map(|factor| factor * 10f64.powi(power))
    });
    let sizes: Vec<f64> = sizes.collect();
    let mut ticks: Vec<f64> = Vec::new();
    // 0, then from the ends to the middle, where the axis is densest.
    for size in std::iter::once(0.0).chain(sizes.into_iter().rev()) {
        for tick in [size, -size] {
            let place = scale.place(tick);
            let is_near = |other: &f64| {
                let apart = (place - scale.place(*other)).abs();
                apart < (end - start) / (1.75 * count)
            };
            if (start..=end).contains(&place) && !ticks.iter().any(is_near) {
                ticks.push(tick);
            }
        }
    }
    if f64::from(ticks.len() as u32) < count / 2.0 {
        return linear_ticks(scale.value(start), scale.value(end), count);
    }
    ticks.sort_by(f64::total_cmp);
    (ticks, f64::INFINITY)
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (self.scale.place(*value) - self.low) / (self.high - self.low);
        let (from, to) = (f64::from(limit.0), f64::from(limit.1));
        (from + share * (to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.scale.value(self.low)..self.scale.value(self.high)
    }
}

impl ValueFormatter<f64> for Axis {
    fn format(value: &f64) -> String {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale, values: &[f64]) -> Vec<String> {
        let axis = Axis::covering(scale, values.iter().copied(), 0.0);
        axis.labels().collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(
            labels(Scale::Linear, &[0.0, 1.0]),
            ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]
        );
        assert_eq!(labels(Scale::Linear, &[-3.0, 17.0]), ["0", "5", "10", "15"]);
        assert_eq!(
            labels(Scale::Linear, &[0.0, 500.0]),
            ["0", "100", "200", "300", "400", "500"]
        );
        assert_eq!(
            labels(Scale::Linear, &[1e-9, 4e-9]),
            [
                "10⁻⁹",
                "1.5×10⁻⁹",
                "2×10⁻⁹",
                "2.5×10⁻⁹",
                "3×10⁻⁹",
                "3.5×10⁻⁹",
                "4×10⁻⁹"
            ]
        );
        assert_eq!(
            labels(Scale::Linear, &[0.0, 3e6]),
            ["0", "5×10⁵", "10⁶", "1.5×10⁶", "2×10⁶", "2.5×10⁶", "3×10⁶"]
        );
    }

    #[test]
    fn log_ticks_suit_the_number_of_decades() {
        assert_eq!(
            labels(Scale::Log, &[0.01, 1e4]),
            ["10⁻²", "10⁻¹", "10⁰", "10¹", "10²", "10³", "10⁴"]
        );
        assert_eq!(
            labels(Scale::Log, &[0.01, 1e3]),
            ["0.01", "0.1", "1", "10", "100", "1000"]
        );
        assert_eq!(
            labels(Scale::Log, &[1.0, 30.0]),
            ["1", "2", "5", "10", "20"]
        );
        assert_eq!(
            labels(Scale::Log, &[1.1, 2.1]),
            ["1.2", "1.4", "1.6", "1.8", "2.0"]
        );
        assert_eq!(labels(Scale::Log, &[1e-100, 1e100]).len(), 9);
    }

    #[test]
    fn sqrt_ticks_are_round_numbers_that_stand_apart() {
        assert_eq!(
            labels(Scale::Sqrt, &[0.0, 10.0]),
            ["0", "0.2", "0.5", "1", "2", "5", "10"]
        );
        assert_eq!(
            labels(Scale::Sqrt, &[-0.1, 4.0]),
            ["\u{2212}0.1", "0", "0.05", "0.2", "0.5", "1", "2"]
        );
        assert_eq!(
            labels(Scale::Sqrt, &[4.0, 6.1]),
            ["4.0", "4.5", "5.0", "5.5", "6.0"]
        );
        let axis = Axis::covering(Scale::Sqrt, [0.0, 16.0].into_iter(), 0.0);
        assert_eq!(axis.map(&4.0, (0, 100)), 50);
    }

    #[test]
    fn labels_do_not_meet() {
        let fitted = |scale, values: [f64; 2], length| -> Vec<String> {
            let axis = Axis::covering(scale, values.into_iter(), 0.0);
            let axis = axis.fitted(length, |label| 7 * label.chars().count() as i32 + 6);
            axis.labels().collect()
        };
        assert_eq!(fitted(Scale::Linear, [0.0, 1.0], 200).len(), 6);
        assert_eq!(
            fitted(Scale::Linear, [0.0, 1.0], 120),
            ["0", "0.5", "1.0"],
            "fewer on a short axis"
        );
        assert_eq!(
            fitted(Scale::Log, [1e-4, 1e-2], 300),
            [
                "10⁻⁴",
                "2×10⁻⁴",
                "5×10⁻⁴",
                "10⁻³",
                "2×10⁻³",
                "5×10⁻³",
                "10⁻²"
            ]
        );
        assert_eq!(
            fitted(Scale::Log, [1e-4, 1e-2], 200),
            ["10⁻⁴", "10⁻³", "10⁻²"]
        );
        assert!(fitted(Scale::Log, [1e-4, 2e-4], 100).len() < 4);
        assert_eq!(fitted(Scale::Sqrt, [0.0, 10.0], 70), ["0", "1", "5", "10"]);
    }

    #[test]
    fn odd_ranges_still_give_an_axis() {
        for values in [
            &[][..],
            &[f64::NAN, f64::INFINITY],
            &[5.0],
            &[0.0, 0.0],
            &[-1e300, 1e300],
            &[1.0, 1.0 + 1e-15],
        ] {
            for scale in [Scale::Linear, Scale::Log, Scale::Sqrt] {
                let axis = Axis::covering(scale, values.iter().copied(), 0.05);
                assert!(
                    axis.low < axis.high && axis.low.is_finite() && axis.high.is_finite(),
                    "{axis:?}"
                );
                assert!(axis.ticks.len() <= 50 && !axis.ticks.is_empty(), "{axis:?}");
            }
        }
    }
}
