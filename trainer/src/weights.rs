//! A stored model's weights as the trainer's arena has them.

use formats::checkpoint::Weights;
use formats::layout::{Layout, ParameterId};
use runtime::model::widen_piece;
use runtime::simd::Simd;

/// Every stored parameter of `layout`, widened to f32, in its order.
pub fn arena(weights: &Weights, layout: &Layout) -> Vec<f32> {
    let mut arena = vec![0.0; layout.parameters()];
    for (id, parameter) in layout.iter() {
        read(weights, layout, id, &mut arena[parameter.range()]);
    }
    arena
}

/// One parameter, widened, its pieces put together and turned where they stand transposed.
pub fn read(weights: &Weights, layout: &Layout, id: ParameterId, to: &mut [f32]) {
    let columns = layout.parameter(id).columns;
    weights.pieces(id).for_each(|piece| widen_piece(Simd::best(), &piece, columns, to));
}
