//! What a run will need and what there is, before step 0.

use formats::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// Bytes a run holds while it trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Parameters, and their copies in the shapes the products want.
    pub weights: u64,
    /// Gradients of the parameters, every shard's own included.
    pub gradients: u64,
    /// The optimiser's moments.
    pub moments: u64,
    /// Activations and their gradients.
    pub activations: u64,
    /// Weights and moments on their way in from a checkpoint, or out to one while the next steps run.
    pub copies: u64,
}

impl MemoryPlan {
    /// All of it; more than fits a counter counts as the largest there is.
    pub fn total(&self) -> u64 {
        [self.weights, self.gradients, self.moments, self.activations, self.copies]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    /// Which flag makes the most of a difference.
    fn advice(&self) -> String {
        let state = self.weights.saturating_add(self.gradients).saturating_add(self.moments);
        if self.activations > state {
            "pass --keep layer-inputs, or choose a smaller --batch with --accumulate, or a smaller --block"
                .to_owned()
        } else {
            "choose a smaller --width or fewer --layers: the model alone takes most of it; then a smaller --batch"
                .to_owned()
        }
    }

    /// Refuses a plan that does not fit beside what the process already holds.
    pub fn require(&self, available: u64) -> Result<()> {
        if self.total() <= available {
            return Ok(());
        }
        Err(Error::Memory {
            what: format!(
                "training (weights {} MiB, gradients {} MiB, moments {} MiB, activations {} MiB, a checkpoint {} MiB)",
                self.weights >> 20,
                self.gradients >> 20,
                self.moments >> 20,
                self.activations >> 20,
                self.copies >> 20
            ),
            needed: self.total(),
            available,
            help: self.advice(),
        })
    }
}

/// Bytes this process can still have: what the system has free, or what its control group leaves, if that is less.
/// None where the system does not say.
pub fn available() -> Option<u64> {
    let system = fs::read_to_string("/proc/meminfo").ok().and_then(|text| meminfo(&text, "MemAvailable:"));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = group_folders(&groups).iter().filter_map(|folder| group_available(folder)).min();
    system.into_iter().chain(group).min()
}

/// Bytes of memory this process holds now.
pub fn resident() -> u64 {
    fs::read_to_string("/proc/self/status").ok().and_then(|text| meminfo(&text, "VmRSS:")).unwrap_or(0)
}

/// A line `Key:  1234 kB`, in bytes.
fn meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The folders of the memory control groups (version 2 and 1) that a process of `/proc/self/cgroup` lives in, and of
/// their parents, whose limits hold too.
fn group_folders(groups: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let root = match controllers {
            "" => Path::new("/sys/fs/cgroup"),
            list if list.split(',').any(|controller| controller == "memory") => {
                Path::new("/sys/fs/cgroup/memory")
            }
            _ => continue,
        };
        let folder = root.join(path.trim_start_matches('/'));
        folders
            .extend(folder.ancestors().take_while(|parent| parent.starts_with(root)).map(Path::to_path_buf));
    }
    folders
}

/// What one control group still allows; page cache it could give back counts as free.
fn group_available(folder: &Path) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let (limit, used) = match number("memory.max") {
        Some(limit) => (limit, number("memory.current")?),
        None => (number("memory.limit_in_bytes")?, number("memory.usage_in_bytes")?),
    };
    let statistics = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let cached = statistics.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse::<u64>().ok());
    Some(limit.saturating_sub(used.saturating_sub(cached.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_that_does_not_fit_names_the_flag() {
        let plan = MemoryPlan {
            weights: 1 << 20,
            gradients: 2 << 20,
            moments: 3 << 20,
            activations: 4 << 20,
            copies: 0,
        };
        assert!(plan.require(10 << 20).is_ok());
        let error = plan.require((10 << 20) - 1).expect_err("too large");
        assert_eq!(error.exit_code(), 7);
        assert!(error.to_string().contains("--batch"), "{error}");
        let long = MemoryPlan { activations: 7 << 20, ..plan };
        let error = long.require(10 << 20).expect_err("too large").to_string();
        assert!(error.contains("--keep layer-inputs") && error.contains("--batch"), "{error}");
        assert_eq!(MemoryPlan { weights: u64::MAX, moments: 1, ..plan }.total(), u64::MAX);
    }

    #[test]
    fn lines_of_kilobytes_are_read() {
        let text = "MemTotal:       16 kB\nMemAvailable:   12 kB\n";
        assert_eq!(meminfo(text, "MemAvailable:"), Some(12 * 1024));
        assert_eq!(meminfo(text, "Swap:"), None);
        assert_eq!(meminfo("MemAvailable: many kB", "MemAvailable:"), None);
    }

    #[test]
    fn control_groups_are_found_with_their_parents() {
        let folders = group_folders("12:cpu,memory:/jobs/one\n0::/user/me\nnonsense\n3:cpu:/x\n");
        let expected = ["memory/jobs/one", "memory/jobs", "memory", "user/me", "user", ""];
        assert_eq!(folders, expected.map(|end| Path::new("/sys/fs/cgroup").join(end)));
    }

    #[test]
    fn a_limit_counts_what_can_be_given_back() {
        let folder = std::env::temp_dir().join(format!("lectern-memory-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        assert_eq!(group_available(&folder), None);
        for (name, text) in [
            ("memory.max", "1000\n"),
            ("memory.current", "900\n"),
            ("memory.stat", "anon 1\ninactive_file 300\n"),
        ] {
            fs::write(folder.join(name), text).expect("a file");
        }
        assert_eq!(group_available(&folder), Some(400));
        fs::write(folder.join("memory.max"), "max\n").expect("a file");
        assert_eq!(group_available(&folder), None);
        fs::remove_dir_all(&folder).expect("a folder of ours");
    }

    #[test]
    fn linux_tells_what_is_held() {
        if cfg!(target_os = "linux") {
            assert!(resident() > 0);
            assert!(available().is_some());
        }
    }
}
