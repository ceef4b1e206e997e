//! Which tokens go to which experts, over a text.

use crate::session::Session;
use formats::Result;

/// One layer's choices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerCensus {
    /// The layer, from 0.
    pub layer: usize,
    /// `[classes][experts]`: how often a token of the class chose the expert.
    pub by_class: Vec<Vec<u64>>,
    /// `[experts][experts]`: how often one token chose both; the diagonal is how often the expert was chosen.
    pub together: Vec<Vec<u64>>,
}

impl LayerCensus {
    fn new(layer: usize, classes: usize, experts: usize) -> LayerCensus {
        LayerCensus {
            layer,
            by_class: vec![vec![0; experts]; classes],
            together: vec![vec![0; experts]; experts],
        }
    }

    fn add(&mut self, class: usize, chosen: &[u32]) {
        for &expert in chosen {
            self.by_class[class][expert as usize] += 1;
            chosen.iter().for_each(|other| self.together[expert as usize][*other as usize] += 1);
        }
    }

    /// How often each expert was chosen.
    pub fn counts(&self) -> Vec<f64> {
        (0..self.together.len()).map(|expert| self.together[expert][expert] as f64).collect()
    }

    /// Bits that a choice tells of the token's class: `sum p(c, e) log2 p(c, e) / (p(c) p(e))`.
    pub fn mutual_information(&self) -> f64 {
        let all = self.by_class.iter().flatten().sum::<u64>() as f64;
        let experts = self.counts();
        let mut bits = 0.0;
        for class in &self.by_class {
            let of_class = class.iter().sum::<u64>() as f64;
            for (count, of_expert) in class.iter().zip(&experts) {
                if *count > 0 {
                    let joint = *count as f64;
                    bits += joint / all * (joint * all / (of_class * of_expert)).log2();
                }
            }
        }
        bits
    }
}

/// Feeds a text, window by window of the session's context, and counts the choices of every layer with experts.
/// `class` gives a token's class, below `classes`.
pub fn census(
    session: &mut Session,
    ids: &[u32],
    classes: usize,
    class: &dyn Fn(u32) -> usize,
) -> Result<Vec<LayerCensus>> {
    let config = session.model().config().clone();
    let layers = (0..config.layers).filter_map(|layer| Some((layer, config.experts_of(layer)?)));
    let mut found: Vec<LayerCensus> =
        layers.map(|(layer, experts)| LayerCensus::new(layer, classes, experts.count)).collect();
    let active = config.experts.map_or(1, |experts| experts.active);
    for window in ids.chunks(session.context()) {
        session.rewind(0)?;
        for piece in window.chunks(session.piece()) {
            session.feed_each(piece, &mut |_, _| {})?;
            for census in &mut found {
                let chosen = session.chosen(census.layer, piece.len());
                for (id, chosen) in piece.iter().zip(chosen.chunks_exact(active)) {
                    census.add(class(*id).min(classes - 1), chosen);
                }
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_of_its_own_expert_tells_all_and_chance_tells_nothing() {
        let mut told = LayerCensus::new(0, 2, 2);
        let mut chance = told.clone();
        for class in 0..2 {
            for expert in 0..2 {
                told.add(class, &[class as u32]);
                chance.add(class, &[expert]);
            }
        }
        assert!((told.mutual_information() - 1.0).abs() < 1e-12);
        assert!(chance.mutual_information().abs() < 1e-12);
        assert_eq!((told.counts(), told.together[0][1]), (vec![2.0, 2.0], 0));
        told.add(0, &[0, 1]);
        assert_eq!((told.counts(), told.together[0][1]), (vec![3.0, 3.0], 1));
    }
}
