//! How the figures of a stage are drawn.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::groups::Row;
use crate::engine::diagnostic::Path;
use crate::engine::stage::{Problem, StageError};
use crate::excerpt::listed;
use crate::stats::figure::{Look, Scale as FigureScale, Size};

/// The look of figures. One value for all figures of a pipeline, such as `figure: "${figure}"`, makes them match.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FigureParams {
    /// What the lines or points are, as values of their axis or as the names shown, in the order of their colours, dashes
    /// and markers; those in a list look alike, as a training and its last checkpoint may. What is not named follows in the
    /// order of the inputs.
    palette: Vec<Entry>,
    /// Width in inches.
    width: f64,
    /// Height in inches.
    height: f64,
    /// Size of words in points.
    font_size: f64,
}

/// Points of an inch.
const POINTS: f64 = 72.0;

/// One look.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Entry {
    /// Of one series.
    One(String),
    /// Of several.
    Alike(Vec<String>),
}

impl Entry {
    fn names(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Alike(names) => names,
        }
    }
}

impl Default for FigureParams {
    fn default() -> Self {
        let size = Size::default();
        Self {
            palette: Vec::new(),
            width: size.width,
            height: size.height,
            font_size: size.font,
        }
    }
}

impl FigureParams {
    /// Says what is wrong with them.
    pub(super) fn check(&self, problems: &mut Vec<Problem>) {
        let limits = [
            ("width", self.width, 1.0, 50.0, "inches"),
            ("height", self.height, 1.0, 50.0, "inches"),
            ("font_size", self.font_size, 1.0, 72.0, "points"),
        ];
        let wrong_before = problems.len();
        for (key, value, least, most, unit) in limits {
            if !(least..=most).contains(&value) {
                let text = format!("`{key}` must be from {least} to {most} {unit}, found {value}");
                problems.push(Problem::at(Path::of(["figure", key]), text));
            }
        }
        if problems.len() == wrong_before {
            // Words take room around the data, so a figure is so many letters wide and high.
            let letter = self.font_size / POINTS;
            for (key, value, letters) in
                [("width", self.width, 20.0), ("height", self.height, 12.0)]
            {
                let least = letters * letter;
                if value < least {
                    let text = format!(
                        "`{key}` leaves no room for the data beside words of {} points, found {value}",
                        self.font_size
                    );
                    let hint = format!("at least {least:.1} inches, or a smaller `font_size`");
                    problems.push(Problem::at(Path::of(["figure", key]), text).hint(hint));
                }
            }
        }
        let mut seen = BTreeSet::new();
        for name in self.palette.iter().flat_map(Entry::names) {
            if !seen.insert(name) {
                let text = format!("`palette` has `{name}` twice");
                problems.push(Problem::at(Path::of(["figure", "palette"]), text));
            }
        }
    }

    pub(super) fn size(&self) -> Size {
        Size {
            width: self.width,
            height: self.height,
            font: self.font_size,
        }
    }

    /// Gives each of all series, with its value and the name shown, its look, by the value.
    pub(super) fn looks<'a>(
        &self,
        all: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> BTreeMap<&'a str, Look> {
        let mut further = self.palette.len();
        let mut looks = BTreeMap::new();
        for (label, name) in all {
            let is_it = |known: &String| known == label || known == name;
            let named = |entry: &Entry| entry.names().iter().any(is_it);
            looks.entry(label).or_insert_with(|| {
                Look(self.palette.iter().position(named).unwrap_or_else(|| {
                    further += 1;
                    further - 1
                }))
            });
        }
        looks
    }

    /// The looks of series of which the tables have no more than the names shown; they may be there many times.
    pub(super) fn looks_by_name<'a>(
        &self,
        names: impl IntoIterator<Item = &'a String>,
    ) -> BTreeMap<&'a str, Look> {
        let names = names.into_iter().map(String::as_str);
        self.looks(names.map(|name| (name, name)))
    }

    /// The looks of rows: of all that a stage has, so that one has the same whichever others are drawn beside it.
    pub(super) fn looks_of<'a, T>(&self, rows: &'a [Row<T>]) -> BTreeMap<&'a str, Look> {
        let named = rows
            .iter()
            .map(|row| (row.label.as_str(), row.name.as_str()));
        self.looks(named)
    }
}

