//! The receiving end of a request: events as they happen, with text and stop strings made where they are read.
//!
//! Reading blocks, polls or waits as an async task: the channel knows no runtime. Dropping the stream cancels the
//! request. Events wait unread without bound but that of the answer: at most one a token and one a step of the prompt.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use farpost_kernels::backend::Interrupt;
use farpost_models::tokenizer::TextState;

use super::error::EngineError;
use super::generate::{Finish, Generated, Timings};
use super::ledger::Charge;
use super::options::after;
use super::request::Request;
use super::sampler::Logprobs;
use super::stop::StopMatcher;
use crate::model::Model;

/// What happens to a request, as it happens.
#[derive(Clone, Debug)]
pub enum StreamEvent {
    /// It waits. Told once, and again whenever its place changes.
    Queued {
        /// Requests that will be begun before it, as things stand.
        ahead: usize,
    },
    /// It was begun, or a part of the prompt was run.
    Prefill {
        /// Tokens of the prompt in the cache, those that were there before among them.
        done_tokens: usize,
        /// Tokens of the prompt.
        total_tokens: usize,
    },
    /// A token was chosen. Its text may come later, or not at all.
    Token {
        /// Whose, from 0.
        choice: usize,
        /// The token.
        id: u32,
        /// If they were asked for.
        logprobs: Option<Logprobs>,
    },
    /// The text goes on. Never empty.
    Text {
        /// Whose, from 0.
        choice: usize,
        /// What is new.
        text: String,
    },
    /// The embedding of the prompt, if that was asked for: of length 1.
    Embedding(Vec<f32>),
    /// A choice is complete: nothing more comes of it.
    Done {
        /// Which, from 0.
        choice: usize,
        /// Why it ended.
        finish: Finish,
        /// Times and counts.
        timings: Timings,
    },
    /// The request failed: nothing more comes at all.
    Failed(Arc<EngineError>),
}

/// What the owner tells of a request.
#[derive(Debug)]
pub(super) enum Told {
    Queued { ahead: usize },
    Prefill { done_tokens: usize, total_tokens: usize },
    Token { choice: usize, id: u32, logprobs: Option<Logprobs> },
    Embedding(Vec<f32>),
    End { choice: usize, finish: Finish, timings: Timings },
    Failed(Arc<EngineError>),
}

/// Bytes of an event that was not read yet.
pub(super) fn event_bytes(logprobs: Option<usize>) -> u64 {
    // Links of the queue, and what the allocator adds to the list of log-probabilities.
    let told = logprobs.map_or(0, |n| n * size_of::<(u32, f32)>() + 32);
    (size_of::<Told>() + 16 + told) as u64
}

/// What both ends of a stream share.
#[derive(Debug)]
pub(super) struct Wish {
    cancelled: Interrupt,
    /// Choices of which no more is wanted.
    is_enough: Box<[AtomicBool]>,
    waker: Mutex<Option<Waker>>,
}

/// The owner's end.
#[derive(Clone, Debug)]
pub(super) struct Teller {
    sender: Sender<Told>,
    wish: Arc<Wish>,
}

