//! The frame shared by all charts: title, axes, grid, legend.

use plotters::{
    chart::{ChartBuilder, LabelAreaPosition},
    drawing::IntoDrawingArea,
    prelude::SVGBackend,
    style::{Color, RGBColor, WHITE},
};

use super::{
    FigureError,
    axis::Axis,
    look::Look,
    pen::{Pen, Plot},
    size::Size,
};

pub(super) const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const GRID: RGBColor = RGBColor(0xE4, 0xE4, 0xE4);
const FRAME: RGBColor = RGBColor(0x88, 0x88, 0x88);

/// The words around the data.
pub(super) struct Labels<'a> {
    pub(super) title: &'a str,
    pub(super) x: &'a str,
    pub(super) y: &'a str,
    pub(super) legend: Legend,
}

/// What stands beside the data.
#[derive(Default)]
pub(super) struct Legend {
    /// What the series are, such as `policy`; may be empty.
    pub(super) title: String,
    /// The name of each series.
    pub(super) series: Vec<(Look, String)>,
    /// Whether the series have markers.
    pub(super) markers: bool,
    /// What an area around a line, a bar or a ring means; empty where there is none.
    pub(super) band: String,
    pub(super) bar: String,
    pub(super) ring: String,
}

/// What stands before a line of a legend.
#[derive(Debug, Clone, Copy)]
enum Entry {
    Title,
    Series(Look),
    Band,
    Bar,
    Ring,
    /// Nothing: the words of the line above go on.
    More,
}

/// The height of a line of a legend, where its words begin, and where its first line is.
const LINE: u32 = 18;
const WORDS: u32 = 28;
const FIRST: u32 = 36;
/// The height of a line of the title, and how many it has at most.
const TITLE_LINE: u32 = 20;
const TITLE_LINES: usize = 3;
/// The room around the data.
const MARGIN: u32 = 10;
const BELOW: u32 = 42;
const LEFT: u32 = 62;

pub(super) fn drawing(error: impl std::fmt::Display) -> FigureError {
    FigureError::Drawing(error.to_string())
}

/// Draws title, axes and legend, then the data.
pub(super) fn draw(
    size: Size,
    labels: &Labels,
    x_axis: Axis,
    y_axis: Axis,
    data: impl FnOnce(&Plot) -> Result<(), FigureError>,
) -> Result<String, FigureError> {
    let mut svg = String::new();
    let (width, height) = size.coordinates();
    {
        let root = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
        root.fill(&WHITE).map_err(drawing)?;
        let title = title_lines(labels.title, size);
        let (above, below) = root.split_vertically(size.pixels(TITLE_LINE * title.len() as u32));
        let pen = Pen::new(above, size);
        for (place, line) in title.iter().enumerate() {
            let y = size.pixels(MARGIN / 2 + TITLE_LINE * place as u32);
            pen.centered(line, (width as i32 / 2, y), 15)?;
        }
        let room = below.dim_in_pixel();
        let legend = labels.legend.lines(size, room.1 as i32);
        let (plot, beside) = below.split_horizontally(width as i32 - legend.width);
        let high = room.1 as i32 - size.pixels(2 * MARGIN + BELOW);
        let y_axis = y_axis.fitted(high, |_| size.pixels(16));
        let longest = y_axis.labels().map(|label| words(&label, size)).max();
        // The name of the axis stands before its labels.
        let left = size
            .pixels(LEFT)
            .max(longest.unwrap_or(0) + size.pixels(30));
        let wide = width as i32 - legend.width - size.pixels(2 * MARGIN) - left;
        let x_axis = x_axis.fitted(wide, |label| words(label, size) + size.pixels(6));
        let (x_format, y_format) = (x_axis.clone(), y_axis.clone());
        let floor = y_axis.floor();
        let mut builder = ChartBuilder::on(&plot);
        builder
            .margin(size.pixels(MARGIN))
            .set_label_area_size(LabelAreaPosition::Bottom, size.pixels(BELOW))
            .set_label_area_size(LabelAreaPosition::Left, left);
        let mut chart = builder
            .build_cartesian_2d(x_axis, y_axis)
            .map_err(drawing)?;
        chart
            .configure_mesh()
            .bold_line_style(GRID.stroke_width(size.stroke(4)))
            .light_line_style(GRID.stroke_width(0))
            .max_light_lines(0)
            .axis_style(FRAME.stroke_width(size.stroke(4)))
            .label_style(size.font(12))
            .axis_desc_style(size.font(13))
            .set_all_tick_mark_size(size.pixels(4))
            .x_desc(shortened(labels.x, wide, size))
            .y_desc(shortened(labels.y, high, size))
            .x_label_formatter(&|value| x_format.label(*value))
            .y_label_formatter(&|value| y_format.label(*value))
            .draw()
            .map_err(drawing)?;
        data(&Plot::new(chart.plotting_area().clone(), floor, size))?;
        legend.draw(&Pen::new(beside, size), size, labels.legend.markers)?;
        root.present().map_err(drawing)?;
    }
    let drawn = format!("<svg width=\"{width}\" height=\"{height}\"");
    let (wide, high) = (size.width, size.height);
    let shown = format!("<svg width=\"{wide}in\" height=\"{high}in\"");
    Ok(svg.replacen(&drawn, &shown, 1))
}

