//! Every kernel against the CPU, value by value: inputs are eighths, whose products and sums are exact, so that not a bit
//! may differ in f32, nor more than the last rounding in bf16. Where a device or an emulated one is at hand.

use super::super as cpu;
use super::*;
use crate::device::Buffer;
use crate::ops::check::{eighths, with_devices};
use crate::ops::hands::Hands;
use crate::ops::route::{self, DROPPED};
use formats::config::{Activation, Experts, RouterScore, RouterWeight};
use formats::layout::FeedForward;
use formats::{Config, Result};
use runtime::simd::{Simd, packed_len};

/// Assignments sorted by expert, of which every `lost`-th is dropped.
fn routing(chosen: Vec<u32>, slots: usize, experts: usize, lost: usize) -> route::Routing {
    let mut routing = route::Routing::new(chosen.len(), experts).expect("memory");
    routing.chosen = chosen;
    routing.place.fill(DROPPED);
    let mut next = 0;
    for expert in 0..experts {
        routing.offsets[expert] = next;
        for assignment in 0..routing.chosen.len() {
            if routing.chosen[assignment] as usize == expert && assignment % lost != lost - 1 {
                routing.place[assignment] = next;
                routing.rows[next as usize] = (assignment / slots) as u32;
                next += 1;
            }
        }
    }
    routing.offsets[experts] = next;
    routing
}

/// The assignment at each place.
fn assigned(routing: &route::Routing) -> Vec<u32> {
    let mut assigned = vec![0; routing.place.len()];
    for (assignment, &place) in routing.place.iter().enumerate().filter(|(_, place)| **place != DROPPED) {
        assigned[place as usize] = assignment as u32;
    }
    assigned
}

/// Two experts a row: one has none, one a single row, one most.
fn uneven(rows: usize) -> Vec<u32> {
    (0..rows).flat_map(|row| [2, if row == rows / 2 { 1 } else { 3 + (row % 2) as u32 }]).collect()
}

/// A layer whose experts have such widths.
fn layer(width: usize, hidden: usize, biases: bool) -> (Layout, Bank) {
    let experts = Experts {
        count: 5,
        active: 2,
        width: hidden,
        every: 1,
        shared: 0,
        score: RouterScore::Softmax,
        weight: RouterWeight::Score,
        selection_bias: false,
        noise: false,
    };
    let config = Config {
        width,
        experts: Some(experts),
        activation: Activation::Relu,
        feed_forward_bias: biases,
        ..crate::ops::check::config()
    };
    let layout = Layout::new(&config);
    let FeedForward::Experts(bank) = layout.layers[0].feed_forward else { panic!("the layer has experts") };
    (layout, bank)
}

/// What a device gives, and what the CPU does.
struct Pair {
    what: &'static str,
    found: Vec<f32>,
    expected: Vec<f32>,
}

struct Bench<'a> {
    device: &'a Device,
    routing: Routing,
    /// The place of each assignment.
    place: &'a [u32],
    pairs: Vec<Pair>,
}

impl Bench<'_> {
    fn values(&self, from: &[f32]) -> Result<Buffer> {
        let mut buffer = self.device.values(from.len())?;
        self.device.upload_values(from, &mut buffer);
        Ok(buffer)
    }

    fn floats(&self, from: &[f32]) -> Result<Buffer> {
        let mut buffer = self.device.floats(from.len())?;
        self.device.upload(from, &mut buffer);
        Ok(buffer)
    }

    /// Sorted rows as experts leave them, no numbers where one was dropped: nobody may read those.
    fn as_given(&self, sorted: &[f32]) -> Vec<f32> {
        let width = sorted.len() / self.place.len();
        let mut given = vec![f32::NAN; sorted.len()];
        for (row, &place) in given.chunks_exact_mut(width).zip(self.place) {
            if place != DROPPED {
                row.copy_from_slice(&sorted[place as usize * width..][..width]);
            }
        }
        given
    }

    /// Notes values of the device, and what they should be once rounded as it rounds.
    fn see(&mut self, what: &'static str, found: &Buffer, expected: &[f32]) -> Result<()> {
        let rounded = self.values(expected)?;
        let mut pair =
            Pair { what, found: vec![f32::NAN; found.len()], expected: vec![f32::NAN; found.len()] };
        self.device.download_values(found, &mut pair.found);
        self.device.download_values(&rounded, &mut pair.expected);
        self.pairs.push(pair);
        Ok(())
    }

    /// The same of the first `len` of each, of which there may be more where nobody reads.
    fn see_places(&mut self, what: &'static str, found: &Buffer, expected: &[f32], len: usize) -> Result<()> {
        self.see(what, found, expected)?;
        self.cut(len);
        Ok(())
    }

    /// The same of what experts leave; `expected` is sorted, and so many places are taken.
    fn see_given(
        &mut self,
        what: &'static str,
        found: &Buffer,
        expected: &[f32],
        places: usize,
    ) -> Result<()> {
        self.see(what, found, expected)?;
        let width = expected.len() / self.place.len();
        let pair = self.pairs.last_mut().expect("it was seen");
        let rows = std::mem::replace(&mut pair.found, vec![f32::NAN; expected.len()]);
        for (row, &place) in rows.chunks_exact(width).zip(self.place) {
            if place != DROPPED {
                pair.found[place as usize * width..][..width].copy_from_slice(row);
            }
        }
        self.cut(places * width);
        Ok(())
    }

    fn cut(&mut self, len: usize) {
        let pair = self.pairs.last_mut().expect("something was seen");
        pair.found.truncate(len);
        pair.expected.truncate(len);
    }
}

