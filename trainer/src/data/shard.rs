//! Token shards: a text's token ids in a file that is mapped, never read whole.
//!
//! All numbers are little-endian.
//!
//! ```text
//! byte   0  8   "LECSHARD"
//!        8  4   version, 1
//!       12  4   bytes of an id: 2 for vocabularies of at most 65,536, else 4
//!       16  8   ids
//!       24  8   documents
//!       32  8   bytes of the text they were made from
//!       40  4   vocabulary
//!       44  4   id of the end-of-text token, or 2^32 - 1 without one
//!       48  16  XXH3-128 of the tokenizer's tokenizer.json, as Lectern writes it
//!       64  16  XXH3-128 of everything after the header
//!       80  40  zero
//!      120  8   XXH3-64 of the 120 bytes before
//!      128      the ids, then zeros to a multiple of 8
//!               for each document, in 8 bytes, the number of ids before its end
//! ```
//!
//! An end-of-text token belongs to the document it ends. Opening a shard proves the header, the file's length and that
//! the documents follow one another; the ids are looked at when they are read, each of them. [`Shard::verify`] reads
//! everything against the checksum.
//!
//! The format is the trainer's own: no runtime reads tokens, so it stands here and not in `formats`, whose map and
//! whose way of writing a file at once it uses.

use formats::checkpoint::{Advice, AtomicFile, Map, source};
use formats::tokenizer::Tokenizer;
use formats::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_128};

/// The bytes a shard begins with.
pub const MAGIC: [u8; 8] = *b"LECSHARD";
const VERSION: u32 = 1;
/// Bytes before the ids.
pub const HEADER: usize = 128;
/// Bytes of the header that its own checksum covers.
const COVERED: usize = 120;
/// Bytes of one end in the table of documents.
const END: usize = size_of::<u64>();
const NO_ID: u32 = u32::MAX;
/// Bytes that are checked and given back to the system at a time.
const CHECKED_AT_ONCE: usize = 1 << 24;

const DAMAGED: &str = "the shard is damaged or was cut short; encode the text again";

/// What tells one tokenizer from another.
pub fn tokenizer_checksum(tokenizer: &Tokenizer) -> u128 {
    xxh3_128(tokenizer.to_json().as_bytes())
}

/// Whether a file begins as a shard does.
pub fn is_shard(path: &Path) -> Result<bool> {
    let (mut file, _) = source::open(path)?;
    let mut magic = [0; MAGIC.len()];
    match file.read_exact(&mut magic) {
        Ok(()) => Ok(magic == MAGIC),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(Error::file(path, format!("cannot be read: {error}"), "check the file")),
    }
}

/// A shard's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of an id.
    width: u32,
    /// Ids.
    pub tokens: u64,
    /// Documents.
    pub documents: u64,
    /// Bytes of the text.
    pub text_bytes: u64,
    /// Ids are below this.
    pub vocabulary: u32,
    /// The token that ends each document, if one does.
    pub end_of_text: Option<u32>,
    /// Checksum of the tokenizer.
    pub tokenizer: u128,
    /// Checksum of everything after the header.
    pub contents: u128,
}

