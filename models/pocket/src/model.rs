//! The network in candle: a llama with rotary pairs (2i, 2i+1), grouped queries, SwiGLU and a tied embedding.
//!
//! Weights are kept under the names and shapes of GGUF files of that family, so exporting one is a plain copy.

use crate::rng::Rng;
use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::ops::{log_softmax, silu, softmax};
use std::collections::BTreeMap;

/// Sizes of the network.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Tokens.
    pub vocabulary: usize,
    /// Width of the residual stream; a multiple of 256.
    pub width: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width inside the feed-forward part; a multiple of 256.
    pub inner: usize,
    /// Longest sequence.
    pub context: usize,
    /// Base of the rotary frequencies.
    pub rope_base: f64,
    /// Added to the mean square in norms.
    pub epsilon: f64,
}

impl Shape {
    /// The pocket model's.
    pub fn pocket(vocabulary: usize) -> Self {
        Self {
            vocabulary,
            width: 256,
            layers: 4,
            heads: 4,
            kv_heads: 2,
            inner: 512,
            context: 256,
            rope_base: 10_000.0,
            epsilon: 1e-5,
        }
    }

    /// Numbers per head.
    pub fn head(&self) -> usize {
        self.width / self.heads
    }

    /// Weight names with their rows and columns; norms have no rows.
    pub fn weights(&self) -> Vec<(String, Option<usize>, usize)> {
        let kv = self.kv_heads * self.head();
        let mut list = vec![("token_embd.weight".to_owned(), Some(self.vocabulary), self.width)];
        for layer in 0..self.layers {
            for (name, rows, cols) in [
                ("attn_norm", None, self.width),
                ("attn_q", Some(self.width), self.width),
                ("attn_k", Some(kv), self.width),
                ("attn_v", Some(kv), self.width),
                ("attn_output", Some(self.width), self.width),
                ("ffn_norm", None, self.width),
                ("ffn_gate", Some(self.inner), self.width),
                ("ffn_up", Some(self.inner), self.width),
                ("ffn_down", Some(self.width), self.inner),
            ] {
                list.push((format!("blk.{layer}.{name}.weight"), rows, cols));
            }
        }
        list.push(("output_norm.weight".to_owned(), None, self.width));
        list
    }
}

/// Weights by name.
pub struct Network {
    /// Sizes.
    pub shape: Shape,
    /// Trained tensors.
    pub vars: BTreeMap<String, Var>,
    cos: Tensor,
    sin: Tensor,
    turn: Tensor,
    mask: Tensor,
}

impl Network {
    /// Random weights under `seed`: normal, smaller where a block writes into the residual stream.
    pub fn new(shape: Shape, seed: u64) -> Result<Self> {
        let cpu = &Device::Cpu;
        let mut vars = BTreeMap::new();
        for (index, (name, rows, cols)) in shape.weights().into_iter().enumerate() {
            let mut rng = Rng::new(seed, 100, index as u64);
            let tensor = match rows {
                None => Tensor::ones(cols, DType::F32, cpu)?,
                Some(rows) => {
                    let into_stream = name.contains("attn_output") || name.contains("ffn_down");
                    let scale = if name.contains("embd") {
                        0.02
                    } else if into_stream {
                        (1.0 / cols as f64).sqrt() / (2.0 * shape.layers as f64).sqrt()
                    } else {
                        (1.0 / cols as f64).sqrt()
                    };
                    let values: Vec<f32> = (0..rows * cols).map(|_| (rng.normal() * scale) as f32).collect();
                    Tensor::from_vec(values, (rows, cols), cpu)?
                }
            };
            vars.insert(name, Var::from_tensor(&tensor)?);
        }
        Self::with_weights(shape, vars)
    }

    /// A network of the weights given, one for each of [`Shape::weights`].
    pub fn with_weights(shape: Shape, vars: BTreeMap<String, Var>) -> Result<Self> {
        let cpu = &Device::Cpu;
        let head = shape.head();
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in 0..shape.context {
            for at in 0..head {
                let angle = position as f64 * shape.rope_base.powf(-((at / 2 * 2) as f64) / head as f64);
                cos.push(angle.cos() as f32);
                sin.push(angle.sin() as f32);
            }
        }
        // x * turn puts (-x1, x0) where the pair (x0, x1) was.
        let mut turn = vec![0f32; head * head];
        for at in (0..head).step_by(2) {
            turn[(at + 1) * head + at] = -1.0;
            turn[at * head + at + 1] = 1.0;
        }
        let context = shape.context;
        let mask: Vec<f32> = (0..context * context)
            .map(|at| if at % context > at / context { f32::NEG_INFINITY } else { 0.0 })
            .collect();
        Ok(Self {
            cos: Tensor::from_vec(cos, (context, head), cpu)?,
            sin: Tensor::from_vec(sin, (context, head), cpu)?,
            turn: Tensor::from_vec(turn, (head, head), cpu)?,
            mask: Tensor::from_vec(mask, (context, context), cpu)?,
            vars,
            shape,
        })
    }

