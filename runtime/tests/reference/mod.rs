//! A second opinion on logits: every family in plain f32 tensor operations of candle.
//!
//! Written from the papers and published configurations. It shares the file reader and the block decoder with what it
//! judges, and nothing of families, graphs or kernels.

mod experts;
mod settings;

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor};
use candle_nn::ops::{rms_norm, softmax_last_dim};
use candle_nn::rotary_emb::{rope, rope_i};
use farpost_kernels::quant;
use farpost_models::gguf::File;

pub use settings::{Family, Settings};

/// A model of a file, its weights as decoded from their blocks.
pub struct Reference {
    settings: Settings,
    tensors: HashMap<String, Tensor>,
}

/// What a sequence has been through: keys and values of each layer, `[heads, tokens, head]`.
#[derive(Default)]
pub struct Memory {
    layers: Vec<(Tensor, Tensor)>,
    n_tokens: usize,
}

impl Reference {
    /// Decodes all weights of `file`; `context` chooses between long and short rotary factors.
    pub fn open(file: &File, context: usize) -> Result<Self> {
        let mut tensors = HashMap::new();
        for tensor in file.tensors() {
            let weight = tensor.weight();
            let mut values = vec![0_f32; weight.rows() * weight.cols()];
            quant::decode(weight.dtype(), weight.view().bytes, &mut values).expect("whole blocks");
            let dims: Vec<usize> = tensor.dims().iter().rev().copied().collect();
            tensors.insert(tensor.name().to_owned(), Tensor::from_vec(values, dims, &Device::Cpu)?);
        }
        Ok(Self { settings: Settings::read(file.metadata(), context), tensors })
    }

    /// Logits of every position of `ids`, a sequence from its start.
    pub fn logits(&self, ids: &[u32]) -> Result<Vec<Vec<f32>>> {
        self.go_on(&mut Memory::default(), ids)
    }

    /// Logits of `ids` as they follow on what `memory` holds, which then holds them too.
    pub fn go_on(&self, memory: &mut Memory, ids: &[u32]) -> Result<Vec<Vec<f32>>> {
        let Settings { family, softcap_logits, width, n_layers, .. } = self.settings;
        let is_gemma = matches!(family, Family::Gemma2 | Family::Gemma3);
        let embedding = self.tensor("token_embd.weight");
        let mut x = embedding.index_select(&Tensor::new(ids, &Device::Cpu)?, 0)?;
        if is_gemma {
            x = (x * (width as f64).sqrt())?;
        }
        for layer in 0..n_layers {
            let mut change = self.attention(layer, &self.norm(&format!("blk.{layer}.attn_norm"), &x)?, memory)?;
            if is_gemma {
                change = self.norm(&format!("blk.{layer}.post_attention_norm"), &change)?;
            }
            x = (x + change)?;
            let mut change = self.feed_forward(layer, &self.norm(&format!("blk.{layer}.ffn_norm"), &x)?)?;
            if is_gemma {
                change = self.norm(&format!("blk.{layer}.post_ffw_norm"), &change)?;
            }
            x = (x + change)?;
        }
        memory.n_tokens += ids.len();
        let head = self.tensors.get("output.weight").unwrap_or(embedding);
        let logits = self.norm("output_norm", &x)?.matmul(&head.t()?)?;
        capped(logits, softcap_logits)?.to_vec2()
    }