impl Header {
    /// As it stands in the file.
    pub fn to_bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut at = 0;
        let mut put = |part: &[u8]| {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        };
        put(&MAGIC);
        put(&VERSION.to_le_bytes());
        put(&self.width.to_le_bytes());
        put(&self.tokens.to_le_bytes());
        put(&self.documents.to_le_bytes());
        put(&self.text_bytes.to_le_bytes());
        put(&self.vocabulary.to_le_bytes());
        put(&self.end_of_text.unwrap_or(NO_ID).to_le_bytes());
        put(&self.tokenizer.to_le_bytes());
        put(&self.contents.to_le_bytes());
        let sum = xxh3_64(&bytes[..COVERED]);
        bytes[COVERED..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// The header that a file of `len` bytes begins with, or what is wrong with it.
    fn read(bytes: &[u8], len: u64) -> Result<Header, String> {
        let Some(header) = bytes.first_chunk::<HEADER>() else {
            return Err(format!("has {len} bytes; the header of a shard alone has {HEADER}"));
        };
        if !header.starts_with(&MAGIC) {
            return Err("is no token shard".into());
        }
        let mut at = MAGIC.len();
        let mut take = |count: usize| {
            let mut number = [0; 16];
            number[..count].copy_from_slice(&header[at..at + count]);
            at += count;
            u128::from_le_bytes(number)
        };
        let version = take(4) as u32;
        if version != VERSION {
            return Err(format!("is a shard of version {version}; version {VERSION} is read"));
        }
        let (width, tokens, documents) = (take(4) as u32, take(8) as u64, take(8) as u64);
        let (text_bytes, vocabulary, end) = (take(8) as u64, take(4) as u32, take(4) as u32);
        let (tokenizer, contents) = (take(16), take(16));
        let end_of_text = (end != NO_ID).then_some(end);
        let found =
            Header { width, tokens, documents, text_bytes, vocabulary, end_of_text, tokenizer, contents };
        // Written again it is the same: the checksum holds, and nothing stands where zeros should.
        if found.to_bytes() != *header {
            return Err("has a damaged header: its checksum is another".into());
        }
        if width != width_of(vocabulary) {
            return Err(format!("has ids of {width} bytes for a vocabulary of {vocabulary}"));
        }
        if vocabulary == 0 || end_of_text.is_some_and(|id| id >= vocabulary) {
            return Err(format!("has the end-of-text token {end} in a vocabulary of {vocabulary}"));
        }
        if tokens == 0 || documents == 0 {
            return Err(format!("says it has {tokens} ids in {documents} documents; it needs both"));
        }
        let expected = HEADER as u128 + found.ids_bytes() + u128::from(documents) * END as u128;
        if expected != u128::from(len) {
            return Err(format!(
                "has {len} bytes, and {tokens} ids in {documents} documents take {expected}"
            ));
        }
        Ok(found)
    }

    /// Bytes of the ids with the zeros after them.
    fn ids_bytes(&self) -> u128 {
        (u128::from(self.tokens) * u128::from(self.width)).next_multiple_of(END as u128)
    }
}

/// Bytes of an id below `vocabulary`.
fn width_of(vocabulary: u32) -> u32 {
    if vocabulary <= 1 << 16 { 2 } else { 4 }
}

/// A mapped shard.
#[derive(Debug)]
pub struct Shard {
    map: Map,
    path: PathBuf,
    header: Header,
}

impl Shard {
    /// Maps a shard and proves its header, its length and its table of documents.
    pub fn open(path: &Path) -> Result<Shard> {
        let map = Map::open(path)?;
        let refuse = |problem: String| Error::file(path, problem, DAMAGED);
        let header = Header::read(map.bytes(), map.bytes().len() as u64).map_err(refuse)?;
        let shard = Shard { map, path: path.to_path_buf(), header };
        let mut before = 0;
        for document in 0..header.documents {
            let end = shard.end(document)?;
            if end <= before || end > header.tokens {
                return Err(refuse(format!(
                    "says document {document} ends after {end} ids, expected {} to {}",
                    before + 1,
                    header.tokens
                )));
            }
            before = end;
        }
        if before != header.tokens {
            return Err(refuse(format!("has {} ids after its last document", header.tokens - before)));
        }
        Ok(shard)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Refuses a tokenizer that is not the one the shard was made with.
    pub fn require(&self, tokenizer: &Tokenizer) -> Result<()> {
        if self.header.tokenizer == tokenizer_checksum(tokenizer) {
            return Ok(());
        }
        Err(Error::file(
            &self.path,
            format!(
                "was encoded with another tokenizer (of {} ids, this one has {})",
                self.header.vocabulary,
                tokenizer.vocabulary()
            ),
            "name the tokenizer it was encoded with by --tokenizer, or encode the text again",
        ))
    }

    /// The ids of a document, as a range of all of them.
    pub fn document(&self, document: u64) -> Result<Range<u64>> {
        let start = match document.checked_sub(1) {
            Some(before) => self.end(before)?,
            None => 0,
        };
        Ok(start..self.end(document)?)
    }

    /// Ids before the end of a document.
    fn end(&self, document: u64) -> Result<u64> {
        let at = HEADER as u128 + self.header.ids_bytes() + u128::from(document) * END as u128;
        usize::try_from(at)
            .ok()
            .and_then(|at| self.map.bytes().get(at..)?.first_chunk::<END>())
            .map(|bytes| u64::from_le_bytes(*bytes))
            .ok_or_else(|| Error::file(&self.path, format!("has no document {document}"), DAMAGED))
    }

    /// Adds a range of the ids to `ids`, each of them checked.
    pub fn copy(&self, range: Range<u64>, ids: &mut Vec<u32>) -> Result<()> {
        let width = u64::from(self.header.width);
        let inside = range.start <= range.end && range.end <= self.header.tokens;
        // Where the last id ends the file goes on, so no product overflows.
        let bytes = inside
            .then(|| HEADER + (range.start * width) as usize..HEADER + (range.end * width) as usize)
            .and_then(|place| self.map.bytes().get(place))
            .ok_or_else(|| Error::file(&self.path, format!("has no ids {range:?}"), DAMAGED))?;
        let first = ids.len();
        if self.header.width == 2 {
            ids.extend(bytes.chunks_exact(2).map(|pair| u32::from(u16::from_le_bytes([pair[0], pair[1]]))));
        } else {
            ids.extend(
                bytes.chunks_exact(4).map(|four| u32::from_le_bytes([four[0], four[1], four[2], four[3]])),
            );
        }
        match ids[first..].iter().position(|&id| id >= self.header.vocabulary) {
            Some(wrong) => Err(Error::file(
                &self.path,
                format!(
                    "has {} as id {}, beyond its vocabulary of {}",
                    ids[first + wrong],
                    range.start + wrong as u64,
                    self.header.vocabulary
                ),
                DAMAGED,
            )),
            None => Ok(()),
        }
    }

    /// Reads everything: the checksum of the contents, and every id.
    pub fn verify(&self) -> Result<()> {
        let bytes = self.map.bytes();
        let (mut hash, mut at) = (Xxh3::new(), HEADER);
        while at < bytes.len() {
            let end = bytes.len().min(at + CHECKED_AT_ONCE);
            hash.update(&bytes[at..end]);
            self.map.advise(at..end, Advice::DontNeed);
            at = end;
        }
        if hash.digest128() != self.header.contents {
            return Err(Error::file(&self.path, "has other contents than were written", DAMAGED));
        }
        let (mut ids, mut at) = (vec![], 0);
        while at < self.header.tokens {
            let end = self.header.tokens.min(at + (CHECKED_AT_ONCE / 4) as u64);
            ids.clear();
            self.copy(at..end, &mut ids)?;
            at = end;
        }
        Ok(())
    }
}

/// A shard being written, in memory that does not grow with it.
pub struct ShardWriter {
    path: PathBuf,
    file: AtomicFile,
    /// The table of documents, which stands behind ids that are still to come.
    ends: BufWriter<File>,
    hash: Xxh3,
    header: Header,
    /// Ids of the documents that are ended.
    ended: u64,
    encoded: Vec<u8>,
}

impl ShardWriter {
    /// Begins the shard that will stand at `path`. `end_of_text` is what is put after each document.
    pub fn create(path: &Path, tokenizer: &Tokenizer, end_of_text: Option<u32>) -> Result<ShardWriter> {
        let vocabulary = u32::try_from(tokenizer.vocabulary())
            .map_err(|_| Error::Internal(format!("a vocabulary of {}", tokenizer.vocabulary())))?;
        let header = Header {
            width: width_of(vocabulary),
            tokens: 0,
            documents: 0,
            text_bytes: 0,
            vocabulary,
            end_of_text,
            tokenizer: tokenizer_checksum(tokenizer),
            contents: 0,
        };
        let mut file = AtomicFile::create(path)?;
        let ends = spill(path)?;
        file.write_all(&[0; HEADER]).map_err(|error| Error::write(path, error))?;
        Ok(ShardWriter {
            path: path.to_path_buf(),
            file,
            ends: BufWriter::new(ends),
            hash: Xxh3::new(),
            header,
            ended: 0,
            encoded: vec![],
        })
    }

