//! A small rasteriser: anti-aliased ellipses, capsules and curves in an RGB buffer.
//!
//! Coordinates are fractions of the image: x to the right, y down, both 0 to 1. Every shape is a signed distance
//! (negative inside), and a pixel's coverage is how far its centre is inside, over one pixel's width.

use rand::Rng;

/// A place in the image, x then y.
pub(super) type Point = [f32; 2];

/// Red, green, blue, 0 to 1.
pub(super) type Color = [f32; 3];

/// A square image under construction.
pub(super) struct Canvas {
    size: usize,
    /// Row by row, `size * size`.
    pixels: Vec<Color>,
}

impl Canvas {
    /// An image of `size` pixels square that runs from `top` to `bottom`.
    pub(super) fn new(size: usize, top: Color, bottom: Color) -> Self {
        let pixels = (0..size)
            .flat_map(|y| std::iter::repeat_n(mix(top, bottom, (y as f32 + 0.5) / size as f32), size))
            .collect();
        Self { size, pixels }
    }

    /// A thick line with round ends, whose radius goes from `radii[0]` to `radii[1]`.
    pub(super) fn capsule(&mut self, from: Point, to: Point, radii: [f32; 2], color: Color) {
        let reach = radii[0].max(radii[1]);
        let low = [from[0].min(to[0]) - reach, from[1].min(to[1]) - reach];
        let high = [from[0].max(to[0]) + reach, from[1].max(to[1]) + reach];
        let along = [to[0] - from[0], to[1] - from[1]];
        let length2 = (along[0] * along[0] + along[1] * along[1]).max(1e-12);
        self.paint(low, high, color, |p| {
            let q = [p[0] - from[0], p[1] - from[1]];
            let h = ((q[0] * along[0] + q[1] * along[1]) / length2).clamp(0.0, 1.0);
            (q[0] - h * along[0]).hypot(q[1] - h * along[1]) - (radii[0] + h * (radii[1] - radii[0]))
        });
    }

    /// A filled ellipse whose first radius points `angle` radians from the x axis.
    pub(super) fn ellipse(&mut self, centre: Point, radii: [f32; 2], angle: f32, color: Color) {
        let reach = radii[0].max(radii[1]);
        let (sin, cos) = angle.sin_cos();
        let [rx, ry] = radii.map(|r| r.max(1e-4));
        self.paint(
            [centre[0] - reach, centre[1] - reach],
            [centre[0] + reach, centre[1] + reach],
            color,
            |p| {
                let [dx, dy] = [p[0] - centre[0], p[1] - centre[1]];
                // Exact for a circle, and close enough at the edge of an ellipse, where alone it matters.
                (((dx * cos + dy * sin) / rx).hypot((dy * cos - dx * sin) / ry) - 1.0) * rx.min(ry)
            },
        );
    }

    /// A quadratic Bézier curve from `from` to `to`, pulled towards `pull`.
    pub(super) fn curve(&mut self, [from, pull, to]: [Point; 3], radius: f32, color: Color) {
        const PIECES: u8 = 6;
        let at = |i: u8| {
            let t = f32::from(i) / f32::from(PIECES);
            let u = 1.0 - t;
            [0, 1].map(|axis| u * u * from[axis] + 2.0 * u * t * pull[axis] + t * t * to[axis])
        };
        for i in 0..PIECES {
            self.capsule(at(i), at(i + 1), [radius, radius], color);
        }
    }

    /// The image as bytes, RGB, each pixel lightened or darkened by noise of standard deviation `noise`.
    pub(super) fn rgb(&self, noise: f32, random: &mut impl Rng) -> Vec<u8> {
        let mut bytes = vec![0; self.pixels.len() * 2];
        random.fill_bytes(&mut bytes);
        // The sum of two uniform bytes is a triangle of standard deviation 104: near enough to a sensor's noise.
        let scale = noise / 104.0;
        let mut rgb = Vec::with_capacity(self.pixels.len() * 3);
        for (pixel, dice) in self.pixels.iter().zip(bytes.chunks_exact(2)) {
            let shift = scale * (dice.iter().map(|&b| f32::from(b)).sum::<f32>() - 255.0);
            // The cast saturates, so no value wraps.
            rgb.extend(pixel.map(|channel| ((channel + shift) * 255.0 + 0.5) as u8));
        }
        rgb
    }

