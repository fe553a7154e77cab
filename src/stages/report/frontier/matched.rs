//! Differences of two series at equal measure of a column.

use indexmap::IndexMap;

use super::{Frontier, Pair};
use crate::engine::stage::StageError;
use crate::excerpt::listed;
use crate::stages::report::joined::Point;
use crate::stages::report::repeats::Repeats;

/// The difference of a pair in one column at equal values of another.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Matched {
    pub(super) pair: Pair,
    pub(super) at: String,
    pub(super) value: String,
    /// The difference of each run with a common range.
    pub(super) differences: Vec<f64>,
    /// The runs that both have.
    pub(super) runs: usize,
    /// Which runs have the same lines as others, and count once.
    pub(super) repeated: Option<String>,
    /// The range that both have, as a mean over those runs; or else both ranges, over all runs.
    pub(super) range: Result<(f64, f64), Ranges>,
}

/// The ranges of two series that have none in common.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ranges {
    pub(super) a: (f64, f64),
    pub(super) b: (f64, f64),
}

/// A line through points whose horizontal values ascend strictly; at least one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line(Vec<(f64, f64)>);

impl Line {
    /// Sorts the points; several of one horizontal value become their mean.
    pub(super) fn through(mut points: Vec<(f64, f64)>) -> Option<Self> {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let line: Vec<(f64, f64)> = points
            .chunk_by(|a, b| a.0 == b.0)
            .map(|same| {
                (
                    same[0].0,
                    same.iter().map(|point| point.1).sum::<f64>() / same.len() as f64,
                )
            })
            .collect();
        (!line.is_empty()).then_some(Self(line))
    }

    fn range(&self) -> (f64, f64) {
        (self.0[0].0, self.0[self.0.len() - 1].0)
    }

    /// Its height at a place within its range.
    fn at(&self, place: f64) -> f64 {
        let next = self
            .0
            .partition_point(|point| point.0 < place)
            .min(self.0.len() - 1);
        let (right, height) = self.0[next];
        if next == 0 || right == place {
            return height;
        }
        let (left, before) = self.0[next - 1];
        before + (height - before) * (place - left) / (right - left)
    }

    /// Returns the mean of `self - other` over the range that both have, and that range.
    pub(super) fn above(&self, other: &Self) -> Option<(f64, (f64, f64))> {
        let ((a_low, a_high), (b_low, b_high)) = (self.range(), other.range());
        let (low, high) = (a_low.max(b_low), a_high.min(b_high));
        if low > high {
            return None;
        }
        let difference = |place: f64| self.at(place) - other.at(place);
        if low == high {
            return Some((difference(low), (low, high)));
        }
        let inner = self.0.iter().chain(&other.0).map(|point| point.0);
        let mut places: Vec<f64> = inner
            .filter(|place| low < *place && *place < high)
            .collect();
        places.extend([low, high]);
        places.sort_by(f64::total_cmp);
        // Linear between two places: the mean of the ends is exact.
        let area: f64 = places
            .windows(2)
            .map(|ends| (ends[1] - ends[0]) * (difference(ends[0]) + difference(ends[1])) / 2.0)
            .sum();
        Some((area / (high - low), (low, high)))
    }
}

impl Frontier {
    /// Compares all pairs.
    pub(super) fn matched(&self, points: &[Point]) -> Result<Vec<Matched>, StageError> {
        let mut all = Vec::new();
        for pair in &self.pairs {
            for (at, value) in self.compared() {
                all.push(self.compare(pair, at, value, points)?);
            }
        }
        Ok(all)
    }

    fn compare(
        &self,
        pair: &Pair,
        at: &str,
        value: &str,
        points: &[Point],
    ) -> Result<Matched, StageError> {
        let (a, b) = (
            self.lines(&pair.a, at, value, points)?,
            self.lines(&pair.b, at, value, points)?,
        );
        let runs = |lines: &IndexMap<&str, Line>| {
            let mut runs: Vec<String> = lines.keys().map(|run| (*run).to_owned()).collect();
            runs.sort();
            runs
        };
        let (a_runs, b_runs) = (runs(&a), runs(&b));
        if a_runs != b_runs {
            return Err(StageError::new(format!(
                "`{value}` at equal `{at}`: {} has the runs {}, and {} has {}",
                pair.a,
                a_runs.join(", "),
                pair.b,
                b_runs.join(", ")
            ))
            .hint(format!(
                "differences are taken run by run: both need the same values of `{}`",
                self.aggregate
            )));
        }
        let a_keys: Vec<&str> = a.keys().copied().collect();
        let same = |one: usize, other: usize| {
            let (one, other) = (a_keys[one], a_keys[other]);
            a[one] == a[other] && b[one] == b[other]
        };
        let repeats = Repeats::among(a_keys.len(), same);
        let distinct = repeats.distinct();
        let mut differences = Vec::new();
        let mut ranges = Vec::new();
        for run in distinct.iter().map(|at| a_keys[*at]) {
            if let Some((difference, range)) = a[run].above(&b[run]) {
                differences.push(difference);
                ranges.push(range);
            }
        }
        let range = if ranges.is_empty() {
            Err(Ranges {
                a: whole(&a),
                b: whole(&b),
            })
        } else {
            let count = ranges.len() as f64;
            let mean = |end: fn(&(f64, f64)) -> f64| ranges.iter().map(end).sum::<f64>() / count;
            Ok((mean(|range| range.0), mean(|range| range.1)))
        };
        Ok(Matched {
            pair: pair.clone(),
            at: at.to_owned(),
            value: value.to_owned(),
            differences,
            runs: distinct.len(),
            repeated: repeats.told(&a_keys, &self.aggregate),
            range,
        })
    }

    /// The line of each run of a series, in the order of the points.
    fn lines<'a>(
        &self,
        series: &str,
        at: &str,
        value: &str,
        points: &'a [Point],
    ) -> Result<IndexMap<&'a str, Line>, StageError> {
        let mut runs: IndexMap<&str, Vec<(f64, f64)>> = IndexMap::new();
        let mut is_there = false;
        for point in points.iter().filter(|point| point.series == series) {
            is_there = true;
            if let (Some(at), Some(value)) = (point.value(at), point.value(value)) {
                runs.entry(&point.run).or_default().push((at, value));
            }
        }
        if !is_there {
            let known: indexmap::IndexSet<&str> =
                points.iter().map(|point| point.series.as_str()).collect();
            return Err(StageError::new(format!(
                "`pairs` names `{series}`, and no table has that {}",
                self.series
            ))
            .hint(format!("there are: {}", listed(known))));
        }
        if runs.is_empty() {
            return Err(StageError::new(format!(
                "no point of {series} has both `{at}` and `{value}`"
            ))
            .hint("connect tables that show them of all series"));
        }
        let lines = runs
            .into_iter()
            .filter_map(|(run, points)| Some((run, Line::through(points)?)));
        Ok(lines.collect())
    }
}

/// The range of all runs together.
fn whole(lines: &IndexMap<&str, Line>) -> (f64, f64) {
    let ranges = lines.values().map(Line::range);
    ranges.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), range| {
        (low.min(range.0), high.max(range.1))
    })
}

impl Matched {
    /// Says which range is common, or that none is.
    pub(super) fn range_text(&self) -> String {
        let text = |(low, high): (f64, f64)| format!("{low:.3} to {high:.3}");
        match self.range {
            Ok(range) => text(range),
            Err(ranges) => format!(
                "no common range: {} {}, {} {}",
                self.pair.a,
                text(ranges.a),
                self.pair.b,
                text(ranges.b)
            ),
        }
    }
}
