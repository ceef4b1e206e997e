//! Learns from text and writes what `runtime` runs.

pub mod backend;
pub mod data;
pub mod export;
pub mod finetune;
pub mod learner;
pub mod memory;
pub mod mixing;
pub mod ops;
pub mod optimizer;
pub mod options;
pub mod params;
pub mod presets;
pub mod progress;
pub mod random;
pub mod report;
pub mod run;
pub mod sample;
pub mod schedule;
pub mod selfcheck;
pub mod signals;
mod start;
pub mod state;
pub mod tape;
pub mod tokenizer;
pub mod train;
pub mod upcycle;
pub mod weights;
