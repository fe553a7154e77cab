//! How series are told apart: by colour, by dashes and by markers, each of which is enough alone for some readers.

use plotters::style::RGBColor;

/// Colours that stay apart for colour-blind readers (Okabe and Ito 2008, without the yellow, which is
/// faint on white).
const PALETTE: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xCC, 0x79, 0xA7),
    RGBColor(0xE6, 0x9F, 0x00),
    RGBColor(0x56, 0xB4, 0xE9),
    RGBColor(0x00, 0x00, 0x00),
];

/// Lengths of strokes and gaps in turn; a line without is whole. Five, so that with seven colours no look repeats before
/// the thirty-sixth series.
const DASHES: [&[u32]; 5] = [&[], &[7, 3], &[2, 2], &[9, 3, 2, 3], &[14, 4]];

/// The form of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marker {
    Circle,
    Square,
    Triangle,
    Diamond,
    Cross,
    TriangleDown,
}

const MARKERS: [Marker; 6] = [
    Marker::Circle,
    Marker::Square,
    Marker::Triangle,
    Marker::Diamond,
    Marker::Cross,
    Marker::TriangleDown,
];

/// The look of a series: the same number gives the same look in every figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Look(pub usize);

impl Look {
    pub(super) fn color(self) -> RGBColor {
        PALETTE[self.0 % PALETTE.len()]
    }

    pub(super) fn dashes(self) -> &'static [u32] {
        DASHES[self.0 % DASHES.len()]
    }

    pub(super) fn marker(self) -> Marker {
        MARKERS[self.0 % MARKERS.len()]
    }
}

/// Cuts a line into its strokes: `points` in the coordinates of the figure, `dashes` the lengths of strokes and gaps.
pub(super) fn strokes(points: &[(i32, i32)], dashes: &[i32]) -> Vec<Vec<(i32, i32)>> {
    if dashes.is_empty() {
        return vec![points.to_vec()];
    }
    let mut strokes = Vec::new();
    let mut stroke: Vec<(i32, i32)> = points.first().copied().into_iter().collect();
    let mut left = f64::from(dashes[0]);
    let mut at = 0;
    for pair in points.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        let (dx, dy) = (f64::from(to.0 - from.0), f64::from(to.1 - from.1));
        // Not `hypot`, which is the C library's.
        let length = (dx * dx + dy * dy).sqrt();
        let mut done = 0.0;
        while length - done > left {
            done += left;
            let place = |start: i32, way: f64| start + (way * done / length).round() as i32;
            let end = (place(from.0, dx), place(from.1, dy));
            if at % 2 == 0 {
                stroke.push(end);
                strokes.push(std::mem::take(&mut stroke));
            } else {
                stroke = vec![end];
            }
            at = (at + 1) % dashes.len();
            left = f64::from(dashes[at]);
        }
        left -= length - done;
        if at % 2 == 0 {
            stroke.push(to);
        }
    }
    if stroke.len() > 1 {
        strokes.push(stroke);
    }
    strokes
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn looks_stay_apart_in_colour_and_in_grey() {
        let looks: BTreeSet<_> = (0..35)
            .map(Look)
            .map(|look| {
                let color = look.color();
                (color.0, color.1, color.2, look.dashes())
            })
            .collect();
        assert_eq!(looks.len(), 35);
        // Neighbours differ without any colour, in lines and in points.
        for number in 0..34 {
            let (one, next) = (Look(number), Look(number + 1));
            assert!(one.dashes() != next.dashes() && one.marker() != next.marker());
        }
    }

    #[test]
    fn strokes_and_gaps_go_round_corners() {
        let line = [(0, 0), (10, 0), (10, 10)];
        assert_eq!(strokes(&line, &[]), [line]);
        assert_eq!(
            strokes(&line, &[6, 2]),
            [
                vec![(0, 0), (6, 0)],
                vec![(8, 0), (10, 0), (10, 4)],
                vec![(10, 6), (10, 10)]
            ]
        );
        assert_eq!(strokes(&[(0, 0), (3, 4)], &[20, 5]), [[(0, 0), (3, 4)]]);
        assert_eq!(strokes(&[(1, 1)], &[6, 2]), Vec::<Vec<(i32, i32)>>::new());
        assert_eq!(strokes(&[], &[6, 2]), Vec::<Vec<(i32, i32)>>::new());
    }
}
