//! Choices, places and loads against the CPU's, number by number, where a device or an emulated one is at hand; the suite
//! of `trainer selfcheck` holds values and gradients against each other.

use super::super::tests::{Case, shape};
use super::super::{DROPPED, Router, load as load_of_cpu};
use super::*;
use crate::device::Precision;
use crate::ops::check::{eighths, with_devices};
use crate::ops::dropout::Noise;
use runtime::simd::Simd;

fn case(s: Router) -> Case {
    let (x, router) = (eighths(s.rows * s.width, 1), eighths(s.count * s.width, 2));
    Case { x, router, ..Case::new(s) }
}

/// A router's results on the device.
struct Decided {
    chosen: Vec<u32>,
    place: Vec<u32>,
    offsets: Vec<u32>,
    rows: Vec<u32>,
    assigned: Vec<u32>,
    weights: Vec<f32>,
    kept: Vec<f32>,
    load: Vec<f64>,
    shares: Vec<f32>,
}

fn decide(device: &Device, case: &Case, counted: usize) -> Result<Decided> {
    let s = &case.s;
    let floats = |from: &[f32]| -> Result<Buffer> {
        let mut buffer = device.floats(from.len())?;
        device.upload(from, &mut buffer);
        Ok(buffer)
    };
    let mut x = device.values(case.x.len())?;
    device.upload_values(&case.x, &mut x);
    let router = floats(&case.router)?;
    let bias = case.bias.as_deref().map(floats).transpose()?;
    let noise = case.noise.as_deref().map(floats).transpose()?;
    let parameters = Weights {
        router: router.view(),
        selection_bias: bias.as_ref().map(Buffer::view),
        noise: noise.as_ref().map(Buffer::view),
    };
    let mut clock = device.buffer(Element::U64, 8)?;
    device.upload(&[3u64], clock.part_mut(0..1));
    let (mut weights, mut kept) = (device.values(s.rows * s.slots())?, device.floats(s.kept())?);
    let (mut routing, mut scratch) = (Routing::new(device, s)?, device.floats(s.scratch())?);
    forward(
        device,
        s,
        x.view(),
        &parameters,
        &case.disturbance,
        clock.view(),
        weights.view_mut(),
        kept.view_mut(),
        &mut routing,
        scratch.view_mut(),
    );
    let mut asked = device.buffer(Element::F64, s.load())?;
    let mut parts_of_all = device.floats(s.count)?;
    // Twice, so that what is added is seen.
    for _ in 0..2 {
        load(device, s, kept.view(), &routing, counted, asked.view_mut());
    }
    shares(device, s, asked.view(), parts_of_all.view_mut());
    let words = |from: &Buffer| {
        let mut words = vec![0; from.len()];
        device.download(from, &mut words);
        words
    };
    let mut decided = Decided {
        chosen: words(&routing.chosen),
        place: words(&routing.place),
        offsets: words(&routing.offsets),
        rows: words(&routing.rows),
        assigned: words(&routing.assigned),
        weights: vec![f32::NAN; weights.len()],
        kept: vec![f32::NAN; kept.len()],
        load: vec![f64::NAN; asked.len()],
        shares: vec![f32::NAN; s.count],
    };
    device.download_values(&weights, &mut decided.weights);
    device.download(&kept, &mut decided.kept);
    device.download(&asked, &mut decided.load);
    device.download(&parts_of_all, &mut decided.shares);
    device.synchronize()?;
    Ok(decided)
}

fn near(what: &str, found: &[f32], expected: &[f32], bound: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let same = found == expected || (found - expected).abs() <= bound * expected.abs().max(1.0);
        assert!(same, "{what}: {found} at {index}, {expected} expected");
    }
}

fn compare(device: &Device, case: &Case, counted: usize) {
    let (s, passed) = (&case.s, case.pass(Simd::best()));
    let found = decide(device, case, counted).expect("the device works");
    let routing = &passed.routing;
    assert_eq!(found.chosen, routing.chosen, "{s:?}");
    assert_eq!(found.offsets, routing.offsets, "{s:?}");
    assert_eq!(found.place, routing.place, "{s:?}");
    let end = routing.of(s.experts() - 1).end;
    assert_eq!(found.rows[..end], routing.rows[..end], "{s:?}");
    for (place, &assignment) in found.assigned[..end].iter().enumerate() {
        assert_eq!(routing.place[assignment as usize] as usize, place, "{s:?}");
    }
    let rounding = match device.precision() {
        Precision::F32 => 1e-6,
        Precision::Bf16 => 1.0 / 256.0,
    };
    near("weights", &found.weights, &passed.weights, rounding);
    near("kept", &found.kept, &passed.kept, 1e-5);
    let mut expected = vec![0.0; s.load()];
    load_of_cpu(s, &passed.kept, routing, counted, &mut expected);
    let counts: f64 = expected[..s.count].iter().sum();
    for (index, (found, expected)) in found.load.iter().zip(&expected).enumerate() {
        assert!((found - 2.0 * expected).abs() <= 1e-5 * expected.abs().max(1.0), "load {index}: {s:?}");
    }
    for (expert, share) in found.shares.iter().enumerate() {
        assert!((f64::from(*share) - expected[expert] / counts).abs() < 1e-7, "share {expert}: {s:?}");
    }
}

