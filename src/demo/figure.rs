//! Draws a signer's hand and face, and places the body's landmarks.

use super::canvas::{Canvas, Color, Point, shade};
use super::sign::{Brows, Mouth};

/// Where a figure stands in the image: figures are drawn in their own coordinates, -1 to 1 with y down.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placement {
    /// The figure's origin in the image.
    pub(super) centre: Point,
    /// How much of the image one unit of the figure covers.
    pub(super) scale: f32,
    /// Radians, clockwise in the image.
    pub(super) angle: f32,
    /// Left and right swapped, before turning.
    pub(super) mirror: bool,
}

impl Placement {
    fn at(&self, [x, y]: Point) -> Point {
        let x = if self.mirror { -x } else { x };
        let (sin, cos) = self.angle.sin_cos();
        [self.centre[0] + self.scale * (x * cos - y * sin), self.centre[1] + self.scale * (x * sin + y * cos)]
    }
}

/// A canvas seen through a placement.
struct Pen<'a> {
    canvas: &'a mut Canvas,
    place: Placement,
}

impl Pen<'_> {
    fn capsule(&mut self, from: Point, to: Point, radii: [f32; 2], color: Color) {
        let radii = radii.map(|r| r * self.place.scale);
        self.canvas.capsule(self.place.at(from), self.place.at(to), radii, color);
    }

    fn line(&mut self, from: Point, to: Point, radius: f32, color: Color) {
        self.capsule(from, to, [radius, radius], color);
    }

    fn ellipse(&mut self, centre: Point, radii: [f32; 2], color: Color) {
        let radii = radii.map(|r| r * self.place.scale);
        self.canvas.ellipse(self.place.at(centre), radii, self.place.angle, color);
    }

    fn curve(&mut self, points: [Point; 3], radius: f32, color: Color) {
        self.canvas.curve(points.map(|p| self.place.at(p)), radius * self.place.scale, color);
    }

    /// A line with a dark rim, which tells a finger from the palm behind it.
    fn limb(&mut self, from: Point, to: Point, radii: [f32; 2], color: Color) {
        self.capsule(from, to, radii.map(|r| r + 0.03), shade(color, 0.55));
        self.capsule(from, to, radii, color);
    }
}

/// Each of index, middle, ring and little: where it starts, how far it spreads (radians), how long it is.
const FINGERS: [(Point, f32, f32); 4] = [
    ([-0.25, -0.22], -0.20, 0.56),
    ([-0.08, -0.28], -0.05, 0.62),
    ([0.09, -0.27], 0.08, 0.57),
    ([0.25, -0.20], 0.26, 0.46),
];

/// A right hand, seen from its back, pointing up; `fingers`: thumb to little, whether each is extended.
pub(super) fn hand(canvas: &mut Canvas, place: Placement, fingers: [bool; 5], skin: Color, sleeve: Color) {
    let mut pen = Pen { canvas, place };
    let [thumb, rest @ ..] = fingers;
    pen.limb([0.0, 0.35], [0.04, 1.3], [0.19, 0.24], skin);
    pen.limb([0.03, 0.95], [0.06, 2.6], [0.30, 0.36], sleeve);
    if thumb {
        pen.limb([-0.2, 0.12], [-0.62, -0.22], [0.11, 0.085], skin);
    }
    for ((base, spread, length), extended) in FINGERS.into_iter().zip(rest) {
        if extended {
            let (sin, cos) = spread.sin_cos();
            pen.limb(base, [base[0] + length * sin, base[1] - length * cos], [0.1, 0.08], skin);
        }
    }
    pen.ellipse([0.0, 0.06], [0.39, 0.41], shade(skin, 0.55));
    pen.ellipse([0.0, 0.06], [0.36, 0.38], skin);
    // Folded fingers lie on the palm, short and a little darker.
    for ((base, _, _), extended) in FINGERS.into_iter().zip(rest) {
        if !extended {
            pen.limb(
                [base[0], base[1] + 0.02],
                [base[0] * 0.9, base[1] + 0.22],
                [0.085, 0.075],
                shade(skin, 0.88),
            );
        }
    }
    if !thumb {
        pen.limb([-0.3, 0.16], [0.02, 0.2], [0.1, 0.08], shade(skin, 0.92));
    }
}

/// The colours of a face and what is around it.
#[derive(Clone, Copy, Debug)]
pub(super) struct FaceColors {
    pub(super) skin: Color,
    pub(super) hair: Color,
    pub(super) eyes: Color,
    pub(super) shirt: Color,
}

