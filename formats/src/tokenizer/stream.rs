//! Bytes that arrive in pieces, given out as text that is never cut inside a character.

/// Bytes in, text out, whatever way the bytes are cut: an incomplete character waits for its rest, bytes that
/// can never become one turn into U+FFFD.
#[derive(Clone, Debug, Default)]
pub struct Utf8Stream {
    /// What the last call gave out; cleared, never freed, by the next.
    text: String,
    /// The start of a character whose rest has not come.
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// A stream that has seen nothing.
    pub fn new() -> Utf8Stream {
        Utf8Stream::default()
    }

    /// The text that `bytes` completes.
    pub fn push(&mut self, bytes: &[u8]) -> &str {
        self.text.clear();
        self.pending.extend_from_slice(bytes);
        let mut taken = 0;
        loop {
            let rest = &self.pending[taken..];
            let error = match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.text.push_str(text);
                    taken += rest.len();
                    break;
                }
                Err(error) => error,
            };
            let (valid, _) = rest.split_at(error.valid_up_to());
            // The prefix has just been found valid, so nothing is replaced here.
            self.text.push_str(&String::from_utf8_lossy(valid));
            taken += valid.len();
            let Some(invalid) = error.error_len() else { break };
            self.text.push(char::REPLACEMENT_CHARACTER);
            taken += invalid;
        }
        self.pending.drain(..taken);
        &self.text
    }

    /// What is left at the end of the bytes: U+FFFD if they stop inside a character.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        if !self.pending.is_empty() {
            self.pending.clear();
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_gives_the_same_text_for_every_cut() {
        let text = "aé日🦀\u{fffd}z";
        let bytes = text.as_bytes();
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let mut stream = Utf8Stream::new();
                let mut out = String::new();
                for part in [&bytes[..first], &bytes[first..second], &bytes[second..]] {
                    out.push_str(stream.push(part));
                }
                out.push_str(stream.finish());
                assert_eq!(out, text, "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn the_stream_replaces_what_can_never_be_text_and_holds_back_what_can() {
        let mut stream = Utf8Stream::new();
        assert_eq!(stream.push(b"a\xff\xe6"), "a\u{fffd}");
        assert_eq!(stream.push(b"\x97"), "");
        assert_eq!(stream.push(b"\xa5b\xe6"), "日b");
        assert_eq!(stream.push(b"x"), "\u{fffd}x");
        assert_eq!(stream.push(b"\xf0\x9f"), "");
        assert_eq!(stream.finish(), "\u{fffd}");
        assert_eq!(stream.finish(), "");
        let all: Vec<u8> = (0..=255).collect();
        let whole = String::from_utf8_lossy(&all).into_owned();
        let mut out = String::new();
        for byte in all {
            out.push_str(stream.push(&[byte]));
        }
        out.push_str(stream.finish());
        assert_eq!(out, whole);
    }
}
