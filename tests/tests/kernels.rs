//! Every kernel, compiled for real: by NVIDIA's compiler for two architectures and both precisions, and assembled, with
//! no register spilled to memory and no more registers than stated above the kernel.
//!
//! Wants LECTERN_CUDA_COMPILER, the folder that `scripts/cuda-compiler.sh` prints, and its `lib` on the loader's path;
//! `scripts/test.sh cuda` sets both.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tests::folder::Folder;
use trainer::device::Precision;
use trainer::device::kernels::Source;
use trainer::device::signature::signatures;
use trainer::ops::KERNELS;

/// The oldest architecture that is served, and the one that figures are given for.
const ARCHITECTURES: [u32; 2] = [80, 90];

/// What the assembler says of one kernel.
#[derive(Debug, Default, PartialEq)]
struct Usage {
    registers: u32,
    spilled_bytes: u32,
}

/// Assembles and reads what `ptxas -v` says of each kernel.
fn assembled(
    compiler: &Path,
    folder: &Folder,
    text: &str,
    architecture: u32,
    name: &str,
) -> BTreeMap<String, Usage> {
    let input = folder.write(name, text);
    let run = Command::new(compiler.join("bin/ptxas"))
        .args(["-v", "-o", "/dev/null", &format!("-arch=sm_{architecture}")])
        .arg(input)
        .output()
        .expect("ptxas runs");
    let said = String::from_utf8_lossy(&run.stderr) + String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{name}: {said}");
    usages(&said)
}

/// Reads `ptxas -v`: an entry function's name, then its spills, then its registers.
fn usages(said: &str) -> BTreeMap<String, Usage> {
    let mut found: BTreeMap<String, Usage> = BTreeMap::new();
    let mut kernel = String::new();
    let number = |line: &str, before: &str| -> u32 {
        let left = line.split(before).next().unwrap_or_default();
        let digits = left.rsplit(|c: char| !c.is_ascii_digit()).find(|part| !part.is_empty());
        digits.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("no number in {line:?}"))
    };
    for line in said.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            kernel = rest.split('\'').next().unwrap_or_default().to_owned();
            found.insert(kernel.clone(), Usage::default());
        } else if let Some(usage) = found.get_mut(&kernel) {
            if line.contains("bytes spill stores") {
                usage.spilled_bytes =
                    number(line, " bytes spill stores") + number(line, " bytes spill loads");
            }
            if line.contains("Used ") && line.contains(" registers") {
                usage.registers = number(line, " registers");
            }
        }
    }
    found
}

/// What stands above each kernel of a source as `// registers: N`.
fn budgets(source: &Source) -> BTreeMap<String, u32> {
    let mut budgets = BTreeMap::new();
    let mut stated = None;
    for line in source.text.lines() {
        if let Some(number) = line.trim().strip_prefix("// registers: ") {
            stated = Some(number.parse().unwrap_or_else(|_| panic!("{}: {line:?}", source.file)));
        }
        if line.contains("__global__") && !line.trim_start().starts_with("//") {
            let declared = source.text.split_at(line.as_ptr().addr() - source.text.as_ptr().addr()).1;
            let name =
                signatures(declared).ok().and_then(|found| found.first().map(|found| found.name.to_owned()));
            let name = name.unwrap_or_else(|| panic!("{}: no kernel in {line:?}", source.file));
            let budget =
                stated.take().unwrap_or_else(|| panic!("{}: {name} states no registers", source.file));
            budgets.insert(name, budget);
        }
    }
    budgets
}

#[test]
fn every_kernel_compiles_for_both_targets_without_spills_and_within_its_registers() {
    let Some(compiler) = std::env::var_os("LECTERN_CUDA_COMPILER").map(PathBuf::from) else {
        println!("skipped: LECTERN_CUDA_COMPILER is not set: scripts/test.sh cuda sets it");
        return;
    };
    let folder = Folder::new("assembly");
    let mut work = Vec::new();
    for (number, source) in KERNELS.iter().enumerate() {
        for architecture in ARCHITECTURES {
            for precision in [Precision::Bf16, Precision::F32] {
                work.push((number, source, architecture, precision));
            }
        }
    }
    let (next, problems, seen) = (AtomicUsize::new(0), Mutex::new(Vec::new()), Mutex::new(BTreeMap::new()));
    let problem = |problem: String| problems.lock().expect("no thread panics with it").push(problem);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(&(number, source, architecture, precision)) =
                    work.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let what = format!("{} for {architecture} in {precision:?}", source.file);
                    let text = match source.assembly(precision, architecture) {
                        Ok(text) => text,
                        Err(error) => {
                            problem(format!("{what}: {error}"));
                            continue;
                        }
                    };
                    let name = format!("{number}-{architecture}-{precision:?}.ptx");
                    let budgets = budgets(source);
                    for (kernel, usage) in assembled(&compiler, &folder, &text, architecture, &name) {
                        let Usage { registers, spilled_bytes } = usage;
                        let Some(&budget) = budgets.get(&kernel) else {
                            problem(format!("{what}: {kernel} is not declared"));
                            continue;
                        };
                        if spilled_bytes > 0 {
                            problem(format!("{what}: {kernel} spills {spilled_bytes} bytes"));
                        }
                        if registers > budget {
                            problem(format!(
                                "{what}: {kernel} takes {registers} registers, {budget} are stated"
                            ));
                        }
                        let mut seen = seen.lock().expect("no thread panics with it");
                        let most = seen.entry(kernel).or_insert(0);
                        *most = registers.max(*most);
                    }
                }
            });
        }
    });
    let mut problems = problems.into_inner().expect("the threads have ended");
    let seen = seen.into_inner().expect("the threads have ended");
    for source in KERNELS {
        for (kernel, budget) in budgets(source) {
            match seen.get(&kernel) {
                None => problems.push(format!("{}: {kernel} was never compiled", source.file)),
                Some(registers) => println!("{kernel}: {registers} registers of {budget}"),
            }
        }
    }
    problems.sort();
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
    println!("compiled: {} files, {} targets, 0 spills", KERNELS.len(), ARCHITECTURES.len());
}

#[test]
fn the_assemblers_words_are_understood() {
    let said = "ptxas info    : 12 bytes gmem, 24 bytes cmem[4]\n\
        ptxas info    : Compiling entry function 'first' for 'sm_80'\n\
        ptxas info    : Function properties for first\n\
        \x20   8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
        ptxas info    : Used 128 registers, used 1 barriers, 128 bytes smem, 384 bytes cmem[0]\n\
        ptxas info    : Compiling entry function 'second' for 'sm_80'\n\
        ptxas info    : Function properties for second\n\
        \x20   0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
        ptxas info    : Used 26 registers\n";
    let expected = [
        ("first", Usage { registers: 128, spilled_bytes: 16 }),
        ("second", Usage { registers: 26, spilled_bytes: 0 }),
    ];
    assert_eq!(usages(said), expected.map(|(name, usage)| (name.to_owned(), usage)).into());
}

#[test]
fn every_kernel_states_its_registers() {
    for source in KERNELS {
        let stated = budgets(source);
        assert!(!stated.is_empty(), "{}", source.file);
        for (kernel, budget) in stated {
            assert!((16..=255).contains(&budget), "{}: {kernel} states {budget}", source.file);
        }
    }
}