/// A legend as it is laid out.
struct Lines {
    width: i32,
    lines: Vec<(Entry, String)>,
}

impl Legend {
    /// Lays the legend out, in at most two fifths of the figure's width and a height. What has no room is counted.
    fn lines(&self, size: Size, height: i32) -> Lines {
        let series = self.series.iter();
        let series = series.map(|(look, label)| (Entry::Series(*look), label));
        let further = [
            (Entry::Band, &self.band),
            (Entry::Bar, &self.bar),
            (Entry::Ring, &self.ring),
        ];
        let room = size.coordinates().0 as i32 * 2 / 5;
        let most = characters(room - size.pixels(WORDS + 16), size);
        let laid_out = |entry: Entry, label: &str| {
            let lines = wrapped(&printable(label), most).into_iter().enumerate();
            let lines =
                lines.map(|(place, line)| (if place == 0 { entry } else { Entry::More }, line));
            lines.collect::<Vec<_>>()
        };
        let mut lines = laid_out(Entry::Title, &self.title);
        let further: Vec<_> = further
            .into_iter()
            .flat_map(|(entry, label)| laid_out(entry, label))
            .collect();
        let room_for = (height - size.pixels(FIRST)) / size.pixels(LINE) + 1;
        let left = (room_for.max(0) as usize).saturating_sub(lines.len() + further.len());
        let mut series: Vec<Vec<_>> = series
            .map(|(entry, label)| laid_out(entry, label))
            .collect();
        let taken = |series: &[Vec<_>]| series.iter().map(Vec::len).sum::<usize>();
        if taken(&series) > left {
            let all = series.len();
            while !series.is_empty() && taken(&series) + 1 > left {
                series.pop();
            }
            let more = format!("and {} more", all - series.len());
            series.push(vec![(Entry::More, more)]);
        }
        lines.extend(series.into_iter().flatten().chain(further));
        let longest = lines.iter().map(|(_, line)| words(line, size)).max();
        let width = longest.map_or(0, |words| (size.pixels(WORDS + 16) + words).min(room));
        Lines { width, lines }
    }
}

impl Lines {
    fn draw(&self, pen: &Pen, size: Size, markers: bool) -> Result<(), FigureError> {
        for (place, (entry, line)) in self.lines.iter().enumerate() {
            let y = size.pixels(FIRST + LINE * place as u32);
            let (half, end) = (size.pixels(11), size.pixels(22));
            match entry {
                Entry::Title | Entry::More => {}
                Entry::Series(look) => {
                    pen.line(*look, &[(0, y), (end, y)])?;
                    if markers {
                        pen.marker(*look, (half, y))?;
                    }
                }
                Entry::Band => {
                    let thick = size.pixels(5);
                    pen.sample([(0, y - thick), (end, y + thick)])?;
                }
                Entry::Bar => {
                    let thick = size.pixels(1);
                    let tall = size.pixels(7);
                    pen.sample([(half - thick, y - tall), (half + thick, y + tall)])?;
                }
                Entry::Ring => pen.ring((half, y))?,
            }
            let x = match entry {
                Entry::Title => 0,
                _ => size.pixels(WORDS),
            };
            pen.text(line, (x, y - size.pixels(6)), 12)?;
        }
        Ok(())
    }
}