    /// Numbers in all weights.
    pub fn parameters(&self) -> usize {
        self.vars.values().map(|var| var.elem_count()).sum()
    }

    /// Negative log-likelihoods of `targets` at flat positions `at` of `tokens` [batch, time], and the best ids there.
    ///
    /// `see` maps a weight's name to the tensor to use for it: itself, or a rounded copy.
    pub fn losses(
        &self,
        tokens: &Tensor,
        at: &Tensor,
        targets: &Tensor,
        see: &dyn Fn(&str, &Var) -> Result<Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let (batch, time) = tokens.dims2()?;
        let Shape { width, heads, kv_heads, .. } = self.shape;
        let head = self.shape.head();
        let weight = |name: &str| see(name, &self.vars[name]);
        let embedding = weight("token_embd.weight")?;
        let mut stream = embedding.index_select(&tokens.flatten_all()?, 0)?;
        let cos = self.cos.narrow(0, 0, time)?;
        let sin = self.sin.narrow(0, 0, time)?;
        let mask = self.mask.narrow(0, 0, time)?.narrow(1, 0, time)?.contiguous()?;
        let rotate = |x: &Tensor, n: usize| -> Result<Tensor> {
            let x = x.reshape((batch, time, n, head))?.transpose(1, 2)?.contiguous()?;
            let turned = x.reshape((batch * n * time, head))?.matmul(&self.turn)?.reshape((batch, n, time, head))?;
            x.broadcast_mul(&cos)? + turned.broadcast_mul(&sin)?
        };
        for layer in 0..self.shape.layers {
            let part = |name: &str| weight(&format!("blk.{layer}.{name}.weight"));
            let x = self.norm(&stream, &part("attn_norm")?)?;
            let fused = Tensor::cat(&[part("attn_q")?, part("attn_k")?, part("attn_v")?], 0)?;
            let qkv = x.matmul(&fused.t()?)?;
            let kv = kv_heads * head;
            let q = (rotate(&qkv.narrow(1, 0, width)?.contiguous()?, heads)? * (head as f64).powf(-0.5))?;
            let k = rotate(&qkv.narrow(1, width, kv)?.contiguous()?, kv_heads)?;
            let v = qkv.narrow(1, width + kv, kv)?.contiguous()?;
            let v = v.reshape((batch, time, kv_heads, head))?.transpose(1, 2)?.contiguous()?;
            // Query heads that share a key head become more rows of one product.
            let group = heads / kv_heads;
            let q = q.reshape((batch * kv_heads, group * time, head))?;
            let k = k.reshape((batch * kv_heads, time, head))?;
            let v = v.reshape((batch * kv_heads, time, head))?;
            let scores = q.matmul(&k.t()?)?.reshape((batch * heads, time, time))?.broadcast_add(&mask)?;
            let mixed = softmax(&scores, D::Minus1)?.reshape((batch * kv_heads, group * time, time))?.matmul(&v)?;
            let mixed = mixed.reshape((batch, heads, time, head))?.transpose(1, 2)?.reshape((batch * time, width))?;
            stream = (stream + mixed.matmul(&part("attn_output")?.t()?)?)?;
            let x = self.norm(&stream, &part("ffn_norm")?)?;
            let inner = self.shape.inner;
            let both = x.matmul(&Tensor::cat(&[part("ffn_gate")?, part("ffn_up")?], 0)?.t()?)?;
            let gated =
                (silu(&both.narrow(1, 0, inner)?.contiguous()?)? * both.narrow(1, inner, inner)?.contiguous()?)?;
            stream = (stream + gated.matmul(&part("ffn_down")?.t()?)?)?;
        }
        let x = self.norm(&stream.index_select(at, 0)?, &weight("output_norm.weight")?)?;
        let logits = x.matmul(&embedding.t()?)?;
        let best = logits.argmax(D::Minus1)?;
        let losses = log_softmax(&logits, D::Minus1)?.gather(&targets.unsqueeze(1)?, 1)?.squeeze(1)?.neg()?;
        Ok((losses, best))
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let square = x.sqr()?.mean_keepdim(D::Minus1)?;
        x.broadcast_div(&(square + self.shape.epsilon)?.sqrt()?)?.broadcast_mul(weight)
    }
}
