//! Every routine of every table against float64 and against the portable twin, at every small length.

use super::octets::{OCTET, Octet};
use super::product::{Epilogue, Operand, Product, Write};
use super::*;

/// Deterministic values in (-1, 1).
fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// `|got - want|` within `floor + relative |want|`; rejects NaN, infinities and wrong lengths.
fn close(got: &[f32], want: &[f64], relative: f64, floor: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (index, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(error <= floor + relative * want.abs(), "{what}[{index}]: {got} is not {want}");
    }
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&value| f64::from(value)).collect()
}

const LENGTHS: [usize; 42] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28,
    29, 30, 31, 32, 33, 37, 41, 47, 61, 64, 97, 127, 257, 521,
];

#[test]
fn the_comparer_rejects_what_is_not_a_number() {
    for (got, want) in [(f32::NAN, 0.0), (f32::INFINITY, 0.0), (0.0, f64::NAN), (1.0, 1.1)] {
        let outcome = std::panic::catch_unwind(|| close(&[got], &[want], 1e-3, 1e-3, "probe"));
        assert!(outcome.is_err(), "{got} passed for {want}");
    }
    assert!(std::panic::catch_unwind(|| close(&[1.0], &[], 1.0, 1.0, "probe")).is_err());
}

#[test]
fn gemv_matches_float64_at_every_length() {
    for table in Simd::available() {
        for columns in LENGTHS {
            for rows in [1, 2, 3, 4, 5, 7, 9] {
                let weight = values(rows * columns, 1);
                let (half, brain): (Vec<f16>, Vec<bf16>) =
                    weight.iter().map(|&w| (f16::from_f32(w), bf16::from_f32(w))).unzip();
                let x = values(columns, 2);
                let mut y = vec![f32::NAN; rows];
                let want = |of: &dyn Fn(usize) -> f64| -> Vec<f64> {
                    (0..rows)
                        .map(|r| (0..columns).map(|c| of(r * columns + c) * f64::from(x[c])).sum())
                        .collect()
                };
                let floor = 1e-7 * columns as f64;
                let [origin, elsewhere] = match rows % 2 {
                    0 => [Origin::Cache, Origin::Memory],
                    _ => [Origin::Memory, Origin::Cache],
                };
                (table.gemv_f32)(&weight, origin, &x, &mut y);
                close(&y, &want(&|i| f64::from(weight[i])), 1e-6, floor, table.name);
                (table.gemv_f16)(&half, origin, &x, &mut y);
                close(&y, &want(&|i| half[i].to_f64()), 1e-6, floor, table.name);
                let mut alone = [f32::NAN];
                (table.gemv_f16)(&half[..columns], origin, &x, &mut alone);
                assert_eq!(alone[0], y[0], "a row's sum depends on its neighbours");
                let mut same = vec![f32::NAN; rows];
                (table.gemv_f16)(&half, elsewhere, &x, &mut same);
                assert_eq!(same, y, "a sum depends on where the weights come from");
                (table.gemv_bf16)(&brain, origin, &x, &mut y);
                close(&y, &want(&|i| brain[i].to_f64()), 1e-6, floor, table.name);
                let whole: Vec<i8> = weight.iter().map(|&w| (w * 128.0).floor() as i8).collect();
                (table.gemv_i8)(&whole, origin, &x, &mut y);
                close(&y, &want(&|i| f64::from(whole[i])), 1e-6, 128.0 * floor, table.name);
                (table.gemv_i8)(&whole[..columns], elsewhere, &x, &mut alone);
                assert_eq!(alone[0], y[0], "a row's sum depends on its neighbours");
            }
        }
    }
}

