//! Files mapped for reading, and what is held in pages instead: the one place that makes a map.

use super::Advice;
use super::source;
use crate::error::Result;
use memmap2::{Mmap, MmapMut};
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;

/// A regular file's bytes, mapped. They begin on a page, so whatever is aligned in the file is aligned here.
pub struct Map(Mmap);

impl Map {
    /// Maps a file. Nothing of it is read yet.
    pub fn open(path: &Path) -> Result<Map> {
        let (file, _) = source::open(path)?;
        // SAFETY: the file is regular and the map is read-only. Writers of ours never modify a file in place, so
        // the bytes under the map do not change; a foreign writer that does can change numbers, which every user of
        // a map must therefore take as they come: lengths and offsets are checked where they are used, or taken
        // from a copy.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| source::unreadable(path, &error))?;
        Ok(Map(map))
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Tells the system how some of the bytes are going to be used; nothing where it cannot be told.
    pub fn advise(&self, range: Range<usize>, advice: Advice) {
        #[cfg(unix)]
        super::advice::advise(&self.0, range, advice);
        #[cfg(not(unix))]
        let _ = (range, advice);
    }
}

/// So many zeros in memory of the process's own, in large pages where the system has them: memory is had and read faster in
/// these than in small ones.
pub fn large_pages(bytes: usize) -> io::Result<MmapMut> {
    let pages = MmapMut::map_anon(bytes)?;
    #[cfg(target_os = "linux")]
    // What cannot be advised is as good as it was.
    let _ = pages.advise(memmap2::Advice::HugePage);
    Ok(pages)
}

/// Bytes that are held so, where their file would be mapped in small pages. They begin on a page.
pub struct Pages(Mmap);

impl Pages {
    /// A copy of bytes, of which there are some.
    pub fn copy(bytes: &[u8]) -> io::Result<Pages> {
        let mut pages = large_pages(bytes.len())?;
        pages.copy_from_slice(bytes);
        Ok(Pages(pages.make_read_only()?))
    }

    /// All of them.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.debug_struct("Map").field("bytes", &self.0.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_hold_what_was_copied() {
        let bytes: Vec<u8> = (0..(3 << 20) + 5).map(|index: usize| (index % 251) as u8).collect();
        let pages = Pages::copy(&bytes).expect("memory");
        assert!(pages.bytes() == bytes && pages.bytes().as_ptr().cast::<u64>().is_aligned());
    }
}
