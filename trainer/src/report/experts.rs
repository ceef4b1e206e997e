//! How the experts of each layer were used over the run: one small chart a layer.

use super::chart::{Chart, Mark, Point, Scale, Series};
use crate::mixing::Health;
use std::fmt::Write;

/// Most layers drawn: the first ones and the last.
const LAYERS: usize = 12;

/// Every expert's share of the choices; the busiest and the least used at the end stand out.
pub(super) fn figures(rows: &[(f64, &Health)], steps: f64) -> String {
    let mut layers: Vec<usize> = rows.iter().map(|(_, row)| row.layer).collect();
    layers.sort_unstable();
    layers.dedup();
    if layers.is_empty() {
        return String::new();
    }
    if layers.len() > LAYERS {
        layers.drain(LAYERS / 2..layers.len() - LAYERS / 2);
    }
    let mut text = String::from("<section>\n<h2>Load of the experts</h2>\n<div class=\"row\">\n");
    for layer in layers {
        let rows: Vec<(f64, &Health)> = rows.iter().copied().filter(|(_, row)| row.layer == layer).collect();
        if let Some((_, last)) = rows.last() {
            let _ = writeln!(
                text,
                "<figure>{}<figcaption>Layer {layer}: MaxVio {:.2}, load entropy {:.2} at the end.</figcaption></figure>",
                chart(&rows, last, steps).svg(),
                last.max_violation,
                last.load_entropy
            );
        }
    }
    text.push_str("</div>\n</section>\n");
    text
}

fn chart(rows: &[(f64, &Health)], last: &Health, steps: f64) -> Chart<'static> {
    let by_share = |a: &usize, b: &usize| last.load[*a].total_cmp(&last.load[*b]);
    let busiest = (0..last.load.len()).max_by(by_share);
    let rarest = (0..last.load.len()).min_by(by_share).filter(|rarest| Some(*rarest) != busiest);
    let points = |expert: usize| -> Vec<Point> {
        rows.iter().filter_map(|(x, row)| Some((*x, 100.0 * row.load.get(expert)?))).collect()
    };
    let series = |expert: usize, class: &'static str, label: String| Series {
        class,
        label,
        mark: Mark::Thin,
        points: points(expert),
        ringed: None,
    };
    // Drawn last, the two that stand out lie above the rest.
    let others = (0..last.load.len()).filter(|expert| Some(*expert) != busiest && Some(*expert) != rarest);
    let mut all: Vec<Series> = others.map(|expert| series(expert, "batch", String::new())).collect();
    all.extend(rarest.map(|expert| series(expert, "train", format!("expert {expert}"))));
    all.extend(busiest.map(|expert| series(expert, "val", format!("expert {expert}"))));
    Chart {
        title: "Share of the choices that each expert had, over the steps",
        unit: "% of choices",
        width: 308.0,
        height: 200.0,
        right: 60.0,
        steps,
        scale: Scale::FromZero,
        series: all,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_layer_has_a_chart_and_a_dense_run_none() {
        assert_eq!(figures(&[], 10.0), "");
        let row = |layer: usize| Health {
            layer,
            load: vec![0.5, 0.2, 0.3],
            load_entropy: 0.9,
            max_violation: 0.5,
            dead: 0,
            dropped: 0.0,
            router_entropy: 0.4,
            balance_loss: 1.1,
        };
        let health: Vec<Health> = (0..30).map(row).collect();
        let rows: Vec<(f64, &Health)> =
            (0..3).flat_map(|step| health.iter().map(move |layer| (f64::from(step), layer))).collect();
        let text = figures(&rows, 3.0);
        assert_eq!(text.matches("<figure>").count(), LAYERS);
        assert!(text.contains("Layer 29: MaxVio 0.50") && text.contains("expert 0"), "{text}");
    }
}
