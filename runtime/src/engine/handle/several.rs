//! Prompts that are asked for together: each is a request of its own, and what they have in common is made and checked
//! once.

use super::{Constraint, Engine};
use crate::engine::generate::GenerateOptions;
use crate::engine::grammar;
use crate::engine::ledger::Charge;
use crate::engine::request::{Refusal, Request};
use crate::engine::stream::Stream;

/// A form that was made ready, for requests that ask for it.
pub(crate) struct Form {
    constraint: Constraint,
    /// Its memory.
    _charge: Charge,
}

/// Memory of requests that is held until it is dropped.
pub(crate) struct Held {
    _charge: Charge,
}

impl Engine {
    /// Whether a request is right in itself, and would fit if nothing else were there.
    pub(crate) fn check(&self, request: &Request) -> Result<(), Refusal> {
        self.inner.check(request)?;
        self.inner.check_memory(request)?;
        self.inner.check_room(request, 0)
    }

    /// The form that requests with these options ask for, made ready; `None` if they ask for none, or there is no room to
    /// keep it.
    pub(crate) fn form(&self, options: &GenerateOptions) -> Result<Option<Form>, Refusal> {
        if options.grammar.is_none() {
            return Ok(None);
        }
        let Ok(charge) = self.inner.hold("the form", 0, grammar::MOST_BYTES as u64) else { return Ok(None) };
        let constraint = grammar::constraint(&self.inner.model, options)?;
        Ok(constraint.map(|constraint| Form { constraint, _charge: charge }))
    }

    /// As [`Engine::submit`], with a form that was made ready before.
    pub(crate) fn submit_with(&self, request: &Request, form: Option<&Form>) -> Result<Stream, Refusal> {
        self.submit_formed(request, form.map(|form| &form.constraint))
    }

    /// Holds memory for what is kept beside the engine of requests of which `beside` is the largest, or says why not: never
    /// more than there can be with one of them.
    pub(crate) fn hold(&self, bytes: u64, beside: &Request) -> Result<Held, Refusal> {
        self.inner.check_room(beside, bytes)?;
        self.inner
            .hold("the prompts and their answers", beside.prompt.len(), bytes)
            .map(|charge| Held { _charge: charge })
    }
}
