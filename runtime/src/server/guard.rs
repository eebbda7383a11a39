//! At the door: request ids, Host and Origin, keys. Every request passes here first, and every response last.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, Version};
use axum::middleware::Next;
use axum::response::Response;

use super::app::{App, unix_seconds};
use super::catalogue::Hosted;
use super::error::{Invalid, MALFORMED_HEAD, Problem};
use super::keys::{Key, Keys, Scope};
use super::live::Live;
use super::log::{Record, Recorded};
use super::metrics::{PHASES, Phase};
use super::otlp::Parent;
use super::quota::{Account, Running, Standing};
use super::{admin, cors, page, wire};

/// Both ends of a connection.
#[derive(Clone, Debug)]
pub(super) struct Ends {
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    /// What logs call the client's certificate, if it has shown one.
    pub(super) certificate: Option<Arc<str>>,
}

/// Who asks.
#[derive(Clone, Debug, Default)]
pub(super) struct Caller {
    /// Its key; `None` where no keys are asked for.
    key: Option<Key>,
    /// What the key has used.
    account: Option<Arc<Account>>,
    /// Its certificate; `None` where none are asked for.
    certificate: Option<Arc<str>>,
    /// It is on this machine.
    is_near: bool,
    /// Keys are asked for, and it has shown none: what it asks for needs none.
    lacks_key: bool,
}

impl Caller {
    /// What logs call it, and who gets a share of the work: the key or the certificate; empty for nobody in particular.
    pub(super) fn id(&self) -> &str {
        self.key.as_ref().map(|key| &*key.id).or(self.certificate.as_deref()).unwrap_or("")
    }

    /// What metrics call it. Keys are few; certificates are as many as their authority makes, and are not told apart.
    pub(super) fn metrics_id(&self) -> &str {
        self.key.as_ref().map_or("", |key| &key.id)
    }

    /// Counts a request with prompts of so many tokens, unless its key may have none now. `None` where keys have no limits.
    pub(super) fn begin(&self, n_tokens: usize) -> Result<Option<Running>, Problem> {
        let Some((key, account)) = self.key.as_ref().zip(self.account.as_ref()) else { return Ok(None) };
        account.begin(key.quota, n_tokens as u64, Instant::now()).map(Some)
    }

    /// Headers that tell how the limits of its key stand, as OpenAI has them.
    fn rate_headers(&self) -> Vec<(String, String)> {
        let Some((key, account)) = self.key.as_ref().zip(self.account.as_ref()) else { return Vec::new() };
        let standings = account.standing(&key.quota, Instant::now());
        let kinds = ["requests", "tokens"].into_iter().zip(standings);
        let headers = kinds.filter_map(|(kind, standing)| {
            let Standing { limit, remaining, reset } = standing?;
            let values = [("limit", limit.to_string()), ("remaining", remaining.to_string()), ("reset", brief(reset))];
            Some(values.map(|(name, value)| (format!("x-ratelimit-{name}-{kind}"), value)))
        });
        headers.flatten().collect()
    }

    /// Whether it may use the admin routes.
    pub(super) fn is_operator(&self) -> bool {
        match &self.key {
            Some(key) => key.may(Scope::Admin),
            None => self.is_near && !self.lacks_key,
        }
    }

    /// Whether it may know that there is a model of this name.
    pub(super) fn may_know(&self, model: &str) -> bool {
        self.may_ask(model) && (!self.lacks_key || self.is_near)
    }

    pub(super) fn may_ask(&self, model: &str) -> bool {
        self.key.as_ref().is_none_or(|key| key.may_ask(model))
    }
}

/// What a handler knows of the request beside its body.
#[derive(Clone, Debug)]
pub(super) struct Visit {
    pub(super) id: Arc<str>,
    pub(super) caller: Caller,
    /// With whom it shares what its prompts begin with.
    pub(super) prefix_scope: Arc<str>,
    /// What telemetry calls what is asked for.
    pub(super) operation: &'static str,
    /// Where it stands in its client's trace.
    pub(super) parent: Option<Parent>,
    /// What it has to do with, once that is known: for metrics and headers.
    pub(super) about: Arc<About>,
}

/// What a request is about, and how far it is.
#[derive(Debug, Default)]
pub(super) struct About {
    /// Its name, one of those that are served.
    name: OnceLock<String>,
    /// What tells its version.
    print: OnceLock<String>,
    /// 1 and the place of its phase; 0 before it is with an engine.
    phase: AtomicUsize,
    /// Why its answer broke off, though it had been begun.
    broken: OnceLock<Problem>,
}

impl About {
    pub(super) fn set_name(&self, name: &str) {
        self.name.get_or_init(|| name.to_owned());
    }

    pub(super) fn set_model(&self, hosted: &Hosted) {
        self.print.get_or_init(|| hosted.print.clone());
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.phase.store(1 + phase as usize, Ordering::Relaxed);
    }

