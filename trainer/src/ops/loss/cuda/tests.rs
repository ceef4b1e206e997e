//! The loss over several chunks of rows beside that over one: only a batch that fills a card has them otherwise. Where a
//! device or an emulated one is at hand.

use super::*;
use crate::device::Buffer;
use crate::ops::check::{values, with_devices};
use formats::Result;

/// What a pass leaves.
#[derive(Debug, PartialEq)]
struct Left {
    alone: Vec<f32>,
    losses: Vec<f32>,
    d_x: Vec<f32>,
    d_weight: Vec<f32>,
    d_bias: Vec<f32>,
}

fn floats(device: &Device, from: &[f32]) -> Result<Buffer> {
    let mut to = device.floats(from.len())?;
    device.upload(from, &mut to);
    Ok(to)
}

fn activations(device: &Device, from: &[f32]) -> Result<Buffer> {
    let mut to = device.values(from.len())?;
    device.upload_values(from, &mut to);
    Ok(to)
}

fn pass(device: &Device, s: &Classes, chunk: usize, write: Write) -> Result<Left> {
    let Classes { rows, width, vocabulary } = *s;
    let x = activations(device, &values(rows * width, 1))?;
    let weight = activations(device, &values(vocabulary * width, 2))?;
    let bias = floats(device, &values(vocabulary, 3))?;
    let head = Head { weight: weight.view(), bias: Some(bias.view()) };
    let ids: Vec<u32> = (0..rows).map(|row| (7 * row % vocabulary) as u32).collect();
    let mut targets = device.buffer(Element::U32, rows)?;
    device.upload(&ids, &mut targets);
    // No number in here may be read before it is written.
    let unknown = |len: usize| floats(device, &vec![f32::NAN; len]);
    let (mut alone, mut losses) = (unknown(rows)?, unknown(rows)?);
    let mut scratch = unknown(scratch_of(device.precision(), s, chunk))?;
    let mut d_x = activations(device, &values(rows * width, 4))?;
    let (mut d_weight, mut d_bias) =
        (floats(device, &values(vocabulary * width, 5))?, floats(device, &values(vocabulary, 6))?);
    let (x, targets) = (x.view(), targets.view());
    by_chunks(device, s, chunk, x, &head, targets, alone.view_mut(), None, scratch.view_mut());
    let gradients = Gradients {
        scale: 0.25,
        d_x: (d_x.view_mut(), write),
        d_weight: d_weight.view_mut(),
        d_bias: Some(d_bias.view_mut()),
    };
    by_chunks(device, s, chunk, x, &head, targets, losses.view_mut(), Some(gradients), scratch.view_mut());
    let read = |from: &Buffer| {
        let mut to = vec![f32::NAN; from.len()];
        device.download(from, &mut to);
        to
    };
    let mut d_x_here = vec![f32::NAN; rows * width];
    device.download_values(&d_x, &mut d_x_here);
    let left = Left {
        alone: read(&alone),
        losses: read(&losses),
        d_x: d_x_here,
        d_weight: read(&d_weight),
        d_bias: read(&d_bias),
    };
    device.check()?;
    Ok(left)
}

#[test]
fn chunks_of_rows_leave_what_all_rows_leave_at_once() {
    with_devices(|device| {
        for (rows, width, vocabulary, chunk) in [(11, 24, 65, 4), (9, 16, 1031, 8), (300, 8, 7, 257)] {
            for write in [Write::Set, Write::Accumulate] {
                let s = Classes { rows, width, vocabulary };
                let what = format!("{s:?}, {chunk} at once, {write:?}");
                let pass = |chunk| pass(device, &s, chunk, write).expect("a device that works");
                let (whole, parts) = (pass(rows), pass(chunk));
                // A row's own results know nothing of the others.
                assert!(whole.losses.iter().all(|loss| loss.is_finite()), "{what}");
                assert_eq!(parts.alone, whole.alone, "{what}");
                assert_eq!(parts.losses, whole.losses, "{what}");
                assert_eq!(parts.losses, parts.alone, "{what}");
                assert_eq!(parts.d_x, whole.d_x, "{what}");
                // What rows add up is the same but for the order of the sums.
                for (parts, whole) in [(&parts.d_weight, &whole.d_weight), (&parts.d_bias, &whole.d_bias)] {
                    let pairs = parts.iter().zip(whole);
                    let near = pairs.filter(|(a, b)| (**a - **b).abs() <= 1e-5).count();
                    assert_eq!(near, whole.len(), "{what}");
                }
            }
        }
    });
}