    /// Adds ids of the document under way, made from `text_bytes` bytes.
    pub fn push(&mut self, ids: &[u32], text_bytes: u64) -> Result<()> {
        if let Some(id) = ids.iter().find(|&&id| id >= self.header.vocabulary) {
            return Err(Error::Internal(format!("id {id} of a vocabulary of {}", self.header.vocabulary)));
        }
        self.encoded.clear();
        match self.header.width {
            2 => self.encoded.extend(ids.iter().flat_map(|&id| (id as u16).to_le_bytes())),
            _ => self.encoded.extend(ids.iter().flat_map(|id| id.to_le_bytes())),
        }
        self.hash.update(&self.encoded);
        self.header.tokens += ids.len() as u64;
        self.header.text_bytes += text_bytes;
        self.file.write_all(&self.encoded).map_err(|error| Error::write(&self.path, error))
    }

    /// Ends the document under way; one without ids is none.
    pub fn end_document(&mut self) -> Result<()> {
        if self.header.tokens == self.ended {
            return Ok(());
        }
        if let Some(id) = self.header.end_of_text {
            self.push(&[id], 0)?;
        }
        self.ended = self.header.tokens;
        self.header.documents += 1;
        self.ends.write_all(&self.ended.to_le_bytes()).map_err(|error| Error::write(&self.path, error))
    }

