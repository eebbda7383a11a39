//! Spans and metrics as OTLP's JSON: numbers of 64 bits are strings, ids are hexadecimal.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value as Json, json};

use super::counts::Sizes;
use super::{Counts, Kind, Span};
use crate::server::metrics::Histogram;

/// SPAN_KIND_SERVER
const SERVER: u8 = 2;
/// STATUS_CODE_ERROR
const ERROR: u8 = 2;
/// AGGREGATION_TEMPORALITY_CUMULATIVE
const CUMULATIVE: u8 = 2;

fn text(key: &str, value: &str) -> Json {
    json!({ "key": key, "value": { "stringValue": value } })
}

fn number(key: &str, value: usize) -> Json {
    json!({ "key": key, "value": { "intValue": value.to_string() } })
}

fn nanos(time: Duration) -> String {
    time.as_nanos().to_string()
}

pub(super) fn span(span: &Span, trace: u128, id: u64, parent: Option<u64>) -> Json {
    let start = span.start.duration_since(UNIX_EPOCH).unwrap_or_default();
    let reasons: Vec<Json> = span.finish_reasons.iter().map(|reason| json!({ "stringValue": reason })).collect();
    let mut attributes = vec![
        text("gen_ai.operation.name", span.operation),
        text("gen_ai.provider.name", "farpost"),
        text("gen_ai.request.model", &span.model),
        text("gen_ai.response.model", &span.model),
        number("gen_ai.usage.input_tokens", span.input_tokens),
        number("gen_ai.usage.output_tokens", span.output_tokens),
        json!({ "key": "gen_ai.response.finish_reasons", "value": { "arrayValue": { "values": reasons } } }),
        text("farpost.request.id", &span.request_id),
        number("farpost.usage.cached_tokens", span.cached_tokens),
    ];
    if !span.caller.is_empty() {
        attributes.push(text("farpost.caller", &span.caller));
    }
    if let Some(time) = span.first_token {
        let seconds = json!({ "doubleValue": time.as_secs_f64() });
        attributes.push(json!({ "key": "farpost.time_to_first_token", "value": seconds }));
    }
    attributes.extend(span.error.map(|error| text("error.type", error)));
    json!({
        "traceId": format!("{trace:032x}"),
        "spanId": format!("{id:016x}"),
        "parentSpanId": parent.map(|parent| format!("{parent:016x}")).unwrap_or_default(),
        "name": format!("{} {}", span.operation, span.model),
        "kind": SERVER,
        "startTimeUnixNano": nanos(start),
        "endTimeUnixNano": nanos(start + span.duration),
        "attributes": attributes,
        "status": span.error.map_or_else(|| json!({}), |error| json!({ "code": ERROR, "message": error })),
    })
}

fn resource(service_name: &str) -> Json {
    json!({ "attributes": [text("service.name", service_name), text("service.version", env!("CARGO_PKG_VERSION"))] })
}

fn scope() -> Json {
    json!({ "name": "farpost", "version": env!("CARGO_PKG_VERSION") })
}

/// A message with spans.
pub(super) fn traces(service_name: &str, spans: &[Json]) -> String {
    let scoped = json!([{ "scope": scope(), "spans": spans }]);
    json!({ "resourceSpans": [{ "resource": resource(service_name), "scopeSpans": scoped }] }).to_string()
}

/// A message with all sums so far, since `start` in seconds since 1970; `None` if nothing was counted yet.
pub(super) fn metrics(service_name: &str, start: u64, counts: &BTreeMap<Kind, Arc<Counts>>) -> Option<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let point = |kind: &Kind, more: Option<Json>, histogram: [(&str, Json); 4]| {
        let mut attributes = vec![
            text("gen_ai.operation.name", kind.operation),
            text("gen_ai.provider.name", "farpost"),
            text("gen_ai.request.model", &kind.model),
            text("gen_ai.response.model", &kind.model),
        ];
        if !kind.caller.is_empty() {
            attributes.push(text("farpost.caller", &kind.caller));
        }
        attributes.extend(kind.error.map(|error| text("error.type", error)));
        attributes.extend(more);
        let mut point = json!({ "attributes": attributes });
        point["startTimeUnixNano"] = nanos(Duration::from_secs(start)).into();
        point["timeUnixNano"] = nanos(now).into();
        for (name, value) in histogram {
            point[name] = value;
        }
        point
    };
    type Which<T> = fn(&Counts) -> &T;
    let times: [(&str, Which<Histogram>); 3] = [
        ("gen_ai.server.request.duration", |of| &of.whole),
        ("gen_ai.server.time_to_first_token", |of| &of.first_token),
        ("gen_ai.server.time_per_output_token", |of| &of.inter_token),
    ];
    let times = times.into_iter().map(|(name, which)| {
        let used = counts.iter().map(|(kind, counts)| (kind, which(counts))).filter(|(_, times)| times.n() > 0);
        let points = used.map(|(kind, of)| point(kind, None, histogram(of.buckets(), of.n(), of.seconds())));
        (name, "s", points.collect::<Vec<_>>())
    });
    let sizes: [(&str, Which<Sizes>); 2] = [("input", |of| &of.input), ("output", |of| &of.output)];
    let tokens = sizes.into_iter().flat_map(|(kind_of_token, which)| {
        let used = counts.iter().map(move |(kind, counts)| (kind, which(counts))).filter(|(_, sizes)| sizes.n() > 0);
        used.map(move |(kind, of)| {
            let kind_of_token = text("gen_ai.token.type", kind_of_token);
            point(kind, Some(kind_of_token), histogram(of.buckets(), of.n(), of.sum()))
        })
    });
    let tokens = ("gen_ai.client.token.usage", "{token}", tokens.collect::<Vec<_>>());
    let metrics: Vec<Json> = times
        .chain([tokens])
        .filter(|(.., points)| !points.is_empty())
        .map(|(name, unit, points)| {
            let histogram = json!({ "aggregationTemporality": CUMULATIVE, "dataPoints": points });
            json!({ "name": name, "unit": unit, "histogram": histogram })
        })
        .collect();
    if metrics.is_empty() {
        return None;
    }
    let scoped = json!([{ "scope": scope(), "metrics": metrics }]);
    Some(json!({ "resourceMetrics": [{ "resource": resource(service_name), "scopeMetrics": scoped }] }).to_string())
}

/// The fields of a histogram's data point, of `n` values of this sum.
fn histogram(buckets: impl Iterator<Item = (f64, u64)>, n: u64, sum: f64) -> [(&'static str, Json); 4] {
    let (bounds, mut counts): (Vec<f64>, Vec<u64>) = buckets.unzip();
    let within: u64 = counts.iter().sum();
    // Counts are read one after the other while others count.
    let n = n.max(within);
    counts.push(n - within);
    let counts: Vec<String> = counts.iter().map(u64::to_string).collect();
    [
        ("count", n.to_string().into()),
        ("sum", sum.into()),
        ("bucketCounts", counts.into()),
        ("explicitBounds", bounds.into()),
    ]
}