impl Teller {
    pub(super) fn tell(&self, told: Told) {
        // Nobody may be listening any more; then the wish says so.
        let _ = self.sender.send(told);
        if let Some(waker) = self.wish.waker.lock().unwrap_or_else(PoisonError::into_inner).take() {
            waker.wake();
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.wish.cancelled.is_set()
    }

    /// What is set once the request is cancelled.
    pub(super) fn cancelled(&self) -> Interrupt {
        self.wish.cancelled.clone()
    }

    pub(super) fn is_enough(&self, choice: usize) -> bool {
        self.wish.is_enough.get(choice).is_some_and(|enough| enough.load(Ordering::Relaxed))
    }
}

/// The text of one choice.
#[derive(Debug)]
struct Text {
    state: TextState,
    matcher: StopMatcher,
    n_tokens: usize,
    /// Its reader wants no more.
    is_enough: bool,
    is_done: bool,
}

/// The events of one request.
pub struct Stream {
    receiver: Receiver<Told>,
    wish: Arc<Wish>,
    model: Arc<Model>,
    texts: Vec<Text>,
    ready: VecDeque<StreamEvent>,
    n_open: usize,
    /// Held for as long as its events are.
    _charge: Arc<Charge>,
}

/// Both ends of the stream of `request`.
pub(super) fn pair(model: &Arc<Model>, request: &Request, charge: Arc<Charge>) -> (Teller, Stream) {
    let (sender, receiver) = crossbeam_channel::unbounded();
    let is_enough = (0..request.n).map(|_| AtomicBool::new(false)).collect();
    let wish = Arc::new(Wish { cancelled: Interrupt::default(), is_enough, waker: Mutex::new(None) });
    let detokenizer = model.tokenizer().stream_after(&request.prompt).with_special(request.options.render_special);
    let state = detokenizer.into_state();
    let matcher = StopMatcher::new(&request.options.stop);
    let text =
        |_| Text { state: state.clone(), matcher: matcher.clone(), n_tokens: 0, is_enough: false, is_done: false };
    let texts = (0..request.n).map(text).collect();
    let teller = Teller { sender, wish: Arc::clone(&wish) };
    let (ready, model) = (VecDeque::new(), Arc::clone(model));
    (teller, Stream { receiver, wish, model, texts, ready, n_open: request.n, _charge: charge })
}

impl Stream {
    /// Ends the request within the step that runs now, which stops early if it is mostly for this request's prompt. Its choices end with [`Finish::Cancelled`].
    pub fn cancel(&self) {
        self.wish.cancelled.set();
    }

    /// No more is wanted of a choice: the reader has found its end. It ends with the next step, as at a stop string.
    #[cfg(feature = "server")]
    pub(crate) fn enough(&mut self, choice: usize) {
        if let Some(text) = self.texts.get_mut(choice) {
            text.is_enough = true;
        }
        if let Some(enough) = self.wish.is_enough.get(choice) {
            enough.store(true, Ordering::Relaxed);
        }
    }

    /// The next event if there is one by now; `None` if there is none yet, or none to come.
    pub fn try_next(&mut self) -> Option<StreamEvent> {
        while self.ready.is_empty() && self.n_open > 0 {
            match self.receiver.try_recv() {
                Ok(told) => self.take(told),
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => self.take_end(),
            }
        }
        self.ready.pop_front()
    }

    /// True if all events were read: nothing more comes.
    pub fn is_done(&self) -> bool {
        self.ready.is_empty() && self.n_open == 0
    }

    /// The next event; `None` if none comes within `timeout`, or none is to come.
    pub fn next_within(&mut self, timeout: Duration) -> Option<StreamEvent> {
        let end = after(Instant::now(), timeout);
        while self.ready.is_empty() && self.n_open > 0 {
            match self.receiver.recv_deadline(end) {
                Ok(told) => self.take(told),
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => self.take_end(),
            }
        }
        self.ready.pop_front()
    }