#[test]
fn rows_go_where_the_cpu_sends_them() {
    let forms = [
        (RouterScore::Softmax, RouterWeight::Score),
        (RouterScore::Softmax, RouterWeight::Renormalised),
        (RouterScore::Sigmoid, RouterWeight::Renormalised),
        (RouterScore::Sigmoid, RouterWeight::Score),
    ];
    let sizes = [
        // Rows, width, experts, active, shared, capacity.
        (1, 1, 1, 1, 0, None),
        (2, 3, 3, 3, 1, None),
        (31, 8, 4, 2, 0, Some(5)),
        (33, 24, 8, 2, 1, Some(1)),
        (64, 16, 33, 5, 0, None),
        (257, 40, 8, 2, 2, Some(50)),
        (70, 9, 300, 40, 1, Some(9)),
        (4300, 8, 3, 1, 0, Some(1200)),
    ];
    with_devices(|device| {
        for ((rows, width, count, active, shared, capacity), (score, weight)) in
            sizes.into_iter().zip(forms.into_iter().cycle())
        {
            let s = Router { shared, capacity, score, weight, ..shape(rows, width, count, active) };
            compare(device, &case(s), rows);
            compare(device, &case(s), rows.div_ceil(3));
        }
    });
}

#[test]
fn one_expert_may_have_all_rows_and_others_none() {
    with_devices(|device| {
        for capacity in [None, Some(37)] {
            let s = Router { capacity, ..shape(100, 8, 5, 1) };
            let mut case = case(s);
            case.x.fill(0.5);
            // Equal logits go to the lower index, and the last but one has the highest.
            case.router.fill(0.125);
            case.router[3 * 8..4 * 8].fill(1.0);
            compare(device, &case, 100);
            let decided = decide(device, &case, 100).expect("the device works");
            let end = capacity.unwrap_or(100) as u32;
            assert_eq!(decided.offsets, [0, 0, 0, 0, end, end]);
            let dropped = decided.place.iter().filter(|place| **place == DROPPED).count();
            assert_eq!(dropped, 100 - end as usize);
        }
    });
}

#[test]
fn noise_jitter_and_masks_are_the_cpus() {
    let noise = Noise::new(7, 3, 0.0);
    with_devices(|device| {
        for (score, weight) in
            [(RouterScore::Softmax, RouterWeight::Score), (RouterScore::Sigmoid, RouterWeight::Renormalised)]
        {
            let s = Router { score, weight, noisy: true, shared: 1, ..shape(45, 12, 7, 2) };
            let mut case = case(s);
            case.noise = Some(eighths(s.count * s.width, 9));
            case.disturbance = Disturbance {
                jitter: Some((noise.draws(0, 6, s.width), 0.3)),
                noise: Some(noise.draws(1, 6, 2 * s.count)),
                outputs: noise.with(0.4).at(2, 6, s.slots()),
                experts: noise.with(0.3).at(3, 0, s.count),
            };
            compare(device, &case, 45);
        }
    });
}

#[test]
fn what_is_no_number_has_a_place() {
    with_devices(|device| {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut case = case(shape(40, 3, 4, 2));
            case.router.fill(value);
            let found = decide(device, &case, 40).expect("the device works");
            for pair in found.chosen.chunks(2) {
                assert!(pair[0] < 4 && pair[1] < 4 && pair[0] != pair[1], "{pair:?}");
            }
            let mut places = found.place.clone();
            places.sort_unstable();
            assert!(places.into_iter().eq(0..80));
        }
    });
}

#[test]
fn the_bias_moves_against_the_load_and_not_after_a_failed_step() {
    with_devices(|device| {
        let run = |failed: f64| -> Result<Vec<f32>> {
            let (mut bias, mut record) = (device.floats(5)?, device.buffer(Element::F64, 3)?);
            let mut load = device.buffer(Element::F64, 12)?;
            device.upload(&[0.0, 1.0, 2.0, 3.0, 4.0f32], &mut bias);
            device.upload(&[0.0, 0.0, failed], &mut record);
            device.upload(&[4.0, 1.0, 7.0, 4.0, 4.0f64], load.part_mut(0..5));
            shift(device, bias.view_mut(), load.view(), 0.25, record.view());
            let mut after = vec![f32::NAN; 5];
            device.download(&bias, &mut after);
            device.synchronize()?;
            Ok(after)
        };
        assert_eq!(run(0.0).expect("the device works"), [0.0, 1.25, 1.75, 3.0, 4.0]);
        assert_eq!(run(9.0).expect("the device works"), [0.0, 1.0, 2.0, 3.0, 4.0]);
    });
}
