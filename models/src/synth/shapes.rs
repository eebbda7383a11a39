//! Shapes of published models, and two small mixtures of experts shaped like published ones.

/// How a model stretches its rotary positions.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeFactors {
    /// Not at all, or by what its architecture prescribes.
    None,
    /// Llama 3.x: wavelengths over `original / low` are divided by `factor`, those under `original / high` are kept.
    Llama3 {
        /// Divisor of the longest wavelengths.
        factor: f64,
        /// Context length before stretching.
        original: f64,
    },
    /// Phi 3: a divisor per frequency, one set for short and one for long contexts.
    LongShort {
        /// Divisors for contexts longer than `original`.
        long: &'static [f32],
        /// Divisors for others.
        short: &'static [f32],
        /// Context length before stretching.
        original: u32,
        /// Factor on cosines and sines.
        attention: f32,
    },
}

/// A mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// Experts in a layer.
    pub count: usize,
    /// Experts a token uses.
    pub used: usize,
    /// Width inside an expert.
    pub ffn: usize,
}

/// The numbers that make a model's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Name on the command line.
    pub name: &'static str,
    /// Architecture as GGUF files name it.
    pub architecture: &'static str,
    /// Number of layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width inside the feed-forward part.
    pub ffn: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// Longest context.
    pub context: u32,
    /// Base of the rotary frequencies.
    pub rope_base: f32,
    /// Epsilon of the norms.
    pub epsilon: f32,
    /// The embedding is the head.
    pub is_tied: bool,
    /// Biases on queries, keys and values.
    pub has_qkv_bias: bool,
    /// Norms on queries and keys.
    pub has_qk_norm: bool,
    /// Sliding window in tokens.
    pub window: Option<u32>,
    /// Rotary stretching.
    pub rope_factors: RopeFactors,
    /// Experts, if the feed-forward part is a mixture.
    pub experts: Option<Experts>,
}

/// What most shapes share.
const PLAIN: Shape = Shape {
    name: "",
    architecture: "llama",
    layers: 0,
    width: 0,
    ffn: 0,
    heads: 0,
    kv_heads: 0,
    head_dim: 0,
    vocabulary: 0,
    context: 0,
    rope_base: 10_000.0,
    epsilon: 1e-5,
    is_tied: false,
    has_qkv_bias: false,
    has_qk_norm: false,
    window: None,
    rope_factors: RopeFactors::None,
    experts: None,
};

const QWEN: Shape = Shape { vocabulary: 151_936, rope_base: 1e6, epsilon: 1e-6, is_tied: true, ..PLAIN };
const QWEN2: Shape = Shape { architecture: "qwen2", has_qkv_bias: true, context: 32_768, head_dim: 64, ..QWEN };
const QWEN3: Shape = Shape { architecture: "qwen3", has_qk_norm: true, context: 40_960, head_dim: 128, ..QWEN };
const GEMMA: Shape = Shape { head_dim: 256, epsilon: 1e-6, is_tied: true, ..PLAIN };
const GEMMA3: Shape = Shape {
    architecture: "gemma3",
    vocabulary: 262_144,
    context: 32_768,
    rope_base: 1e6,
    has_qk_norm: true,
    window: Some(512),
    heads: 4,
    kv_heads: 1,
    ..GEMMA
};
const LLAMA3: Shape = Shape { vocabulary: 128_256, context: 131_072, rope_base: 500_000.0, kv_heads: 8, ..PLAIN };

const fn llama3(factor: f64) -> RopeFactors {
    RopeFactors::Llama3 { factor, original: 8192.0 }
}

