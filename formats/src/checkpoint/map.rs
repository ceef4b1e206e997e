//! Files mapped for reading: the one place that makes a map.

use super::Advice;
use super::source;
use crate::error::Result;
use memmap2::Mmap;
use std::fmt;
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

impl fmt::Debug for Map {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.debug_struct("Map").field("bytes", &self.0.len()).finish()
    }
}
