//! What is computed from the weights once, when a model is opened.
//!
//! Vectors (gains and biases) are widened to f32: they are few, and adding them should need no conversion. The
//! matrices of a model so small that it lives in the processor's cache anyway are packed for products of many rows,
//! because such a model, once past its context, recomputes its window for every token.

use crate::linear::pack;
use crate::simd::{Simd, packed_len};
use crate::team::{Place, Slots};
use formats::checkpoint::Weights;
use formats::layout::ParameterId;
use formats::{Layout, Result};

/// Most bytes of panels that are kept.
const SMALL: usize = 8 << 20;

/// Numbers derived from a model's weights.
#[derive(Debug)]
pub(crate) struct Prepared {
    numbers: Slots,
    /// By parameter: a vector's values, a packed matrix's panels.
    places: Vec<Option<Place<f32>>>,
}

impl Prepared {
    /// Widens the vectors and, in a small model, packs the matrices.
    pub(crate) fn new(layout: &Layout, weights: &Weights, simd: &Simd) -> Result<Prepared> {
        let mut numbers = Slots::default();
        let mut places = vec![None; layout.iter().count()];
        for (id, parameter) in layout.iter().filter(|(_, parameter)| !parameter.is_matrix()) {
            let place = numbers.add(1, parameter.len(), 1)?;
            let tensor = weights.tensor(id);
            for (index, value) in numbers.get_mut(place).iter_mut().enumerate() {
                *value = tensor.get(index);
            }
            places[id.index()] = Some(place);
        }
        let layers =
            layout.layers.iter().flat_map(|layer| [layer.qkv, layer.attention_out, layer.up, layer.down]);
        let linears = || layers.clone().chain([layout.head]);
        let panels: usize = linears().map(|linear| packed_len(linear.outputs, linear.inputs)).sum();
        if panels * size_of::<f32>() <= SMALL {
            for linear in linears() {
                let place = numbers.add(1, packed_len(linear.outputs, linear.inputs), 1)?;
                let (weight, to) = (weights.tensor(linear.weight), numbers.get_mut(place));
                pack(simd, weight, 0..linear.outputs, linear.inputs, to);
                places[linear.weight.index()] = Some(place);
            }
        }
        Ok(Prepared { numbers, places })
    }

    /// A gain or a bias.
    pub(crate) fn vector(&self, id: ParameterId) -> &[f32] {
        self.panels(id).expect("every vector is prepared")
    }

    /// A matrix in panels, if it is kept so.
    pub(crate) fn panels(&self, id: ParameterId) -> Option<&[f32]> {
        self.places[id.index()].map(|place| self.numbers.get(place))
    }
}
