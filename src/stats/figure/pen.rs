//! Draws lines, markers, areas and words, in the coordinates of a figure or in those of its data.

use plotters::{
    coord::{Shift, cartesian::Cartesian2d},
    drawing::DrawingArea,
    element::{Circle, PathElement, Polygon, Rectangle, Text},
    prelude::SVGBackend,
    style::{
        Color,
        text_anchor::{HPos, Pos, VPos},
    },
};

use super::{
    FigureError,
    axis::Axis,
    canvas::{INK, drawing, printable},
    look::{Look, Marker, strokes},
    size::Size,
};

/// A place in a figure.
pub(super) type Place = (i32, i32);

/// Draws on a part of a figure, in its coordinates.
pub(super) struct Pen<'a> {
    area: DrawingArea<SVGBackend<'a>, Shift>,
    size: Size,
}

impl<'a> Pen<'a> {
    pub(super) fn new(area: DrawingArea<SVGBackend<'a>, Shift>, size: Size) -> Self {
        Self { area, size }
    }

    /// A line with the dashes of its look.
    pub(super) fn line(&self, look: Look, points: &[Place]) -> Result<(), FigureError> {
        let style = look.color().stroke_width(self.size.stroke(7));
        let dashes = look.dashes().iter().map(|length| self.size.pixels(*length));
        for stroke in strokes(points, &dashes.collect::<Vec<_>>()) {
            let drawn = self.area.draw(&PathElement::new(stroke, style));
            drawn.map_err(drawing)?;
        }
        Ok(())
    }

    /// A thin line, such as an error bar.
    pub(super) fn thin_line(&self, look: Look, points: [Place; 2]) -> Result<(), FigureError> {
        let style = look.color().stroke_width(self.size.stroke(4));
        let line = PathElement::new(points.to_vec(), style);
        self.area.draw(&line).map_err(drawing)
    }

    /// The marker of a look.
    pub(super) fn marker(&self, look: Look, at: Place) -> Result<(), FigureError> {
        let far = self.size.pixels(4);
        let style = look.color().filled();
        let corner = |x: i32, y: i32| (at.0 + x * far / 4, at.1 + y * far / 4);
        let corners: &[Place] = match look.marker() {
            Marker::Circle => {
                let circle = Circle::new(at, far, style);
                return self.area.draw(&circle).map_err(drawing);
            }
            Marker::Square => {
                let square = Rectangle::new([corner(-4, -4), corner(4, 4)], style);
                return self.area.draw(&square).map_err(drawing);
            }
            Marker::Cross => {
                let style = look.color().stroke_width(self.size.stroke(9));
                for ends in [[(-4, -4), (4, 4)], [(-4, 4), (4, -4)]] {
                    let ends = ends.map(|(x, y)| corner(x, y)).to_vec();
                    self.area
                        .draw(&PathElement::new(ends, style))
                        .map_err(drawing)?;
                }
                return Ok(());
            }
            Marker::Triangle => &[(0, -5), (5, 4), (-5, 4)],
            Marker::TriangleDown => &[(0, 5), (5, -4), (-5, -4)],
            Marker::Diamond => &[(0, -6), (5, 0), (0, 6), (-5, 0)],
        };
        let corners: Vec<Place> = corners.iter().map(|(x, y)| corner(*x, *y)).collect();
        self.area
            .draw(&Polygon::new(corners, style))
            .map_err(drawing)
    }

    /// An area in a pale colour.
    pub(super) fn shade(
        &self,
        look: Look,
        outline: Vec<Place>,
        share: f64,
    ) -> Result<(), FigureError> {
        let shade = look.color().mix(share).filled();
        self.area
            .draw(&Polygon::new(outline, shade))
            .map_err(drawing)
    }

    /// A ring around a point that stands out.
    pub(super) fn ring(&self, at: Place) -> Result<(), FigureError> {
        let style = INK.stroke_width(self.size.stroke(5));
        let ring = Circle::new(at, self.size.pixels(7), style);
        self.area.draw(&ring).map_err(drawing)
    }

    /// A grey area or bar in a legend.
    pub(super) fn sample(&self, corners: [Place; 2]) -> Result<(), FigureError> {
        let sample = Rectangle::new(corners, INK.mix(0.25).filled());
        self.area.draw(&sample).map_err(drawing)
    }

    /// Words; `at` is their upper left corner.
    pub(super) fn text(&self, text: &str, at: Place, pixels: u32) -> Result<(), FigureError> {
        self.words(text, at, pixels, HPos::Left)
    }

    /// Words; `at` is the middle of their upper edge.
    pub(super) fn centered(&self, text: &str, at: Place, pixels: u32) -> Result<(), FigureError> {
        self.words(text, at, pixels, HPos::Center)
    }

    fn words(&self, text: &str, at: Place, pixels: u32, from: HPos) -> Result<(), FigureError> {
        let text = printable(text);
        if text.is_empty() {
            return Ok(());
        }
        let style = self.size.font(pixels).pos(Pos::new(from, VPos::Top));
        self.area.draw(&Text::new(text, at, style)).map_err(drawing)
    }
}

/// Draws on the area of the data.
pub(super) struct Plot<'a> {
    data: DrawingArea<SVGBackend<'a>, Cartesian2d<Axis, Axis>>,
    pub(super) pen: Pen<'a>,
    /// The least value that the vertical axis shows.
    pub(super) floor: f64,
}

impl<'a> Plot<'a> {
    pub(super) fn new(
        data: DrawingArea<SVGBackend<'a>, Cartesian2d<Axis, Axis>>,
        floor: f64,
        size: Size,
    ) -> Self {
        let pen = Pen::new(data.strip_coord_spec(), size);
        Self { data, pen, floor }
    }

    /// Returns the place of a point.
    pub(super) fn at(&self, point: (f64, f64)) -> Place {
        let (x, y) = self.data.map_coordinate(&point);
        let (columns, rows) = self.data.get_pixel_range();
        (x - columns.start, y - rows.start)
    }

    /// Returns the places of points.
    pub(super) fn all(&self, points: impl IntoIterator<Item = (f64, f64)>) -> Vec<Place> {
        points.into_iter().map(|point| self.at(point)).collect()
    }
}
