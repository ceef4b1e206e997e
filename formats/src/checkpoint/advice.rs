//! What the system is told about the use of mapped bytes. Best effort: a refusal changes no number and is no error.

#[cfg(unix)]
use memmap2::{Mmap, UncheckedAdvice};
#[cfg(unix)]
use std::ops::Range;

/// How mapped numbers are going to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Soon, all of them: reading may begin.
    WillNeed,
    /// In no order: what lies beside what is read need not be read too.
    Random,
    /// Not soon: their memory may be used otherwise. Whoever reads them again gets them from the file again.
    DontNeed,
}

/// Passes advice about bytes of a map on.
#[cfg(unix)]
pub(super) fn advise(map: &Mmap, range: Range<usize>, advice: Advice) {
    // What cannot be advised is as good as it was, so there is nobody to tell.
    let _ = match advice {
        Advice::WillNeed => map.advise_range(memmap2::Advice::WillNeed, range.start, range.len()),
        Advice::Random => map.advise_range(memmap2::Advice::Random, range.start, range.len()),
        Advice::DontNeed => {
            let range = whole_pages(range);
            // SAFETY: the map is read-only and of a file, so pages that were given back are read from the file
            // again; no byte under a reference changes.
            unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) }
        }
    };
}

/// The pages that lie in a range whole: what stands beside it on a page may be in use. Maps begin on a page.
#[cfg(unix)]
fn whole_pages(range: Range<usize>) -> Range<usize> {
    // SAFETY: asks for a constant of the system.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let page = usize::try_from(page).unwrap_or(1).max(1);
    let start = range.start.div_ceil(page) * page;
    start..(range.end / page * page).max(start)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn only_pages_that_are_wholly_inside_are_given_back() {
        let page = whole_pages(1..1 << 24).start;
        assert!(page > 1);
        assert_eq!(whole_pages(0..page), 0..page);
        assert_eq!(whole_pages(1..2 * page - 1), page..page);
        assert_eq!(whole_pages(1..3 * page + 1), page..3 * page);
        assert!(whole_pages(5..9).is_empty());
    }

    #[test]
    fn advice_changes_no_byte() {
        let path = std::env::temp_dir().join(format!("lectern-advice-{}", std::process::id()));
        let bytes: Vec<u8> = (0..100_000u32).map(|index| (index % 251) as u8).collect();
        std::fs::File::create(&path).and_then(|mut file| file.write_all(&bytes)).expect("can be written");
        let file = std::fs::File::open(&path).expect("was written");
        // SAFETY: nobody else knows this file.
        let map = unsafe { Mmap::map(&file) }.expect("can be mapped");
        for advice in [Advice::WillNeed, Advice::Random, Advice::DontNeed] {
            for range in [0..0, 0..bytes.len(), 3..9, 4097..70_001] {
                advise(&map, range, advice);
                assert_eq!(&map[..], &bytes[..], "{advice:?}");
            }
        }
        std::fs::remove_file(&path).expect("is there");
    }
}
