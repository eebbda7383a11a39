//! `farpost bench serve`: a load on a server, and how soon and how fast it answers.

mod cancels;
mod chart;
mod exchange;
mod lengths;
mod load;
mod objective;
mod page;
mod plan;
mod prompts;
mod report;
mod sse;
mod summary;
mod target;
mod trace;
mod trust;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use farpost::engine::Random;
use farpost::server::Endpoint;
use serde_json::{Map, Value as Json};
use tokio::task::JoinSet;

use crate::amount;
use crate::console::Console;
use crate::exit::{Exit, Failure};
use crate::interrupt::Interrupt;
use crate::progress::{Progress, Unit};
use exchange::{Api, Manner, Record};
use lengths::Lengths;
use load::{Loop, Shared};
use objective::Objective;
use plan::{Plan, Source};
use prompts::{Ids, Material, Measure, Prompts, TRIALS, words};
use report::About;
use summary::Summary;
use target::{Failed, Target};

/// Clients where neither they nor arrivals are asked for.
const DEFAULT_CLIENTS: usize = 4;
/// Requests where neither their number nor a time is asked for.
const DEFAULT_REQUESTS: u64 = 100;

/// Put a load on a server and measure how soon and how fast it answers
///
/// Works with every server of OpenAI's protocol. Requests are streamed. They are sent by a number of clients that each wait
/// for their answer (--clients), as they arrive at a rate (--rate), or as a file tells (--trace). Prompts are made up; how
/// many words make a token is learnt from the server's own counts. For example:
/// farpost bench serve --clients 8 --requests 200 --slo ttft=500ms,itl=50ms --html report.html
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Where the server is, such as http://127.0.0.1:8080 or https://farpost.lan, with or without /v1
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    url: Endpoint,
    /// With https, trust the authorities in this PEM file [default: those of the system]; a certificate is always checked
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The model to ask for [default: the first that the server names]
    #[arg(short, long, value_name = "NAME")]
    model: Option<String>,
    /// The route to ask
    #[arg(long, value_name = "API", default_value = "chat")]
    api: Api,
    /// The environment variable that holds the API key
    #[arg(long, value_name = "VARIABLE")]
    key: Option<String>,
    /// Clients that each send a request when the one before is answered [default: 4]
    #[arg(long, allow_negative_numbers = true, value_name = "N", conflicts_with_all = ["rate", "trace"], value_parser = amount::whole::<usize>(1..=1000))]
    clients: Option<usize>,
    /// Requests a second that arrive at random (a Poisson process), however many are still open
    #[arg(long, allow_negative_numbers = true, value_name = "R", conflicts_with = "trace", value_parser = parse_rate)]
    rate: Option<f64>,
    /// Requests to send, beside those to warm up [default: 100, or without end where --seconds or --trace says so]
    #[arg(short = 'n', long, allow_negative_numbers = true, value_name = "N", value_parser = amount::whole::<u64>(1..))]
    requests: Option<u64>,
    /// Send no more after S seconds; what is open then is waited for
    #[arg(long, allow_negative_numbers = true, value_name = "S", value_parser = parse_seconds)]
    seconds: Option<f64>,
    /// Tokens of prompts: N, A..B (each equally often) or lognormal:MEDIAN,SIGMA[,MOST]
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "LENGTHS",
        default_value = "128",
        conflicts_with = "trace"
    )]
    prompt_tokens: Lengths,
    /// Make prompts of token ids from A on and below B, which then have exactly their length (with --api completions)
    #[arg(long, value_name = "A..B", conflicts_with = "trace")]
    prompt_ids: Option<Ids>,
    /// Tokens of answers at most, likewise
    #[arg(long, allow_negative_numbers = true, value_name = "LENGTHS", default_value = "64", conflicts_with = "trace")]
    answer_tokens: Lengths,
    /// Tokens that all prompts begin with alike
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 0, value_parser = amount::whole::<u32>(0..=1 << 20))]
    shared_prefix: u32,
    /// Send what this file of JSON lines tells: at (seconds), prompt_tokens or prompt, answer_tokens
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// The share of requests, 0 to 1, whose client goes away in the middle of the answer
    #[arg(long, allow_negative_numbers = true, value_name = "SHARE", default_value_t = 0.0, value_parser = parse_share)]
    cancel: f64,
    /// Count as good what keeps these bounds, such as ttft=500ms,itl=50ms,e2e=10s
    #[arg(long, value_name = "BOUNDS")]
    slo: Option<Objective>,
    /// Have answers go on past their end, up to their length (known to farpost, llama.cpp, SGLang and vLLM)
    #[arg(long)]
    ignore_eos: bool,
    /// Fields that each request has beside, as a JSON object, such as '{"temperature": 0, "priority": "high"}'
    #[arg(long, value_name = "JSON", default_value = "{}", hide_default_value = true, value_parser = parse_fields)]
    fields: Fields,
    /// Requests to send before those that count, by as many clients
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 2, value_parser = amount::whole::<u32>(0..))]
    warmup: u32,
    /// Give a request up after S seconds
    #[arg(long, allow_negative_numbers = true, value_name = "S", default_value = "120", value_parser = parse_seconds)]
    timeout: f64,
    /// What decides prompts, lengths, arrivals and cancellations
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Write a report with plots to this file: one page that needs nothing else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

