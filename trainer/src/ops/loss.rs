//! The head and the cross-entropy of its logits, fused over chunks of rows so that logits exist only for one.
//!
//! Forward: `z = x W^T + b`, `loss_r = log sum_v exp z_rv - z_r,target`.
//! Backward with `d_loss_r = scale`: `d_z_rv = scale (exp(z_rv) / sum_u exp(z_ru) - [v = target])`, then the
//! gradients of [`super::linear`].

pub mod cuda;

use super::hands::Hands;
use super::linear;
use crate::windows::{Question, Windows};
use formats::layout::Linear;
use runtime::simd::Simd;
use runtime::simd::product::{Epilogue, Write};

/// Rows whose softmax is taken at once.
const TOGETHER: usize = 8;
/// Logits held at once: they stay in the second-level cache while they are turned into gradients.
const LOGITS: usize = 1 << 17;
/// Fewest rows of a chunk, however long they are: the head is read and its gradient written once a chunk.
const FEWEST_ROWS: usize = 256;

/// The shape of a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Classes {
    /// Rows in all.
    pub rows: usize,
    /// Width of a row.
    pub width: usize,
    /// Classes of a row.
    pub vocabulary: usize,
}

impl Classes {
    /// Rows of one chunk.
    fn chunk(&self) -> usize {
        (LOGITS / self.vocabulary).clamp(FEWEST_ROWS, 1024).min(self.rows)
    }

    /// Length of the scratch one pass needs.
    pub fn scratch(&self) -> usize {
        self.chunk() * self.vocabulary
    }
}

/// The head's parameters as the two passes read them.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// Its description.
    pub linear: &'a Linear,
    /// `W` packed.
    pub panels: &'a [f32],
    /// `W` as it is.
    pub weight: &'a [f32],
    /// `b`, if there is one.
    pub bias: Option<&'a [f32]>,
}

/// The gradients one pass leaves.
pub struct Gradients<'a> {
    /// What every row's loss is multiplied by.
    pub scale: f32,
    /// Of the input.
    pub d_x: (&'a mut [f32], Write),
    /// Of the weight, accumulated.
    pub d_weight: &'a mut [f32],
    /// Of the bias, accumulated.
    pub d_bias: Option<&'a mut [f32]>,
}

/// Each row's loss and, where asked for, the gradients of their scaled sum. Of rows that windows share, the loss of each
/// question, and no `targets`.
pub fn forward(
    hands: &mut Hands<'_>,
    s: &Classes,
    windows: Windows<'_>,
    x: &[f32],
    head: &Head<'_>,
    targets: &[u32],
    losses: &mut [f32],
    mut gradients: Option<Gradients<'_>>,
    scratch: &mut [f32],
) {
    for first in (0..s.rows).step_by(s.chunk()) {
        let rows = s.chunk().min(s.rows - first);
        let x = &x[first * s.width..][..rows * s.width];
        let logits = &mut scratch[..rows * s.vocabulary];
        linear::forward(hands, head.linear, rows, x, head.panels, Epilogue::of(head.bias), logits);
        if let Some(shared) = windows.shared() {
            let asked = shared.asked(first..first + rows);
            let (questions, losses) = (&shared.questions[asked.clone()], &mut losses[asked]);
            answer(hands.simd, s.vocabulary, logits, first, questions, losses);
            continue;
        }
        let scale = gradients.as_ref().map(|gradients| gradients.scale);
        let (simd, piece) = (hands.simd, hands.piece(rows, logits.len()));
        let pieces = logits.chunks_mut(piece * s.vocabulary).zip(targets[first..].chunks(piece));
        hands.deal(pieces.zip(losses[first..].chunks_mut(piece)), |((logits, targets), losses)| {
            judge(simd, s.vocabulary, logits, targets, losses, scale);
        });
        if let Some(gradients) = &mut gradients {
            let (d_x, write) = &mut gradients.d_x;
            let d_x = &mut d_x[first * s.width..][..rows * s.width];
            linear::backward_input(hands, head.linear, rows, head.weight, logits, (d_x, *write));
            linear::backward_weight(hands, head.linear, rows, x, logits, gradients.d_weight);
            if let Some(d_bias) = &mut gradients.d_bias {
                linear::backward_bias(hands, logits, d_bias);
            }
        }
    }
}

/// Rows of logits to their losses and, where a scale is given, to the gradients of their scaled sum.
fn judge(
    simd: &Simd,
    vocabulary: usize,
    logits: &mut [f32],
    targets: &[u32],
    losses: &mut [f32],
    scale: Option<f32>,
) {
    let several = logits.chunks_mut(TOGETHER * vocabulary).zip(targets.chunks(TOGETHER));
    for ((logits, targets), losses) in several.zip(losses.chunks_mut(TOGETHER)) {
        let mut moments = [0.0; 2 * TOGETHER];
        let moments = &mut moments[..logits.len() / vocabulary * 2];
        for ((logits, &target), loss) in logits.chunks_exact(vocabulary).zip(targets).zip(&mut *losses) {
            *loss = logits[target as usize];
        }
        (simd.softmax)(logits, moments);
        for (loss, moments) in losses.iter_mut().zip(moments.chunks_exact(2)) {
            *loss = moments[0] + moments[1].ln() - *loss;
        }
        let Some(scale) = scale else { continue };
        for (logits, &target) in logits.chunks_exact_mut(vocabulary).zip(targets) {
            logits[target as usize] -= 1.0;
            logits.iter_mut().for_each(|d| *d *= scale);
        }
    }
}

