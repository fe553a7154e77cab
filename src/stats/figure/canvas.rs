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

/// The height of a line of a legend, and where its words begin.
const LINE: u32 = 18;
const WORDS: u32 = 28;

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
        let legend = labels.legend.lines(size);
        let (plot, beside) = root.split_horizontally(width as i32 - legend.width);
        let (x_format, y_format) = (x_axis.clone(), y_axis.clone());
        let floor = y_axis.floor();
        let mut builder = ChartBuilder::on(&plot);
        builder
            .margin(size.pixels(10))
            .set_label_area_size(LabelAreaPosition::Bottom, size.pixels(42))
            .set_label_area_size(LabelAreaPosition::Left, size.pixels(62));
        let title = printable(labels.title);
        if !title.is_empty() {
            builder.caption(title, size.font(15));
        }
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
            .x_desc(printable(labels.x))
            .y_desc(printable(labels.y))
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
    /// Lays the legend out, in at most two fifths of the figure.
    fn lines(&self, size: Size) -> Lines {
        let series = self.series.iter();
        let series = series.map(|(look, label)| (Entry::Series(*look), label));
        let further = [
            (Entry::Band, &self.band),
            (Entry::Bar, &self.bar),
            (Entry::Ring, &self.ring),
        ];
        let all = [(Entry::Title, &self.title)].into_iter();
        let all = all.chain(series).chain(further);
        let room = size.coordinates().0 as i32 * 2 / 5;
        // Words of 12 pixels take about 7 a character.
        let most = ((room - size.pixels(WORDS + 16)) / size.pixels(7)).max(4) as usize;
        let mut lines = Vec::new();
        for (entry, label) in all {
            let mut first = Some(entry);
            for line in wrapped(&printable(label), most) {
                lines.push((first.take().unwrap_or(Entry::More), line));
            }
        }
        let longest = lines.iter().map(|(_, line)| line.chars().count()).max();
        let width = longest.map_or(0, |characters| {
            let words = size.pixels(7) * characters as i32;
            (size.pixels(WORDS + 16) + words).min(room)
        });
        Lines { width, lines }
    }
}

impl Lines {
    fn draw(&self, pen: &Pen, size: Size, markers: bool) -> Result<(), FigureError> {
        for (place, (entry, line)) in self.lines.iter().enumerate() {
            let y = size.pixels(36 + LINE * place as u32);
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
}