fn compare(
    device: &Device,
    rows: usize,
    (width, hidden): (usize, usize),
    lost: usize,
    biases: bool,
) -> Result<()> {
    let (layout, bank) = layer(width, hidden, biases);
    let on_host = routing(uneven(rows), 2, 5, lost);
    let s = Router {
        layer: 0,
        rows,
        width,
        count: 5,
        active: 2,
        shared: 0,
        score: RouterScore::Softmax,
        weight: RouterWeight::Score,
        noisy: false,
        capacity: None,
    };
    let routing = Routing::new(device, &s)?;
    let mut bench = Bench { device, routing, place: &on_host.place, pairs: vec![] };
    device.upload(&on_host.chosen, &mut bench.routing.chosen);
    device.upload(&on_host.place, &mut bench.routing.place);
    device.upload(&on_host.offsets, &mut bench.routing.offsets);
    device.upload(&on_host.rows, &mut bench.routing.rows);
    device.upload(&assigned(&on_host), &mut bench.routing.assigned);
    let (places, simd) = (on_host.of(4).end, Simd::best());
    let parameters = eighths(layout.parameters(), 4);
    let (working, master) = (bench.values(&parameters)?, bench.floats(&parameters)?);

    // Rows from experts, and back to them.
    let (laid, weights, d_out) =
        (eighths(2 * rows * width, 1), eighths(rows * 2, 2), eighths(rows * width, 3));
    let (laid_there, weights_there) = (bench.values(&bench.as_given(&laid))?, bench.values(&weights)?);
    let d_there = bench.values(&d_out)?;
    let mut d_x = eighths(rows * width, 5);
    for write in [Write::Accumulate, Write::Set] {
        let mut d_x_there = bench.values(&d_x)?;
        cpu::dispatch_backward(simd, &s, &on_host, &laid, (&mut d_x, write));
        dispatch_backward(device, &s, &bench.routing, laid_there.view(), (d_x_there.view_mut(), write));
        bench.see("the gradient of the dispatched", &d_x_there, &d_x)?;
    }
    let mut out = vec![f32::NAN; rows * width];
    let mut out_there = device.values(out.len())?;
    cpu::combine(simd, &s, &on_host, &laid, &weights, &mut out);
    combine(device, &s, &bench.routing, laid_there.view(), weights_there.view(), out_there.view_mut());
    bench.see("combined", &out_there, &out)?;
    let (mut d_y, mut d_weights) = (vec![0.0; laid.len()], vec![f32::NAN; 2 * rows]);
    let (mut d_y_there, mut d_weights_there) = (device.values(d_y.len())?, device.values(d_weights.len())?);
    cpu::combine_backward(simd, &s, &on_host, (&laid, &weights), &d_out, &mut d_y, &mut d_weights);
    let (routing, given) = (&bench.routing, (laid_there.view(), weights_there.view()));
    let (to, to_weights) = (d_y_there.view_mut(), d_weights_there.view_mut());
    combine_backward(device, &s, routing, given, d_there.view(), to, to_weights);
    bench.see_given("the gradient of the experts", &d_y_there, &d_y, places)?;
    bench.see("the gradient of the weights", &d_weights_there, &d_weights)?;

    // The maps.
    for way in [Way::In, Way::Out] {
        let maps = Maps::new(&layout, &bank, way);
        let (inputs, outputs) = (maps.inputs, maps.outputs);
        let d_out = eighths(2 * rows * outputs, 7);
        // What goes in stands row by row, what comes out of the experts too.
        let (x, x_there, d_there) = match way {
            Way::In => {
                let (stream, mut x) = (eighths(rows * inputs, 6), vec![0.0; 2 * rows * inputs]);
                cpu::dispatch(&s, &on_host, &stream, &mut x);
                (x, bench.values(&stream)?, bench.values(&d_out)?)
            }
            Way::Out => {
                let x = eighths(2 * rows * inputs, 6);
                let there = bench.values(&x)?;
                (x, there, bench.values(&bench.as_given(&d_out))?)
            }
        };
        let (mut y, mut d_x) = (vec![0.0; d_out.len()], vec![0.0; x.len()]);
        let mut grads = eighths(layout.parameters(), 8);
        let mut grads_there = bench.floats(&grads)?;
        for expert in 0..5 {
            let map = way.of(&bank, expert);
            let range = |id| layout.parameter(id).range();
            let weight = &parameters[range(map.weight)];
            let mut panels = vec![0.0; packed_len(outputs, inputs)];
            (simd.pack_f32)(weight, outputs, inputs, &mut panels);
            let bias = map.bias.map(|bias| &parameters[range(bias)]);
            let hands = &mut Hands::alone(simd);
            cpu::linear(hands, &on_host, expert, &map, &x, &panels, bias, &mut y);
            let mut d_weight = grads[range(map.weight)].to_vec();
            let mut d_bias = map.bias.map(|bias| grads[range(bias)].to_vec());
            let both = (&mut d_weight[..], d_bias.as_deref_mut());
            cpu::linear_backward(hands, &on_host, expert, &map, &x, weight, &d_out, &mut d_x, both);
            grads[range(map.weight)].copy_from_slice(&d_weight);
            if let (Some(bias), Some(d_bias)) = (map.bias, d_bias) {
                grads[range(bias)].copy_from_slice(&d_bias);
            }
        }
        let (mut y_there, mut d_x_there) = (device.values(y.len())?, device.values(x.len())?);
        let routing = &bench.routing;
        forward(
            device,
            routing,
            x_there.view(),
            &maps,
            working.view(),
            master.view(),
            y_there.view_mut(),
            None,
        );
        let (working, d_view) = (working.view(), d_there.view());
        let (d_x_view, grads_view) = (d_x_there.view_mut(), grads_there.view_mut());
        backward(device, routing, x_there.view(), &maps, working, d_view, d_x_view, grads_view, None);
        let (result, gradient) = ("the experts' results", "the gradient of their input");
        match way {
            Way::In => {
                bench.see_places(result, &y_there, &y, places * outputs)?;
                bench.see_given(gradient, &d_x_there, &d_x, places)?;
            }
            Way::Out => {
                bench.see_given(result, &y_there, &y, places)?;
                bench.see_places(gradient, &d_x_there, &d_x, places * inputs)?;
            }
        }
        let mut found = vec![f32::NAN; grads.len()];
        device.download(&grads_there, &mut found);
        bench.pairs.push(Pair { what: "the gradient of their parameters", found, expected: grads });
    }
    device.synchronize()?;
    for Pair { what, found, expected } in &bench.pairs {
        assert!(found.len() == expected.len() && !found.is_empty(), "{what}: nothing to compare");
        for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!(
                found == expected,
                "{what}: {found} at {index}, {expected} expected; {rows} rows, {width}"
            );
        }
    }
    Ok(())
}

#[test]
fn experts_give_to_the_bit_what_the_cpu_gives() {
    with_devices(|device| {
        let sizes = [
            (3, (1, 1), 2, true),
            (9, (9, 5), 4, false),
            (40, (64, 72), 1000, true),
            (150, (72, 130), 7, true),
            (300, (136, 200), 1000, false),
        ];
        for (rows, widths, lost, biases) in sizes {
            compare(device, rows, widths, lost, biases).expect("the device works");
        }
    });
}

#[test]
fn a_bank_of_one_expert_has_its_place() {
    let (layout, bank) = layer(4, 6, true);
    let [first, last] = [0, 4].map(|expert| layout.parameter(bank.up(expert).weight).range());
    let maps = Maps::new(&layout, &bank, Way::In);
    assert_eq!((maps.weights.start, maps.weights.end), (first.start, last.end));
    assert_eq!(4 * maps.step, last.start - first.start);
}