/// How values are laid out along an axis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Scale {
    /// Evenly.
    #[default]
    Linear,
    /// By their square root, as over-optimisation is drawn over a KL (Gao et al. 2023).
    Sqrt,
    /// By their logarithm; what is not above 0 is not drawn.
    Log,
}

impl From<Scale> for FigureScale {
    fn from(scale: Scale) -> Self {
        match scale {
            Scale::Linear => Self::Linear,
            Scale::Sqrt => Self::Sqrt,
            Scale::Log => Self::Log,
        }
    }
}

impl Scale {
    /// Names an axis with this scale.
    pub(super) fn label(self, name: &str) -> String {
        match self {
            Self::Linear => name.to_owned(),
            Self::Sqrt => format!("{name} (square-root scale)"),
            Self::Log => format!("{name} (logarithmic scale)"),
        }
    }
}

/// A file name that no metric can lead out of the folder.
pub(super) fn file_name(metric: &str) -> String {
    metric
        .chars()
        .map(|sign| {
            if sign.is_ascii_alphanumeric() {
                sign
            } else {
                '_'
            }
        })
        .collect()
}

/// Says what has no place on the logarithmic axis of a column; an error with a hint if nothing is drawn then.
pub(super) fn off_log_axis(
    column: &str,
    left_out: Vec<String>,
    drawn: usize,
    hint: &str,
) -> Result<Option<String>, StageError> {
    if left_out.is_empty() {
        return Ok(None);
    }
    let told = format!(
        "not above 0 and so without a place on the logarithmic axis of `{column}`: {}",
        listed(left_out)
    );
    if drawn == 0 {
        return Err(StageError::new(told).hint(hint));
    }
    Ok(Some(told))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn params(params: serde_json::Value) -> FigureParams {
        serde_json::from_value(params).unwrap()
    }

    #[test]
    fn what_the_palette_names_has_one_look_in_every_figure() {
        let figure = params(json!({ "palette": ["PPO", ["sft", "start"], "tb"] }));
        let looks = |names: &[(&'static str, &'static str)]| -> Vec<usize> {
            let looks = figure.looks(names.iter().copied());
            names.iter().map(|(label, _)| looks[label].0).collect()
        };
        let all = [
            ("sft", "Baseline"),
            ("ppo", "PPO"),
            ("fl", "FL"),
            ("x", "X"),
            ("tb", "TB"),
        ];
        assert_eq!(looks(&all), [1, 0, 3, 4, 2]);
        assert_eq!(looks(&all[4..]), [2]);
        assert_eq!(looks(&[("start", "Start")]), [1]);
        let unnamed = params(json!({})).looks([("b", "B"), ("a", "A")]);
        assert_eq!((unnamed["b"], unnamed["a"]), (Look(0), Look(1)));
    }

    #[test]
    fn sizes_that_no_figure_has_are_refused() {
        for (wrong, count) in [
            (json!({ "width": 0.0 }), 1),
            (json!({ "height": 1e9, "font_size": -1.0 }), 2),
            (json!({ "palette": ["a", ["b", "a"]] }), 1),
            (json!({ "width": 3.0, "height": 1.0, "font_size": 20 }), 2),
            (json!({ "width": 2.0 }), 1),
            (json!({ "width": 3.25, "height": 2.0, "font_size": 7 }), 0),
        ] {
            let mut problems = Vec::new();
            params(wrong).check(&mut problems);
            assert_eq!(problems.len(), count, "{problems:?}");
        }
    }
}