fn number(text: &str, is_good: impl Fn(f64) -> bool, expected: &str) -> Result<f64, String> {
    text.parse().ok().filter(|&number| is_good(number)).ok_or_else(|| format!("expected {expected}"))
}

fn parse_rate(text: &str) -> Result<f64, String> {
    number(text, |rate| rate > 0.0 && rate <= 1e5, "requests a second, above 0 and up to 100000")
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    number(text, |seconds| seconds > 0.0 && seconds <= 1e6, "seconds, above 0 and up to 1000000")
}

fn parse_share(text: &str) -> Result<f64, String> {
    number(text, |share| (0.0..=1.0).contains(&share), "a share, 0 to 1")
}

/// Fields of a body.
type Fields = Map<String, Json>;

fn parse_fields(text: &str) -> Result<Fields, String> {
    let fields: Fields = serde_json::from_str(text).map_err(|error| format!("expected a JSON object: {error}"))?;
    match exchange::OWN_FIELDS.iter().find(|name| fields.contains_key(**name)) {
        Some(name) => Err(format!("'{name}' is set by this command")),
        None => Ok(fields),
    }
}

impl Args {
    fn source(&self) -> Result<Source, Failure> {
        Ok(match &self.trace {
            Some(path) => Source::Trace(trace::read(path)?.into_iter()),
            None => {
                Source::Drawn { prompt_tokens: self.prompt_tokens, answer_tokens: self.answer_tokens, rate: self.rate }
            }
        })
    }

    fn target(&self) -> Result<Target, Failure> {
        let key = match &self.key {
            None => None,
            Some(name) => match std::env::var(name) {
                Ok(key) if !key.is_empty() => Some(key),
                _ => return Err(Failure::usage(format_args!("--key: there is no key in the variable '{name}'"))),
            },
        };
        let tls = match (self.url.is_https(), &self.ca) {
            (true, ca) => Some(trust::client(ca.as_deref())?),
            (false, Some(_)) => return Err(Failure::usage("--ca is for servers at https://, --url names another")),
            (false, None) => None,
        };
        let refused = |why| Failure::usage(format_args!("--key: the key can't be sent: {why}"));
        Target::new(self.url.clone(), tls, key.as_deref()).map_err(refused)
    }

    /// Requests at most, and how many are expected.
    fn most(&self) -> (u64, Option<u64>) {
        match (self.requests, &self.seconds, &self.trace) {
            (Some(n), ..) => (n, Some(n)),
            (None, None, None) => (DEFAULT_REQUESTS, Some(DEFAULT_REQUESTS)),
            (None, ..) => (u64::MAX, None),
        }
    }

    fn way(&self) -> Loop {
        match self.rate.is_some() || self.trace.is_some() {
            true => Loop::Open,
            false => Loop::Closed(self.clients.unwrap_or(DEFAULT_CLIENTS)),
        }
    }
}

/// Measures with progress.
pub fn run(args: &Args, console: &Console) -> Result<(), Failure> {
    if args.prompt_ids.is_some() && args.api != Api::Completions {
        return Err(Failure::usage("--prompt-ids: messages are texts, expected --api completions"));
    }
    // What is wrong with files and the key is told before a server is asked.
    let (source, target) = (args.source()?, args.target()?);
    let interrupt = Interrupt::listen()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("farpost-load")
        .enable_io()
        .enable_time()
        .build()
        .map_err(|error| Failure::system("start threads", &error))?;
    let outcome = runtime.block_on(measure(args, source, target, &interrupt, console));
    // What a client that was given up waits for is waited for no longer.
    runtime.shutdown_background();
    let (ran, about) = outcome?;
    let is_open = args.way() == Loop::Open;
    let summary = Summary::new(&ran.records, args.slo.as_ref(), is_open);
    let report = report::Report { about: &about, summary: &summary, ran: &ran, cancel_share: args.cancel };
    if console.is_json() {
        console.print_json(&report.json())?;
    } else {
        console.print(&report.text(console.paint()))?;
    }
    if let Some(path) = &args.html {
        let page = page::page(&report);
        std::fs::write(path, page).map_err(|error| Failure::file(path, "write the report", &error))?;
    }
    if summary.late.as_ref().is_some_and(|late| late.p99 > 0.02) {
        console.note("requests were sent late: this machine was too busy to send them at this rate");
    }
    match ran.is_interrupted {
        true => Err(Failure::interrupted()),
        false if summary.n_requests > 0 && summary.n_failed() == summary.n_requests => {
            Err(Failure::new(Exit::Failed, "every request failed"))
        }
        false => Ok(()),
    }
}

