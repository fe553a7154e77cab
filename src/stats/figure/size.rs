//! How large a figure is, and the words in it.

use plotters::style::{FontTransform, IntoTextStyle, TextStyle};

use super::canvas::INK;

/// Pixels of an inch (CSS Values and Units, 5.2).
const PIXELS: f64 = 96.0;
/// Coordinates of the drawing library are whole numbers: drawing larger keeps curves smooth.
const DETAIL: f64 = 4.0;
/// The size of words, in points, for which lengths around the data are given.
const FONT: f64 = 9.0;

/// The size of a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size {
    /// Width in inches.
    pub width: f64,
    /// Height in inches.
    pub height: f64,
    /// Size of most words in points.
    pub font: f64,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            width: 7.5,
            height: 4.5,
            font: FONT,
        }
    }
}

impl Size {
    /// Width and height in the coordinates of the drawing.
    pub(super) fn coordinates(self) -> (u32, u32) {
        let length = |inches: f64| (inches * PIXELS * DETAIL).round() as u32;
        (length(self.width), length(self.height))
    }

    /// A length that grows with the words, in pixels of a figure with words of 9 points.
    pub(super) fn pixels(self, length: u32) -> i32 {
        (f64::from(length) * DETAIL * self.font / FONT).round() as i32
    }

    /// The width of a stroke, in quarters of such pixels.
    pub(super) fn stroke(self, quarters: u32) -> u32 {
        let width = f64::from(quarters) * DETAIL / 4.0 * self.font / FONT;
        width.round().max(1.0) as u32
    }

    /// Words of a size in such pixels; 12 are 9 points.
    pub(super) fn font(self, pixels: u32) -> TextStyle<'static> {
        // The library takes sizes in its own coordinates and prints them divided by 1.24.
        ("sans-serif", f64::from(self.pixels(pixels)) * 1.24)
            .into_text_style(&self.coordinates())
            .transform(FontTransform::None)
            .color(&INK)
    }
}
