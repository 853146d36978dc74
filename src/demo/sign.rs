//! The signs of a drawn dataset: each has a hand shape, a path, a face and a text.

use rand::seq::SliceRandom;

use super::canvas::Point;
use crate::random::{Purpose, stream};

/// What the mouth does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mouth {
    Smile,
    Sad,
    Open,
    Round,
    Tight,
}

/// What the eyebrows do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Brows {
    Rest,
    Raised,
    Furrowed,
}

/// How the hand moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// How the hand moves.
    pub(super) path: Path,
    /// How the face goes with it.
    pub(super) mouth: Mouth,
    pub(super) brows: Brows,
    /// Whether the left hand does the same, mirrored; otherwise it is not seen.
    pub(super) two_handed: bool,
    /// How far the hand leans inwards, in radians.
    pub(super) lean: f32,
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
}

/// From 1 down to -1 and back, once a turn.
fn triangle(turns: f32) -> f32 {
    4.0 * (turns.rem_euclid(1.0) - 0.5).abs() - 1.0
}

// The lengths of these three lists (13, 8, 15) have no common factor, so going round all of them in step
// gives 1560 different signs, and neighbours differ in everything.

const HANDS: [[u8; 5]; 13] = [
    [0, 0, 0, 0, 0],
    [0, 1, 0, 0, 0],
    [0, 1, 1, 0, 0],
    [1, 1, 1, 0, 0],
    [0, 1, 1, 1, 1],
    [1, 1, 1, 1, 1],
    [1, 0, 0, 0, 0],
    [0, 0, 0, 0, 1],
    [1, 1, 0, 0, 0],
    [0, 1, 0, 0, 1],
    [1, 1, 0, 0, 1],
    [1, 0, 0, 0, 1],
    [0, 1, 1, 1, 0],
];

const PATHS: [Path; 8] = [
    Path::Circle,
    Path::Across,
    Path::UpDown,
    Path::Zigzag,
    Path::Eight,
    Path::Arc,
    Path::Square,
    Path::Still,
];

const MOUTHS: [Mouth; 5] = [Mouth::Smile, Mouth::Sad, Mouth::Open, Mouth::Round, Mouth::Tight];

const BROWS: [Brows; 3] = [Brows::Rest, Brows::Raised, Brows::Furrowed];

/// The most signs that a dataset can have: all of them differ.
pub(super) const MOST_SIGNS: usize = HANDS.len() * PATHS.len() * MOUTHS.len() * BROWS.len();

/// The first `count` (at most [`MOST_SIGNS`]) signs of a seed. Their texts are the same for every seed.
pub(super) fn signs(count: usize, seed: u64) -> Vec<Sign> {
    // Clips count from 0, so the last clip number is free for what all clips share.
    let mut random = stream(seed, Purpose::Demo, [u64::MAX, 0]);
    let (mut hands, mut paths) = (HANDS, PATHS);
    let mut faces: Vec<_> = MOUTHS.iter().flat_map(|&mouth| BROWS.map(|brows| (mouth, brows))).collect();
    hands.shuffle(&mut random);
    paths.shuffle(&mut random);
    faces.shuffle(&mut random);
    hands
        .iter()
        .cycle()
        .zip(paths.iter().cycle())
        .zip(faces.iter().cycle())
        .take(count)
        .enumerate()
        .map(|(i, ((hand, &path), &(mouth, brows)))| Sign {
            text: text(i),
            fingers: hand.map(|finger| finger == 1),
            path,
            mouth,
            brows,
            two_handed: i % 3 == 1,
            lean: [0.0, 0.5, -0.4][i % 3],
        })
        .collect()
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
    use std::collections::HashSet;

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
    fn a_few_signs_differ_in_hand_path_and_face() {
        let few = signs(6, 1234);
        for (i, a) in few.iter().enumerate() {
            for b in &few[..i] {
                assert_ne!(a.fingers, b.fingers);
                assert_ne!(a.path, b.path);
                assert_ne!((a.mouth, a.brows), (b.mouth, b.brows));
            }
        }
        assert!(few.iter().any(|s| s.two_handed) && few.iter().any(|s| !s.two_handed));
        assert_ne!(signs(6, 1), signs(6, 2));
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
