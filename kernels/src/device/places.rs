//! Which buffers hold the values of a step: values that are never alive together share one.

use super::fuse::Work;
use crate::graph::Graph;

/// Floats of a row, so that each row begins on a vector of four.
pub(crate) fn stride(width: usize) -> usize {
    width.next_multiple_of(4)
}

/// Where a value lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) place: usize,
    /// Floats before it in each row: of results side by side.
    pub(crate) offset: usize,
    /// Floats from one row to the next.
    pub(crate) stride: usize,
}

/// The spot of each value, and how long a row of each place is at most.
pub(crate) struct Places {
    pub(crate) of_value: Vec<Spot>,
    pub(crate) strides: Vec<usize>,
}

impl Places {
    /// A result never shares a place with what it is made of: nothing is worked on in place.
    pub(crate) fn new(graph: &Graph, works: &[Work<'_>]) -> Self {
        let n_values = graph.widths().len();
        let mut last_use = vec![0; n_values];
        for (number, work) in works.iter().enumerate() {
            let (reads, outs) = work.uses();
            for value in reads.into_iter().chain(outs) {
                last_use[value.0] = number;
            }
        }
        let mut places = Self { of_value: vec![Spot::default(); n_values], strides: Vec::new() };
        // Until when each place is in use.
        let mut held: Vec<Option<usize>> = Vec::new();
        for (number, work) in works.iter().enumerate() {
            let (_, outs) = work.uses();
            let Some(last) = outs.iter().map(|out| last_use[out.0]).max() else { continue };
            let needed = stride(outs.iter().map(|out| graph.widths()[out.0]).sum());
            for until in &mut held {
                *until = until.filter(|until| *until >= number);
            }
            let free = (0..held.len()).filter(|place| held[*place].is_none());
            let place = free.min_by_key(|place| places.strides[*place].abs_diff(needed)).unwrap_or_else(|| {
                held.push(None);
                places.strides.push(0);
                held.len() - 1
            });
            held[place] = Some(last);
            places.strides[place] = places.strides[place].max(needed);
            let mut offset = 0;
            for out in outs {
                places.of_value[out.0] = Spot { place, offset, stride: needed };
                offset += graph.widths()[out.0];
            }
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::fuse::fuse;
    use crate::graph::{Activation, GraphBuilder, KvLayer, Value};
    use crate::tensor::Weight;

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
        let of = |value: Value| places.of_value[value.0].place;
        assert_ne!(of(wide), of(x));
        assert!(of(unit) != of(wide) && of(unit) != of(x));
        assert!(of(sum) != of(unit) && of(sum) != of(x), "the product has no place of its own");
        assert!(of(doubled) != of(sum) && of(last) != of(sum) && of(last) != of(doubled));
        assert_eq!(places.strides.len(), 3);
        assert!(places.strides.iter().all(|stride| stride.is_multiple_of(4)));
    }

    #[test]
    fn results_of_one_product_lie_side_by_side() {
        let weight = |rows: usize| Weight::from_f32("w", rows, 4, &vec![0.0; rows * 4]).unwrap();
        let mut graph = GraphBuilder::new();
        let x = graph.embed(weight(9), 1.0);
        let [q, k, v] = [6, 3, 2].map(|rows| graph.linear(x, weight(rows), None).unwrap());
        let kv = KvLayer { n_kv_heads: 1, key_dim: 3, value_dim: 2, window: None };
        let out = graph.attention((q, k, v), kv, 2, 1.0, None).unwrap();
        let graph = graph.head(out, weight(9), None, 1.0, None, 10).unwrap();
        let places = Places::new(&graph, &fuse(&graph));
        let spot = |offset: usize| Spot { place: 1, offset, stride: 12 };
        assert_eq!([q, k, v].map(|value| places.of_value[value.0]), [spot(0), spot(6), spot(9)]);
        assert_eq!(places.of_value[out.0], Spot { place: 0, offset: 0, stride: 4 });
    }
}
