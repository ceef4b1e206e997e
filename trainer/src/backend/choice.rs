//! Where a device is chosen: once, before anything is computed. What is behind it is generic over [`Backend`].

use super::Backend;
use super::cpu::Cpu;
use super::cuda::Cuda;
use crate::device::Precision;
use crate::device::probe::{self, Chosen};
use crate::device::ranks::Ranks;
use crate::options::Device;
use formats::{Error, Result};

/// What is to be done, whatever the device.
pub trait Job {
    /// What comes of it.
    type Output;
    /// Whether the processes that were started side by side share it; otherwise each does it alone.
    const TOGETHER: bool = false;

    /// Does it; `device` is how the device is told.
    fn on<B: Backend>(self, backend: B, device: &str) -> Result<Self::Output>;
}

/// Does `job` on the device that was asked for, or on the best there is; a CPU works with so many threads, or all there
/// are.
pub fn carry_out<J: Job>(
    job: J,
    device: Device,
    precision: Option<Precision>,
    threads: Option<usize>,
) -> Result<J::Output> {
    let ranks = if J::TOGETHER { Ranks::from_environment()? } else { None };
    match probe::choose(device, precision)? {
        Chosen::Cuda(device) => {
            let world = ranks.as_ref().map_or(1, |ranks| ranks.world);
            let others = if world > 1 { format!(", one of {world}") } else { String::new() };
            let told = format!("cuda ({}){others}", device.describe());
            let cuda = Cuda::new(device)?;
            job.on(if let Some(ranks) = ranks { cuda.together(ranks)? } else { cuda }, &told)
        }
        Chosen::Cpu(why) if ranks.as_ref().is_some_and(|ranks| ranks.world > 1) => {
            let why = why.map_or(String::new(), |why| format!("{why}; "));
            Err(Error::Device(format!(
                "{why}several processes share a run only on CUDA\n  help: start one process; it uses every thread"
            )))
        }
        Chosen::Cpu(why) => {
            let cpu = Cpu::new(threads.unwrap_or_else(all_threads))?;
            let why = why.map_or(String::new(), |why| format!("; {why}"));
            let told = format!("cpu ({}, {} threads){why}", cpu.simd().name, cpu.threads());
            job.on(cpu, &told)
        }
    }
}

/// Threads this machine runs at once.
pub fn all_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
