//! The checkpoints of a run: which there are, which is newest, which may go, and the link to the newest model.
//!
//! Everything here changes names only, never a file's contents. The caller holds the run's lock.

use super::manifest;
use crate::error::{Error, Result};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// How the name of an unfinished checkpoint begins.
pub(super) const TEMPORARY: &str = ".tmp-";
/// How the name of a checkpoint that is being deleted begins.
pub(super) const TRASH: &str = ".trash-";

/// Where the checkpoint of `step` stands.
pub fn step_path(checkpoints: &Path, step: u64) -> PathBuf {
    checkpoints.join(step_name(step))
}

fn step_name(step: u64) -> String {
    format!("{step:010}")
}

/// A name of this process's own, which no other trainer uses.
pub(super) fn temporary_path(checkpoints: &Path, prefix: &str, step: u64) -> PathBuf {
    checkpoints.join(format!("{prefix}{step}-{}", std::process::id()))
}

/// The checkpoint with the highest step whose files are all as they were saved.
///
/// What is wrong with each newer one that was passed over is added to `problems`.
pub fn newest(checkpoints: &Path, problems: &mut Vec<Error>) -> Result<Option<(u64, PathBuf)>> {
    for (step, path) in newest_first(checkpoints)? {
        match manifest::verify(&path) {
            Ok(()) => return Ok(Some((step, path))),
            Err(problem) => problems.push(problem),
        }
    }
    Ok(None)
}

/// Deletes all but the `keep` newest checkpoints, at least one.
///
/// Only those that verify are counted, so what is damaged never costs a good one its place. A checkpoint leaves
/// by one rename and is then removed, so that none is ever seen in part.
pub fn retain(checkpoints: &Path, keep: usize) -> Result<()> {
    let all = newest_first(checkpoints)?;
    let keep = keep.max(1);
    if all.len() <= keep {
        return Ok(());
    }
    let mut good = 0;
    for (step, path) in all {
        if good < keep {
            good += usize::from(manifest::verify(&path).is_ok());
            continue;
        }
        let trash = temporary_path(checkpoints, TRASH, step);
        remove(&trash)?;
        fs::rename(&path, &trash).map_err(|error| Error::write(&path, error))?;
        remove(&trash)?;
    }
    Ok(())
}

/// Lets `RUN/model` lead to the model of `step`: a relative link, replaced by one rename.
pub fn point(run: &Path, step: u64) -> Result<()> {
    let link = run.join("model");
    let target = Path::new("checkpoints").join(step_name(step)).join("model");
    // Made where leftovers are cleaned; the same file system, so that the rename is one step.
    let temporary = temporary_path(&run.join("checkpoints"), TEMPORARY, step);
    remove(&temporary)?;
    symlink(&target, &temporary).map_err(|error| Error::write(&temporary, error))?;
    fs::rename(&temporary, &link).map_err(|error| Error::write(&link, error))?;
    sync_directory(run)
}

/// Removes what earlier processes left unfinished.
pub fn clean(checkpoints: &Path) -> Result<()> {
    for name in names(checkpoints)? {
        if [TEMPORARY, TRASH].iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes())) {
            remove(&checkpoints.join(name))?;
        }
    }
    Ok(())
}

/// All finished checkpoints, newest first.
fn newest_first(checkpoints: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found: Vec<(u64, PathBuf)> = names(checkpoints)?
        .into_iter()
        .filter_map(|name| {
            let step = name.to_str()?.parse().ok()?;
            (name == OsStr::new(&step_name(step))).then(|| (step, checkpoints.join(name)))
        })
        .collect();
    found.sort_unstable_by_key(|&(step, _)| std::cmp::Reverse(step));
    Ok(found)
}

/// The names in a directory; a directory that does not exist has none.
fn names(directory: &Path) -> Result<Vec<std::ffi::OsString>> {
    let unreadable = |error: io::Error| super::source::unreadable(directory, &error);
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(unreadable(error)),
        Ok(entries) => {
            entries.map(|entry| entry.map(|entry| entry.file_name()).map_err(unreadable)).collect()
        }
    }
}

/// Removes a directory, a file or a link, if there is one.
pub(super) fn remove(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::write(path, error)),
        _ => Ok(()),
    }
}