    /// The next event for an async task, which is woken when there is one; `None` when none is to come.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<StreamEvent>> {
        if let Some(event) = self.try_next() {
            return Poll::Ready(Some(event));
        }
        *self.wish.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(context.waker().clone());
        // What came before the waker was there woke nobody.
        match self.try_next() {
            Some(event) => Poll::Ready(Some(event)),
            None if self.n_open == 0 => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    /// The next event, awaited; `None` when none is to come.
    pub async fn next_event(&mut self) -> Option<StreamEvent> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// Reads to the end: the embedding that was asked for; `None` if the request ended before it was made.
    ///
    /// # Errors
    /// What the request failed with.
    pub fn embedding(self) -> Result<Option<Vec<f32>>, Arc<EngineError>> {
        let mut found = None;
        for event in self {
            match event {
                StreamEvent::Embedding(numbers) => found = Some(numbers),
                StreamEvent::Failed(error) => return Err(error),
                _ => {}
            }
        }
        Ok(found)
    }

    /// Reads to the end: all choices, in order.
    ///
    /// # Errors
    /// What the request failed with.
    pub fn finish(mut self) -> Result<Vec<Generated>, Arc<EngineError>> {
        let none = || Generated {
            ids: Vec::new(),
            text: String::new(),
            finish: Finish::Cancelled,
            timings: Timings::default(),
        };
        let mut choices: Vec<Generated> = self.texts.iter().map(|_| none()).collect();
        for event in self.by_ref() {
            match event {
                StreamEvent::Token { choice, id, .. } => choices[choice].ids.push(id),
                StreamEvent::Text { choice, text } => choices[choice].text.push_str(&text),
                StreamEvent::Done { choice, finish, timings } => {
                    (choices[choice].finish, choices[choice].timings) = (finish, timings);
                }
                StreamEvent::Failed(error) => return Err(error),
                StreamEvent::Queued { .. } | StreamEvent::Prefill { .. } | StreamEvent::Embedding(_) => {}
            }
        }
        Ok(choices)
    }

    fn take(&mut self, told: Told) {
        match told {
            Told::Queued { ahead } => self.ready.push_back(StreamEvent::Queued { ahead }),
            Told::Prefill { done_tokens, total_tokens } => {
                self.ready.push_back(StreamEvent::Prefill { done_tokens, total_tokens });
            }
            Told::Token { choice, id, logprobs } => self.take_token(choice, id, logprobs),
            Told::Embedding(numbers) => self.ready.push_back(StreamEvent::Embedding(numbers)),
            Told::End { choice, finish, timings } => self.take_done(choice, finish, timings),
            Told::Failed(error) => {
                self.n_open = 0;
                self.ready.push_back(StreamEvent::Failed(error));
            }
        }
    }

    /// The owner is gone without a word.
    fn take_end(&mut self) {
        self.take(Told::Failed(Arc::new(EngineError::Gone)));
    }

    fn take_token(&mut self, choice: usize, id: u32, logprobs: Option<Logprobs>) {
        let Some(text) = self.texts.get_mut(choice) else { return };
        // The owner may be some tokens ahead of a stop string.
        if text.is_done || text.is_enough || text.matcher.found().is_some() {
            return;
        }
        text.n_tokens += 1;
        self.ready.push_back(StreamEvent::Token { choice, id, logprobs });
        let new = text.matcher.push(text.state.push(self.model.tokenizer(), id));
        if !new.is_empty() {
            self.ready.push_back(StreamEvent::Text { choice, text: new.to_owned() });
        }
        if text.matcher.found().is_some()
            && let Some(enough) = self.wish.is_enough.get(choice)
        {
            enough.store(true, Ordering::Relaxed);
        }
    }

    fn take_done(&mut self, choice: usize, mut finish: Finish, mut timings: Timings) {
        let Some(text) = self.texts.get_mut(choice).filter(|text| !text.is_done) else { return };
        text.is_done = true;
        self.n_open -= 1;
        if text.matcher.found().is_none() && !text.is_enough {
            let mut rest = text.matcher.push(&text.state.clone().finish()).to_owned();
            if text.matcher.found().is_none() {
                rest.push_str(&text.matcher.finish());
            }
            if !rest.is_empty() {
                self.ready.push_back(StreamEvent::Text { choice, text: rest });
            }
        }
        if let Some(number) = text.matcher.found().or(text.is_enough.then_some(0)) {
            finish = Finish::StopString(number);
            timings.generated_tokens = text.n_tokens;
        }
        self.ready.push_back(StreamEvent::Done { choice, finish, timings });
    }
}

/// Waits for each event.
impl Iterator for Stream {
    type Item = StreamEvent;

    fn next(&mut self) -> Option<StreamEvent> {
        while self.ready.is_empty() && self.n_open > 0 {
            match self.receiver.recv() {
                Ok(told) => self.take(told),
                Err(_) => self.take_end(),
            }
        }
        self.ready.pop_front()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.cancel();
    }
}