    fn tensor(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("the reference needs tensor {name}"))
    }

    fn norm(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        rms_norm(&x.contiguous()?, self.tensor(&format!("{name}.weight")), self.settings.eps)
    }

    fn linear(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let product = x.matmul(&self.tensor(&format!("{name}.weight")).t()?)?;
        match self.tensors.get(&format!("{name}.bias")) {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }

    /// `x`: `[tokens, width]`.
    fn attention(&self, layer: usize, x: &Tensor, memory: &mut Memory) -> Result<Tensor> {
        let Settings { family, n_heads, n_kv_heads, head_dim, query_scale, softcap_scores, .. } = self.settings;
        let n_new = x.dim(0)?;
        let name = |part: &str| format!("blk.{layer}.{part}");
        let (mut q, mut k, v) = if family == Family::Phi3 {
            let all = self.linear(&name("attn_qkv"), x)?;
            let (n_q, n_kv) = (n_heads * head_dim, n_kv_heads * head_dim);
            (all.narrow(1, 0, n_q)?, all.narrow(1, n_q, n_kv)?, all.narrow(1, n_q + n_kv, n_kv)?)
        } else {
            let part = |part: &str| self.linear(&name(part), x);
            (part("attn_q")?, part("attn_k")?, part("attn_v")?)
        };
        q = q.reshape((n_new, n_heads, head_dim))?;
        k = k.reshape((n_new, n_kv_heads, head_dim))?;
        if matches!(family, Family::Qwen3 | Family::Gemma3) {
            q = self.norm(&name("attn_q_norm"), &q)?;
            k = self.norm(&name("attn_k_norm"), &k)?;
        }
        // Heads first: [heads, tokens, head].
        let q = self.rotate(layer, &q.transpose(0, 1)?, memory.n_tokens)?;
        let mut k = self.rotate(layer, &k.transpose(0, 1)?, memory.n_tokens)?;
        let mut v = v.reshape((n_new, n_kv_heads, head_dim))?.transpose(0, 1)?.contiguous()?;
        if let Some((old_k, old_v)) = memory.layers.get(layer) {
            k = Tensor::cat(&[old_k, &k], 1)?;
            v = Tensor::cat(&[old_v, &v], 1)?;
        }
        let n_all = k.dim(1)?;
        if memory.layers.len() <= layer {
            memory.layers.push((k.clone(), v.clone()));
        } else {
            memory.layers[layer] = (k.clone(), v.clone());
        }
        // Query heads in groups share a key head.
        let spread = |x: Tensor| -> Result<Tensor> {
            let group = n_heads / n_kv_heads;
            let shape = (n_kv_heads, group, n_all, head_dim);
            x.unsqueeze(1)?.broadcast_as(shape)?.contiguous()?.reshape((n_heads, n_all, head_dim))
        };
        let scores = (q.matmul(&spread(k)?.transpose(1, 2)?.contiguous()?)? * query_scale)?;
        let scores = capped(scores, softcap_scores)?.broadcast_add(&self.mask(layer, memory.n_tokens, n_new)?)?;
        let mixed = softmax_last_dim(&scores)?.matmul(&spread(v)?)?;
        let mixed = mixed.transpose(0, 1)?.contiguous()?.reshape((n_new, n_heads * head_dim))?;
        self.linear(&name("attn_output"), &mixed)
    }

    /// 0 where a position is seen, minus infinity where not: `[new tokens, all tokens]`.
    fn mask(&self, layer: usize, n_old: usize, n_new: usize) -> Result<Tensor> {
        let window = self.settings.windows[layer].unwrap_or(usize::MAX);
        let seen = |query: usize, key: usize| key <= query && query - key < window;
        let rows = (n_old..n_old + n_new).flat_map(|query| {
            (0..n_old + n_new).map(move |key| if seen(query, key) { 0_f32 } else { f32::NEG_INFINITY })
        });
        Tensor::from_vec(rows.collect::<Vec<_>>(), (n_new, n_old + n_new), &Device::Cpu)
    }

    /// Rotates `[heads, tokens, head]`, the first token being at position `start`.
    fn rotate(&self, layer: usize, x: &Tensor, start: usize) -> Result<Tensor> {
        let settings = &self.settings;
        let (n_tokens, dims) = (x.dim(1)?, settings.rope_dims);
        let llama3 = self.tensors.get("rope_freqs.weight");
        let divisors = llama3.or(settings.rope_divisors.map(|name| self.tensor(name)));
        let divisors = divisors.map(Tensor::to_vec1::<f32>).transpose()?;
        let mut angles = Vec::new();
        for position in start..start + n_tokens {
            for pair in 0..dims / 2 {
                let inverse = settings.rope_bases[layer].powf(-((2 * pair) as f64) / dims as f64);
                let divisor = divisors.as_ref().map_or(1.0, |divisors| f64::from(divisors[pair]));
                angles.push(position as f64 * inverse / divisor);
            }
        }
        let table = |function: fn(f64) -> f64| {
            let values = angles.iter().map(|angle| (function(*angle) * settings.rope_factor) as f32).collect();
            Tensor::from_vec(values, (n_tokens, dims / 2), &Device::Cpu)
        };
        let (cos, sin) = (table(f64::cos)?, table(f64::sin)?);
        let x = x.unsqueeze(0)?;
        let turning = x.narrow(3, 0, dims)?.contiguous()?;
        let turned = match settings.family {
            Family::Llama => rope_i(&turning, &cos, &sin)?,
            _ => rope(&turning, &cos, &sin)?,
        };
        let still = x.narrow(3, dims, settings.head_dim - dims)?;
        Tensor::cat(&[turned, still], 3)?.squeeze(0)
    }

    fn feed_forward(&self, layer: usize, x: &Tensor) -> Result<Tensor> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        if let Some((_, n_used)) = self.settings.experts {
            let stack = |part: &str| self.tensor(&name(part));
            let weights = [stack("ffn_gate_exps.weight"), stack("ffn_up_exps.weight"), stack("ffn_down_exps.weight")];
            return experts::mixture(x, stack("ffn_gate_inp.weight"), weights, n_used);
        }
        let (gate, up) = if self.settings.family == Family::Phi3 {
            let both = self.linear(&name("ffn_up"), x)?.chunk(2, 1)?;
            (both[0].contiguous()?, both[1].contiguous()?)
        } else {
            (self.linear(&name("ffn_gate"), x)?, self.linear(&name("ffn_up"), x)?)
        };
        let active = match self.settings.family {
            Family::Gemma2 | Family::Gemma3 => gate.gelu()?,
            _ => gate.silu()?,
        };
        self.linear(&name("ffn_down"), &(active * up)?)
    }
}

/// `cap * tanh(x / cap)`.
fn capped(x: Tensor, cap: Option<f64>) -> Result<Tensor> {
    match cap {
        Some(cap) => (x / cap)?.tanh()? * cap,
        None => Ok(x),
    }
}
