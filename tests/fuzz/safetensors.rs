//! Files of tensors as safetensors lays them out: the header's length in 8 bytes, the header in JSON, the numbers.

use crate::random::Random;

/// A file with this header, whatever it says of the numbers.
pub fn with_header(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// Damages a file: its header's text, where one of `pieces` becomes what stands beside it, its numbers, its length.
pub fn mutate(random: &mut Random, bytes: &[u8], others: &[Vec<u8>], pieces: &[(&str, &str)]) -> Vec<u8> {
    let length = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length) as usize);
    let Some((header, data)) = bytes.get(8..).and_then(|rest| rest.split_at_checked(length)) else {
        let mut bytes = bytes.to_vec();
        random.damage(&mut bytes, others);
        return bytes;
    };
    let text = String::from_utf8_lossy(header);
    match random.below(7) {
        0..=2 => {
            let (from, to) = pieces[random.below(pieces.len())];
            with_header(text.replacen(from, to, 1 + random.below(30)).as_bytes(), data)
        }
        3 => {
            // A number somewhere becomes another one.
            let digits: Vec<usize> =
                text.match_indices(|c: char| c.is_ascii_digit()).map(|(at, _)| at).collect();
            let Some(at) = digits.get(random.below(digits.len())) else { return bytes.to_vec() };
            let odd = random.odd().to_string();
            with_header([&text[..*at], &odd, &text[at + 1..]].concat().as_bytes(), data)
        }
        4 => {
            let mut header = header.to_vec();
            random.damage(&mut header, others);
            with_header(&header, data)
        }
        5 => {
            let mut data = data.to_vec();
            random.damage(&mut data, others);
            with_header(header, &data)
        }
        // A length that lies.
        _ => [&random.odd().to_le_bytes()[..], header, data].concat(),
    }
}
