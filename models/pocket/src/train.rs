//! Training: fresh examples all the way, AdamW under a warm-up and a cosine, the last part with 4-bit rounding.
//!
//! Only the answer is learned. While rounding is on, every matrix is seen through Q4_0 blocks in the forward pass and
//! gradients go straight through, so that the weights settle where 4-bit files keep the answers.

use crate::corpus::{Corpus, Example};
use crate::model::{Network, Shape};
use crate::rng::Rng;
use crate::template::Split;
use crate::vocabulary::{self, Vocabulary};
use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor, Var};
use std::collections::BTreeMap;
use std::time::Instant;

/// Parts a batch is computed in, one thread each.
const SHARDS: usize = 2;

/// Steps between two looks at the dev split.
pub const REPORT_STEPS: usize = 400;

/// What a run is made from.
#[derive(Clone, Debug)]
pub struct Options {
    /// Seed of corpus and weights.
    pub seed: u64,
    /// Optimizer steps.
    pub steps: usize,
    /// Examples per step.
    pub batch: usize,
    /// Largest learning rate.
    pub rate: f64,
    /// Share of the steps, at the end, that see weights rounded to 4 bits.
    pub rounded: f64,
    /// Size of the vocabulary.
    pub vocabulary: usize,
    /// Examples of the dev split looked at every [`REPORT_STEPS`].
    pub dev: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 1, steps: 4000, batch: 64, rate: 1.2e-3, rounded: 0.12, vocabulary: 1024, dev: 600 }
    }
}

/// One example as token ids: prompt with its markers, then the answer with its end.
pub struct Encoded {
    /// All ids.
    pub ids: Vec<u32>,
    /// Where the answer begins.
    pub answer: usize,
}

/// What the chat template makes of a message before the model sees it.
pub fn heard(text: &str) -> String {
    text.trim().to_lowercase()
}

/// Ids of `example` in the model's chat form.
pub fn encode(vocabulary: &Vocabulary, example: &Example) -> Encoded {
    let mut ids = vec![vocabulary::USER];
    ids.extend(vocabulary.encode(&heard(&example.text)));
    ids.push(vocabulary::ASSISTANT);
    let answer = ids.len();
    ids.extend(vocabulary.encode(&example.answer));
    ids.push(vocabulary::END);
    Encoded { ids, answer }
}

/// The vocabulary of a run.
pub fn learn_vocabulary(options: &Options) -> Vocabulary {
    let corpus = Corpus::new(options.seed, Split::Train);
    let texts = (0..40_000).flat_map(|index| {
        let example = corpus.example(index);
        [heard(&example.text), example.answer]
    });
    Vocabulary::learn(texts, options.vocabulary)
}

/// A padded batch: tokens [n, time], flat positions whose next token is part of an answer, and those next tokens.
fn pack(batch: &[Encoded]) -> Result<(Tensor, Tensor, Tensor)> {
    let time = batch.iter().map(|e| e.ids.len() - 1).max().unwrap_or(1);
    let (mut tokens, mut at, mut targets) = (Vec::new(), Vec::new(), Vec::new());
    for (row, encoded) in batch.iter().enumerate() {
        for position in 0..time {
            tokens.push(if position + 1 < encoded.ids.len() { encoded.ids[position] } else { vocabulary::END });
        }
        for position in encoded.answer - 1..encoded.ids.len() - 1 {
            at.push((row * time + position) as u32);
            targets.push(encoded.ids[position + 1]);
        }
    }
    let cpu = &Device::Cpu;
    let n = at.len();
    Ok((
        Tensor::from_vec(tokens, (batch.len(), time), cpu)?,
        Tensor::from_vec(at, n, cpu)?,
        Tensor::from_vec(targets, n, cpu)?,
    ))
}

/// Every row in Q4_0 blocks, as numbers again: the scale comes from the value furthest from zero.
fn round_q4_0(values: &mut [f32]) {
    for block in values.chunks_mut(32) {
        let most = block.iter().fold(0f32, |most, v| if v.abs() > most.abs() { *v } else { most });
        let scale = half::f16::from_f32(most / -8.0).to_f32();
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        for value in block {
            *value = scale * (*value * inverse).round().clamp(-8.0, 7.0);
        }
    }
}

/// What rounding a matrix to Q4_0 adds to it; nothing for norms, which files keep in F32.
fn rounding_error(var: &Var) -> Result<Option<Tensor>> {
    if var.dims().len() != 2 {
        return Ok(None);
    }
    let tensor = var.as_detached_tensor();
    let mut values = tensor.flatten_all()?.to_vec1::<f32>()?;
    round_q4_0(&mut values);
    (Tensor::from_vec(values, var.shape(), var.device())? - tensor).map(Some)
}

/// AdamW with one pass over each weight, on plain slices.
struct AdamW {
    moments: BTreeMap<String, (Vec<f32>, Vec<f32>)>,
    step: i32,
}

impl AdamW {
    const BETA1: f32 = 0.9;
    const BETA2: f32 = 0.98;
    const DECAY: f32 = 0.05;

