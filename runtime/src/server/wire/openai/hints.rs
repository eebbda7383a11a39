//! Fields of the protocol that change no answer: labels, and hints at what is done here in any case. Hints at what is not
//! done are refused.

use serde_json::Value as Json;

use crate::server::error::{Invalid, Problem};
use crate::server::json::{Fields, kind};

/// What is told of them in the answer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hints {
    /// The tier that serves the request, where one was asked for.
    pub(super) service_tier: Option<&'static str>,
}

impl Hints {
    pub(super) fn read(fields: &mut Fields) -> Result<Self, Problem> {
        // Who asks, in the client's words. That similar prompts come together is for a cache of many machines to know:
        // here beginnings are found by what they say.
        for label in ["user", "safety_identifier", "prompt_cache_key"] {
            fields.string(label)?;
        }
        metadata(fields)?;
        if fields.flag("store")? == Some(true) {
            return Err(Invalid::unsupported("store", "is true, but nothing is stored here".to_owned()).into());
        }
        cache(fields)?;
        let service_tier = match fields.string("service_tier")?.as_deref() {
            None => None,
            Some("auto" | "default") => Some("default"),
            Some(other) => {
                let message =
                    format!("is {other:?}, but there is one tier, expected \"auto\"; lanes are chosen by priority");
                return Err(Invalid::unsupported("service_tier", message).into());
            }
        };
        Ok(Self { service_tier })
    }
}

/// How long beginnings of prompts are to be kept: in memory, until their room is needed.
fn cache(fields: &mut Fields) -> Result<(), Problem> {
    if let Some(retention) = fields.string("prompt_cache_retention")?.filter(|retention| retention != "in_memory") {
        let message = format!("is {retention:?}, but beginnings of prompts are kept in memory, expected \"in_memory\"");
        return Err(Invalid::unsupported("prompt_cache_retention", message).into());
    }
    let Some(options) = fields.take("prompt_cache_options") else { return Ok(()) };
    let mut options = Fields::of("prompt_cache_options".to_owned(), options)?;
    if let Some(mode) = options.string("mode")?.filter(|mode| mode != "implicit") {
        let message = format!("is {mode:?}, expected \"implicit\"; \"cache_prompt\": false uses and leaves nothing");
        return Err(Invalid::unsupported(&options.name("mode"), message).into());
    }
    refuse_lifetime(&mut options)?;
    options.finish()
}

/// The place of a part's end as one from which prompts may be gone on with. All places are.
pub(super) fn breakpoint(part: &mut Fields) -> Result<(), Problem> {
    let name = part.name("prompt_cache_breakpoint");
    let Some(point) = part.take("prompt_cache_breakpoint") else { return Ok(()) };
    let mut point = Fields::of(name, point)?;
    match point.string("mode")?.as_deref() {
        Some("explicit") => {}
        found => {
            let found = found.map_or("missing".to_owned(), |mode| format!("{mode:?}"));
            let message = format!("is {found}, expected \"explicit\"");
            return Err(Invalid::of(&point.name("mode"), message).into());
        }
    }
    refuse_lifetime(&mut point)?;
    point.finish()
}

/// No time is promised.
fn refuse_lifetime(fields: &mut Fields) -> Result<(), Problem> {
    let name = fields.name("ttl");
    match fields.take("ttl") {
        None => Ok(()),
        Some(_) => {
            let message = "is not supported, what is cached is kept until its room is needed".to_owned();
            Err(Invalid::unsupported(&name, message).into())
        }
    }
}

/// Labels that the protocol lets clients give: up to 16, texts of up to 512 characters with names of up to 64.
fn metadata(fields: &mut Fields) -> Result<(), Problem> {
    let refuse = |message: String| Err(Invalid::of("metadata", message).into());
    let labels = match fields.take("metadata") {
        None => return Ok(()),
        Some(Json::Object(labels)) => labels,
        Some(other) => return refuse(format!("is {}, expected an object of strings", kind(&other))),
    };
    if labels.len() > 16 {
        return refuse(format!("has {} entries, expected at most 16", labels.len()));
    }
    for (name, value) in &labels {
        let Some(text) = value.as_str() else {
            return refuse(format!("has {} as {name:?}, expected a string", kind(value)));
        };
        if name.chars().count() > 64 || text.chars().count() > 512 {
            return refuse("has a name of more than 64 or a text of more than 512 characters".to_owned());
        }
    }
    Ok(())
}