#[test]
fn dot_and_axpy_match_float64_at_every_length() {
    for table in Simd::available() {
        for len in LENGTHS {
            let (x, y, mut out) = (values(len, 1), values(len, 2), values(len, 3));
            let dot: f64 = wide(&x).iter().zip(wide(&y)).map(|(x, y)| x * y).sum();
            close(&[(table.dot_f32)(&x, &y)], &[dot], 1e-6, 1e-6 * len as f64, table.name);
            let want: Vec<f64> = wide(&out).iter().zip(&x).map(|(o, x)| o + 0.37 * f64::from(*x)).collect();
            (table.axpy_f32)(0.37, &x, &mut out);
            close(&out, &want, 1e-6, 1e-7, table.name);
        }
    }
}

/// What each query that sees `seen` positions and more takes from the values, in float64.
fn attended(
    key: impl Fn(usize) -> f64,
    value: impl Fn(usize) -> f64,
    queries: &[f32],
    size: usize,
    seen: usize,
) -> Vec<f64> {
    let results = queries.chunks_exact(size).enumerate().flat_map(|(index, query)| {
        let at = |j: usize, c: usize| (j / PANEL * size + c) * PANEL + j % PANEL;
        let score = |j| (0..size).map(|c| key(at(j, c)) * f64::from(query[c])).sum::<f64>();
        let scores: Vec<f64> = (0..seen + index).map(score).collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let mixed =
            |c| weights.iter().enumerate().map(|(j, weight)| weight / sum * value(j * size + c)).sum();
        (0..size).map(mixed).collect::<Vec<f64>>()
    });
    results.collect()
}

#[test]
fn what_is_remembered_is_attended_to_as_in_float64() {
    for table in Simd::available() {
        for size in [1, 2, 3, 5, 8, 15, 16, 17, 24, 64, 96] {
            for (count, seen) in [1usize, 2, 3, 4, 5, 8].into_iter().flat_map(|count| {
                [1usize, 2, 8, 9, 13, 14, 15, 16, 17, 31, 33, 64, 65, 100, 130].map(|seen| (count, seen))
            }) {
                let name = format!("{} {count} x {size} from {seen}", table.name);
                let most = seen + count - 1;
                let keys = values(most.next_multiple_of(PANEL) * size, 4);
                let (queries, of_each) = (values(count * size, 5), values(most * size, 6));
                let halves = |x: &[f32]| x.iter().map(|&value| f16::from_f32(value)).collect::<Vec<f16>>();
                let (half_keys, half_values) = (halves(&keys), halves(&of_each));
                let (mut room, mut out) = (vec![f32::NAN; most], vec![f32::NAN; count * size]);
                // A score is as wrong as its sum is long, and a weight twice as wrong as its score.
                let floor = 4e-6 * size as f64;

                (table.attend_f32)(&keys, &of_each, &queries, [count, seen], &mut room, &mut out);
                let [key, value] = [&keys, &of_each].map(|x| |index: usize| f64::from(x[index]));
                close(&out, &attended(key, value, &queries, size, seen), 1e-5, floor, &name);

                (table.attend_f16)(&half_keys, &half_values, &queries, [count, seen], &mut room, &mut out);
                let [key, value] = [&half_keys, &half_values].map(|x| |index: usize| x[index].to_f64());
                close(&out, &attended(key, value, &queries, size, seen), 1e-5, floor, &name);

                let mut alone = vec![f32::NAN; count * size];
                for (index, (query, out)) in
                    queries.chunks_exact(size).zip(alone.chunks_exact_mut(size)).enumerate()
                {
                    let sizes = [1, seen + index];
                    (table.attend_f16)(&half_keys, &half_values, query, sizes, &mut room, out);
                }
                assert_eq!(alone, out, "{name}: a query's result depends on its neighbours");
            }
        }
    }
}

#[test]
fn a_key_that_is_not_a_number_spoils_those_that_see_it_alone() {
    const SIZE: usize = 16;
    for table in Simd::available() {
        for spoiled in 0..8 {
            let (mut keys, of_each) = (values(PANEL * SIZE, 8), values(8 * SIZE, 9));
            keys[spoiled] = f32::NAN;
            let (mut room, mut out) = ([0.0; 8], vec![0.0; 8 * SIZE]);
            (table.attend_f32)(&keys, &of_each, &values(8 * SIZE, 10), [8, 1], &mut room, &mut out);
            for (index, out) in out.chunks_exact(SIZE).enumerate() {
                let whole = out.iter().all(|value| value.is_nan() == (index >= spoiled));
                assert!(whole, "{} query {index} with a NaN at {spoiled}: {out:?}", table.name);
            }
        }
    }
}

