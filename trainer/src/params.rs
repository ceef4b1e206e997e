//! The parameters as one arena: master weights in f32, and the form the products read.

use crate::backend::Backend;
use formats::{Layout, Result};

/// A model's weights on a device.
pub struct Params<B: Backend> {
    /// Which parameter stands where.
    pub layout: Layout,
    /// Every weight in f32, in the layout's order.
    pub master: B::Floats,
    /// What the products read, remade by [`Backend::refresh`].
    pub working: B::Working,
}

impl<B: Backend> Params<B> {
    /// All zero.
    pub fn new(backend: &B, layout: Layout) -> Result<Params<B>> {
        let master = backend.floats(layout.parameters())?;
        let working = backend.working(&layout)?;
        Ok(Params { layout, master, working })
    }
}
