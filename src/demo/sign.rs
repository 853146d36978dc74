//! The signs of a drawn dataset: each has a hand shape, a path, a face and a text.

use std::collections::HashSet;

use rand::RngExt;

use super::canvas::Point;
use crate::random::{Purpose, stream};

/// What the mouth does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Mouth {
    Smile,
    Sad,
    Open,
    Round,
    Tight,
}

/// What the eyebrows do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Brows {
    Rest,
    Raised,
    Furrowed,
}

/// How the hand moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Path {
    Circle,
    Across,
    UpDown,
    Zigzag,
    Eight,
    Arc,
    Square,
    Still,
}

/// A sign, as every clip of it shares it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sign {
    /// The text in the metadata.
    pub(super) text: String,
    /// Which fingers are extended: thumb, index, middle, ring, little.
    pub(super) fingers: [bool; 5],
    /// How the hand moves, and where.
    pub(super) path: Path,
    /// How the face goes with it.
    pub(super) mouth: Mouth,
    pub(super) brows: Brows,
    /// Whether the left hand does the same, mirrored; otherwise it is not seen.
    pub(super) two_handed: bool,
    /// How far the hand leans inwards, in radians.
    pub(super) lean: f32,
}

impl Sign {
    /// What nobody signs.
    pub(super) const NONE: Self = Self {
        text: String::new(),
        fingers: [false; 5],
        path: Path::Still,
        mouth: Mouth::Tight,
        brows: Brows::Rest,
        two_handed: false,
        lean: 0.0,
    };
}

impl Path {
    /// The hand's place after `turns` rounds, each axis from -1 to 1 (x outwards, y down).
    pub(super) fn at(self, turns: f32) -> Point {
        let angle = turns * std::f32::consts::TAU;
        match self {
            Self::Circle => [angle.cos(), angle.sin()],
            Self::Across => [triangle(turns), 0.0],
            Self::UpDown => [0.0, triangle(turns)],
            Self::Zigzag => [triangle(turns), 0.7 * triangle(4.0 * turns)],
            Self::Eight => [angle.sin(), (2.0 * angle).sin()],
            Self::Arc => {
                let swing = triangle(turns);
                [swing, swing * swing - 0.5]
            }
            // A circle pushed out to its square: straight sides, and corners where it turns.
            Self::Square => [angle.cos(), angle.sin()].map(|v| (1.4 * v).clamp(-1.0, 1.0)),
            Self::Still => [0.05 * (3.0 * angle).sin(), 0.0],
        }
    }

    /// Where the path's middle is in front of the body, in the units of [`Self::at`]: paths that look alike over time
    /// are made in different places.
    pub(super) fn place(self) -> Point {
        match self {
            Self::Circle => [0.0, 0.0],
            Self::Across => [-0.2, -0.9],
            Self::UpDown => [0.8, 0.3],
            Self::Zigzag => [0.0, 0.8],
            Self::Eight => [0.7, -0.6],
            Self::Arc => [-0.3, 0.5],
            Self::Square => [0.5, 0.7],
            Self::Still => [-0.4, -0.3],
        }
    }
}

/// From 1 down to -1 and back, once a turn.
fn triangle(turns: f32) -> f32 {
    4.0 * (turns.rem_euclid(1.0) - 0.5).abs() - 1.0
}

// Neighbours in each list are easy to tell apart, and the first three of the paths and the mouths most of all: small
// datasets are made of those. A seed decides which hands and brows go with them.

const HANDS: [[u8; 5]; 13] = [
    [0, 0, 0, 0, 0],
    [1, 1, 1, 1, 1],
    [0, 1, 0, 0, 0],
    [1, 0, 0, 0, 1],
    [0, 1, 1, 1, 1],
    [1, 0, 0, 0, 0],
    [0, 1, 1, 0, 0],
    [1, 1, 0, 0, 1],
    [0, 0, 0, 0, 1],
    [1, 1, 1, 0, 0],
    [0, 1, 0, 0, 1],
    [1, 1, 0, 0, 0],
    [0, 1, 1, 1, 0],
];

const PATHS: [Path; 8] = [
    Path::Circle,
    Path::Across,
    Path::UpDown,
    Path::Zigzag,
    Path::Still,
    Path::Square,
    Path::Arc,
    Path::Eight,
];

const MOUTHS: [Mouth; 5] = [Mouth::Open, Mouth::Tight, Mouth::Smile, Mouth::Round, Mouth::Sad];

const BROWS: [Brows; 3] = [Brows::Rest, Brows::Raised, Brows::Furrowed];

/// Each mouth with each of the brows.
const FACES: usize = MOUTHS.len() * BROWS.len();

/// The most signs that a dataset can have: all of them differ.
pub(super) const MOST_SIGNS: usize = HANDS.len() * PATHS.len() * FACES;

/// The first `count` (at most [`MOST_SIGNS`]) signs of a seed. Their texts are the same for every seed.
///
/// In every six, three hands, three paths and three faces meet so that each of them stands in two signs and no pair in
/// more than one: none of the three tells the signs apart alone, and any two of them do.
pub(super) fn signs(count: usize, seed: u64) -> Vec<Sign> {
    // Clips count from 0, so the last clip number is free for what all clips share.
    let mut random = stream(seed, Purpose::Demo, [u64::MAX, 0]);
    let [hands, brows] = [HANDS.len(), BROWS.len()].map(|n| random.random_range(0..n));
    let mut seen = HashSet::new();
    // The first three of every six go through all lists in step, which passes every combination in the end, since
    // their lengths have no common factor.
    (0..2 * MOST_SIGNS)
        .map(|i| {
            let (first, turn, half) = (i / 6 * 3, i % 3, i % 6 / 3);
            let pick = |shift: usize, length: usize| (first + (turn + shift * half) % 3) % length;
            [pick(0, HANDS.len()), pick(1, PATHS.len()), pick(2, FACES)]
        })
        .filter(|parts| seen.insert(*parts))
        .take(count)
        .enumerate()
        .map(|(i, [hand, path, face])| Sign {
            text: text(i),
            fingers: HANDS[(hands + hand) % HANDS.len()].map(|finger| finger == 1),
            path: PATHS[path % PATHS.len()],
            mouth: MOUTHS[face % MOUTHS.len()],
            brows: BROWS[(brows + face) % BROWS.len()],
            two_handed: hand % 3 == 1,
            lean: [0.0, 0.5, -0.4][hand % 3],
        })
        .collect()
}