    /// Ends the last document and makes the shard durable and visible.
    pub fn finish(mut self) -> Result<Header> {
        self.end_document()?;
        if self.header.documents == 0 {
            return Err(Error::Usage("the text has no ids, and a shard needs one".into()));
        }
        self.finish_file().map_err(|error| Error::write(&self.path, error))?;
        self.file.finish()?;
        Ok(self.header)
    }

    fn finish_file(&mut self) -> io::Result<()> {
        let ids = self.header.tokens * u64::from(self.header.width);
        let zeros = [0; END];
        let zeros = &zeros[..(ids.next_multiple_of(END as u64) - ids) as usize];
        self.hash.update(zeros);
        self.file.write_all(zeros)?;
        self.ends.flush()?;
        let ends = self.ends.get_mut();
        ends.rewind()?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = ends.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            self.hash.update(&buffer[..count]);
            self.file.write_all(&buffer[..count])?;
        }
        self.header.contents = self.hash.digest128();
        self.file.rewrite_start(&self.header.to_bytes())
    }
}

/// A file without a name on the disk that will hold the shard.
fn spill(path: &Path) -> Result<File> {
    let mut name = path.file_name().map_or_else(Default::default, |name| name.to_owned());
    name.push(format!(".documents-{}", std::process::id()));
    let beside = path.with_file_name(name);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&beside)
        .and_then(|file| std::fs::remove_file(&beside).map(|()| file));
    file.map_err(|error| Error::write(&beside, error))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A file of a test, removed at its end.
    pub(in crate::data) struct Scratch(pub(in crate::data) PathBuf);

