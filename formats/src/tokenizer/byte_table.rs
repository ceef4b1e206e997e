//! How byte-level files write bytes: one printable character each (Radford et al. 2019, `encoder.py`,
//! `bytes_to_unicode`). Holds the table and its two directions; knows no token and no id.

/// The 256 bytes in the order of the characters that stand for them, which is the order of their ids in GPT-2 and
/// in every vocabulary that is learned here.
pub(super) fn in_character_order() -> [u8; 256] {
    let mut bytes: [u8; 256] = std::array::from_fn(|value| value as u8);
    bytes.sort_unstable_by_key(|&byte| character(byte));
    bytes
}

/// The character that stands for `byte`: itself where it prints, else the next free one from U+0100.
pub fn character(byte: u8) -> char {
    let free = match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => return char::from(byte),
        0..=b' ' => u32::from(byte),
        0x7F..=0xA0 => u32::from(byte) - 0x7F + 33,
        0xAD => 67,
    };
    char::from_u32(256 + free).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The byte that `character` stands for, if it stands for one.
fn byte(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// The bytes as a file writes them.
pub(super) fn written(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| character(byte)).collect()
}

/// The bytes that a file's token stands for, or the first of its characters that stands for none.
pub(super) fn read(token: &str) -> Result<Vec<u8>, char> {
    token.chars().map(|character| byte(character).ok_or(character)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stand_under_gpt2s_characters() {
        assert_eq!([b'A', b' ', b'\n', 0xAD].map(character), ['A', 'Ġ', 'Ċ', 'Ń']);
        let mut all: Vec<char> = (0..=u8::MAX).map(character).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 256);
        assert_eq!(all.last(), Some(&'Ń'));
    }

    #[test]
    fn every_byte_comes_back_and_no_other_character_is_one() {
        for value in 0..=u8::MAX {
            assert_eq!(byte(character(value)), Some(value));
        }
        let known = (0..=0x2000).filter_map(char::from_u32).filter(|&character| byte(character).is_some());
        assert_eq!(known.count(), 256);
        assert_eq!(read("Ġthe"), Ok(b" the".to_vec()));
        assert_eq!(read("the end"), Err(' '));
        assert_eq!(written(b"\xff a"), "ÿĠa");
    }

    #[test]
    fn gpt2s_first_ids_are_those_that_print() {
        let order = in_character_order();
        assert_eq!((order[0], order[93], order[188], order[220]), (b'!', b'~', 0, b' '));
    }
}
