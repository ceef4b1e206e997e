//! Rotary positions (Su et al. 2021, section 3.2.2) in Llama's pairing: within a head of size `s`, element `i < s / 2`
//! and element `i + s / 2` are turned by the angle `position base^(-2i / s)`, computed in f32 as Hugging Face does.
//! Training turns by the same table.

use formats::Config;
use formats::config::Position;

/// `base^(-2i / head_size)` for each pair of a head; empty where positions are not rotary.
pub fn frequencies(config: &Config) -> Vec<f32> {
    if config.position != Position::Rotary {
        return Vec::new();
    }
    let size = config.head_size as f32;
    (0..config.head_size / 2).map(|pair| 1.0 / config.rotary_base.powf((2 * pair) as f32 / size)).collect()
}

/// The cosines, then the sines, of each position from `first` on, one row of `2 frequencies.len()` a position.
pub fn angles(frequencies: &[f32], first: usize, table: &mut [f32]) {
    for (position, row) in (first..).zip(table.chunks_exact_mut(2 * frequencies.len())) {
        let (cosines, sines) = row.split_at_mut(frequencies.len());
        for (frequency, (cosine, sine)) in frequencies.iter().zip(cosines.iter_mut().zip(sines)) {
            (*sine, *cosine) = (position as f32 * frequency).sin_cos();
        }
    }
}