    impl Scratch {
        pub(in crate::data) fn new(name: &str) -> Scratch {
            let file = format!("lectern-shard-{name}-{}", std::process::id());
            Scratch(std::env::temp_dir().join(file))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    /// Writes documents of ids below 256.
    pub(in crate::data) fn write(path: &Path, documents: &[Vec<u32>]) -> Header {
        let mut writer = ShardWriter::create(path, &Tokenizer::bytes(), None).expect("can begin");
        for document in documents {
            let (first, second) = document.split_at(document.len() / 2);
            writer.push(first, first.len() as u64).expect("can write");
            writer.push(second, second.len() as u64).expect("can write");
            writer.end_document().expect("can write");
        }
        writer.finish().expect("can finish")
    }

    #[test]
    fn what_was_written_is_what_is_read() {
        let scratch = Scratch::new("whole");
        let documents: Vec<Vec<u32>> = (1..40).map(|n| (0..n).map(|i| (i * n) % 256).collect()).collect();
        let header = write(&scratch.0, &documents);
        let shard = Shard::open(&scratch.0).expect("our own shard");
        assert_eq!(*shard.header(), header);
        assert_eq!((header.documents, header.tokens), (39, 780));
        for (number, document) in documents.iter().enumerate() {
            let mut ids = vec![7];
            shard.copy(shard.document(number as u64).expect("is there"), &mut ids).expect("is there");
            assert_eq!(ids[1..], document[..]);
        }
        assert!(is_shard(&scratch.0).expect("is there"));
        shard.verify().expect("just written");
        shard.require(&Tokenizer::bytes()).expect("its own");
        let other = Tokenizer::characters("abc").expect("not empty");
        assert_eq!(shard.require(&other).expect_err("another").exit_code(), 3);
        for range in [0..781, 700..u64::MAX, 781..782] {
            assert!(shard.copy(range, &mut vec![]).is_err());
        }
        assert!(shard.document(39).is_err());
    }

    #[test]
    fn an_end_of_text_token_belongs_to_the_document_it_ends_and_empty_ones_are_none() {
        let scratch = Scratch::new("ends");
        let mut writer = ShardWriter::create(&scratch.0, &Tokenizer::bytes(), Some(9)).expect("can begin");
        for part in [&[1, 2][..], &[], &[3]] {
            writer.push(part, part.len() as u64).expect("can write");
            writer.end_document().expect("can write");
        }
        let header = writer.finish().expect("can finish");
        assert_eq!((header.tokens, header.documents, header.text_bytes), (5, 2, 3));
        let (shard, mut ids) = (Shard::open(&scratch.0).expect("our own"), vec![]);
        shard.copy(0..5, &mut ids).expect("all of it");
        assert_eq!(ids, [1, 2, 9, 3, 9]);
        assert_eq!(shard.document(1).expect("is there"), 3..5);
        let empty = ShardWriter::create(&scratch.0, &Tokenizer::bytes(), Some(9)).expect("can begin");
        assert_eq!(empty.finish().expect_err("nothing in it").exit_code(), 2);
        Shard::open(&scratch.0).expect("the one before is untouched");
    }

    #[test]
    fn every_bit_flip_and_truncation_is_refused_or_found() {
        let scratch = Scratch::new("damaged");
        write(&scratch.0, &[vec![1, 2, 3], vec![4, 255]]);
        let good = std::fs::read(&scratch.0).expect("is there");
        let put = |bytes: &[u8]| {
            std::fs::remove_file(&scratch.0).expect("is there");
            std::fs::write(&scratch.0, bytes).expect("can be written");
        };
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 1 << (place % 8);
            put(&bad);
            let found = Shard::open(&scratch.0).and_then(|shard| shard.verify());
            let error = found.expect_err("damaged");
            assert_eq!(error.exit_code(), 3, "byte {place}: {error}");
            if place < HEADER {
                assert!(Shard::open(&scratch.0).is_err(), "byte {place} of the header");
            }
            put(&good[..place]);
            assert_eq!(Shard::open(&scratch.0).expect_err("cut").exit_code(), 3, "cut at {place}");
        }
    }

    #[test]
    fn headers_that_lie_under_a_right_checksum_are_refused() {
        let scratch = Scratch::new("lies");
        let header = write(&scratch.0, &[vec![1, 2, 3], vec![4, 5]]);
        let good = std::fs::read(&scratch.0).expect("is there");
        let lies = [
            (Header { tokens: u64::MAX, ..header }, "take"),
            (Header { tokens: 1 << 63, ..header }, "take"),
            (Header { documents: u64::MAX, ..header }, "take"),
            (Header { documents: (u64::MAX / 8) + 3, tokens: 4, ..header }, "take"),
            (Header { tokens: 0, ..header }, "needs both"),
            (Header { documents: 0, ..header }, "needs both"),
            (Header { width: 4, ..header }, "ids of 4 bytes"),
            (Header { width: 0, ..header }, "ids of 0 bytes"),
            (Header { vocabulary: 0, ..header }, "vocabulary of 0"),
            (Header { end_of_text: Some(256), ..header }, "end-of-text token 256"),
            (Header { tokens: 12, documents: 1, ..header }, "7 ids after its last document"),
            (Header { tokens: 4, documents: 3, ..header }, "document 0 ends after 5"),
            (Header { vocabulary: 5, ..header }, "5 as id 4, beyond its vocabulary of 5"),
        ];
        for (lie, words) in lies {
            let mut bytes = good.clone();
            bytes[..HEADER].copy_from_slice(&lie.to_bytes());
            std::fs::remove_file(&scratch.0).expect("is there");
            std::fs::write(&scratch.0, &bytes).expect("can be written");
            let error = Shard::open(&scratch.0)
                .and_then(|shard| shard.copy(0..shard.header().tokens, &mut vec![]))
                .expect_err(words);
            assert!(error.exit_code() == 3 && error.to_string().contains(words), "{words}: {error}");
        }
        for (place, value, words) in [(8, 2, "version 2"), (0, b'X', "no token shard")] {
            let mut bytes = good.clone();
            bytes[place] = value;
            std::fs::remove_file(&scratch.0).expect("is there");
            std::fs::write(&scratch.0, &bytes).expect("can be written");
            let error = Shard::open(&scratch.0).expect_err(words);
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
