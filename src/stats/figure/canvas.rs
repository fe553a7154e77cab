//! The frame shared by all charts: title, axes, grid, legend.

use plotters::{
    chart::{ChartBuilder, ChartContext},
    coord::cartesian::Cartesian2d,
    drawing::{DrawingArea, IntoDrawingArea},
    element::{Circle, DashedPathElement, PathElement, Text},
    prelude::SVGBackend,
    series::LineSeries,
    style::{Color, FontTransform, IntoTextStyle, RGBColor, ShapeStyle, TextStyle, WHITE},
};

use super::{FigureError, axis::Axis};

/// Width and height of a figure.
const WIDTH: u32 = 720;
const HEIGHT: u32 = 432;
/// Coordinates of the drawing library are whole numbers: drawing larger keeps curves smooth.
const DETAIL: u32 = 4;

/// Colours that stay apart for colour-blind readers (Okabe and Ito 2008, without the yellow, which is
/// faint on white); after them they repeat with dashed lines.
const PALETTE: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xCC, 0x79, 0xA7),
    RGBColor(0xE6, 0x9F, 0x00),
    RGBColor(0x56, 0xB4, 0xE9),
    RGBColor(0x00, 0x00, 0x00),
];
const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const GRID: RGBColor = RGBColor(0xE4, 0xE4, 0xE4);
const FRAME: RGBColor = RGBColor(0x88, 0x88, 0x88);

pub(super) type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, Axis>>;

/// The words around the data.
pub(super) struct Labels<'a> {
    pub(super) title: &'a str,
    pub(super) x: &'a str,
    pub(super) y: &'a str,
    /// The name of each series, with the number that gives its colour.
    pub(super) series: Vec<(usize, String)>,
    /// What a ring around a point means; empty without rings.
    pub(super) ring: &'a str,
}

/// The number with the colour of `series` and a dashed line.
pub(super) fn dashed(series: usize) -> usize {
    series % PALETTE.len() + PALETTE.len()
}

/// The colour of a series.
pub(super) fn color(series: usize) -> RGBColor {
    PALETTE[series % PALETTE.len()]
}

/// The line of a series, `points` in the coordinates of the chart.
pub(super) fn draw_line(
    chart: &mut Chart,
    series: usize,
    points: Vec<(f64, f64)>,
) -> Result<(), FigureError> {
    let style = line_style(series);
    let drawn = if is_dashed(series) {
        chart
            .draw_series(std::iter::once(DashedPathElement::new(
                points,
                6 * DETAIL,
                3 * DETAIL,
                style,
            )))
            .map(|_| ())
    } else {
        chart
            .draw_series(LineSeries::new(points, style))
            .map(|_| ())
    };
    drawn.map_err(drawing)
}

fn line_style(series: usize) -> ShapeStyle {
    color(series).stroke_width(7)
}

fn is_dashed(series: usize) -> bool {
    series / PALETTE.len() % 2 == 1
}

/// A length in the figure's own units.
pub(super) fn pixels(length: u32) -> i32 {
    (length * DETAIL) as i32
}

pub(super) fn drawing(error: impl std::fmt::Display) -> FigureError {
    FigureError::Drawing(error.to_string())
}