#[test]
fn a_tree_is_the_same_sum_whatever_was_added_before() {
    const LEAVES: usize = 8;
    for table in Simd::available() {
        for len in LENGTHS {
            let distance = len + 3;
            let (mut rows, x) = (values(LEAVES * distance, 71), values(len, 72));
            let want: Vec<f64> = (0..len)
                .map(|at| {
                    (0..LEAVES).map(|leaf| f64::from(rows[leaf * distance + at])).sum::<f64>()
                        + f64::from(x[at])
                })
                .collect();
            let mut whole = x.clone();
            (table.add_tree)(&rows, distance, LEAVES, &mut whole);
            close(&whole, &want, 1e-6, 1e-6, table.name);
            for apart in [2, 4, 8] {
                for leaf in (0..LEAVES).step_by(apart) {
                    let (to, from) = rows[leaf * distance..].split_at_mut(apart / 2 * distance);
                    (table.add)(&mut to[..len], &from[..len]);
                }
                let mut folded = x.clone();
                (table.add_tree)(&rows, apart * distance, LEAVES / apart, &mut folded);
                assert_eq!(folded, whole, "{} {apart}", table.name);
            }
        }
    }
}

#[test]
fn weights_that_stand_transposed_match_float64_and_pack_alike() {
    for table in Simd::available() {
        for inputs in [1, 2, 7, 8, 9, 16, 31, 97] {
            for columns in LENGTHS {
                let stride = columns + 5;
                let weight = values(inputs * stride, 61);
                let (half, brain): (Vec<f16>, Vec<bf16>) =
                    weight.iter().map(|&w| (f16::from_f32(w), bf16::from_f32(w))).unzip();
                let x = values(inputs, 62);
                let want = |of: &dyn Fn(usize) -> f64| -> Vec<f64> {
                    let sum = |c| (0..inputs).map(|k| of(k * stride + c) * f64::from(x[k])).sum();
                    (0..columns).map(sum).collect()
                };
                let (name, floor) = (table.name, 2e-7 * inputs as f64);
                let mut y = vec![f32::NAN; columns];
                let [origin, elsewhere] = match inputs % 2 {
                    0 => [Origin::Cache, Origin::Memory],
                    _ => [Origin::Memory, Origin::Cache],
                };
                (table.gemv_rows_f32)(&weight, stride, origin, &x, &mut y);
                close(&y, &want(&|i| f64::from(weight[i])), 1e-6, floor, name);
                (table.gemv_rows_bf16)(&brain, stride, origin, &x, &mut y);
                close(&y, &want(&|i| brain[i].to_f64()), 1e-6, floor, name);
                (table.gemv_rows_f16)(&half, stride, origin, &x, &mut y);
                close(&y, &want(&|i| half[i].to_f64()), 1e-6, floor, name);
                let (middle, mut part) = (columns / 3, vec![f32::NAN; columns - columns / 3]);
                (table.gemv_rows_f16)(&half[middle..], stride, origin, &x, &mut part);
                assert_eq!(part, y[middle..], "{name}: a column's sum depends on its neighbours");
                let mut same = vec![f32::NAN; columns];
                (table.gemv_rows_f16)(&half, stride, elsewhere, &x, &mut same);
                assert_eq!(same, y, "{name}: a sum depends on where the weights come from");

                let turned = |i: usize| i % inputs * stride + i / inputs;
                let at = 0..columns * inputs;
                let mut expected = vec![f32::NAN; packed_len(columns, inputs)];
                let mut panels = expected.clone();
                let sizes = [columns, inputs, stride];
                let same: Vec<f32> = at.clone().map(|i| weight[turned(i)]).collect();
                (table.pack_f32)(&same, columns, inputs, &mut expected);
                (table.pack_rows_f32)(&weight, sizes, &mut panels);
                assert_eq!(panels, expected, "{name} {sizes:?}");
                let same: Vec<f16> = at.clone().map(|i| half[turned(i)]).collect();
                (table.pack_f16)(&same, columns, inputs, &mut expected);
                (table.pack_rows_f16)(&half, sizes, &mut panels);
                assert_eq!(panels, expected, "{name} {sizes:?}");
                let same: Vec<bf16> = at.map(|i| brain[turned(i)]).collect();
                (table.pack_bf16)(&same, columns, inputs, &mut expected);
                (table.pack_rows_bf16)(&brain, sizes, &mut panels);
                assert_eq!(panels, expected, "{name} {sizes:?}");
            }
        }
    }
}

