//! A request that the engine has taken, followed to its end: its events, and what is counted of it. Dropping it cancels
//! it. Of many prompts that were asked for together some run and the others follow as these end: all that can be wrong
//! with them is known before, and once the first has begun none is refused for lack of room.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use tokio::time::Sleep;

use super::app::App;
use super::catalogue::Hosted;
use super::error::Problem;
use super::guard::Visit;
use super::metrics::{KeyMetrics, Outcome, Phase};
use super::otlp::{Counts, Kind, Span};
use super::quota::Running;
use crate::engine::{Finish, Form, Held, Logprobs, Refusal, Request, Stream, StreamEvent, Timings};

/// What of a request's events a protocol tells.
#[derive(Debug)]
pub(super) enum Said {
    /// A token was chosen.
    Token { choice: usize, id: u32, logprobs: Option<Logprobs> },
    /// The text goes on.
    Text { choice: usize, text: String },
    /// An embedding.
    Embedding { choice: usize, numbers: Vec<f32> },
    /// A choice is complete.
    Done { choice: usize, is_length: bool, is_stop_string: bool },
    /// Nothing more comes.
    Broken(Problem),
}

/// Tokens of a request, over all its choices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) prompt_tokens: usize,
    pub(super) cached_tokens: usize,
    pub(super) completion_tokens: usize,
}

/// Prompts of a request that are with the engine at once, at most.
const MOST_AT_ONCE: usize = 64;
/// Between two tries to hand a prompt over while none of the request is with the engine.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// One or more prompts that were asked for together.
pub(super) struct Following {
    app: Arc<App>,
    visit: Visit,
    metrics: Arc<KeyMetrics>,
    hosted: Arc<Hosted>,
    /// Those that are with the engine, by the numbers of their prompts.
    streams: Vec<(usize, Stream)>,
    /// What all of them ask for; its prompt is empty.
    request: Request,
    /// Its form, if there are several to have it.
    form: Option<Form>,
    /// Memory of prompts that wait, and of what is kept of answers.
    held: Option<Held>,
    /// Those that are not with it yet.
    later: VecDeque<Vec<u32>>,
    n_prompts: usize,
    /// A place with the engine was given back since it took no more.
    has_place: bool,
    /// Until it is tried again, where no place of its own is to be given back.
    pause: Option<Pin<Box<Sleep>>>,
    /// Of all of them, from the first one's submission.
    deadline: Option<Duration>,
    /// Choices of each.
    n: usize,
    /// The stream that is read next.
    turn: usize,
    n_open: usize,
    usage: Usage,
    submitted: Instant,
    phase: Phase,
    /// When the last token of each choice came.
    last_tokens: Vec<Option<Instant>>,
    /// Its place in the account of its key.
    running: Option<Running>,
    /// What a collector is told, where there is one.
    told: Option<(Kind, Arc<Counts>)>,
    /// What it is told at the end.
    started: SystemTime,
    first_token: Option<Duration>,
    finish_reasons: Vec<&'static str>,
    error: Option<&'static str>,
    /// Tokens of choices that are not complete.
    n_unfinished: Vec<usize>,
    is_over: bool,
}

