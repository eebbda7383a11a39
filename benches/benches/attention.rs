//! Attention over one KV head per instruction set, on one thread: time and G multiply-adds a second (scores and
//! weighted values), with its share of what f32 multiply-adds reach on registers.
//!
//! Decode: one token's group of heads over a whole context. Prefill: a chunk of tokens' heads, causally, call by call
//! as a plan cuts them. `cargo bench -p farpost-benches --bench attention -- 'prefill.*f16.*avx512'`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use farpost_benches::Random;
use farpost_benches::of_roof::{Elements, OfRoof, criterion};
use farpost_kernels::backend::KvType;
use farpost_kernels::cpu::attention::{
    KvHead, Order, PartialRows, Query, Scores, Scratch, attend, partial_len, reset, store,
};
use farpost_kernels::cpu::isa::Isa;

const GROUP: usize = 4;
const PAGE_TOKENS: usize = 32;

/// Queries of one call.
const PER_CALL: usize = 256;

struct Case {
    kv_type: KvType,
    dim: usize,
    pages: Vec<u32>,
    keys: Vec<u8>,
    values: Vec<u8>,
    queries: Vec<f32>,
    /// Tokens whose queries are asked, the last of the context.
    tokens: usize,
    context: usize,
    partials: Vec<f32>,
    scratch: Scratch,
}

impl Case {
    fn new(kv_type: KvType, dim: usize, context: usize, tokens: usize) -> Self {
        let mut random = Random::new(11);
        let n_pages = context.div_ceil(PAGE_TOKENS);
        let page_bytes = PAGE_TOKENS * dim * 4;
        let (mut keys, mut values) = (vec![0; n_pages * page_bytes], vec![0; n_pages * page_bytes]);
        for token in 0..context {
            for plane in [&mut keys, &mut values] {
                let vector: Vec<f32> = (0..dim).map(|_| random.value()).collect();
                let block = plane[token / PAGE_TOKENS * page_bytes..].as_mut_ptr();
                // SAFETY: scalar is always available; the block has room for a page of floats.
                unsafe { store(Isa::Scalar, kv_type, &vector, block, PAGE_TOKENS, token % PAGE_TOKENS) };
            }
        }
        Self {
            kv_type,
            dim,
            pages: (0..n_pages as u32).collect(),
            keys,
            values,
            queries: (0..tokens * GROUP * dim).map(|_| random.value()).collect(),
            tokens,
            context,
            partials: vec![0.0; partial_len(dim) * PER_CALL],
            scratch: Scratch::try_new(PER_CALL, dim).unwrap(),
        }
    }

    fn run(&mut self, isa: Isa) {
        let head = KvHead {
            kv_type: self.kv_type,
            key_dim: self.dim,
            value_dim: self.dim,
            page_tokens: PAGE_TOKENS,
            pages: &self.pages,
            keys: self.keys.as_ptr(),
            key_page_stride: PAGE_TOKENS * self.dim * 4,
            values: self.values.as_ptr(),
            value_page_stride: PAGE_TOKENS * self.dim * 4,
        };
        let scores = Scores { scale: 1.0 / (self.dim as f32).sqrt(), softcap: None };
        let n_queries = self.tokens * GROUP;
        let mut queries = Vec::with_capacity(PER_CALL);
        for first in (0..n_queries).step_by(PER_CALL) {
            queries.clear();
            queries.extend((first..n_queries.min(first + PER_CALL)).map(|index| Query {
                q: self.queries[index * self.dim..].as_ptr(),
                from: 0,
                to: self.context - self.tokens + index / GROUP + 1,
            }));
            self.partials.chunks_mut(partial_len(self.dim)).for_each(reset);
            let partials = PartialRows { start: self.partials.as_mut_ptr(), stride: partial_len(self.dim) };
            // SAFETY: one thread, a set of `available`, pages written whole, partial rows for a call.
            unsafe {
                attend(isa, &head, &queries, 0..self.context, scores, Order::Fastest, &mut self.scratch, partials);
            };
        }
    }
}

/// Multiply-adds of scores and weighted values of what is seen.
fn multiply_adds(dim: usize, context: usize, tokens: usize) -> u64 {
    let pairs: usize = (context - tokens..context).map(|position| GROUP * (position + 1)).sum();
    (pairs * 2 * dim) as u64
}

fn attention(criterion: &mut Criterion<OfRoof>) {
    let shapes = [("decode 512", 512, 1), ("decode 4096", 4096, 1), ("prefill 512", 512, 512)];
    for (name, context, tokens) in shapes {
        let mut group = criterion.benchmark_group(name);
        for dim in [64, 256] {
            for (type_name, kv_type) in [("f16", KvType::F16), ("q8_0", KvType::Q8_0)] {
                group.throughput(Throughput::Elements(multiply_adds(dim, context, tokens)));
                let mut case = None;
                for isa in Isa::available().into_iter().skip(1) {
                    group.bench_function(format!("{dim} {type_name} {isa}"), |bencher| {
                        let case = case.get_or_insert_with(|| Case::new(kv_type, dim, context, tokens));
                        bencher.iter(|| case.run(isa));
                    });
                }
            }
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = criterion(Elements::F32);
    targets = attention
}
criterion_main!(benches);