static SHAPES: [Shape; 16] = [
    Shape {
        name: "llama-3.2-1b",
        layers: 16,
        width: 2048,
        ffn: 8192,
        heads: 32,
        head_dim: 64,
        is_tied: true,
        rope_factors: llama3(32.0),
        ..LLAMA3
    },
    Shape {
        name: "llama-3.2-3b",
        layers: 28,
        width: 3072,
        ffn: 8192,
        heads: 24,
        head_dim: 128,
        is_tied: true,
        rope_factors: llama3(32.0),
        ..LLAMA3
    },
    Shape {
        name: "llama-3.1-8b",
        layers: 32,
        width: 4096,
        ffn: 14_336,
        heads: 32,
        head_dim: 128,
        rope_factors: llama3(8.0),
        ..LLAMA3
    },
    Shape { name: "qwen2.5-0.5b", layers: 24, width: 896, ffn: 4864, heads: 14, kv_heads: 2, ..QWEN2 },
    Shape { name: "qwen2.5-1.5b", layers: 28, width: 1536, ffn: 8960, heads: 12, kv_heads: 2, head_dim: 128, ..QWEN2 },
    Shape { name: "qwen3-0.6b", layers: 28, width: 1024, ffn: 3072, heads: 16, kv_heads: 8, ..QWEN3 },
    Shape { name: "qwen3-1.7b", layers: 28, width: 2048, ffn: 6144, heads: 16, kv_heads: 8, ..QWEN3 },
    Shape {
        name: "gemma-2-2b",
        architecture: "gemma2",
        layers: 26,
        width: 2304,
        ffn: 9216,
        heads: 8,
        kv_heads: 4,
        vocabulary: 256_000,
        context: 8192,
        window: Some(4096),
        ..GEMMA
    },
    Shape { name: "gemma-3-270m", layers: 18, width: 640, ffn: 2048, ..GEMMA3 },
    Shape { name: "gemma-3-1b", layers: 26, width: 1152, ffn: 6912, ..GEMMA3 },
    Shape {
        name: "phi-3.5-mini",
        architecture: "phi3",
        layers: 32,
        width: 3072,
        ffn: 8192,
        heads: 32,
        kv_heads: 32,
        head_dim: 96,
        vocabulary: 32_064,
        context: 131_072,
        window: Some(262_144),
        rope_factors: RopeFactors::LongShort {
            long: &PHI_LONG,
            short: &PHI_SHORT,
            original: 4096,
            attention: 1.190_238,
        },
        ..PLAIN
    },
    Shape {
        name: "smollm2-135m",
        layers: 30,
        width: 576,
        ffn: 1536,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        vocabulary: 49_152,
        context: 8192,
        rope_base: 100_000.0,
        is_tied: true,
        ..PLAIN
    },
    Shape {
        name: "tinyllama-1.1b",
        layers: 22,
        width: 2048,
        ffn: 5632,
        heads: 32,
        kv_heads: 4,
        head_dim: 64,
        vocabulary: 32_000,
        context: 2048,
        ..PLAIN
    },
    Shape {
        name: "mistral-7b",
        layers: 32,
        width: 4096,
        ffn: 14_336,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        vocabulary: 32_768,
        context: 32_768,
        rope_base: 1e6,
        ..PLAIN
    },
    Shape {
        name: "mixtral-8x0.2b",
        layers: 12,
        width: 1024,
        ffn: 3584,
        heads: 16,
        kv_heads: 4,
        head_dim: 64,
        vocabulary: 32_000,
        context: 32_768,
        rope_base: 1e6,
        experts: Some(Experts { count: 8, used: 2, ffn: 3584 }),
        ..PLAIN
    },
    Shape {
        name: "qwen3moe-1b",
        architecture: "qwen3moe",
        layers: 12,
        width: 1024,
        ffn: 3072,
        heads: 16,
        kv_heads: 4,
        is_tied: false,
        experts: Some(Experts { count: 32, used: 4, ffn: 768 }),
        ..QWEN3
    },
];

/// All known shapes.
pub fn shapes() -> &'static [Shape] {
    &SHAPES
}

/// The shape called `name`, in any case.
pub fn find(name: &str) -> Option<&'static Shape> {
    SHAPES.iter().find(|shape| shape.name.eq_ignore_ascii_case(name))
}

/// Phi 3.5 mini's published divisors.
static PHI_LONG: [f32; 48] = [
    1.08, 1.11, 1.14, 1.34, 1.59, 1.6, 1.62, 2.62, 3.23, 3.23, 4.79, 7.4, 7.7, 9.09, 12.2, 17.67, 24.46, 28.57, 30.42,
    30.84, 32.59, 32.93, 42.32, 44.96, 50.34, 50.45, 57.55, 57.93, 58.21, 60.14, 62.61, 62.62, 62.71, 63.14, 63.14,
    63.77, 63.93, 63.96, 63.97, 64.03, 64.07, 64.08, 64.12, 64.41, 64.48, 64.51, 64.53, 64.84,
];

static PHI_SHORT: [f32; 48] = [
    1.0, 1.02, 1.03, 1.03, 1.05, 1.05, 1.05, 1.05, 1.05, 1.07, 1.1, 1.11, 1.16, 1.16, 1.17, 1.29, 1.34, 1.68, 1.79,
    1.82, 1.85, 1.88, 1.91, 1.94, 1.99, 2.02, 2.02, 2.02, 2.02, 2.02, 2.02, 2.03, 2.03, 2.03, 2.03, 2.03, 2.03, 2.03,
    2.03, 2.03, 2.08, 2.09, 2.19, 2.22, 2.59, 2.73, 2.75, 2.84,
];