/// Makes the names in a directory durable.
pub(super) fn sync_directory(path: &Path) -> Result<()> {
    // The parent of a relative path of one component is empty.
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    if cfg!(unix) {
        File::open(path)
            .and_then(|directory| directory.sync_all())
            .map_err(|error| Error::write(path, error))?;
    }
    Ok(())
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_dir(target, link)
}

#[cfg(test)]
mod tests {
    use super::super::commit::Commit;
    use super::super::source::tests::Scratch;
    use super::*;

    fn save(checkpoints: &Path, steps: &[u64]) {
        for &step in steps {
            let mut commit = Commit::begin(checkpoints, step).expect("can begin");
            commit.write("model/config.json", step.to_string().as_bytes()).expect("can write");
            commit.finish().expect("can finish");
        }
    }

    fn damage(checkpoints: &Path, step: u64) {
        let file = step_path(checkpoints, step).join("model/config.json");
        fs::remove_file(&file).expect("is there");
        fs::write(&file, "bad").expect("can be written");
    }

    fn steps(checkpoints: &Path) -> Vec<u64> {
        newest_first(checkpoints).expect("can be read").into_iter().map(|(step, _)| step).collect()
    }

    #[test]
    fn the_newest_that_verifies_is_found_and_the_others_are_reported() {
        let scratch = Scratch::new();
        let mut problems = Vec::new();
        assert_eq!(newest(&scratch.join("absent"), &mut problems).expect("there are none"), None);
        save(scratch.path(), &[2, 10, 9, 30]);
        damage(scratch.path(), 30);
        fs::remove_file(step_path(scratch.path(), 10).join("MANIFEST")).expect("is there");
        let found = newest(scratch.path(), &mut problems).expect("can be read");
        assert_eq!(found, Some((9, step_path(scratch.path(), 9))));
        let problems: Vec<String> = problems.iter().map(Error::to_string).collect();
        assert_eq!(problems.len(), 2);
        assert!(
            problems[0].contains("0000000030/model/config.json: has 3 bytes, 2 were saved"),
            "{problems:?}"
        );
        assert!(problems[1].contains("never finished"), "{problems:?}");
    }

    #[test]
    fn other_names_are_no_checkpoints() {
        let scratch = Scratch::new();
        for name in ["1", "00000000001", "+000000001", "000000000x", ".tmp-1-1", "0000000001 "] {
            fs::create_dir(scratch.join(name)).expect("can be made");
        }
        assert!(steps(scratch.path()).is_empty());
        save(scratch.path(), &[0, u64::MAX]);
        assert_eq!(steps(scratch.path()), [u64::MAX, 0]);
    }

    #[test]
    fn retention_counts_only_what_verifies() {
        let scratch = Scratch::new();
        save(scratch.path(), &[1, 2, 3, 4, 5]);
        damage(scratch.path(), 5);
        damage(scratch.path(), 3);
        retain(scratch.path(), 2).expect("can delete");
        assert_eq!(steps(scratch.path()), [5, 4, 3, 2]);
        retain(scratch.path(), 0).expect("can delete");
        assert_eq!(steps(scratch.path()), [5, 4]);
        damage(scratch.path(), 4);
        retain(scratch.path(), 1).expect("can delete");
        assert_eq!(steps(scratch.path()), [5, 4], "where none verifies, none is deleted");
        assert_eq!(names(scratch.path()).expect("can be read").len(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn the_link_is_relative_and_replaced() {
        let scratch = Scratch::new();
        let run = scratch.join("run");
        save(&run.join("checkpoints"), &[1, 2]);
        for step in [1, 2, 2] {
            point(&run, step).expect("can be linked");
            let target = fs::read_link(run.join("model")).expect("is a link");
            assert_eq!(target, Path::new("checkpoints").join(step_name(step)).join("model"));
            assert_eq!(
                fs::read(run.join("model/config.json")).expect("resolves"),
                step.to_string().as_bytes()
            );
        }
        assert_eq!(names(&run.join("checkpoints")).expect("can be read").len(), 2);
        let moved = scratch.join("moved");
        fs::rename(&run, &moved).expect("can be moved");
        assert!(moved.join("model/config.json").exists());
    }
}