/// The first `count` of signs for sentences, without texts: each of hand, path and face tells them apart alone, up to as many
/// as there are hands, so that a part of a second is enough to know one.
pub(super) fn distinct_signs(count: usize, seed: u64) -> impl Iterator<Item = Sign> {
    let mut random = stream(seed, Purpose::Demo, [u64::MAX, 1]);
    let [hands, faces] = [HANDS.len(), FACES].map(|n| random.random_range(0..n));
    (0..count.min(HANDS.len())).map(move |i| {
        let face = (faces + i) % FACES;
        Sign {
            text: String::new(),
            fingers: HANDS[(hands + i) % HANDS.len()].map(|finger| finger == 1),
            path: PATHS[i % PATHS.len()],
            mouth: MOUTHS[face % MOUTHS.len()],
            brows: BROWS[face % BROWS.len()],
            two_handed: i % 2 == 1,
            lean: [0.0, 0.5, -0.4][i % 3],
        }
    })
}

/// The text of sign `i`: a word, and two different words beyond the list.
fn text(i: usize) -> String {
    let (word, round) = (i % WORDS.len(), i / WORDS.len());
    let first = WORDS[word];
    if round == 0 { first.to_owned() } else { format!("{first} {}", WORDS[(word + round) % WORDS.len()]) }
}

const WORDS: [&str; 96] = [
    "hola", "gracias", "agua", "casa", "familia", "comer", "amigo", "escuela", "trabajo", "noche", "día",
    "sol", "luna", "mamá", "papá", "hermano", "perro", "gato", "libro", "mesa", "pan", "leche", "fruta",
    "calle", "ciudad", "campo", "mar", "río", "montaña", "árbol", "flor", "lluvia", "viento", "frío",
    "calor", "rojo", "azul", "verde", "blanco", "negro", "grande", "pequeño", "nuevo", "viejo", "bueno",
    "malo", "feliz", "triste", "cansado", "enfermo", "médico", "maestro", "niño", "mujer", "hombre",
    "abuela", "tío", "primo", "vecino", "puerta", "ventana", "cocina", "cama", "ropa", "zapato", "dinero",
    "tiempo", "hora", "semana", "mes", "año", "ayer", "hoy", "mañana", "siempre", "nunca", "aprender",
    "enseñar", "jugar", "correr", "caminar", "dormir", "beber", "comprar", "vender", "leer", "escribir",
    "mirar", "escuchar", "hablar", "pensar", "querer", "ayudar", "viajar", "esperar", "adiós",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_signs_and_texts_differ() {
        let all = signs(MOST_SIGNS, 3);
        assert_eq!(all.len(), 1560);
        let texts: HashSet<_> = all.iter().map(|s| s.text.clone()).collect();
        assert_eq!(texts.len(), all.len());
        let looks: HashSet<_> =
            all.iter().map(|s| format!("{:?}{:?}{:?}{:?}", s.fingers, s.path, s.mouth, s.brows)).collect();
        assert_eq!(looks.len(), all.len());
    }

    #[test]
    fn no_part_alone_tells_the_signs_apart() {
        for six in signs(24, 1234).chunks(6) {
            let hands = six.iter().map(|s| s.fingers).collect::<HashSet<_>>();
            let paths = six.iter().map(|s| s.path).collect::<HashSet<_>>();
            let faces = six.iter().map(|s| (s.mouth, s.brows)).collect::<HashSet<_>>();
            assert_eq!((hands.len(), paths.len(), faces.len()), (3, 3, 3));
            for (i, a) in six.iter().enumerate() {
                for b in &six[..i] {
                    let face = a.mouth != b.mouth && a.brows != b.brows;
                    let differ = [a.fingers != b.fingers, a.path != b.path, face];
                    assert!(differ.into_iter().filter(|&part| part).count() >= 2, "{a:?} {b:?}");
                }
            }
            assert!(six.iter().any(|s| s.two_handed) && six.iter().any(|s| !s.two_handed));
        }
        let looks = |seed| signs(6, seed).iter().map(|s| (s.fingers, s.path, s.mouth)).collect::<Vec<_>>();
        assert_ne!(looks(1), looks(2));
    }

    /// A target is a hash of the text; the texts of the usual small datasets keep classes of their own.
    #[test]
    fn the_first_texts_do_not_share_a_class() {
        use sha1::{Digest, Sha1};
        let classes: HashSet<u64> = (0..12)
            .map(|i| {
                let digest = Sha1::digest(text(i).as_bytes());
                let mut head = [0; 8];
                head.copy_from_slice(&digest[..8]);
                u64::from_be_bytes(head) % 1000
            })
            .collect();
        assert_eq!(classes.len(), 12);
    }

    #[test]
    fn paths_stay_in_their_square() {
        for path in PATHS {
            for i in 0..200 {
                let [x, y] = path.at(i as f32 / 50.0);
                assert!(x.abs() <= 1.001 && y.abs() <= 1.001, "{path:?}");
            }
        }
    }
}