impl Following {
    /// Hands `prompts` to the engine, each as `request` with as many choices: the first at once, the others as there is
    /// room. So many bytes are kept of all answers, beside what the engine keeps.
    ///
    /// # Errors
    /// What is wrong with any of them, one that can never fit among it; why the first was not taken, or that another can't be
    /// done in time. Then none is.
    pub(super) fn submit(
        app: &Arc<App>,
        visit: &Visit,
        hosted: &Arc<Hosted>,
        request: Request,
        prompts: Vec<Vec<u32>>,
        answer_bytes: usize,
    ) -> Result<Self, Problem> {
        let submitted = Instant::now();
        let mut request = Request { group: app.fresh_group(), ..request };
        let mut later = VecDeque::from(prompts);
        for prompt in &mut later {
            std::mem::swap(&mut request.prompt, prompt);
            let checked = hosted.engine.check(&request);
            std::mem::swap(&mut request.prompt, prompt);
            checked?;
        }
        let n_prompts = later.len();
        let held = hold(hosted, &mut request, &mut later, answer_bytes)?;
        let form = if n_prompts > 1 { hosted.engine.form(&request.options)? } else { None };
        let n_tokens: usize = later.iter().map(Vec::len).sum();
        let running = visit.caller.begin(n_tokens)?;
        let n_open = request.n * n_prompts;
        let mut following = Self {
            app: Arc::clone(app),
            visit: visit.clone(),
            metrics: app.metrics.of(&hosted.name, visit.caller.metrics_id()),
            streams: Vec::new(),
            deadline: request.deadline,
            n: request.n,
            request,
            form,
            held,
            later,
            n_prompts,
            has_place: true,
            pause: None,
            turn: 0,
            n_open,
            usage: Usage::default(),
            submitted,
            phase: Phase::Queue,
            last_tokens: vec![None; n_open],
            running,
            hosted: Arc::clone(hosted),
            told: None,
            started: SystemTime::now(),
            first_token: None,
            finish_reasons: Vec::new(),
            error: None,
            n_unfinished: vec![0; n_open],
            // Until it is taken.
            is_over: true,
        };
        let mut handed = following.hand_over();
        if matches!(handed, Err(Problem::Draining)) && !app.is_draining() {
            // It was unloaded meanwhile.
            handed = app.model(&hosted.name, visit, false).and_then(|again| {
                following.hosted = again;
                following.hand_over()
            });
        }
        if let (Err(_), Some(running)) = (&handed, &following.running) {
            running.give_back(n_tokens as u64);
        }
        handed?;
        following.is_over = false;
        visit.about.set_phase(Phase::Queue);
        following.told = app.otlp.as_ref().map(|otlp| {
            let caller = visit.caller.metrics_id().to_owned();
            let model = following.hosted.name.clone();
            let kind = Kind { model, caller, operation: visit.operation, error: None };
            let counts = otlp.counts(&kind);
            (kind, counts)
        });
        Ok(following)
    }

    /// Choices in all.
    pub(super) fn n_choices(&self) -> usize {
        self.last_tokens.len()
    }

    /// The memory that is held for what is kept of answers.
    pub(super) fn take_held(&mut self) -> Option<Held> {
        self.held.take()
    }

    /// Tokens so far, of choices that are complete.
    pub(super) fn usage(&self) -> Usage {
        self.usage
    }

    /// No more is wanted of a choice.
    pub(super) fn enough(&mut self, choice: usize) {
        let number = choice / self.n;
        if let Some((_, stream)) = self.streams.iter_mut().find(|(other, _)| *other == number) {
            stream.enough(choice % self.n);
        }
    }