    /// How far it is; `None` before it is with an engine.
    pub(super) fn phase(&self) -> Option<&'static str> {
        let place = self.phase.load(Ordering::Relaxed).checked_sub(1)?;
        PHASES.get(place).map(|phase| phase.name())
    }

    pub(super) fn set_broken(&self, problem: &Problem) {
        self.broken.get_or_init(|| problem.clone());
    }

    pub(super) fn broken(&self) -> Option<&Problem> {
        self.broken.get()
    }

    /// Empty where none is known.
    pub(super) fn name(&self) -> &str {
        self.name.get().map_or("", String::as_str)
    }
}

/// What went wrong, on its way from a handler to the log.
#[derive(Clone, Debug)]
pub(super) struct Blame(pub(super) Problem);

pub(super) async fn guard(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers()).unwrap_or_else(|| format!("req_{}", app.fresh_id()).into());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let origin = request.headers().get(header::ORIGIN).cloned();
    let is_http1 = request.version() <= Version::HTTP_11;
    let about = Arc::<About>::default();
    let mut record = Record::new(&app, &id, &method, &path, &about);
    let mut caller = Caller::default();
    let entered = enter(&app, &request, &mut caller);
    caller.id().clone_into(&mut record.key);
    let mut response = match entered {
        Ok(()) if method == Method::OPTIONS && origin.is_some() => cors::preflight(&app, request.headers()),
        Ok(()) => {
            let prefix_scope = if app.options.shares_prefixes { "" } else { caller.id() };
            let parent = request.headers().get("traceparent").and_then(|value| Parent::parse(value.to_str().ok()?));
            let visit = Visit {
                id: Arc::clone(&id),
                caller: caller.clone(),
                prefix_scope: prefix_scope.into(),
                operation: wire::operation(&path),
                parent,
                about: Arc::clone(&about),
            };
            request.extensions_mut().insert(visit);
            next.run(request).await
        }
        Err(problem) => wire::refuse(&path, &problem),
    };
    let headers = response.headers_mut();
    let mut set = |name: &'static str, text: &str| {
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.insert(name, value);
        }
    };
    set("x-request-id", &id);
    set("openai-processing-ms", &record.start().elapsed().as_millis().to_string());
    let model = about.print.get().map(|print| format!(" model={print}")).unwrap_or_default();
    set("x-farpost-version", &format!("{}{model}", env!("CARGO_PKG_VERSION")));
    for (name, value) in caller.rate_headers() {
        if let (Ok(name), Ok(value)) = (HeaderName::from_str(&name), HeaderValue::from_str(&value)) {
            headers.insert(name, value);
        }
    }
    let blame = response.extensions().get::<Blame>().map(|Blame(problem)| problem.clone());
    // Pages that were not let in read nothing, not even why.
    let is_stranger = matches!(blame, Some(Problem::Host(_) | Problem::Origin(_)));
    if let Some(origin) = origin.filter(|_| !is_stranger) {
        cors::show(&app, origin, response.headers_mut());
    }
    if let Some(problem) = &blame {
        app.metrics.count_refusal(problem.reason(), about.name(), caller.metrics_id());
    }
    let is_last = app.is_draining() || blame.as_ref().is_some_and(|problem| problem.code() == Some(MALFORMED_HEAD));
    if is_last && is_http1 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    record.status = Some(response.status());
    record.problem = blame;
    response.map(|body| Body::new(Recorded::new(body, record)))
}

/// Finds out who asks, and whether it may. What is found out is left in `caller`, though it may not.
fn enter(app: &App, request: &Request, caller: &mut Caller) -> Result<(), Problem> {
    let ends = request.extensions().get::<Ends>();
    check_head(request)?;
    check_host(app, request, ends)?;
    check_origin(app, request)?;
    let path = request.uri().path();
    caller.certificate = ends.and_then(|ends| ends.certificate.clone());
    let is_near = ends.is_some_and(|ends| ends.peer.ip().to_canonical().is_loopback());
    caller.is_near = is_near;
    let is_admin = path.starts_with(admin::PREFIX);
    let Some(keys) = app.keys.as_ref().map(Live::get) else {
        return if is_admin && !is_near { Err(Problem::Scope(Scope::Admin.name())) } else { Ok(()) };
    };
    // Whether it lives is no secret, nor is a page that has nothing to tell. Preflights carry no keys.
    let is_free = matches!(path, "/healthz" | "/readyz") || page::has(path) || (path == "/version" && is_near);
    if is_free || (request.method() == Method::OPTIONS && request.headers().contains_key(header::ORIGIN)) {
        // Who shows one where it need not is told more.
        match identify(&keys, request.headers()) {
            Ok(key) if matches!(path, "/readyz" | "/version") => caller.key = Some(key.clone()),
            _ => caller.lacks_key = true,
        }
        return Ok(());
    }
    let scope = match path {
        "/metrics" => Scope::Metrics,
        _ if is_admin => Scope::Admin,
        _ => Scope::Infer,
    };
    let key = caller.key.insert(identify(&keys, request.headers())?.clone());
    // Whoever may read metrics or run the server may see its version.
    if path != "/version" && !key.may(scope) {
        return Err(Problem::Scope(scope.name()));
    }
    let account = caller.account.insert(app.account(&key.id));
    match *request.method() {
        Method::POST => account.take_request(&key.quota, Instant::now()),
        _ => Ok(()),
    }
}