    /// Blends `color` into the pixels between `low` and `high` as far as `distance` says that they are inside.
    fn paint(&mut self, low: Point, high: Point, color: Color, distance: impl Fn(Point) -> f32) {
        let size = self.size as f32;
        // Casts from negative or huge floats saturate, so shapes that leave the image are simply cut.
        let first = |v: f32| (v * size - 1.0) as usize;
        let last = |v: f32| ((v * size + 2.0) as usize).min(self.size);
        let (x0, x1, y0, y1) = (first(low[0]), last(high[0]), first(low[1]), last(high[1]));
        for (y, row) in self.pixels.chunks_exact_mut(self.size).enumerate().take(y1).skip(y0) {
            for (x, pixel) in row.iter_mut().enumerate().take(x1).skip(x0) {
                let centre = [(x as f32 + 0.5) / size, (y as f32 + 0.5) / size];
                let coverage = (0.5 - distance(centre) * size).clamp(0.0, 1.0);
                *pixel = mix(*pixel, color, coverage);
            }
        }
    }
}

/// From `a` (at 0) to `b` (at 1).
pub(super) fn mix(a: Color, b: Color, at: f32) -> Color {
    [0, 1, 2].map(|i| a[i] + at * (b[i] - a[i]))
}

/// `color` with its brightness multiplied.
pub(super) fn shade(color: Color, by: f32) -> Color {
    color.map(|channel| (channel * by).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, stream};

    const BLACK: Color = [0.0; 3];
    const WHITE: Color = [1.0; 3];

    fn area(canvas: &Canvas) -> f32 {
        canvas.pixels.iter().map(|p| p[0]).sum::<f32>() / canvas.pixels.len() as f32
    }

    #[test]
    fn shapes_cover_their_area() {
        let mut disc = Canvas::new(200, BLACK, BLACK);
        disc.ellipse([0.5, 0.5], [0.3, 0.3], 0.7, WHITE);
        assert!((area(&disc) - std::f32::consts::PI * 0.09).abs() < 2e-3, "{}", area(&disc));
        let mut line = Canvas::new(200, BLACK, BLACK);
        line.capsule([0.2, 0.5], [0.8, 0.5], [0.1, 0.1], WHITE);
        let expected = 0.6 * 0.2 + std::f32::consts::PI * 0.01;
        assert!((area(&line) - expected).abs() < 2e-3, "{}", area(&line));
    }

    #[test]
    fn edges_are_soft_and_shapes_may_leave_the_image() {
        let mut canvas = Canvas::new(32, BLACK, BLACK);
        canvas.ellipse([1.0, 0.0], [0.4, 0.4], 0.0, WHITE);
        canvas.capsule([-5.0, -5.0], [-4.0, 9.0], [0.1, 0.3], WHITE);
        canvas.curve([[0.1, 2.0], [0.5, 3.0], [0.9, 2.0]], 0.1, WHITE);
        assert!(canvas.pixels.iter().any(|p| p[0] > 0.05 && p[0] < 0.95));
        assert!(area(&canvas) > 0.05 && area(&canvas) < 0.2);
    }

    #[test]
    fn noise_has_its_standard_deviation_and_is_clipped() {
        let grey = Canvas::new(128, [0.5; 3], [0.5; 3]);
        let bytes = grey.rgb(0.05, &mut stream(1, Purpose::Demo, [0, 0]));
        let values: Vec<f32> = bytes.iter().step_by(3).map(|&b| f32::from(b) / 255.0 - 0.5).collect();
        let deviation = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
        assert!((deviation - 0.05).abs() < 0.003, "{deviation}");
        let white = Canvas::new(16, [2.0; 3], [-2.0; 3]).rgb(0.0, &mut stream(1, Purpose::Demo, [0, 0]));
        assert_eq!((white.first(), white.last()), (Some(&255), Some(&0)));
    }
}