#[test]
fn products_match_float64_in_every_orientation() {
    for table in Simd::available() {
        for (rows, inner, columns) in [
            (1, 1, 1),
            (2, 3, 5),
            (5, 7, 16),
            (6, 16, 17),
            (8, 64, 64),
            (9, 65, 33),
            (13, 31, 47),
            (64, 64, 65),
            (67, 129, 48),
            (130, 300, 31),
            (3, 520, 100),
            (125, 8, 97),
            (3, 0, 5),
        ] {
            let a = values(rows * inner, 11);
            let b = values(inner * columns, 12);
            let bias = values(columns, 13);
            let old = values(rows * columns, 14);
            let stream = values(rows * columns, 15);
            // B stored as [inner, columns], as its transpose, and packed from the transpose.
            let transposed: Vec<f32> =
                (0..columns * inner).map(|i| b[(i % inner) * columns + i / inner]).collect();
            let mut panels = vec![f32::NAN; packed_len(columns, inner)];
            (table.pack_f32)(&transposed, columns, inner, &mut panels);
            // A stored as [rows, inner] and as its transpose.
            let a_transposed: Vec<f32> =
                (0..rows * inner).map(|i| a[(i % rows) * inner + i / rows]).collect();
            for (left, a_row_stride, a_inner_stride) in [(&a, inner, 1), (&a_transposed, 1, rows)] {
                for (right, operand) in [
                    (&panels, Operand::Panels),
                    (&b, Operand::Rows { stride: columns }),
                    (&transposed, Operand::Transposed { stride: inner }),
                ] {
                    for (write, bias, residual) in [
                        (Write::Set, None, None),
                        (Write::Set, Some(&bias[..]), None),
                        (Write::Set, Some(&bias[..]), Some(&stream[..])),
                        (Write::Accumulate, None, None),
                        (Write::Accumulate, None, Some(&stream[..])),
                    ] {
                        let p = Product {
                            rows,
                            inner,
                            columns,
                            a_row_stride,
                            a_inner_stride,
                            b: operand,
                            c_stride: columns,
                            write,
                        };
                        let mut c = old.clone();
                        (table.product)(&p, left, right, Epilogue { bias, residual }, &mut c);
                        let want: Vec<f64> = (0..rows * columns)
                            .map(|i| {
                                let (row, column) = (i / columns, i % columns);
                                let begin = match write {
                                    Write::Accumulate => f64::from(old[i]),
                                    Write::Set => bias.map_or(0.0, |bias| f64::from(bias[column])),
                                };
                                begin
                                    + residual.map_or(0.0, |residual| f64::from(residual[i]))
                                    + (0..inner)
                                        .map(|k| {
                                            f64::from(a[row * inner + k]) * f64::from(b[k * columns + column])
                                        })
                                        .sum::<f64>()
                            })
                            .collect();
                        close(&c, &want, 1e-6, 1e-7 * inner as f64, &format!("{} {p:?}", table.name));
                    }
                }
            }
        }
    }
}

