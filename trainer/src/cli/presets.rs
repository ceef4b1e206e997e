//! `trainer presets`: names, shapes, parameters.

use super::{Format, answer};
use formats::{Layout, Result};
use serde_json::json;
use trainer::backend::cuda::sketch::{MEMORY, sketch};
use trainer::device::Precision;
use trainer::presets::PRESETS;
use trainer::train::grouped;

/// What `trainer presets` takes.
#[derive(clap::Args)]
pub struct Presets {
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Presets {
    /// Lists every preset, sized for the vocabulary it is known with.
    pub fn run(&self) -> Result<()> {
        let mut text = format!(
            "{:<14} {:>15} {:>15} {:>6} {:>6} {:>6} {:>6} {:>5} {:>6} {:>7} {:>5}\n",
            "preset",
            "parameters",
            "active",
            "vocab",
            "layers",
            "heads",
            "width",
            "block",
            "batch",
            "steps",
            "nodes"
        );
        let mut list = vec![];
        for preset in PRESETS {
            let options = preset.options();
            let config = options.model(preset.vocabulary)?;
            let layout = Layout::new(&config);
            let (parameters, active) = (layout.parameters() as u64, layout.active_parameters() as u64);
            let step = sketch(&options, &config, Precision::Bf16, MEMORY)?;
            let nodes = step.map_or("-".to_owned(), |step| step.nodes.to_string());
            text += &format!(
                "{:<14} {:>15} {:>15} {:>6} {:>6} {:>6} {:>6} {:>5} {:>6} {:>7} {nodes:>5}  {}\n",
                preset.name,
                grouped(parameters),
                grouped(active),
                config.vocabulary,
                config.layers,
                config.heads,
                config.width,
                config.context,
                options.batch,
                options.steps,
                preset.about
            );
            list.push(json!({
                "name": preset.name, "about": preset.about, "parameters": parameters, "active_parameters": active,
                "layers": config.layers, "heads": config.heads, "width": config.width, "block": config.context,
                "vocabulary": config.vocabulary, "batch": options.batch, "steps": options.steps,
                "cuda": step.map(|step| json!({
                    "micro_batch": step.micro_batch, "step_nodes": step.nodes, "bytes": step.memory.total(),
                })),
            }));
        }
        text += "nodes: launches and copies of the one graph that is a micro-batch's step on a CUDA device of 80 GiB, in bf16\n";
        match self.format {
            Format::Text => answer(&text),
            Format::Json => answer(&format!("{}\n", json!({ "presets": list }))),
        }
    }
}