async fn measure(
    args: &Args,
    source: Source,
    target: Target,
    interrupt: &Interrupt,
    console: &Console,
) -> Result<(load::Ran, About), Failure> {
    let unusable = |failed: Failed| {
        // Nobody talks to a server that is not who it says.
        let is_reached = !matches!(&*failed.kind, "connect" | "tls");
        let exit = if is_reached { Exit::Failed } else { Exit::Unreachable };
        let what = if failed.kind.starts_with("http_") { "refuses what it is asked" } else { "gives no answer" };
        Failure::new(exit, format_args!("the server at {} {what}: {}", args.url.authority(), failed.message))
    };
    let timeout = Duration::from_secs_f64(args.timeout);
    let model = match &args.model {
        Some(name) => name.clone(),
        None => first_model(&target, timeout).await.map_err(unusable)?,
    };
    let manner = Manner { api: args.api, model, ignore_eos: args.ignore_eos, fields: args.fields.clone(), timeout };
    let material = match args.prompt_ids {
        Some(ids) => Material::Ids(ids),
        None => Material::Words(learn(&target, &manner, args.seed).await.map_err(unusable)?),
    };
    console.detail(&format!("asking {} at {}", manner.model, args.url.authority()));
    let prompts = Prompts::new(material, args.shared_prefix, args.seed);
    let shared = Arc::new(Shared { target, manner, cancels: cancels::Cancels::default() });
    warm_up(args, &source, &prompts, &shared, interrupt).await?;
    let (most, expected) = args.most();
    let n_requests = expected.or(match &source {
        Source::Trace(entries) => Some(entries.len() as u64),
        Source::Drawn { .. } => None,
    });
    let about = About {
        url: args.url.authority(),
        model: shared.manner.model.clone(),
        api: args.api.name(),
        load: report::load(args.way(), args.rate, args.trace.as_deref()),
        lengths: args.trace.is_none().then(|| (args.prompt_tokens.to_string(), args.answer_tokens.to_string())),
        shared_prefix: args.shared_prefix,
        objective: args.slo.map(|objective| objective.to_string()),
        seed: args.seed,
        is_learnt: !matches!(material, Material::Words(measure) if !measure.is_learnt),
    };
    let plan = Plan::new(source, prompts, args.cancel, most, args.seed);
    let mut progress = n_requests.map(|n| Progress::new(console, "measuring", n, Unit::Requests));
    let mut n_ended = 0;
    let told = |_: &Record| {
        n_ended += 1;
        if let Some(progress) = &mut progress {
            progress.at(n_ended, "");
        }
    };
    let ran = load::run(shared, plan, args.way(), args.seconds, interrupt, told).await;
    Ok((ran, about))
}

/// The first model that the server names.
async fn first_model(target: &Target, timeout: Duration) -> Result<String, Failed> {
    let models = tokio::time::timeout(timeout, async { target.get("/models").await?.json().await }).await;
    let models = models.map_err(|_| Failed::new("timeout", "it took too long"))??;
    let name = models["data"][0]["id"].as_str().map(str::to_owned);
    name.ok_or_else(|| Failed::new("malformed", "it names no model, --model does"))
}

/// Learns how many tokens a word takes.
async fn learn(target: &Target, manner: &Manner, seed: u64) -> Result<Measure, Failed> {
    let mut random = Random::new(seed);
    let few = exchange::probe(target, manner, words(TRIALS[0], &mut random)).await?;
    // A model that has no room for the second one can still be asked short ones.
    let many = exchange::probe(target, manner, words(TRIALS[1], &mut random)).await.unwrap_or(None);
    Ok(Measure::learn([few, many]))
}

/// Sends requests like those that count, by as many clients; what is wrong with all of them shows here.
async fn warm_up(
    args: &Args,
    source: &Source,
    prompts: &Prompts,
    shared: &Arc<Shared>,
    interrupt: &Interrupt,
) -> Result<(), Failure> {
    let n_clients = match args.way() {
        Loop::Closed(n_clients) => n_clients,
        Loop::Open => 1,
    };
    // Other prompts than those that count, or these would be found in the server's cache.
    let mut plan = Plan::new(source.clone(), prompts.clone(), 0.0, args.warmup.into(), !args.seed);
    let mut open = JoinSet::new();
    loop {
        for planned in plan.by_ref().take(n_clients - open.len()) {
            let shared = Arc::clone(shared);
            open.spawn(async move {
                exchange::exchange(&shared.target, &shared.manner, &planned, Instant::now(), |_| {}).await
            });
        }
        let Some(record) = open.join_next().await else { return Ok(()) };
        if interrupt.is_asked() {
            return Err(Failure::interrupted());
        }
        if let Ok(Record { outcome: exchange::Outcome::Failed(failed), .. }) = record {
            let failure = Failure::new(
                Exit::Failed,
                format_args!("a request to warm up failed ({}): {}", failed.kind, failed.message),
            );
            let is_long = failed.kind.ends_with("context_length_exceeded");
            return Err(if is_long { failure.hint("smaller --prompt-tokens or --answer-tokens") } else { failure });
        }
    }
}
