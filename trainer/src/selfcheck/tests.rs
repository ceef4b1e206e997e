use super::*;
use runtime::simd::Simd;
use runtime::simd::product::{Epilogue, Product};

fn reference() -> Cpu {
    Cpu::with(Simd::available()[0], 1).expect("a thread")
}

/// The rows of a CPU with that table against the scalar one.
fn rows_of(simd: &'static Simd, extent: Extent, threads: usize) -> Vec<Row> {
    let device = Cpu::with(simd, threads).expect("threads");
    operations(&device, &reference(), Rounding::F32, extent, |_| Ok(())).expect("no device to fail")
}

fn failed(rows: &[Row]) -> Vec<&'static str> {
    let mut names: Vec<_> =
        rows.iter().filter(|row| row.failure.is_some()).map(|row| row.operation).collect();
    names.dedup();
    names
}

#[test]
fn every_table_agrees_with_the_scalar_one_and_every_bound_is_near_the_numbers() {
    for simd in Simd::available() {
        for row in rows_of(simd, Extent::Whole, 2) {
            assert_eq!(row.failure, None, "{}", simd.name);
            assert!(row.numbers > 0 && row.share >= 0.0, "{row:?}");
            // A bound that hides a wrong thousandth proves nothing.
            assert!(row.bound <= 1e-3 * row.size || row.error == 0.0, "{}: {row:?}", simd.name);
        }
    }
}

#[test]
fn the_few_shapes_leave_no_result_out() {
    let names = |extent| -> Vec<_> {
        rows_of(Simd::best(), extent, 1).iter().map(|row| (row.operation, row.result)).collect()
    };
    assert_eq!(names(Extent::Quick), names(Extent::Whole));
}

#[test]
fn small_models_train_alike_on_every_table_and_come_back_to_the_same_bytes() {
    for simd in Simd::available() {
        let ways = models::Ways { open: &|| Cpu::with(simd, 1), eager: None };
        let rows = models::train(&ways, &|| Ok(reference()), Rounding::F32, Extent::Quick, |_| Ok(()))
            .expect("no device to fail");
        for row in &rows {
            assert_eq!(row.failure, None, "{}", simd.name);
        }
        assert!(rows.len() > 8, "{rows:?}");
    }
}

/// A table that is right but for one routine.
fn wrong(change: impl FnOnce(&mut Simd)) -> &'static Simd {
    let mut table = Simd::available()[0].clone();
    change(&mut table);
    Box::leak(Box::new(table))
}

#[test]
fn a_backend_with_a_wrong_routine_fails_where_it_is_used() {
    fn scalar() -> &'static Simd {
        Simd::available()[0]
    }
    fn last_column_short(p: &Product, a: &[f32], b: &[f32], epilogue: Epilogue<'_>, c: &mut [f32]) {
        (scalar().product)(p, a, b, epilogue, c);
        // One element, one part in a thousand.
        c[(p.rows - 1) * p.c_stride + p.columns - 1] *= 0.999;
    }
    fn unsummed(x: &mut [f32], moments: &mut [f32]) {
        (scalar().softmax)(x, moments);
        moments[1] *= 1.0001;
    }
    fn half(weight: f32, v: &[f32], out: &mut [f32]) {
        (scalar().axpy_f32)(weight, v, out);
        out[v.len() - 1] *= 0.5;
    }
    fn no_number(x: &mut [f32], y: &[f32]) {
        (scalar().add)(x, y);
        x[0] = f32::NAN;
    }
    fn infinite(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) -> f32 {
        out[0] = f32::INFINITY;
        (scalar().rms_norm)(x, gain, eps, &mut out[..]) + 1e-3
    }
    for (table, must) in [
        (wrong(|table| table.product = last_column_short), &["linear", "attention", "loss", "experts"][..]),
        (wrong(|table| table.softmax = unsummed), &["loss"][..]),
        (wrong(|table| table.axpy_f32 = half), &["experts"][..]),
        (wrong(|table| table.add = no_number), &["linear", "gather"][..]),
        (wrong(|table| table.rms_norm = infinite), &["norm", "query_key_norm"][..]),
    ] {
        let failed = failed(&rows_of(table, Extent::Quick, 2));
        for name in must {
            assert!(failed.contains(name), "{name} passed; failed: {failed:?}");
        }
        assert!(!failed.contains(&"embedding"), "{failed:?}");
    }
}