/// What a face shows at one moment; `strength` 0 is a face at rest, 1 the whole expression.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expression {
    pub(super) mouth: Mouth,
    pub(super) brows: Brows,
    pub(super) strength: f32,
    /// Eyes closed.
    pub(super) blink: bool,
}

/// A head and shoulders, seen from the front.
pub(super) fn face(canvas: &mut Canvas, place: Placement, colors: FaceColors, expression: Expression) {
    let mut pen = Pen { canvas, place };
    let FaceColors { skin, hair, eyes, shirt } = colors;
    pen.ellipse([0.0, -0.15], [0.62, 0.68], hair);
    pen.line([0.0, 0.5], [0.0, 0.95], 0.22, shade(skin, 0.8));
    pen.ellipse([0.0, 1.35], [1.0, 0.5], shirt);
    for side in [-1.0, 1.0] {
        pen.ellipse([0.51 * side, 0.08], [0.08, 0.13], shade(skin, 0.85));
    }
    pen.ellipse([0.0, 0.08], [0.5, 0.62], skin);
    pen.curve([[-0.42, -0.3], [0.0, -0.75], [0.42, -0.3]], 0.11, hair);
    pen.capsule([0.0, 0.0], [0.02, 0.2], [0.025, 0.055], shade(skin, 0.78));
    for side in [-1.0, 1.0] {
        draw_eye(&mut pen, [0.21 * side, -0.04], skin, eyes, expression.blink);
        draw_brow(&mut pen, side, hair, expression);
    }
    draw_mouth(&mut pen, skin, expression);
}

fn draw_eye(pen: &mut Pen<'_>, at: Point, skin: Color, eyes: Color, blink: bool) {
    if blink {
        pen.line([at[0] - 0.09, at[1] + 0.01], [at[0] + 0.09, at[1] + 0.01], 0.02, shade(skin, 0.5));
    } else {
        pen.ellipse(at, [0.12, 0.075], shade(skin, 0.6));
        pen.ellipse(at, [0.105, 0.06], [0.95, 0.95, 0.93]);
        pen.ellipse(at, [0.055, 0.055], eyes);
    }
}

fn draw_brow(pen: &mut Pen<'_>, side: f32, hair: Color, expression: Expression) {
    let (inner, outer) = match expression.brows {
        Brows::Rest => (0.0, 0.0),
        Brows::Raised => (-0.15, -0.14),
        Brows::Furrowed => (0.1, -0.1),
    };
    let strength = expression.strength;
    let from = [0.09 * side, -0.19 + inner * strength];
    pen.capsule(from, [0.34 * side, -0.2 + outer * strength], [0.05, 0.035], shade(hair, 0.8));
}

fn draw_mouth(pen: &mut Pen<'_>, skin: Color, expression: Expression) {
    let strength = expression.strength;
    let lips = [skin[0] * 0.75, skin[1] * 0.42, skin[2] * 0.42];
    let inside = [0.16, 0.04, 0.05];
    let bent = |bend: f32| [[-0.28, 0.39 - bend], [0.0, 0.39 + 1.5 * bend], [0.28, 0.39 - bend]];
    let mut opened = |width: f32, height: f32| {
        let radii = [0.2 + (width - 0.2) * strength, 0.035 + (height - 0.035) * strength];
        pen.ellipse([0.0, 0.4], radii, lips);
        pen.ellipse([0.0, 0.4], [radii[0] - 0.045, radii[1] - 0.045 * strength], inside);
    };
    match expression.mouth {
        Mouth::Smile => pen.curve(bent(0.13 * strength), 0.055, lips),
        Mouth::Sad => pen.curve(bent(-0.13 * strength), 0.055, lips),
        Mouth::Open => opened(0.26, 0.22),
        Mouth::Round => opened(0.13, 0.14),
        Mouth::Tight => {
            pen.line([-0.2 + 0.08 * strength, 0.39], [0.2 - 0.08 * strength, 0.39], 0.04, shade(lips, 0.8));
        }
    }
}

/// How many landmarks a pose has.
pub(super) const LANDMARKS: usize = 13;

/// The body that the landmarks are on, in fractions of the whole picture.
#[derive(Clone, Copy, Debug)]
pub(super) struct Body {
    /// Between the shoulders.
    pub(super) chest: Point,
    /// Half the width of the shoulders.
    pub(super) half: f32,
    /// The left and the right wrist.
    pub(super) wrists: [Point; 2],
    /// How surely each wrist is seen, 0 to 1.
    pub(super) seen: [f32; 2],
}

