//! Where a device is chosen: once, before anything is computed. What is behind it is generic over [`Backend`].

use super::Backend;
use super::cpu::Cpu;
use super::cuda::Cuda;
use crate::device::Precision;
use crate::device::probe::{self, Chosen};
use crate::options::Device;
use formats::Result;

/// What is to be done, whatever the device.
pub trait Job {
    /// What comes of it.
    type Output;

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
    match probe::choose(device, precision)? {
        Chosen::Cuda(device) => {
            let (major, minor) = device.capability();
            let precision = match device.precision() {
                Precision::Bf16 => "bf16",
                Precision::F32 => "f32",
            };
            let told = format!("cuda ({}, sm_{major}{minor}, {precision})", device.name());
            job.on(Cuda::new(device)?, &told)
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
