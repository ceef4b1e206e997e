//! The portable twin of every routine: the oracle of the tests, and the only table where there is no other.

use super::product::{Epilogue, Operand, Product, Write};
use super::routines::{self, Unit};
use super::{InstructionSet, PANEL, Simd};
use half::{bf16, f16};

pub(super) static TABLE: Simd = Simd {
    name: "scalar",
    set: InstructionSet::Scalar,
    gemv_f32: |weight, _, x, y| gemv(weight, |value| value, x, y),
    gemv_f16: |weight, _, x, y| gemv(weight, f16::to_f32, x, y),
    gemv_bf16: |weight, _, x, y| gemv(weight, bf16::to_f32, x, y),
    gemv_i8: |weight, _, x, y| gemv(weight, f32::from, x, y),
    gemv_rows_f32: |weight, stride, _, x, y| gemv_rows(weight, |value| value, stride, x, y),
    gemv_rows_f16: |weight, stride, _, x, y| gemv_rows(weight, f16::to_f32, stride, x, y),
    gemv_rows_bf16: |weight, stride, _, x, y| gemv_rows(weight, bf16::to_f32, stride, x, y),
    product,
    pack_f32: |weight, outputs, inputs, panels| pack(weight, |value| value, outputs, inputs, panels),
    pack_f16: |weight, outputs, inputs, panels| pack(weight, f16::to_f32, outputs, inputs, panels),
    pack_bf16: |weight, outputs, inputs, panels| pack(weight, bf16::to_f32, outputs, inputs, panels),
    pack_rows_f32: |weight, sizes, panels| pack_rows(weight, |value| value, sizes, panels),
    pack_rows_f16: |weight, sizes, panels| pack_rows(weight, f16::to_f32, sizes, panels),
    pack_rows_bf16: |weight, sizes, panels| pack_rows(weight, bf16::to_f32, sizes, panels),
    layer_norm: |x, gain, bias, eps, out, moments| {
        routines::layer_norm(Unit::PLAIN, x, gain, bias, eps, out, moments)
    },
    rms_norm: |x, gain, eps, out| routines::rms_norm(Unit::PLAIN, x, gain, eps, out),
    relu: routines::relu,
    gelu_erf: |x| routines::gelu_erf(Unit::PLAIN, x),
    gelu_tanh: |x| routines::gelu_tanh(Unit::PLAIN, x),
    swiglu: |gate, up| routines::swiglu(Unit::PLAIN, gate, up),
    add: routines::add,
    add_tree: routines::add_tree,
    softmax: |x, moments| routines::softmax(Unit::PLAIN, x, moments),
    log_sum_exp: |x| routines::log_sum_exp(Unit::PLAIN, x),
    attend_f16: |keys, values, queries, sizes, room, out| {
        attend(keys, values, f16::to_f32, queries, sizes, room, out)
    },
    attend_f32: |keys, values, queries, sizes, room, out| {
        attend(keys, values, |value| value, queries, sizes, room, out)
    },
    dot_f32: |k, q| dot(k, |value| value, q),
    axpy_f32: |weight, v, out| axpy(weight, v, |value| value, out),
    narrow_f16: |x, out| convert(x, out, f16::from_f32),
    widen_f16: |x, out| convert(x, out, f16::to_f32),
    widen_bf16: |x, out| convert(x, out, bf16::to_f32),
    peak,
};

fn dot<T: Copy>(row: &[T], widen: impl Fn(T) -> f32, x: &[f32]) -> f32 {
    assert_eq!(row.len(), x.len(), "dot product");
    row.iter().zip(x).map(|(&weight, value)| widen(weight) * value).sum()
}

fn gemv<T: Copy>(weight: &[T], widen: impl Fn(T) -> f32, x: &[f32], y: &mut [f32]) {
    assert_eq!(weight.len(), x.len() * y.len(), "weight is [rows, columns]");
    for (row, out) in y.iter_mut().enumerate() {
        *out = dot(&weight[row * x.len()..][..x.len()], &widen, x);
    }
}

fn gemv_rows<T: Copy>(weight: &[T], widen: impl Fn(T) -> f32, stride: usize, x: &[f32], y: &mut [f32]) {
    assert!(y.len() <= stride, "rows of W overlap");
    y.fill(0.0);
    for (input, value) in x.iter().enumerate() {
        axpy(*value, &weight[input * stride..][..y.len()], &widen, y);
    }
}

