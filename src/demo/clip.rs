//! One clip of a drawn dataset: what is drawn for it at random, and its frames.

use std::ops::Range;

use rand::RngExt;
use rand::seq::IndexedRandom;

use super::Options;
use super::canvas::{Canvas, Color, Point, mix, shade};
use super::figure::{self, Body, Expression, FaceColors, LANDMARKS, Placement};
use super::sign::Sign;
use crate::random::{Purpose, stream};

/// What is drawn of a frame, a stream each, in the order in which its noise is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crop {
    Face,
    LeftHand,
    RightHand,
}

impl Crop {
    pub(super) const ALL: [Self; 3] = [Self::Face, Self::LeftHand, Self::RightHand];

    /// The stream's folder in a dataset.
    pub(super) fn folder(self) -> &'static str {
        match self {
            Self::Face => "face",
            Self::LeftHand => "hand_l",
            Self::RightHand => "hand_r",
        }
    }
}

/// A clip: one signer, once, with one sign or a sentence of several.
#[derive(Clone, Debug)]
pub(super) struct Clip {
    index: usize,
    /// The `video_id`.
    pub(super) id: String,
    /// Which of the dataset's signs, in their order.
    pub(super) sentence: Vec<usize>,
    /// The frames of each sign.
    parts: Vec<Range<usize>>,
    /// Whether it is in the validation split.
    pub(super) validation: bool,
    /// How many frames the video had; a hand may be missing in some.
    pub(super) frames: usize,
    /// The frames that the left and the right hand lack.
    missing: [Range<usize>; 2],
    look: Look,
    motion: Motion,
}

/// Who signs, where, and in what light.
#[derive(Clone, Debug)]
struct Look {
    skin: Color,
    hair: Color,
    eyes: Color,
    shirt: Color,
    /// The background's colour at the top and at the bottom.
    background: [Color; 2],
    noise: f32,
    face: Placement,
    /// The right hand's; the left one is its mirror image.
    hand: Placement,
    chest: Point,
    shoulders: f32,
}

/// How this signer makes the path.
#[derive(Clone, Debug)]
struct Motion {
    start: f32,
    turns: f32,
    reach: f32,
    blink: usize,
}

impl Clip {
    /// Clip `index` of the dataset. Signs take turns, and of each sign's clips every fourth is for validation,
    /// from the second on, so that each sign is in both splits as soon as it has two clips.
    pub(super) fn plan(options: &Options, index: usize) -> Self {
        let mut random = stream(options.seed, Purpose::Demo, [index as u64, 0]);
        let frames = random.random_range(options.frames.div_ceil(2)..=options.frames);
        let missing = [0, 1].map(|_| missing_frames(frames, &mut random));
        Self {
            index,
            id: format!("clip_{index:05}"),
            sentence: vec![index % options.signs],
            parts: std::iter::once(0..frames).collect(),
            validation: (index / options.signs) % 4 == 1,
            frames,
            missing,
            look: Look::draw(&mut random),
            motion: Motion::draw(options, &mut random),
        }
    }

    /// Clip `index` of a dataset of sentences. Each signer has a tempo, which no two signs keep alike; no hand is ever
    /// missed.
    pub(super) fn of_sentence(
        options: &Options,
        index: usize,
        (sentence, validation): (Vec<usize>, bool),
    ) -> Self {
        let mut random = stream(options.seed, Purpose::Demo, [index as u64, 0]);
        // Four signs fill the longest clips.
        let slowest = (options.frames / 4).max(2);
        let tempo = random.random_range((slowest / 2 + 1).min(slowest)..=slowest);
        let (mut parts, mut frames) = (Vec::new(), 0);
        for _ in &sentence {
            let length = random.random_range(tempo.saturating_sub(1).max(2)..=tempo);
            parts.push(frames..frames + length);
            frames += length;
        }
        Self {
            index,
            id: format!("clip_{index:05}"),
            sentence,
            parts,
            validation,
            frames,
            missing: [0..0, 0..0],
            look: Look::draw(&mut random),
            motion: Motion::draw(options, &mut random),
        }
    }

