//! How tokens are chosen: fields with their ranges. One that would have no effect beside the others is refused, unless its
//! value is the one that it has by default.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use crate::engine::{Mirostat, Sampling, fresh_seed};
use crate::server::error::{Invalid, Problem};
use crate::server::json::{Fields, Range, kind};

/// What is asked for, where nothing is the model's `default`.
pub(super) fn read(fields: &mut Fields, default: &Sampling) -> Result<Sampling, Problem> {
    let mut sampling = default.clone();
    let set = |to: &mut f32, value: Option<f32>| *to = value.unwrap_or(*to);
    let temperature = fields.number("temperature", Range::Within(0.0, 2.0))?;
    set(&mut sampling.temperature, temperature);
    set(&mut sampling.presence_penalty, fields.number("presence_penalty", Range::Within(-2.0, 2.0))?);
    set(&mut sampling.frequency_penalty, fields.number("frequency_penalty", Range::Within(-2.0, 2.0))?);
    let repetition = fields.number("repetition_penalty", Range::Within(0.01, 10.0))?;
    set(&mut sampling.repetition_penalty, repetition);
    // Those of the protocol look at what was written, the one beside it at the prompt, too.
    sampling.penalise_prompt = repetition.is_some();
    sampling.penalty_last_n = None;
    dry(fields, &mut sampling)?;
    let filters = Filters::read(fields, &mut sampling)?;
    sampling.mirostat = mirostat(fields)?;
    filters.check(&sampling, temperature.is_some())?;
    // Any seed is as good as any other: negative ones are large ones.
    sampling.seed = fields.whole("seed", i64::MIN, i64::MAX)?.map_or_else(fresh_seed, i64::cast_unsigned);
    sampling.logit_bias = logit_bias(fields)?;
    Ok(sampling)
}

fn dry(fields: &mut Fields, sampling: &mut Sampling) -> Result<(), Problem> {
    let dry = &mut sampling.dry;
    dry.multiplier = fields.number("dry_multiplier", Range::Within(0.0, 100.0))?.unwrap_or(dry.multiplier);
    let base = fields.number("dry_base", Range::Within(1.0, 16.0))?;
    let length = fields.count("dry_allowed_length", 1, i64::MAX)?;
    let changed = [
        ("dry_base", base.is_some_and(|base| base != dry.base)),
        ("dry_allowed_length", length.is_some_and(|length| length != dry.allowed_length)),
    ];
    if dry.multiplier == 0.0
        && let Some((name, _)) = changed.iter().find(|(_, is_changed)| *is_changed)
    {
        return Err(Invalid::of(name, "needs dry_multiplier").into());
    }
    dry.base = base.unwrap_or(dry.base);
    dry.allowed_length = length.unwrap_or(dry.allowed_length);
    Ok(())
}

/// Filters that a request has turned on.
struct Filters {
    on: Vec<&'static str>,
}

impl Filters {
    fn read(fields: &mut Fields, sampling: &mut Sampling) -> Result<Self, Problem> {
        let mut on = Vec::new();
        let mut set = |name: &'static str, value: Option<f32>, none: f32, to: &mut f32| {
            on.extend(value.filter(|value| *value != none).map(|_| name));
            *to = value.unwrap_or(*to);
        };
        set("top_p", fields.number("top_p", Range::Above(0.0, 1.0))?, 1.0, &mut sampling.top_p);
        set("min_p", fields.number("min_p", Range::Within(0.0, 1.0))?, 0.0, &mut sampling.min_p);
        set("typical_p", fields.number("typical_p", Range::Above(0.0, 1.0))?, 1.0, &mut sampling.typical_p);
        let xtc = &mut sampling.xtc;
        let probability = fields.number("xtc_probability", Range::Within(0.0, 1.0))?;
        set("xtc_probability", probability, 0.0, &mut xtc.probability);
        let threshold = fields.number("xtc_threshold", Range::Within(0.0, 0.5))?;
        if xtc.probability == 0.0 && threshold.is_some_and(|threshold| threshold != xtc.threshold) {
            return Err(Invalid::of("xtc_threshold", "needs xtc_probability").into());
        }
        xtc.threshold = threshold.unwrap_or(xtc.threshold);
        let top_k = fields.count("top_k", 0, i64::MAX)?;
        on.extend(top_k.filter(|top_k| *top_k != 0).map(|_| "top_k"));
        sampling.top_k = top_k.unwrap_or(sampling.top_k);
        Ok(Self { on })
    }

    /// Refuses what changes nothing. At temperature 0 that is what might leave the likeliest token out; the other filters
    /// never do.
    fn check(&self, sampling: &Sampling, is_temperature_given: bool) -> Result<(), Problem> {
        let of_mirostat = sampling.mirostat.map(|_| "mirostat_tau");
        if sampling.is_greedy() {
            let leaves_out = self.on.iter().copied().find(|name| ["typical_p", "xtc_probability"].contains(name));
            if let Some(name) = of_mirostat.or(leaves_out) {
                let whose = if is_temperature_given { "" } else { ", which is this model's default" };
                let message = format!("has no effect at temperature 0{whose}: the likeliest token is taken");
                return Err(Invalid::of(name, message).into());
            }
        }
        match self.on.first().filter(|_| of_mirostat.is_some()) {
            Some(name) => {
                Err(Invalid::of(name, "has no effect beside mirostat_tau, which takes the place of all filters").into())
            }
            None => Ok(()),
        }
    }
}

fn mirostat(fields: &mut Fields) -> Result<Option<Mirostat>, Problem> {
    let tau = fields.number("mirostat_tau", Range::Above(0.0, 100.0))?;
    let eta = fields.number("mirostat_eta", Range::Above(0.0, 1.0))?;
    let default = Mirostat::default();
    match tau {
        Some(tau) => Ok(Some(Mirostat { tau, eta: eta.unwrap_or(default.eta) })),
        None if eta.is_some_and(|eta| eta != default.eta) => {
            Err(Invalid::of("mirostat_eta", "needs mirostat_tau").into())
        }
        None => Ok(None),
    }
}

fn logit_bias(fields: &mut Fields) -> Result<BTreeMap<u32, f32>, Problem> {
    let refuse = |message: String| Err(Invalid::of("logit_bias", message).into());
    let biases = match fields.take("logit_bias") {
        None => return Ok(BTreeMap::new()),
        Some(Json::Object(biases)) => biases,
        Some(other) => return refuse(format!("is {}, expected an object", kind(&other))),
    };
    let mut map = BTreeMap::new();
    for (token, bias) in biases {
        // Signs and leading zeros would let one token have two.
        let id = token.parse().ok().filter(|id: &u32| id.to_string() == token);
        let Some(id) = id else { return refuse(format!("has the key {token:?}, expected the id of a token")) };
        let Some(bias) = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias)) else {
            return refuse(format!("gives token {id} {bias}, expected a number, -100 to 100"));
        };
        map.insert(id, bias as f32);
    }
    Ok(map)
}
