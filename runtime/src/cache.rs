//! Keys and values of the positions seen so far.
//!
//! For each layer one slot of keys, `[kv head][block of positions][head_size][position in the block]`, and one of
//! values, `[kv head][position][head_size]`: what scores and sums read goes by in order, a head's past is contiguous,
//! and a member of the team owns whole heads of it while it stores.

use crate::attention::Cached;
use crate::session::CacheType;
use crate::simd::PANEL;
use crate::team::{Place, Slots};
use formats::{Config, Result};
use half::f16;

/// Where the keys and values of a session are.
#[derive(Debug)]
pub(crate) enum Cache {
    /// In half precision.
    F16(Vec<Past<f16>>),
    /// In single precision.
    F32(Vec<Past<f32>>),
}

/// One layer's keys and values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Past<T> {
    /// `[kv_heads, capacity / PANEL, head_size, PANEL]`, the capacity rounded up to whole blocks.
    pub(crate) keys: Place<T>,
    /// `[kv_heads, capacity, head_size]`.
    pub(crate) values: Place<T>,
}

impl Cache {
    /// Room for `capacity` positions.
    pub(crate) fn new(
        slots: &mut Slots,
        config: &Config,
        capacity: usize,
        cache: CacheType,
    ) -> Result<Cache> {
        Ok(match cache {
            CacheType::F16 => Cache::F16(layers(slots, config, capacity)?),
            CacheType::F32 => Cache::F32(layers(slots, config, capacity)?),
        })
    }

    /// Bytes that `capacity` positions take.
    pub(crate) fn bytes(config: &Config, capacity: usize, cache: CacheType) -> u64 {
        let element = match cache {
            CacheType::F16 => size_of::<f16>(),
            CacheType::F32 => size_of::<f32>(),
        };
        let head = (keys_len(capacity, config.head_size) + capacity * config.head_size) as u64;
        (config.layers * config.kv_heads) as u64 * head * element as u64
    }

    /// Copies the first `positions` of another cache of the same shape and type.
    pub(crate) fn copy_from(
        &self,
        slots: &mut Slots,
        other: &Cache,
        others: &Slots,
        config: &Config,
        positions: usize,
    ) {
        match (self, other) {
            (Cache::F16(to), Cache::F16(from)) => copy(slots, to, others, from, config, positions),
            (Cache::F32(to), Cache::F32(from)) => copy(slots, to, others, from, config, positions),
            _ => unreachable!("a fork's cache has its parent's type"),
        }
    }
}

fn layers<T: Cached>(slots: &mut Slots, config: &Config, capacity: usize) -> Result<Vec<Past<T>>> {
    // A layer's slot is one row of heads, so that cutting its columns deals whole heads.
    let mut add = |head: usize| slots.add(1, config.kv_heads * head, head);
    let (keys, values) = (keys_len(capacity, config.head_size), capacity * config.head_size);
    (0..config.layers).map(|_| Ok(Past { keys: add(keys)?, values: add(values)? })).collect()
}

/// Length of one head's keys, in whole blocks.
pub(crate) fn keys_len(positions: usize, head_size: usize) -> usize {
    positions.next_multiple_of(PANEL) * head_size
}

fn copy<T: Cached>(
    slots: &mut Slots,
    to: &[Past<T>],
    others: &Slots,
    from: &[Past<T>],
    config: &Config,
    positions: usize,
) {
    let (keys, values) = (keys_len(positions, config.head_size), positions * config.head_size);
    for (to, from) in to.iter().zip(from) {
        for (to, from, filled) in [(to.keys, from.keys, keys), (to.values, from.values, values)] {
            let (to, from) = (slots.get_mut(to), others.get(from));
            let head = to.len() / config.kv_heads;
            for (to, from) in to.chunks_exact_mut(head).zip(from.chunks_exact(head)) {
                to[..filled].copy_from_slice(&from[..filled]);
            }
        }
    }
}