    /// What is signed in frame `number`.
    fn sign<'s>(&self, signs: &'s [Sign], number: usize) -> &'s Sign {
        static NONE: Sign = Sign::NONE;
        let at = self.parts.iter().position(|part| part.contains(&number)).unwrap_or_default();
        self.sentence.get(at).and_then(|&sign| signs.get(sign)).unwrap_or(&NONE)
    }

    /// Whether `crop` has frame `number`.
    fn has(&self, signs: &[Sign], crop: Crop, number: usize) -> bool {
        let sign = self.sign(signs, number);
        let [left, right] = &self.missing;
        match crop {
            Crop::Face => true,
            Crop::LeftHand => sign.two_handed && !left.contains(&number),
            Crop::RightHand => !right.contains(&number),
        }
    }

    /// Every crop that the clip has, by stream and frame number.
    pub(super) fn crops(&self, signs: &[Sign]) -> impl Iterator<Item = (Crop, usize)> {
        let all = (0..self.frames).flat_map(|number| Crop::ALL.map(|crop| (crop, number)));
        all.filter(|&(crop, number)| self.has(signs, crop, number))
    }

    /// One crop as RGB bytes, `size` pixels square.
    pub(super) fn image(&self, options: &Options, signs: &[Sign], crop: Crop, number: usize) -> Vec<u8> {
        let sign = self.sign(signs, number);
        let part = 1 + 3 * number as u64 + crop as u64;
        let mut random = crate::random::stream(options.seed, Purpose::Demo, [self.index as u64, part]);
        let [top, bottom] = self.look.background;
        let mut canvas = Canvas::new(options.size, top, bottom);
        let jitter: Point = [0, 1].map(|_| random.random_range(-0.01..0.01));
        match crop {
            Crop::Face => self.face(&mut canvas, sign, number, jitter),
            Crop::LeftHand => self.hand(&mut canvas, sign, number, jitter, true),
            Crop::RightHand => self.hand(&mut canvas, sign, number, jitter, false),
        }
        canvas.rgb(self.look.noise, &mut random)
    }

    /// The landmarks of every frame, `frames` rows of `3 * LANDMARKS`.
    pub(super) fn pose(&self, options: &Options, signs: &[Sign]) -> Vec<f32> {
        let mut random = stream(options.seed, Purpose::Demo, [self.index as u64, u64::MAX]);
        let mut rows = Vec::with_capacity(self.frames * LANDMARKS * 3);
        for number in 0..self.frames {
            let body = self.body(signs, number);
            for point in figure::landmarks(&body, 0.1 * self.sway(number)) {
                let [x, y] = [point[0], point[1]].map(|v| v + random.random_range(-0.004..0.004));
                let visibility = (point[2] - random.random_range(0.0..0.02f32)).clamp(0.0, 1.0);
                rows.extend([x, y, visibility]);
            }
        }
        rows
    }

    fn face(&self, canvas: &mut Canvas, sign: &Sign, number: usize, jitter: Point) {
        let look = &self.look;
        let sway = self.sway(number);
        let place = Placement {
            centre: [look.face.centre[0] + jitter[0] + 0.02 * sway, look.face.centre[1] + jitter[1]],
            angle: look.face.angle + 0.06 * sway,
            ..look.face
        };
        // The expression comes and goes with the sign: at rest at both ends of the clip.
        let at = self.progress(number);
        let strength = (5.0 * at.min(1.0 - at) + 0.5).min(1.0);
        let blink = number == self.motion.blink;
        let colors = FaceColors { skin: look.skin, hair: look.hair, eyes: look.eyes, shirt: look.shirt };
        figure::face(
            canvas,
            place,
            colors,
            Expression { mouth: sign.mouth, brows: sign.brows, strength, blink },
        );
    }

    fn hand(&self, canvas: &mut Canvas, sign: &Sign, number: usize, jitter: Point, left: bool) {
        let look = &self.look;
        let mirrored = if left { -1.0 } else { 1.0 };
        let turns = self.turns(number);
        let ([x, y], [x0, y0]) = (sign.path.at(turns), sign.path.at(turns - 0.05));
        // A crop follows its hand a little late, and the forearm turns the hand as it goes outwards.
        let lag = [0.1 * (x - x0), 0.1 * (y - y0)];
        let place = Placement {
            centre: [
                look.hand.centre[0] + jitter[0] - mirrored * lag[0],
                look.hand.centre[1] + jitter[1] + lag[1],
            ],
            angle: mirrored * (look.hand.angle + sign.lean - 0.3 * x),
            mirror: left,
            ..look.hand
        };
        figure::hand(canvas, place, sign.fingers, look.skin, look.shirt);
    }

    fn body(&self, signs: &[Sign], number: usize) -> Body {
        let sign = self.sign(signs, number);
        let Look { chest, shoulders: half, .. } = self.look;
        let (moved, place) = (sign.path.at(self.turns(number)), sign.path.place());
        let [x, y] = [0, 1].map(|axis| moved[axis] * self.motion.reach + place[axis]);
        let at = |side: f32| [chest[0] + half * side * (1.0 + 1.1 * x), chest[1] + half * (0.6 + 1.4 * y)];
        let resting = [chest[0] + half * 1.2, chest[1] + half * 3.2];
        let seen = |stream| if self.has(signs, stream, number) { 0.98 } else { 0.3 };
        Body {
            chest,
            half,
            wrists: [if sign.two_handed { at(1.0) } else { resting }, at(-1.0)],
            seen: [seen(Crop::LeftHand), seen(Crop::RightHand)],
        }
    }

    /// From 0 at the first frame of a sign to 1 at its last.
    fn progress(&self, number: usize) -> f32 {
        let part = self.parts.iter().find(|part| part.contains(&number));
        let (first, frames) = part.map_or((0, self.frames), |part| (part.start, part.len()));
        number.saturating_sub(first) as f32 / (frames.max(2) - 1) as f32
    }

    fn turns(&self, number: usize) -> f32 {
        self.motion.start + self.motion.turns * self.progress(number)
    }

    /// The head moves a little from side to side.
    fn sway(&self, number: usize) -> f32 {
        (7.0 * self.progress(number) + 9.0 * self.motion.start).sin()
    }
}