/// x, y and visibility of nose, eyes, ears, mouth corners, shoulders, elbows and wrists, the left one of each pair
/// first. The signer faces the camera, so their left is on the picture's right.
pub(super) fn landmarks(body: &Body, head_turn: f32) -> [[f32; 3]; LANDMARKS] {
    let Body { chest, half, wrists, seen } = *body;
    let head = |x: f32, y: f32| [chest[0] + half * (x + head_turn), chest[1] + half * (y - 1.9), 1.0];
    let shoulder = |side: f32| [chest[0] + half * side, chest[1], 1.0];
    let elbow = |side: f32, wrist: Point, seen: f32| {
        // Halfway to the wrist, hanging down and outwards: arms bend that way.
        let middle = [f32::midpoint(chest[0] + half * side, wrist[0]), f32::midpoint(chest[1], wrist[1])];
        [middle[0] + half * 0.35 * side, middle[1] + half * 0.5, 0.5 + 0.5 * seen]
    };
    let [left, right] = wrists;
    [
        head(0.0, 0.0),
        head(0.2, -0.25),
        head(-0.2, -0.25),
        head(0.45, -0.12),
        head(-0.45, -0.12),
        head(0.15, 0.3),
        head(-0.15, 0.3),
        shoulder(1.0),
        shoulder(-1.0),
        elbow(1.0, left, seen[0]),
        elbow(-1.0, right, seen[1]),
        [left[0], left[1], seen[0]],
        [right[0], right[1], seen[1]],
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, stream};

    const SKIN: Color = [0.8, 0.6, 0.5];

    fn bytes(draw: impl FnOnce(&mut Canvas, Placement), mirror: bool) -> Vec<u8> {
        let mut canvas = Canvas::new(48, [0.2; 3], [0.2; 3]);
        draw(&mut canvas, Placement { centre: [0.5, 0.5], scale: 0.45, angle: 0.0, mirror });
        canvas.rgb(0.0, &mut stream(0, Purpose::Demo, [0, 0]))
    }

    fn difference(a: &[u8], b: &[u8]) -> f32 {
        a.iter().zip(b).map(|(&a, &b)| f32::from(a.abs_diff(b))).sum::<f32>() / a.len() as f32
    }

    #[test]
    fn every_finger_shows_and_mirroring_mirrors() {
        let draw = |fingers, mirror| bytes(|c, p| hand(c, p, fingers, SKIN, [0.1, 0.2, 0.7]), mirror);
        let fist = draw([false; 5], false);
        for i in 0..5 {
            let mut fingers = [false; 5];
            fingers[i] = true;
            assert!(difference(&fist, &draw(fingers, false)) > 1.0, "finger {i}");
        }
        let mirrored: Vec<u8> = draw([true, true, false, false, false], true)
            .chunks_exact(48 * 3)
            .flat_map(|row| row.chunks_exact(3).rev().flatten().copied().collect::<Vec<_>>())
            .collect();
        assert!(difference(&mirrored, &draw([true, true, false, false, false], false)) < 0.1);
    }

    #[test]
    fn every_expression_shows() {
        let colors = FaceColors { skin: SKIN, hair: [0.1; 3], eyes: [0.2; 3], shirt: [0.5; 3] };
        let draw = |mouth, brows| {
            bytes(|c, p| face(c, p, colors, Expression { mouth, brows, strength: 1.0, blink: false }), false)
        };
        let faces: Vec<_> = [Mouth::Smile, Mouth::Sad, Mouth::Open, Mouth::Round, Mouth::Tight]
            .into_iter()
            .flat_map(|mouth| [Brows::Rest, Brows::Raised, Brows::Furrowed].map(|brows| draw(mouth, brows)))
            .collect();
        for (i, a) in faces.iter().enumerate() {
            for (j, b) in faces.iter().enumerate().take(i) {
                assert!(difference(a, b) > 0.2, "faces {i} and {j}");
            }
        }
    }

    #[test]
    fn landmarks_mirror_left_and_right() {
        let body = Body { chest: [0.5, 0.5], half: 0.1, wrists: [[0.6, 0.8], [0.4, 0.8]], seen: [1.0, 0.5] };
        let points = landmarks(&body, 0.0);
        for (left, right) in [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12)] {
            assert!((points[left][0] + points[right][0] - 1.0).abs() < 1e-6);
            assert!(points[left][0] > points[right][0]);
        }
        assert_eq!(points[12].map(|v| (v * 10.0).round() as i32), [4, 8, 5]);
    }
}
