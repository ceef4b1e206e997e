//! The words of texts and how often each occurs. Texts are read in blocks and cut where words end, so memory is that
//! of a block and of the different words, and any number of threads counts the same.

use super::Stage;
use formats::checkpoint::source;
use formats::tokenizer::Split;
use formats::{Error, Result};
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes read at once.
const BLOCK: usize = 4 << 20;
/// Bytes a thread takes at once.
const PART: usize = 1 << 18;

/// How often each word occurs.
type Counts = HashMap<Box<[u8]>, u64>;

/// The words of all files with their counts, sorted by word. No word spans two files.
pub(super) fn count(
    files: &[PathBuf],
    split: Split,
    threads: usize,
    tell: &mut dyn FnMut(Stage),
) -> Result<Vec<(Box<[u8]>, u64)>> {
    let mut opened = Vec::with_capacity(files.len());
    for path in files {
        opened.push((path, source::open(path)?));
    }
    let of = opened.iter().map(|(_, (_, length))| length).sum();
    let mut bytes = 0;
    let mut counts: Vec<Counts> = vec![Counts::new(); threads.max(1)];
    for (path, (mut file, _)) in opened {
        let mut block = Vec::new();
        loop {
            let ended = fill(&mut file, path, &mut block)?;
            let end = if ended { block.len() } else { last_boundary(split, &block).unwrap_or(0) };
            count_block(split, &block[..end], &mut counts);
            bytes += end as u64;
            tell(Stage::Counting { bytes, of });
            block.drain(..end);
            if ended {
                break;
            }
        }
    }
    let mut all = Counts::new();
    for (word, count) in counts.into_iter().flatten() {
        *all.entry(word).or_insert(0) += count;
    }
    if all.is_empty() {
        let name = files.first().map_or(Path::new("--data"), PathBuf::as_path);
        return Err(Error::file(name, "the text is empty", "name a text with something in it"));
    }
    let mut words: Vec<(Box<[u8]>, u64)> = all.into_iter().collect();
    words.sort_unstable();
    Ok(words)
}

/// Reads one block more behind what is left of the last; true at the end of the file.
fn fill(file: &mut std::fs::File, path: &Path, block: &mut Vec<u8>) -> Result<bool> {
    let failed =
        |error| Error::file(path, format!("cannot be read: {error}"), "check the disk, then try again");
    let read = file.take(BLOCK as u64).read_to_end(block).map_err(failed)?;
    Ok(read < BLOCK)
}

/// A place near the end where words end whatever follows.
fn last_boundary(split: Split, block: &[u8]) -> Option<usize> {
    [1 << 12, 1 << 16, block.len()]
        .iter()
        .find_map(|&back| split.boundary(block, block.len().saturating_sub(back)))
}

/// Adds the words of a block to the counts of whichever thread comes to them.
fn count_block(split: Split, block: &[u8], counts: &mut [Counts]) {
    let mut parts = Vec::new();
    let mut rest = block;
    while let Some(cut) = split.boundary(rest, PART) {
        let (part, after) = rest.split_at(cut);
        parts.push(part);
        rest = after;
    }
    parts.push(rest);
    let next = AtomicUsize::new(0);
    let work = |counts: &mut Counts| {
        while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            count_part(split, part, counts);
        }
    };
    let Some((first, others)) = counts.split_first_mut() else { return };
    std::thread::scope(|scope| {
        // One part needs no second thread.
        for counts in others.iter_mut().take(parts.len().saturating_sub(1)) {
            scope.spawn(|| work(counts));
        }
        work(first);
    });
}

fn count_part(split: Split, part: &[u8], counts: &mut Counts) {
    let mut start = 0;
    while start < part.len() {
        let end = split.end(part, start);
        let word = &part[start..end];
        match counts.get_mut(word) {
            Some(count) => *count += 1,
            None => drop(counts.insert(word.into(), 1)),
        }
        start = end;
    }
}