impl Motion {
    fn draw(options: &Options, random: &mut impl RngExt) -> Self {
        Self {
            start: random.random_range(-0.05..0.05),
            turns: random.random_range(1.0..1.15),
            reach: random.random_range(0.85..1.15),
            blink: random.random_range(0..2 * options.frames),
        }
    }
}

impl Look {
    fn draw(random: &mut impl RngExt) -> Self {
        const SKINS: [Color; 5] = [
            [0.96, 0.80, 0.69],
            [0.87, 0.67, 0.53],
            [0.76, 0.55, 0.40],
            [0.57, 0.38, 0.27],
            [0.38, 0.25, 0.18],
        ];
        const HAIRS: [Color; 5] = [
            [0.07, 0.06, 0.06],
            [0.22, 0.13, 0.08],
            [0.42, 0.27, 0.14],
            [0.72, 0.56, 0.32],
            [0.55, 0.54, 0.53],
        ];
        const EYES: [Color; 3] = [[0.16, 0.09, 0.05], [0.2, 0.32, 0.22], [0.22, 0.36, 0.52]];
        let light = random.random_range(0.94..1.06);
        let [i, j] = [0, 1].map(|_| SKINS.choose(random).copied().unwrap_or(SKINS[0]));
        let skin = mix(i, j, random.random());
        let hair = HAIRS.choose(random).copied().unwrap_or(HAIRS[0]);
        let eyes = EYES.choose(random).copied().unwrap_or(EYES[0]);
        let shirt = [0, 1, 2].map(|_| random.random_range(0.1..0.85));
        let hue = [0, 1, 2].map(|_| random.random_range(0.5..0.75));
        // Walls are rarely vivid.
        let wall = mix(hue, [hue[1]; 3], 0.7);
        let background = [wall, shade(wall, random.random_range(0.75..1.0))].map(|c| shade(c, light));
        let mut place = |scale: Range<f32>, angle: f32, centre: Point| Placement {
            centre: centre.map(|v| v + random.random_range(-0.02..0.02)),
            scale: random.random_range(scale),
            angle: random.random_range(-angle..angle),
            mirror: false,
        };
        let face = place(0.5..0.56, 0.05, [0.5, 0.47]);
        let hand = place(0.5..0.56, 0.08, [0.5, 0.6]);
        Self {
            skin: shade(skin, light),
            hair: shade(hair, light),
            eyes,
            shirt: shade(shirt, light),
            background,
            noise: random.random_range(0.01..0.025),
            face,
            hand,
            chest: [random.random_range(0.46..0.54), random.random_range(0.4..0.46)],
            shoulders: random.random_range(0.14..0.17),
        }
    }
}