    /// One step along the sum of the shards' gradients; returns its norm before clipping.
    fn apply(&mut self, network: &Network, shards: &[GradStore], rate: f32) -> Result<f32> {
        self.step += 1;
        let mut square = 0f64;
        let mut all = Vec::new();
        for (name, var) in &network.vars {
            let mut gradient = vec![0f32; var.elem_count()];
            for shard in shards {
                let part = shard.get(var).expect("every weight takes part in the loss");
                for (sum, part) in gradient.iter_mut().zip(part.flatten_all()?.to_vec1::<f32>()?) {
                    *sum += part;
                }
            }
            square += gradient.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>();
            all.push((name, var, gradient));
        }
        let norm = square.sqrt() as f32;
        let clip = if norm > 1.0 { 1.0 / norm } else { 1.0 };
        let correct1 = 1.0 - Self::BETA1.powi(self.step);
        let correct2 = 1.0 - Self::BETA2.powi(self.step);
        for (name, var, gradient) in all {
            let mut values = var.flatten_all()?.to_vec1::<f32>()?;
            let (m, v) =
                self.moments.entry(name.clone()).or_insert_with(|| (vec![0.0; values.len()], vec![0.0; values.len()]));
            let decay = if var.dims().len() == 2 { 1.0 - rate * Self::DECAY } else { 1.0 };
            for (((value, g), m), v) in values.iter_mut().zip(&gradient).zip(m).zip(v) {
                let g = g * clip;
                *m = Self::BETA1 * *m + (1.0 - Self::BETA1) * g;
                *v = Self::BETA2 * *v + (1.0 - Self::BETA2) * g * g;
                *value = *value * decay - rate * (*m / correct1) / ((*v / correct2).sqrt() + 1e-8);
            }
            var.set(&Tensor::from_vec(values, var.shape(), var.device())?)?;
        }
        Ok(norm)
    }
}

/// Right answers and examples, by tool.
pub type Score = BTreeMap<&'static str, (usize, usize)>;

/// Right answers in percent over all tools.
pub fn percent(score: &Score) -> f64 {
    let (right, all) = score.values().fold((0, 0), |sum, row| (sum.0 + row.0, sum.1 + row.1));
    100.0 * right as f64 / all.max(1) as f64
}

/// How many of `examples` are answered right in full.
///
/// An answer counts if each of its tokens is the most likely one after those before it, which is when greedy decoding
/// gives just that answer. `is_rounded` sees every matrix through Q4_0 blocks. `wrong` is told each example that is not,
/// with the most likely token at each place of its answer.
pub fn exact_match(
    network: &Network,
    vocabulary: &Vocabulary,
    examples: impl Iterator<Item = Example>,
    is_rounded: bool,
    wrong: &mut dyn FnMut(&Example, &[u32]),
) -> Result<Score> {
    let mut score = Score::new();
    let mut seen = BTreeMap::new();
    for (name, var) in &network.vars {
        let error = if is_rounded { rounding_error(var)? } else { None };
        let tensor = match error {
            Some(error) => (var.as_detached_tensor() + error)?,
            None => var.as_detached_tensor(),
        };
        seen.insert(name.as_str(), tensor);
    }
    let see = |name: &str, _: &Var| -> Result<Tensor> { Ok(seen[name].clone()) };
    let mut examples: Vec<(Example, Encoded)> = examples
        .map(|example| {
            let encoded = encode(vocabulary, &example);
            (example, encoded)
        })
        .collect();
    examples.sort_by_key(|(_, e)| e.ids.len());
    while !examples.is_empty() {
        let (said, batch): (Vec<_>, Vec<_>) = examples.split_off(examples.len().saturating_sub(64)).into_iter().unzip();
        let (tokens, at, targets) = pack(&batch)?;
        let (_, best) = network.losses(&tokens, &at, &targets, &see)?;
        let (best, targets) = (best.to_vec1::<u32>()?, targets.to_vec1::<u32>()?);
        let mut from = 0;
        for (encoded, example) in batch.iter().zip(said) {
            let to = from + encoded.ids.len() - encoded.answer;
            let is_right = best[from..to] == targets[from..to];
            let row = score.entry(example.tool).or_default();
            row.0 += usize::from(is_right);
            row.1 += 1;
            if !is_right {
                wrong(&example, &best[from..to]);
            }
            from = to;
        }
    }
    Ok(score)
}

