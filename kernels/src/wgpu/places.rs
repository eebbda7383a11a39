//! Which buffers hold the values of a step: values that are never alive together share one.

use super::fuse::Work;
use crate::graph::{Graph, Value};

/// Floats of a row, so that each row begins on a vector of four.
pub(super) fn stride(width: usize) -> usize {
    width.next_multiple_of(4)
}

/// The place of each value, and how long a row of each place is.
pub(super) struct Places {
    pub(super) of_value: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

impl Places {
    /// A result never shares a place with what it is made of: nothing is worked on in place.
    pub(super) fn new(graph: &Graph, works: &[Work<'_>]) -> Self {
        let mut last_use = vec![0; graph.widths().len()];
        for (number, work) in works.iter().enumerate() {
            let (reads, out) = work.uses();
            for value in reads.into_iter().chain(out) {
                last_use[value.0] = number;
            }
        }
        let mut places = Self { of_value: vec![0; graph.widths().len()], strides: Vec::new() };
        // What each place holds.
        let mut held: Vec<Option<Value>> = Vec::new();
        for (number, work) in works.iter().enumerate() {
            let (_, Some(out)) = work.uses() else { continue };
            for value in &mut held {
                *value = value.filter(|value| last_use[value.0] >= number);
            }
            let needed = stride(graph.widths()[out.0]);
            let free = (0..held.len()).filter(|place| held[*place].is_none());
            let place = free.min_by_key(|place| places.strides[*place].abs_diff(needed)).unwrap_or_else(|| {
                held.push(None);
                places.strides.push(0);
                held.len() - 1
            });
            held[place] = Some(out);
            places.strides[place] = places.strides[place].max(needed);
            places.of_value[out.0] = place;
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Activation, GraphBuilder};
    use crate::tensor::Weight;
    use crate::wgpu::fuse::fuse;

    #[test]
    fn a_result_shares_no_place_with_what_is_read_then_or_later() {
        let weight = |rows: usize, cols: usize| Weight::from_f32("w", rows, cols, &vec![0.0; rows * cols]).unwrap();
        let mut graph = GraphBuilder::new();
        let x = graph.embed(weight(9, 6), 1.0);
        let wide = graph.linear(x, weight(20, 6), None).unwrap();
        let unit = graph.glu(wide, wide, Activation::Silu).unwrap();
        let narrow = graph.linear(unit, weight(6, 20), None).unwrap();
        let sum = graph.add(narrow, x).unwrap();
        let doubled = graph.scale(sum, 2.0);
        let last = graph.add(doubled, sum).unwrap();
        let graph = graph.head(last, weight(9, 6), None, 1.0, None, 10).unwrap();
        let places = Places::new(&graph, &fuse(&graph));
        let of = |value: Value| places.of_value[value.0];
        assert_ne!(of(wide), of(x));
        assert!(of(unit) != of(wide) && of(unit) != of(x));
        assert!(of(sum) != of(unit) && of(sum) != of(x), "the product has no place of its own");
        assert!(of(doubled) != of(sum) && of(last) != of(sum) && of(last) != of(doubled));
        assert_eq!(places.strides.len(), 3);
        assert!(places.strides.iter().all(|stride| stride.is_multiple_of(4)));
    }
}