#[test]
fn an_element_does_not_depend_on_how_rows_and_columns_are_cut() {
    let (rows, inner, columns) = (29, 300, 64);
    let (a, b) = (values(rows * inner, 21), values(columns * inner, 22));
    for table in Simd::available() {
        let run = |row: usize, rows: usize, column: usize, columns: usize| {
            let mut c = vec![0.0; rows * columns];
            let p = Product {
                rows,
                inner,
                columns,
                a_row_stride: inner,
                a_inner_stride: 1,
                b: Operand::Transposed { stride: inner },
                c_stride: columns,
                write: Write::Set,
            };
            (table.product)(&p, &a[row * inner..], &b[column * inner..], Epilogue::default(), &mut c);
            c
        };
        let whole = run(0, rows, 0, columns);
        for row in 0..rows {
            for (column, count) in [(0, 16), (16, 48), (5, 7)] {
                let part = run(row, 1, column, count);
                assert_eq!(part, whole[row * columns + column..][..count], "{} row {row}", table.name);
            }
        }
    }
}

#[test]
fn rows_match_float64_at_every_length() {
    for table in Simd::available() {
        for len in LENGTHS {
            let x: Vec<f32> = values(len, 31).iter().map(|v| v * 6.0).collect();
            let exact = wide(&x);
            let name = table.name;

            let maximum = exact.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = exact.iter().map(|v| (v - maximum).exp()).sum();
            let mut out = x.clone();
            let mut moments = [f32::NAN; 2];
            (table.softmax)(&mut out, &mut moments);
            let [got_maximum, got_sum] = moments;
            let want: Vec<f64> = exact.iter().map(|v| (v - maximum).exp() / sum).collect();
            close(&out, &want, 2e-6, 1e-9, &format!("{name} softmax"));
            close(&[got_maximum, got_sum], &[maximum, sum], 1e-6, 0.0, &format!("{name} softmax"));
            close(&[(table.log_sum_exp)(&x)], &[maximum + sum.ln()], 1e-6, 1e-6, &format!("{name} lse"));

            let (gain, bias) = (values(len, 32), values(len, 33));
            let mean = exact.iter().sum::<f64>() / len as f64;
            let variance = exact.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / len as f64;
            for bias in [None, Some(&bias[..])] {
                (table.layer_norm)(&x, &gain, bias, 1e-5, &mut out, &mut [f32::NAN; 2]);
                let want: Vec<f64> = (0..len)
                    .map(|i| {
                        (exact[i] - mean) / (variance + 1e-5).sqrt() * f64::from(gain[i])
                            + bias.map_or(0.0, |bias| f64::from(bias[i]))
                    })
                    .collect();
                close(&out, &want, 1e-5, 1e-5, &format!("{name} layer norm {len}"));
            }

            let square = exact.iter().map(|v| v * v).sum::<f64>() / len as f64;
            let scale = (table.rms_norm)(&x, &gain, 1e-5, &mut out);
            let want: Vec<f64> =
                (0..len).map(|i| exact[i] / (square + 1e-5).sqrt() * f64::from(gain[i])).collect();
            close(&out, &want, 1e-6, 1e-6, &format!("{name} rms norm {len}"));
            close(&[scale], &[1.0 / (square + 1e-5).sqrt()], 1e-6, 0.0, &format!("{name} rms norm {len}"));

            let mut out = x.clone();
            (table.swiglu)(&mut out, &gain);
            let want: Vec<f64> =
                exact.iter().zip(&gain).map(|(v, up)| v / (1.0 + (-v).exp()) * f64::from(*up)).collect();
            close(&out, &want, 1e-6, 1e-6, &format!("{name} swiglu"));

            let mut out = x.clone();
            (table.relu)(&mut out);
            close(&out, &exact.iter().map(|v| v.max(0.0)).collect::<Vec<_>>(), 0.0, 0.0, name);
            let mut out = x.clone();
            (table.gelu_tanh)(&mut out);
            let want = exact.iter().map(|v| {
                0.5 * v * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v * v * v)).tanh())
            });
            close(&out, &want.collect::<Vec<_>>(), 1e-6, 1e-6, &format!("{name} gelu tanh"));
        }
    }
}

