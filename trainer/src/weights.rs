//! A stored model's weights as the trainer's arena has them.

use formats::checkpoint::{Tensor, Weights};
use formats::layout::{Layout, ParameterId};
use runtime::simd::Simd;

/// Every stored parameter of `layout`, widened to f32, in its order.
pub fn arena(weights: &Weights, layout: &Layout) -> Vec<f32> {
    let mut arena = vec![0.0; layout.parameters()];
    for (id, parameter) in layout.iter() {
        read(weights, layout, id, &mut arena[parameter.range()]);
    }
    arena
}

/// One parameter, widened, its pieces put together.
pub fn read(weights: &Weights, layout: &Layout, id: ParameterId, to: &mut [f32]) {
    let columns = layout.parameter(id).columns;
    for (rows, tensor) in weights.pieces(id) {
        let to = &mut to[rows.start * columns..rows.end * columns];
        match tensor {
            Tensor::F32(values) => to.copy_from_slice(values),
            Tensor::F16(values) => (Simd::best().widen_f16)(values, to),
            Tensor::Bf16(values) => (Simd::best().widen_bf16)(values, to),
        }
    }
}
