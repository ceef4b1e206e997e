//! Where a device keeps what it works on: its kinds of buffers, and the ways to and from the host.

use crate::memory::MemoryPlan;
use crate::ops::route::Router;
use crate::tape::Program;
use formats::{Layout, Result};

/// What a device keeps. An upload may still be under way when its call returns; what is downloaded is there.
pub trait Storage: Sync + Sized {
    /// Whether the experts' products find a row where it stands, so that none is laid out for them. What comes out of the
    /// experts stands by row and slot then, and else sorted by expert.
    const GATHERS: bool;

    /// Activations, in the device's working precision.
    type Values: Send + Sync;
    /// Statistics, gradients of parameters, moments and master weights: always f32.
    type Floats: Default + Send + Sync;
    /// Sums over many rows or parameters: always f64.
    type Sums: Send + Sync;
    /// Token ids.
    type Indices: Send + Sync;
    /// The weights in the form the products read, remade after each update.
    type Working: Send + Sync;
    /// Which rows go to which expert, decided and read on the device.
    type Routing: Default + Send + Sync;

    /// What a model's training holds where the buffers are.
    fn plan(&self, held: &Held<'_>) -> MemoryPlan;
    /// Bytes that are free there, where the system says.
    fn available(&self) -> Option<u64>;
    /// `len` activations, zero.
    fn values(&self, len: usize) -> Result<Self::Values>;
    /// `len` f32 values, zero.
    fn floats(&self, len: usize) -> Result<Self::Floats>;
    /// `len` ids, zero.
    fn indices(&self, len: usize) -> Result<Self::Indices>;
    /// `len` sums, zero.
    fn sums(&self, len: usize) -> Result<Self::Sums>;
    /// What the operations of a program share to work in.
    fn scratch(&self, program: &Program) -> Result<Self::Floats>;
    /// Room for a router's choices.
    fn routing(&self, s: &Router) -> Result<Self::Routing>;
    /// The working form of a model's weights, not yet made.
    fn working(&self, layout: &Layout) -> Result<Self::Working>;
    /// Host to device.
    fn upload(&self, from: &[f32], to: &mut Self::Floats);
    /// Device to host.
    fn download(&self, from: &Self::Floats, to: &mut [f32]) -> Result<()>;
    /// Activations to the device, rounded to nearest even where they are kept narrower.
    fn upload_values(&self, from: &[f32], to: &mut Self::Values);
    /// Activations to the host, widened.
    fn download_values(&self, from: &Self::Values, to: &mut [f32]) -> Result<()>;
    /// Sums to the host.
    fn read(&self, from: &Self::Sums, to: &mut [f64]) -> Result<()>;
    /// Ids to the device.
    fn upload_indices(&self, from: &[u32], to: &mut Self::Indices);
}

/// What a training run keeps for as long as it lasts.
#[derive(Clone, Copy)]
pub struct Held<'a> {
    /// Parameters of the model.
    pub parameters: usize,
    /// What one shard carries out.
    pub program: &'a Program,
    /// Shards.
    pub shards: usize,
    /// What one lane of evaluation carries out.
    pub evaluation: &'a Program,
    /// What evaluation carries out once for all lanes, if it does.
    pub placed: Option<&'a Program>,
}