/// Rows of logits, the first of them row `first`, to the losses of what is asked of them, in the order of rows.
fn answer(
    simd: &Simd,
    vocabulary: usize,
    logits: &mut [f32],
    first: usize,
    mut questions: &[Question],
    mut losses: &mut [f32],
) {
    for (several, logits) in logits.chunks_mut(TOGETHER * vocabulary).enumerate() {
        let first = first + several * TOGETHER;
        let rows = logits.len() / vocabulary;
        let count = questions.partition_point(|question| (question.row as usize) < first + rows);
        let (asked, later) = questions.split_at(count);
        let (answers, others) = losses.split_at_mut(count);
        for (loss, question) in answers.iter_mut().zip(asked) {
            *loss = logits[(question.row as usize - first) * vocabulary + question.target as usize];
        }
        let mut moments = [0.0; 2 * TOGETHER];
        (simd.softmax)(logits, &mut moments[..2 * rows]);
        for (loss, question) in answers.iter_mut().zip(asked) {
            let row = question.row as usize - first;
            *loss = moments[2 * row] + moments[2 * row + 1].ln() - *loss;
        }
        (questions, losses) = (later, others);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{gradient, linear_of, values};
    use runtime::simd::{Simd, packed_len};

    #[test]
    fn gradients_match_finite_differences() {
        for simd in Simd::available() {
            for (rows, width, vocabulary) in [(1, 1, 2), (3, 5, 7), (9, 16, 65), (FEWEST_ROWS + 20, 3, 1700)]
            {
                let s = Classes { rows, width, vocabulary };
                let linear = linear_of(width, vocabulary);
                let (x, weight, bias) =
                    (values(rows * width, 1), values(vocabulary * width, 2), values(vocabulary, 3));
                let targets: Vec<u32> = (0..rows).map(|row| (row * 31 % vocabulary) as u32).collect();
                let mut panels = vec![0.0; packed_len(vocabulary, width)];
                let mut pass = |x: &[f32], weight: &[f32], bias: &[f32], gradients: Option<Gradients<'_>>| {
                    (simd.pack_f32)(weight, vocabulary, width, &mut panels);
                    let head = Head { linear: &linear, panels: &panels, weight, bias: Some(bias) };
                    let mut losses = vec![f32::NAN; rows];
                    let mut scratch = vec![f32::NAN; s.scratch()];
                    let hands = &mut Hands::alone(simd);
                    forward(
                        hands,
                        &s,
                        Windows::Whole,
                        x,
                        &head,
                        &targets,
                        &mut losses,
                        gradients,
                        &mut scratch,
                    );
                    losses
                };
                let scale = 0.25;
                let mut d_x = vec![f32::NAN; x.len()];
                let (mut d_weight, mut d_bias) = (vec![0.0; weight.len()], vec![0.0; vocabulary]);
                let gradients = Gradients {
                    scale,
                    d_x: (&mut d_x, Write::Set),
                    d_weight: &mut d_weight,
                    d_bias: Some(&mut d_bias),
                };
                let losses = pass(&x, &weight, &bias, Some(gradients));
                assert_eq!(losses, pass(&x, &weight, &bias, None), "the two passes differ");
                for (row, loss) in losses.iter().enumerate() {
                    let logit = |v: usize| -> f64 {
                        f64::from(bias[v])
                            + (0..width)
                                .map(|c| f64::from(x[row * width + c]) * f64::from(weight[v * width + c]))
                                .sum::<f64>()
                    };
                    let sum: f64 = (0..vocabulary).map(|v| logit(v).exp()).sum();
                    let want = sum.ln() - logit(targets[row] as usize);
                    assert!((f64::from(*loss) - want).abs() <= 1e-5, "{loss} is not {want}");
                }
                if vocabulary < 100 {
                    let d_losses = vec![scale; rows];
                    let pass = std::cell::RefCell::new(pass);
                    gradient("x", &x, &d_x, &d_losses, |x| pass.borrow_mut()(x, &weight, &bias, None));
                    gradient("weight", &weight, &d_weight, &d_losses, |weight| {
                        pass.borrow_mut()(&x, weight, &bias, None)
                    });
                    gradient("bias", &bias, &d_bias, &d_losses, |bias| {
                        pass.borrow_mut()(&x, &weight, bias, None)
                    });
                }
            }
        }
    }
}