/// The frames that a hand lacks: in most clips none, in some a gap inside, in a few the end.
fn missing_frames(frames: usize, random: &mut impl RngExt) -> Range<usize> {
    let kind: f32 = random.random();
    if frames < 5 || kind > 0.35 {
        return 0..0;
    }
    let length = random.random_range(1..=(frames / 5).min(3));
    if kind < 0.08 {
        return frames - length..frames;
    }
    let start = random.random_range(1..frames - length);
    start..start + length
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::sign::signs;

    #[test]
    fn splits_hold_every_sign_at_about_three_to_one() {
        let options = Options { clips: 96, signs: 6, ..Options::default() };
        let clips: Vec<_> = (0..96).map(|i| Clip::plan(&options, i)).collect();
        assert_eq!(clips.iter().filter(|c| c.validation).count(), 24);
        for sign in 0..6 {
            let count = |validation| {
                clips.iter().filter(|c| c.sentence == [sign] && c.validation == validation).count()
            };
            assert_eq!((count(false), count(true)), (12, 4));
        }
        let scarce = Options { clips: 10, signs: 5, ..options };
        assert_eq!((0..10).filter(|&i| Clip::plan(&scarce, i).validation).count(), 5);
    }

    #[test]
    fn gaps_are_inside_or_at_the_end_and_leave_most_frames() {
        let options = Options { clips: 400, frames: 12, ..Options::default() };
        let (mut inside, mut at_end, mut none) = (0, 0, 0);
        for index in 0..400 {
            let clip = Clip::plan(&options, index);
            assert!((6..=12).contains(&clip.frames));
            for gap in &clip.missing {
                assert!(gap.len() <= 3 && gap.len() * 4 <= clip.frames && gap.end <= clip.frames);
                match (gap.is_empty(), gap.end == clip.frames) {
                    (true, _) => none += 1,
                    (_, true) => at_end += 1,
                    _ => inside += 1,
                }
            }
        }
        assert!(inside > 100 && at_end > 20 && none > 400, "{inside} {at_end} {none}");
    }

    #[test]
    fn poses_follow_the_path_and_are_sound() {
        let options = Options::default();
        for (at, sign) in signs(6, 1).iter().enumerate() {
            let clip = Clip { sentence: vec![at], ..Clip::plan(&options, 3) };
            let pose = clip.pose(&options, &signs(6, 1));
            assert_eq!(pose.len(), clip.frames * 39);
            assert!(pose.iter().all(|v| v.is_finite() && (-0.5..1.5).contains(v)));
            let wrist: Vec<f32> =
                pose.chunks_exact(39).map(|row| (row[36] - row[21]).hypot(row[37] - row[22])).collect();
            let moved = wrist.iter().fold(0f32, |m, v| m.max((v - wrist[0]).abs()));
            assert_eq!(moved > 0.03, sign.path != crate::demo::sign::Path::Still, "{:?} {moved}", sign.path);
        }
    }
}
