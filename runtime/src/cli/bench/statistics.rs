//! Figures of repeated measurements: median and spread.

/// The value below which the share `part` (0 to 1) of all values lies, between neighbours in proportion; NaN of none.
fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantile_of_sorted(&sorted, part)
}

/// The same of values that are in order.
pub fn quantile_of_sorted(sorted: &[f64], part: f64) -> f64 {
    let place = part * sorted.len().saturating_sub(1) as f64;
    let (below, above) = (sorted.get(place.floor() as usize), sorted.get(place.ceil() as usize));
    match (below, above) {
        (Some(below), Some(above)) => below + (above - below) * place.fract(),
        _ => f64::NAN,
    }
}

/// The value in the middle, or between the two there; NaN of none.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// With fewer values than this, quartiles hide most of how far values lie apart.
const FEWEST_FOR_QUARTILES: usize = 5;

/// How far the middle half of the values reaches (upper quartile less lower quartile), of fewer than five how far all
/// of them do, as a share of the median; `None` of fewer than two.
pub fn spread(values: &[f64]) -> Option<f64> {
    let (low, high) = if values.len() < FEWEST_FOR_QUARTILES { (0.0, 1.0) } else { (0.25, 0.75) };
    (values.len() >= 2).then(|| (quantile(values, high) - quantile(values, low)) / median(values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_stands_in_the_middle_whatever_the_order() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn the_spread_is_that_of_the_middle_half_and_of_few_values_that_of_all() {
        // Quartiles 9 and 11; the two outside change nothing.
        assert_eq!(spread(&[10.0, 9.0, 11.0, 1.0, 100.0]), Some(0.2));
        assert_eq!(spread(&[10.0, 9.0, 11.0, 1.0]), Some(10.0 / 9.5));
        assert_eq!(spread(&[10.0, 10.0, 10.0]), Some(0.0));
        assert_eq!(spread(&[9.0, 11.0]), Some(0.2));
        assert_eq!(spread(&[10.0]), None);
    }
}
