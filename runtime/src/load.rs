//! How evenly rows were spread over experts: the numbers training and inference both report.

/// Each count's share of all of them; zeros where nothing was counted.
pub fn shares(counts: &[f64]) -> impl Iterator<Item = f64> + '_ {
    let all = counts.iter().sum::<f64>();
    counts.iter().map(move |count| if all > 0.0 { count / all } else { 0.0 })
}

/// Entropy of the shares over that of an even load: 1 is even, 0 is one expert for all.
pub fn entropy(counts: &[f64]) -> f64 {
    if counts.len() < 2 {
        return 1.0;
    }
    let term = |share: f64| if share > 0.0 { -share * share.ln() } else { 0.0 };
    shares(counts).map(term).sum::<f64>() / (counts.len() as f64).ln()
}

/// By how much the largest share exceeds an even one, relative to that: MaxVio (Wang et al. 2024, eq. 4). Where
/// nothing was counted, 0.
pub fn max_violation(counts: &[f64]) -> f64 {
    (shares(counts).fold(0.0, f64::max) * counts.len() as f64 - 1.0).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_even_load_and_a_collapsed_one() {
        assert_eq!((entropy(&[5.0; 4]), max_violation(&[5.0; 4])), (1.0, 0.0));
        let collapsed = [0.0, 20.0, 0.0, 0.0];
        assert_eq!((entropy(&collapsed), max_violation(&collapsed)), (0.0, 3.0));
        assert_eq!((entropy(&[7.0]), max_violation(&[])), (1.0, 0.0));
        assert_eq!((entropy(&[0.0; 3]), max_violation(&[0.0; 3])), (0.0, 0.0));
    }
}
