// The units that gates go through. After base.cu.

// 1 SiLU, 2 GELU in its tanh form.
DEVICE float activated(u32 kind, float value) {
    if (kind == 1u) return value / (1.0f + expf(fminf(-value, 85.0f)));
    float inner = 0.7978845608028654f * (value + 0.044715f * value * value * value);
    return 0.5f * value * (1.0f + safe_tanh(inner));
}