#[test]
fn rows_together_are_what_each_is_alone() {
    for table in Simd::available() {
        for (rows, width) in [(1, 5), (7, 65), (8, 16), (19, 33)] {
            let (x, gain) = (values(rows * width, 61), values(width, 62));
            let (mut normed, mut weighed) = (vec![f32::NAN; x.len()], x.clone());
            let (mut moments, mut sums) = (vec![f32::NAN; 2 * rows], vec![f32::NAN; 2 * rows]);
            (table.layer_norm)(&x, &gain, Some(&gain), 1e-5, &mut normed, &mut moments);
            (table.softmax)(&mut weighed, &mut sums);
            for row in 0..rows {
                let (at, two) = (row * width..(row + 1) * width, 2 * row..2 * row + 2);
                let (mut out, mut one) = (x[at.clone()].to_vec(), [f32::NAN; 2]);
                (table.softmax)(&mut out, &mut one);
                assert_eq!(
                    (&out[..], &one[..]),
                    (&weighed[at.clone()], &sums[two.clone()]),
                    "{}",
                    table.name
                );
                (table.layer_norm)(&x[at.clone()], &gain, Some(&gain), 1e-5, &mut out, &mut one);
                assert_eq!((&out[..], &one[..]), (&normed[at], &moments[two]), "{}", table.name);
            }
        }
    }
}

/// `erf` by its Maclaurin series, exact to rounding for the arguments used here.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[test]
fn gelu_erf_is_as_exact_as_half_of_one_plus_erf_in_f32() {
    for table in Simd::available() {
        let x: Vec<f32> = (-5000..=5000).map(|i| i as f32 / 1000.0).collect();
        let mut out = x.clone();
        (table.gelu_erf)(&mut out);
        let want: Vec<f64> =
            wide(&x).iter().map(|v| 0.5 * v * (1.0 + erf(v / std::f64::consts::SQRT_2))).collect();
        close(&out, &want, 4e-7, 9e-7, table.name);
        let mut far = [-1e30, 1e30];
        (table.gelu_erf)(&mut far);
        assert_eq!(far, [0.0, 1e30], "{}", table.name);
        let mut one = [1.0];
        (table.gelu_erf)(&mut one);
        close(&one, &[0.841_344_746], 1e-6, 0.0, table.name);
    }
}

#[test]
fn the_slope_of_gelu_erf_matches_float64() {
    let slope = |x: f64| {
        let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2)) + x * density
    };
    for unit in [Unit::FUSED, Unit::PLAIN] {
        for x in (-6000..=6000).map(|i| i as f32 / 1000.0) {
            close(&[unit.gelu_erf_slope(x)], &[slope(f64::from(x))], 0.0, 4e-7, &format!("{unit:?} at {x}"));
        }
        assert_eq!(unit.gelu_erf_slope(0.0), 0.5);
        for far in [6.0, 1e30, f32::INFINITY] {
            assert_eq!(unit.gelu_erf_slope(-far), 0.0);
            close(&[unit.gelu_erf_slope(far)], &[1.0], 0.0, 4e-7, "far out");
        }
        assert!(unit.gelu_erf_slope(f32::NAN).is_nan());
    }
}

#[test]
fn exp_is_within_two_ulp_and_keeps_nan() {
    for unit in [Unit::FUSED, Unit::PLAIN] {
        for step in -8700..=8800 {
            let x = step as f32 / 100.0;
            close(&[unit.exp(x)], &[f64::from(x).exp()], 2.5e-7, 0.0, "exp");
        }
        assert!(unit.exp(f32::NAN).is_nan());
        assert_eq!(unit.exp(0.0), 1.0);
        assert!(unit.exp(-1e9) < 2e-38);
    }
}