/// About how long words of 12 pixels are.
pub(super) fn words(text: &str, size: Size) -> i32 {
    size.pixels(7) * text.chars().count() as i32
}

/// How many characters of words of 12 pixels have room in a length.
fn characters(length: i32, size: Size) -> usize {
    (length / size.pixels(7)).max(4) as usize
}

/// The lines of a title; what has no room in them ends in an ellipsis.
fn title_lines(title: &str, size: Size) -> Vec<String> {
    let width = size.coordinates().0 as i32 - size.pixels(2 * MARGIN);
    // Its words are larger than those of 12 pixels.
    let mut lines = wrapped(&printable(title), characters(width * 12 / 15, size));
    if lines.len() > TITLE_LINES {
        lines.truncate(TITLE_LINES);
        if let Some(last) = lines.last_mut() {
            last.push_str(" \u{2026}");
        }
    }
    lines
}

/// The name of an axis, with an ellipsis where it is longer than the axis.
fn shortened(name: &str, length: i32, size: Size) -> String {
    let name = printable(name);
    let most = characters(length * 12 / 13, size);
    if name.chars().count() <= most {
        return name;
    }
    let kept: String = name.chars().take(most - 1).collect();
    format!("{kept}\u{2026}")
}

/// Cuts a text between words into lines of at most `most` characters; a longer word is cut with an ellipsis.
fn wrapped(text: &str, most: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let length = word.chars().count();
        let word = if length > most {
            let kept: String = word.chars().take(most - 1).collect();
            format!("{kept}\u{2026}")
        } else {
            word.to_owned()
        };
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= most => {
                line.push(' ');
                line.push_str(&word);
            }
            _ => lines.push(word),
        }
    }
    lines
}

/// Leaves out control characters, which XML forbids.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .filter(|character| !character.is_control())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_labels_are_wrapped_between_words() {
        assert_eq!(
            wrapped("FlowHF, literal, 1000 steps", 16),
            ["FlowHF, literal,", "1000 steps"]
        );
        assert_eq!(wrapped("abcdefgh i", 5), ["abcd\u{2026}", "i"]);
        assert_eq!(wrapped(" ", 5), Vec::<String>::new());
    }

    #[test]
    fn titles_and_names_of_axes_have_room() {
        let size = Size::default();
        assert_eq!(title_lines("Reward", size), ["Reward"]);
        assert_eq!(title_lines("", size), Vec::<String>::new());
        let long = "Reward of the policies that were trained by each objective ".repeat(3);
        let lines = title_lines(&long, size);
        assert!(lines.len() > 1 && lines.iter().all(|line| line.chars().count() <= 79));
        let lines = title_lines(&long.repeat(9), size);
        assert!(
            lines.len() == 3 && lines[2].ends_with('\u{2026}'),
            "{lines:?}"
        );
        assert_eq!(shortened("reward", size.pixels(100), size), "reward");
        assert_eq!(
            shortened("a mean reward", size.pixels(61), size),
            "a mean \u{2026}"
        );
    }

    #[test]
    fn a_legend_counts_what_it_has_no_room_for() {
        let size = Size::default();
        let legend = Legend {
            title: "policy".to_owned(),
            series: (0..40).map(|n| (Look(n), format!("policy {n}"))).collect(),
            bar: "least to greatest seed".to_owned(),
            ..Legend::default()
        };
        let texts = |height: u32| -> Vec<String> {
            let lines = legend.lines(size, size.pixels(height)).lines;
            lines.into_iter().map(|(_, line)| line).collect()
        };
        assert_eq!(texts(2000).len(), 42);
        let few = texts(36 + 9 * 18);
        assert_eq!(few.len(), 10);
        assert_eq!((&*few[7], &*few[8]), ("policy 6", "and 33 more"));
        assert_eq!(few[9], "least to greatest seed");
        assert_eq!(
            texts(10),
            ["policy", "and 40 more", "least to greatest seed"]
        );
    }
}