/// Draws title, axes and legend, then the data.
pub(super) fn draw(
    labels: &Labels,
    x_axis: Axis,
    y_axis: Axis,
    data: impl FnOnce(&mut Chart) -> Result<(), FigureError>,
) -> Result<String, FigureError> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH * DETAIL, HEIGHT * DETAIL))
            .into_drawing_area();
        root.fill(&WHITE).map_err(drawing)?;
        let series = labels.series.iter();
        let series: Vec<(usize, String)> = series
            .map(|(number, label)| (*number, printable(label)))
            .collect();
        let ring = printable(labels.ring);
        let named = series.iter().map(|(_, label)| label);
        let width = legend_width(named.chain(std::iter::once(&ring)));
        let (plot, legend) = root.split_horizontally(pixels(WIDTH - width));
        let (x_format, y_format) = (x_axis.clone(), y_axis.clone());
        let mut builder = ChartBuilder::on(&plot);
        builder
            .margin(pixels(10))
            .set_label_area_size(plotters::chart::LabelAreaPosition::Bottom, pixels(42))
            .set_label_area_size(plotters::chart::LabelAreaPosition::Left, pixels(62));
        let title = printable(labels.title);
        if !title.is_empty() {
            builder.caption(title, font(15));
        }
        let mut chart = builder
            .build_cartesian_2d(x_axis, y_axis)
            .map_err(drawing)?;
        chart
            .configure_mesh()
            .bold_line_style(GRID.stroke_width(DETAIL))
            .light_line_style(GRID.stroke_width(0))
            .max_light_lines(0)
            .axis_style(FRAME.stroke_width(DETAIL))
            .label_style(font(12))
            .axis_desc_style(font(13))
            .set_all_tick_mark_size(pixels(4))
            .x_desc(printable(labels.x))
            .y_desc(printable(labels.y))
            .x_label_formatter(&|value| x_format.label(*value))
            .y_label_formatter(&|value| y_format.label(*value))
            .draw()
            .map_err(drawing)?;
        data(&mut chart)?;
        draw_legend(&legend, &series, &ring)?;
        root.present().map_err(drawing)?;
    }
    let drawn = format!(
        "<svg width=\"{}\" height=\"{}\"",
        WIDTH * DETAIL,
        HEIGHT * DETAIL
    );
    let shown = format!("<svg width=\"{WIDTH}\" height=\"{HEIGHT}\"");
    Ok(svg.replacen(&drawn, &shown, 1))
}

/// Room for the longest label, at most 40 % of the figure.
fn legend_width<'a>(labels: impl Iterator<Item = &'a String>) -> u32 {
    let longest = labels.map(|label| label.chars().count()).max();
    let longest = longest.filter(|characters| *characters > 0);
    longest.map_or(0, |characters| {
        (44 + 7 * characters as u32).min(WIDTH * 2 / 5)
    })
}

fn draw_legend(
    area: &DrawingArea<SVGBackend, plotters::coord::Shift>,
    labels: &[(usize, String)],
    ring: &str,
) -> Result<(), FigureError> {
    for (place, (series, label)) in labels.iter().enumerate() {
        let series = *series;
        let y = pixels(44) + pixels(20) * place as i32;
        let line = vec![(0, y), (pixels(22), y)];
        if is_dashed(series) {
            area.draw(&DashedPathElement::new(
                line,
                6 * DETAIL,
                3 * DETAIL,
                line_style(series),
            ))
            .map_err(drawing)?;
        } else {
            area.draw(&PathElement::new(line, line_style(series)))
                .map_err(drawing)?;
        }
        area.draw(&Text::new(
            label.clone(),
            (pixels(28), y - pixels(6)),
            font(12),
        ))
        .map_err(drawing)?;
    }
    if !ring.is_empty() {
        let y = pixels(44) + pixels(20) * labels.len() as i32;
        area.draw(&Circle::new((pixels(11), y), pixels(7), ring_style()))
            .map_err(drawing)?;
        let place = (pixels(28), y - pixels(6));
        area.draw(&Text::new(ring.to_owned(), place, font(12)))
            .map_err(drawing)?;
    }
    Ok(())
}

/// The outline around a point that stands out.
pub(super) fn ring_style() -> ShapeStyle {
    INK.stroke_width(5)
}

pub(super) fn font(size: u32) -> TextStyle<'static> {
    // The library takes sizes in its own coordinates and prints them divided by 1.24.
    ("sans-serif", f64::from(size * DETAIL) * 1.24)
        .into_text_style(&(WIDTH, HEIGHT))
        .transform(FontTransform::None)
        .color(&INK)
}

/// Leaves out control characters, which XML forbids.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .filter(|character| !character.is_control())
        .collect()
}