fn attend<T: Copy>(
    keys: &[T],
    values: &[T],
    widen: impl Fn(T) -> f32,
    queries: &[f32],
    [count, seen]: [usize; 2],
    room: &mut [f32],
    out: &mut [f32],
) {
    assert!(queries.len() == out.len() && out.len().is_multiple_of(count), "one result a query");
    let size = out.len() / count;
    for (index, (query, out)) in queries.chunks_exact(size).zip(out.chunks_exact_mut(size)).enumerate() {
        let scores = &mut room[..seen + index];
        assert!(scores.len() * size <= values.len(), "one value a position");
        for (position, score) in scores.iter_mut().enumerate() {
            let block = &keys[position / PANEL * size * PANEL..];
            let key = block.iter().skip(position % PANEL).step_by(PANEL);
            *score = key.zip(query).map(|(&key, query)| widen(key) * query).sum();
        }
        routines::softmax(Unit::PLAIN, scores, &mut [0.0; 2]);
        out.fill(0.0);
        for (weight, value) in scores.iter().zip(values.chunks_exact(size)) {
            axpy(*weight, value, &widen, out);
        }
    }
}

fn axpy<T: Copy>(weight: f32, v: &[T], widen: impl Fn(T) -> f32, out: &mut [f32]) {
    assert_eq!(v.len(), out.len(), "axpy");
    for (sum, &value) in out.iter_mut().zip(v) {
        *sum += weight * widen(value);
    }
}

fn convert<S: Copy, T>(x: &[S], out: &mut [T], one: impl Fn(S) -> T) {
    assert_eq!(x.len(), out.len(), "convert");
    for (to, &from) in out.iter_mut().zip(x) {
        *to = one(from);
    }
}

fn pack<T: Copy>(weight: &[T], widen: impl Fn(T) -> f32, outputs: usize, inputs: usize, panels: &mut [f32]) {
    assert_eq!(weight.len(), outputs * inputs, "weight is [outputs, inputs]");
    assert_eq!(panels.len(), super::packed_len(outputs, inputs), "panels are whole");
    panels.fill(0.0);
    for output in 0..outputs {
        for input in 0..inputs {
            panels[place(output, input, inputs)] = widen(weight[output * inputs + input]);
        }
    }
}

fn pack_rows<T: Copy>(
    weight: &[T],
    widen: impl Fn(T) -> f32,
    [outputs, inputs, stride]: [usize; 3],
    panels: &mut [f32],
) {
    assert!(outputs <= stride, "rows of W overlap");
    assert_eq!(panels.len(), super::packed_len(outputs, inputs), "panels are whole");
    panels.fill(0.0);
    for input in 0..inputs {
        for output in 0..outputs {
            panels[place(output, input, inputs)] = widen(weight[input * stride + output]);
        }
    }
}

/// Where element `(input, output)` stands in packed panels.
fn place(output: usize, input: usize, inputs: usize) -> usize {
    (output / PANEL * inputs + input) * PANEL + output % PANEL
}

fn product(p: &Product, a: &[f32], b: &[f32], epilogue: Epilogue<'_>, c: &mut [f32]) {
    for row in 0..p.rows {
        for column in 0..p.columns {
            let to = row * p.c_stride + column;
            let mut sum = match p.write {
                Write::Accumulate => c[to],
                Write::Set => epilogue.bias.map_or(0.0, |bias| bias[column]),
            };
            for inner in 0..p.inner {
                let right = match p.b {
                    Operand::Panels => b[place(column, inner, p.inner)],
                    Operand::Rows { stride } => b[inner * stride + column],
                    Operand::Transposed { stride } => b[column * stride + inner],
                };
                sum += a[row * p.a_row_stride + inner * p.a_inner_stride] * right;
            }
            c[to] = epilogue.residual.map_or(sum, |residual| residual[to] + sum);
        }
    }
}

fn peak(rounds: u64) -> f32 {
    let mut chains = [std::hint::black_box(1.0f32); 12 * 16];
    for _ in 0..rounds {
        for chain in &mut chains {
            *chain = *chain * 0.999_9 + 1e-4;
        }
    }
    chains.iter().sum()
}