    /// What comes next; `None` when all is said.
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Said>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        'events: loop {
            if let Err(problem) = self.hand_over() {
                return Poll::Ready(Some(self.broken(problem)));
            }
            if let Some(pause) = &mut self.pause
                && pause.as_mut().poll(context).is_ready()
            {
                (self.pause, self.has_place) = (None, true);
                continue;
            }
            for _ in 0..self.streams.len() {
                let turn = self.turn % self.streams.len();
                self.turn = turn + 1;
                let (number, stream) = &mut self.streams[turn];
                if let Poll::Ready(Some(event)) = stream.poll_next(context) {
                    let number = *number;
                    if stream.is_done() {
                        self.streams.swap_remove(turn);
                        self.has_place = true;
                    }
                    match self.take(number, event) {
                        Some(said) => return Poll::Ready(Some(said)),
                        None => continue 'events,
                    }
                }
            }
            return match self.n_open {
                0 => {
                    self.end(Outcome::Done);
                    Poll::Ready(None)
                }
                _ => Poll::Pending,
            };
        }
    }

    /// The same, awaited.
    pub(super) async fn next(&mut self) -> Option<Said> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// Hands over what there is room for.
    fn hand_over(&mut self) -> Result<(), Problem> {
        while self.has_place && self.streams.len() < MOST_AT_ONCE && !self.later.is_empty() {
            if let Some(deadline) = self.deadline {
                let left = deadline.checked_sub(self.submitted.elapsed());
                let late = Problem::Deadline { completion_tokens: self.n_written() };
                self.request.deadline = Some(left.ok_or(late)?);
            }
            let Some(next) = self.later.front_mut() else { break };
            std::mem::swap(&mut self.request.prompt, next);
            let submitted = self.hosted.engine.submit_with(&self.request, self.form.as_ref());
            std::mem::swap(&mut self.request.prompt, next);
            match submitted {
                Ok(stream) => {
                    self.streams.push((self.n_prompts - self.later.len(), stream));
                    self.later.pop_front();
                    if self.later.is_empty() {
                        self.form = None;
                    }
                }
                // Each can make it ready for itself.
                Err(Refusal::Memory { .. }) if self.form.take().is_some() => {}
                Err(
                    Refusal::QueueFull { retry_after, .. } | Refusal::Memory { retry_after: Some(retry_after), .. },
                ) if self.later.len() < self.n_prompts => {
                    self.has_place = false;
                    if self.streams.is_empty() {
                        // Others have taken the room meanwhile.
                        let pause = retry_after.clamp(PAUSES.0, PAUSES.1);
                        self.pause = Some(Box::pin(tokio::time::sleep(pause)));
                    }
                }
                Err(refusal) => return Err(refusal.into()),
            }
        }
        Ok(())
    }

    /// Tokens of answers so far.
    fn n_written(&self) -> usize {
        self.usage.completion_tokens + self.n_unfinished.iter().sum::<usize>()
    }

    fn take(&mut self, prompt: usize, event: StreamEvent) -> Option<Said> {
        let first = prompt * self.n;
        let of = |choice: usize| first + choice;
        match event {
            StreamEvent::Queued { .. } => None,
            StreamEvent::Prefill { .. } => {
                if self.phase == Phase::Queue {
                    self.enter(Phase::Prefill);
                }
                None
            }
            StreamEvent::Token { choice, id, logprobs } => {
                let choice = of(choice);
                self.count_token(choice);
                Some(Said::Token { choice, id, logprobs })
            }
            StreamEvent::Text { choice, text } => Some(Said::Text { choice: of(choice), text }),
            StreamEvent::Embedding(numbers) => Some(Said::Embedding { choice: first, numbers }),
            StreamEvent::Done { choice, finish, timings } => {
                self.n_open -= 1;
                self.n_unfinished[of(choice)] = 0;
                self.count_done(choice, &timings);
                if let Some(problem) = Problem::of_finish(finish, self.n_written()) {
                    return Some(self.broken(problem));
                }
                // Nothing was written for an embedding.
                if timings.generated_tokens > 0 {
                    self.finish_reasons.push(if finish == Finish::Length { "length" } else { "stop" });
                }
                let is_stop_string = matches!(finish, Finish::StopString(_));
                Some(Said::Done { choice: of(choice), is_length: finish == Finish::Length, is_stop_string })
            }
            StreamEvent::Failed(error) => Some(self.broken(Problem::of_engine(&error))),
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.visit.about.set_phase(phase);
    }

    fn broken(&mut self, problem: Problem) -> Said {
        self.error = Some(problem.reason());
        self.end(Outcome::Failed);
        self.streams.clear();
        self.later.clear();
        Said::Broken(problem)
    }

    fn count_token(&mut self, choice: usize) {
        let now = Instant::now();
        self.n_unfinished[choice] += 1;
        if self.phase != Phase::Decode {
            self.enter(Phase::Decode);
            self.first_token = Some(now - self.submitted);
            self.metrics.first_token.add(now - self.submitted);
            if let Some((_, counts)) = &self.told {
                counts.first_token.add(now - self.submitted);
            }
        }
        if let Some(last) = self.last_tokens[choice].replace(now) {
            self.metrics.inter_token.add(now - last);
            if let Some((_, counts)) = &self.told {
                counts.inter_token.add(now - last);
            }
        }
    }

    fn count_done(&mut self, choice: usize, timings: &Timings) {
        let metrics = &self.metrics;
        if let Some(running) = &self.running {
            running.add_tokens(timings.generated_tokens);
        }
        self.usage.completion_tokens += timings.generated_tokens;
        metrics.generated_tokens.fetch_add(timings.generated_tokens as u64, Ordering::Relaxed);
        // The choices of a prompt share it.
        if choice == 0 {
            self.usage.prompt_tokens += timings.prompt_tokens;
            self.usage.cached_tokens += timings.cached_tokens;
            metrics.prompt_tokens.fetch_add(timings.prompt_tokens as u64, Ordering::Relaxed);
            metrics.prefix_hit_tokens.fetch_add(timings.cached_tokens as u64, Ordering::Relaxed);
            metrics.queue.add(Duration::from_secs_f64(timings.queue_ms.max(0.0) / 1e3));
        }
    }

    fn end(&mut self, outcome: Outcome) {
        if !std::mem::replace(&mut self.is_over, true) {
            if let Some(running) = self.running.take() {
                running.add_tokens(self.n_unfinished.iter().sum());
            }
            self.metrics.count(outcome);
            self.metrics.whole.add(self.submitted.elapsed());
            if let (Some(otlp), Some((kind, _))) = (&self.app.otlp, &self.told) {
                otlp.end_of(kind, &self.span(outcome), self.visit.parent);
            }
        }
    }

    fn span(&self, outcome: Outcome) -> Span {
        Span {
            operation: self.visit.operation,
            model: self.hosted.name.clone(),
            request_id: Arc::clone(&self.visit.id),
            caller: self.visit.caller.id().to_owned(),
            start: self.started,
            duration: self.submitted.elapsed(),
            first_token: self.first_token,
            input_tokens: self.usage.prompt_tokens,
            cached_tokens: self.usage.cached_tokens,
            output_tokens: self.n_written(),
            finish_reasons: self.finish_reasons.clone(),
            error: self.error.or(matches!(outcome, Outcome::Cancelled(_)).then_some("cancelled")),
        }
    }

    /// Who asked, and of what server.
    pub(super) fn context(&self) -> (&App, &Visit) {
        (&self.app, &self.visit)
    }
}

/// Holds memory for prompts that wait, if there are several, and for so many bytes of answers: if there can be as much
/// beside the largest of the requests.
fn hold(
    hosted: &Hosted,
    request: &mut Request,
    prompts: &mut VecDeque<Vec<u32>>,
    answer_bytes: usize,
) -> Result<Option<Held>, Problem> {
    let waiting_bytes: usize = match prompts.len() {
        0 | 1 => 0,
        _ => prompts.iter().map(|prompt| prompt.capacity() * size_of::<u32>()).sum(),
    };
    let bytes = (answer_bytes + waiting_bytes) as u64;
    let Some(longest) = prompts.iter_mut().max_by_key(|prompt| prompt.len()).filter(|_| bytes > 0) else {
        return Ok(None);
    };
    std::mem::swap(&mut request.prompt, longest);
    let held = hosted.engine.hold(bytes, request);
    std::mem::swap(&mut request.prompt, longest);
    Ok(Some(held?))
}

impl Drop for Following {
    fn drop(&mut self) {
        // All is over if it was read to its end.
        self.end(Outcome::Cancelled(self.phase));
    }
}