/// Mean loss over `batch` and its gradients, in [`SHARDS`] parts that add up; one thread each, so that the arithmetic
/// is the same on any number of cores.
fn gradients(network: &Network, batch: &[Encoded], rounding: bool) -> Result<(f64, Vec<GradStore>)> {
    let targets: usize = batch.iter().map(|e| e.ids.len() - e.answer).sum();
    let mut seen = BTreeMap::new();
    if rounding {
        for (name, var) in &network.vars {
            seen.insert(name.as_str(), rounding_error(var)?);
        }
    }
    let see = |name: &str, var: &Var| -> Result<Tensor> {
        match seen.get(name) {
            Some(Some(error)) => var.as_tensor() + error,
            _ => Ok(var.as_tensor().clone()),
        }
    };
    let shard = |part: &[Encoded]| -> Result<(f64, GradStore)> {
        let (tokens, at, targets_of_part) = pack(part)?;
        let loss = (network.losses(&tokens, &at, &targets_of_part, &see)?.0.sum_all()? / targets as f64)?;
        let gradients = loss.backward()?;
        Ok((f64::from(loss.to_scalar::<f32>()?), gradients))
    };
    let results: Vec<Result<(f64, GradStore)>> = std::thread::scope(|scope| {
        let parts = batch.chunks(batch.len().div_ceil(SHARDS));
        let threads: Vec<_> = parts.map(|part| scope.spawn(|| shard(part))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a shard panicked")).collect()
    });
    let mut loss = 0.0;
    let mut stores = Vec::with_capacity(SHARDS);
    for result in results {
        let (part, store) = result?;
        loss += part;
        stores.push(store);
    }
    Ok((loss, stores))
}

/// Trains a network; prints its progress and gives `keep` the network as it is at every look at the dev split.
pub fn train<E: From<candle_core::Error>>(
    options: &Options,
    vocabulary: &Vocabulary,
    keep: &mut dyn FnMut(&Network) -> std::result::Result<(), E>,
) -> std::result::Result<Network, E> {
    let network = Network::new(Shape::pocket(vocabulary.tokens.len()), options.seed)?;
    let corpus = Corpus::new(options.seed, Split::Train);
    let dev = Corpus::new(options.seed, Split::Dev);
    println!("{} parameters, {} tokens in the vocabulary", network.parameters(), vocabulary.tokens.len());
    let start = Instant::now();
    let mut adam = AdamW { moments: BTreeMap::new(), step: 0 };
    // Batches of like length, made a few at a time and shuffled, so that little is padding.
    let pool = 16;
    let mut batches: Vec<Vec<Encoded>> = Vec::new();
    let mut next = 0u64;
    let (mut sum, mut count, mut seen) = (0f64, 0usize, 0usize);
    let first_rounded = (options.steps as f64 * (1.0 - options.rounded)) as usize;
    for step in 0..options.steps {
        if batches.is_empty() {
            let n = (pool * options.batch) as u64;
            let mut examples: Vec<Encoded> =
                (next..next + n).map(|index| encode(vocabulary, &corpus.example(index))).collect();
            next += n;
            examples.sort_by_key(|e| e.ids.len());
            while !examples.is_empty() {
                batches.push(examples.split_off(examples.len().saturating_sub(options.batch)));
            }
            let mut rng = Rng::new(options.seed, 200, next);
            for at in (1..batches.len()).rev() {
                batches.swap(at, rng.below(at + 1));
            }
        }
        let batch = batches.pop().expect("just filled");
        seen += batch.iter().map(|e| e.ids.len()).sum::<usize>();
        let (loss, gradients) = gradients(&network, &batch, step >= first_rounded)?;
        let warm = ((step + 1) as f64 / 100.0).min(1.0);
        let progress = step as f64 / options.steps as f64;
        let rate = options.rate * warm * (0.02 + 0.98 * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()));
        let norm = adam.apply(&network, &gradients, rate as f32)?;
        sum += loss;
        count += 1;
        if (step + 1) % 50 == 0 {
            let seconds = start.elapsed().as_secs_f64();
            println!(
                "step {:5}  loss {:.4}  norm {norm:.2}  rate {rate:.5}  {:.0} tokens/s  {seconds:.0} s",
                step + 1,
                sum / count as f64,
                seen as f64 / seconds
            );
            (sum, count) = (0.0, 0);
        }
        if (step + 1) % REPORT_STEPS == 0 || step + 1 == options.steps {
            let dev = || (0..options.dev).map(|index| dev.example(index));
            let exact = percent(&exact_match(&network, vocabulary, dev(), false, &mut |_, _| {})?);
            let exact4 = percent(&exact_match(&network, vocabulary, dev(), true, &mut |_, _| {})?);
            println!("step {:5}  dev exact match {exact:.1} %, in 4 bits {exact4:.1} %", step + 1);
            keep(&network)?;
        }
    }
    Ok(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_trains_the_same_weights_and_another_seed_others() {
        let small = |seed| Options { seed, steps: 3, batch: 4, rounded: 0.4, dev: 4, ..Options::default() };
        let corpus = Corpus::new(1, Split::Train);
        let texts = (0..50).flat_map(|index| [corpus.example(index).text, corpus.example(index).answer]);
        let vocabulary = Vocabulary::learn(texts, 320);
        let weights = |seed| -> Vec<f32> {
            let mut kept = 0;
            let mut keep = |_: &Network| -> Result<()> {
                kept += 1;
                Ok(())
            };
            let network = train(&small(seed), &vocabulary, &mut keep).unwrap();
            assert_eq!(kept, 1);
            let all = network.vars.values().map(|var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            all.flatten().collect()
        };
        let first = weights(1);
        assert!(first == weights(1), "two runs from one seed differ");
        assert!(first != weights(2));
        assert!(first.iter().all(|weight| weight.is_finite()));
    }
}
