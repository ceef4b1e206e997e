//! How experts were used, told on stderr.

use super::output::note;
use runtime::load;
use runtime::model::Model;
use runtime::session::Session;

/// One line a layer, and what a budget came to. Nothing of a dense model.
pub(super) fn tell(model: &Model, session: &Session) {
    for (layer, counts) in session.expert_stats().counts.iter().enumerate().filter(|(_, c)| !c.is_empty()) {
        let wide: Vec<f64> = counts.iter().map(|count| *count as f64).collect();
        let touched = counts.iter().filter(|count| **count > 0).count();
        let shares: Vec<String> = load::shares(&wide).map(|share| format!("{:.1}", 100.0 * share)).collect();
        note(format_args!(
            "experts of layer {layer}: {touched} of {} touched, load entropy {:.3}, maxvio {:.3}, % of choices {}",
            counts.len(),
            load::entropy(&wide),
            load::max_violation(&wide),
            shares.join(" ")
        ));
    }
    if let Some(residency) = model.residency() {
        let choices = (residency.hits + residency.misses).max(1);
        note(format_args!(
            "expert budget: {} of {} bytes in use, at most {}; {:.1} % of {choices} choices were there, {} bytes read",
            residency.bytes,
            residency.budget,
            residency.most,
            100.0 * residency.hits as f64 / choices as f64,
            residency.read
        ));
    }
}