fn identify<'k>(keys: &'k Keys, headers: &HeaderMap) -> Result<&'k Key, Problem> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = text("authorization").and_then(|value| {
        let (kind, key) = value.split_once(' ')?;
        kind.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    let given = bearer.or_else(|| text("api-key")).ok_or(Problem::NoKey)?;
    let key = keys.find(given).ok_or(Problem::WrongKey)?;
    if key.has_expired(unix_seconds()) { Err(Problem::ExpiredKey) } else { Ok(key) }
}

/// What others on the way may read in another way than this server does.
fn check_head(request: &Request) -> Result<(), Problem> {
    let headers = request.headers();
    match headers.get_all(header::HOST).iter().count() {
        // In HTTP/2 the target has it; HTTP/1.0 knows none (RFC 9112, section 3.2).
        0 if request.version() == Version::HTTP_11 => {
            return Err(Invalid::head("the request has no Host header, expected one".to_owned()).into());
        }
        0 | 1 => {}
        n => return Err(Invalid::head(format!("the request has {n} Host headers, expected one")).into()),
    }
    let codings: Vec<_> = headers.get_all(header::TRANSFER_ENCODING).iter().collect();
    match codings[..] {
        [] => Ok(()),
        [coding] if coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(Invalid::head(format!("the Transfer-Encoding is {codings:?}, expected \"chunked\" alone")).into()),
    }
}

/// A page on the internet can name any address its own; it can not choose the host that its requests name because of it.
/// Where both the target and a header name one, neither may be another's.
fn check_host(app: &App, request: &Request, ends: Option<&Ends>) -> Result<(), Problem> {
    let [target, header] = hosts(request);
    let host = target.or(header).unwrap_or("");
    let mut all = [host, header.unwrap_or(host)].into_iter();
    match all.find(|host| !is_ours(app, host, ends)) {
        Some(host) => Err(Problem::Host(host.to_owned())),
        None => Ok(()),
    }
}

fn is_ours(app: &App, host: &str, ends: Option<&Ends>) -> bool {
    let name = host_name(host);
    let is_own = match name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(ip) => {
            let local = ends.map(|ends| ends.local.ip().to_canonical());
            ip.to_canonical().is_loopback() || local == Some(ip.to_canonical())
        }
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    };
    is_own || app.options.hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Whom the request is for: by its target, which has a host in HTTP/2, and by its Host header.
fn hosts(request: &Request) -> [Option<&str>; 2] {
    let target = request.uri().authority().map(axum::http::uri::Authority::as_str);
    [target, request.headers().get(header::HOST).map(|value| value.to_str().unwrap_or("?"))]
}

/// The host of `host[:port]`.
fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        // The last colon of an address in brackets may be its own.
        Some((name, port)) if !port.contains(']') => name,
        _ => host,
    }
}

/// The origin of a page must be this server, or be listed.
fn check_origin(app: &App, request: &Request) -> Result<(), Problem> {
    let Some(origin) = request.headers().get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or("?");
    let [target, header] = hosts(request);
    let host = target.or(header).unwrap_or("");
    let is_same = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")) == Some(host);
    if is_same || cors::is_listed(app, origin) { Ok(()) } else { Err(Problem::Origin(origin.to_owned())) }
}

/// A time as OpenAI's headers have it, such as `1m30s`, `2.5s` or `40ms`.
fn brief(time: Duration) -> String {
    let ms = time.as_millis();
    match (ms / 60_000, ms % 60_000) {
        (0, ms @ 0..1000) => format!("{ms}ms"),
        (0, ms) => format!("{}s", ms as f64 / 1e3),
        (minutes, ms) => format!("{minutes}m{}s", ms / 1000),
    }
}

/// The id a client gave, if it can be put into a log.
fn request_id(headers: &HeaderMap) -> Option<Arc<str>> {
    let given = headers.get("x-request-id")?.to_str().ok()?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=64).contains(&given.len()).then_some(())?;
    given.bytes().all(is_plain).then(|| given.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_from_ports() {
        let names = ["localhost:80", "localhost", "127.0.0.1:8080", "[::1]:80", "[::1]", ""].map(host_name);
        assert_eq!(names, ["localhost", "localhost", "127.0.0.1", "[::1]", "[::1]", ""]);
    }

    #[test]
    fn times_are_brief() {
        let times = [0, 999, 1000, 1500, 60_000, 90_500].map(|ms| brief(Duration::from_millis(ms)));
        assert_eq!(times, ["0ms", "999ms", "1s", "1.5s", "1m0s", "1m30s"]);
    }

    #[test]
    fn ids_of_clients_are_kept_if_they_are_plain() {
        let id = |text: &'static str| {
            request_id(&HeaderMap::from_iter([("x-request-id".parse().unwrap(), HeaderValue::from_static(text))]))
        };
        assert_eq!(id("a-1_b.c").as_deref(), Some("a-1_b.c"));
        assert_eq!([id(""), id("a b"), id("a\tb")], [const { None }; 3]);
    }
}