#[test]
fn softmax_of_a_row_with_nan_is_nan() {
    for table in Simd::available() {
        for len in [1, 8, 17, 40] {
            for at in [0, len / 2, len - 1] {
                let mut x = values(len, 51);
                x[at] = f32::NAN;
                (table.softmax)(&mut x, &mut [0.0; 2]);
                assert!(x.iter().all(|value| value.is_nan()), "{} hid a NaN", table.name);
            }
        }
    }
}

/// Every method of eight lanes, once: sum, difference, product, quotient, multiply-add, maximum, exponential, and
/// a square of them transposed.
struct EveryMethod([[f32; OCTET]; 3]);

impl OctetWork for EveryMethod {
    type Output = [[f32; OCTET]; 7 + OCTET];

    #[inline(always)]
    fn run<O: Octet>(self, octets: Octets<O>) -> Self::Output {
        let [a, b, c] = self.0.map(|lanes| octets.load(&lanes));
        let mut square = [octets.splat(self.0[0][2]); OCTET];
        (square[0], square[3], square[6]) = (a, b, c);
        octets.transpose(&mut square);
        let mut out = [[f32::NAN; OCTET]; 7 + OCTET];
        let one = [
            octets.add(a, b),
            octets.subtract(a, b),
            octets.multiply(a, b),
            octets.divide(a, b),
            octets.multiply_add(a, b, c),
            octets.maximum(a, b),
            octets.exp(c),
        ];
        for (value, to) in one.into_iter().chain(square).zip(&mut out) {
            octets.store(value, to);
        }
        out
    }
}

#[test]
fn eight_lanes_are_what_each_is_alone() {
    for table in Simd::available() {
        for seed in 0..50 {
            let octet = |seed| -> [f32; OCTET] { values(OCTET, seed).try_into().expect("eight values") };
            let [mut a, mut b, mut c] = [octet(3 * seed), octet(3 * seed + 1), octet(3 * seed + 2)];
            c.iter_mut().for_each(|value| *value *= 80.0);
            let unit = if table.name == "scalar" { Unit::PLAIN } else { Unit::FUSED };
            let out = table.run_octets(EveryMethod([a, b, c]));
            for lane in 0..OCTET {
                let (x, y) = (a[lane], b[lane]);
                let want = [x + y, x - y, x * y, x / y, unit.multiply_add(x, y, c[lane]), x.max(y)];
                assert_eq!(
                    want[..],
                    std::array::from_fn::<f32, 6, _>(|m| out[m][lane])[..],
                    "{}",
                    table.name
                );
                close(&[out[6][lane]], &[f64::from(c[lane]).exp()], 2.5e-7, 0.0, table.name);
                let mut column = [a[2]; OCTET];
                (column[0], column[3], column[6]) = (x, y, c[lane]);
                assert_eq!(out[7 + lane], column, "{} transposed", table.name);
            }
            // Where either is NaN, the second is the larger one.
            (a[1], b[4], c[7]) = (f32::NAN, f32::NAN, f32::NAN);
            let out = table.run_octets(EveryMethod([a, b, c]));
            assert_eq!(out[5][1], b[1], "{}", table.name);
            assert!(out[5][4].is_nan() && out[6][7].is_nan(), "{} hid a NaN", table.name);
        }
    }
}

#[test]
fn halves_convert_as_the_standard_says() {
    let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    for table in Simd::available() {
        let mut wide = vec![0.0; all.len()];
        (table.widen_f16)(&all, &mut wide);
        for (half, wide) in all.iter().zip(&wide) {
            assert!(half.to_f32() == *wide || (half.is_nan() && wide.is_nan()), "{} {half:?}", table.name);
        }
        let finite: Vec<f32> = wide.iter().copied().filter(|value| value.is_finite()).collect();
        let nudged: Vec<f32> = finite.iter().map(|value| value * 1.000_3).collect();
        let mut back = vec![f16::ZERO; nudged.len()];
        (table.narrow_f16)(&nudged, &mut back);
        for (value, half) in nudged.iter().zip(&back) {
            assert_eq!(f16::from_f32(*value), *half, "{} {value}", table.name);
        }
    }
}

use routines::Unit;
