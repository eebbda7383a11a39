//! What is enforced, what is passed over, what is refused and where.

use super::*;

fn refused(schema: &Json) -> Fault {
    checked(schema).expect_err(&schema.to_string())
}

#[test]
fn what_can_not_be_enforced_is_told_with_its_place() {
    let of = |property: Json| json!({ "type": "object", "properties": { "a/b": property } });
    for (property, place) in [
        (json!({ "not": {} }), "not"),
        (json!({ "foo": 1 }), "foo"),
        (json!({ "nullable": true }), "nullable"),
        (json!({ "contentEncoding": "base64" }), "contentEncoding"),
        (json!({ "contentMediaType": "a/b" }), "contentMediaType"),
        (json!({ "additionalItems": false }), "additionalItems"),
        (json!({ "patternProperties": { "a": {} } }), "patternProperties"),
        (json!({ "uniqueItems": false }), "uniqueItems"),
        (json!({ "$anchor": "a" }), "$anchor"),
        (json!({ "$id": "a" }), "$id"),
        (json!({ "exclusiveMinimum": true, "minimum": 1 }), "exclusiveMinimum"),
        (json!({ "type": "strin" }), "type"),
        (json!({ "type": [] }), "type"),
        (json!({ "format": "duration" }), "format"),
        (json!({ "minLength": -1 }), "minLength"),
        (json!({ "minLength": 5, "maxLength": 3 }), "minLength"),
        (json!({ "minimum": 5, "maximum": 3 }), "minimum"),
        (json!({ "multipleOf": 0 }), "multipleOf"),
        (json!({ "enum": [] }), "enum"),
        (json!({ "anyOf": [] }), "anyOf"),
        (json!({ "anyOf": [{}, { "not": {} }] }), "anyOf/1/not"),
        (json!({ "items": [{}] }), "items"),
        (json!({ "items": 5 }), "items"),
        (json!({ "required": [1] }), "required"),
        (json!({ "$ref": "http://x/y" }), "$ref"),
        (json!({ "$ref": "#/nowhere" }), "$ref"),
        (json!({ "$ref": "#name" }), "$ref"),
        (json!({ "pattern": 1 }), "pattern"),
        (json!({ "minProperties": 2 }), "minProperties"),
        (json!({ "properties": { "x": {} }, "maxProperties": 3 }), "maxProperties"),
    ] {
        let fault = refused(&of(property.clone()));
        assert_eq!(fault.pointer, format!("#/properties/a~1b/{place}"), "{property}: {fault:?}");
    }
    assert_eq!(refused(&json!(5)).pointer, "#");
    assert_eq!(refused(&json!({ "$schema": "http://x" })).pointer, "#/$schema");
}

#[test]
fn annotations_change_nothing() {
    let annotated = json!({
        "$schema": "http://json-schema.org/draft-07/schema#", "$id": "x", "$comment": "x", "title": "t",
        "description": "d", "default": 1, "examples": [1], "deprecated": true, "readOnly": true, "writeOnly": true,
        "type": "integer",
    });
    assert_eq!(checked(&annotated).unwrap(), checked(&json!({ "type": "integer" })).unwrap());
}

#[test]
fn references_are_by_name_and_circles_are_refused() {
    let list = json!({ "$defs": { "a b": { "type": "object", "properties": {
        "next": { "anyOf": [{ "$ref": "#/$defs/a%20b" }, { "type": "null" }] } } } }, "$ref": "#/$defs/a b" });
    let out = checked(&list).unwrap();
    assert_eq!(out["$ref"], "#/$defs/r0");
    assert_eq!(out["$defs"]["r0"]["properties"]["next"]["anyOf"][0]["$ref"], "#/$defs/r0");
    assert_eq!(checked(&out).unwrap(), out);
    for (schema, place) in [
        (json!({ "$defs": { "n": { "$ref": "#/$defs/n" } }, "$ref": "#/$defs/n" }), "#/$defs/n/$ref"),
        (json!({ "allOf": [{ "$ref": "#" }] }), "#/allOf/0/$ref"),
        (json!({ "$ref": "#" }), "#/$ref"),
        (
            json!({ "$defs": { "a": { "anyOf": [{ "$ref": "#/$defs/b" }] }, "b": { "$ref": "#/$defs/a" } },
                "items": { "$ref": "#/$defs/a" } }),
            "#/$defs/b/$ref",
        ),
    ] {
        assert_eq!(refused(&schema).pointer, place);
    }
}

#[test]
fn one_of_is_any_of_where_no_value_is_in_two() {
    let kinds = |one: Json, other: Json| {
        let of = |kind: Json| json!({ "type": "object", "properties": { "kind": kind }, "required": ["kind"] });
        json!({ "oneOf": [of(one), of(other)] })
    };
    for schema in [
        json!({ "oneOf": [{ "const": 1 }, { "const": 2 }] }),
        json!({ "oneOf": [{ "enum": [1, "a"] }, { "enum": [2, "b"] }] }),
        json!({ "oneOf": [{ "type": "string" }, { "type": ["integer", "null"] }] }),
        json!({ "oneOf": [{ "type": "integer", "maximum": 3 }, { "type": "number", "exclusiveMinimum": 3 }] }),
        json!({ "oneOf": [{ "const": "a" }, { "type": "integer" }] }),
        kinds(json!({ "const": "a" }), json!({ "const": "b" })),
        json!({ "$defs": { "a": { "const": 1 }, "b": { "const": 2 } },
            "oneOf": [{ "$ref": "#/$defs/a" }, { "$ref": "#/$defs/b" }] }),
    ] {
        assert!(checked(&schema).unwrap().get("anyOf").is_some(), "{schema}");
    }
    for schema in [
        json!({ "oneOf": [{ "type": "integer" }, { "type": "number" }] }),
        json!({ "oneOf": [{ "const": 1 }, { "const": 1.0 }] }),
        json!({ "oneOf": [{ "const": 1 }, { "type": "integer" }] }),
        json!({ "oneOf": [{ "maximum": 3 }, { "minimum": 3 }] }),
        json!({ "oneOf": [{}, {}] }),
        kinds(json!({ "const": "a" }), json!({ "type": "string" })),
    ] {
        assert_eq!(refused(&schema).pointer, "#/oneOf");
    }
}

#[test]
fn there_are_no_more_parts_than_are_worked_off_in_time() {
    let values: Vec<usize> = (0..=MOST_VALUES).collect();
    assert_eq!(refused(&json!({ "enum": values })).pointer, "#/enum");
    let properties: Map<String, Json> = (0..=MOST_PATTERNS)
        .map(|n| (format!("p{n}"), json!({ "type": "string", "pattern": format!("^a{n}$") })))
        .collect();
    assert!(refused(&json!({ "properties": properties })).reason.contains("patterns"));
    let schemas = vec![json!({}); MOST_SCHEMAS];
    assert!(refused(&json!({ "anyOf": schemas })).reason.contains("subschemas"));
}

#[test]
fn names_are_written_in_one_way_where_some_are_free() {
    let open = checked(&json!({ "properties": { "a": {} } })).unwrap();
    assert_eq!(open[SETTINGS]["json_allowed_escapes"], PLAIN_ESCAPES);
    let closed = checked(&json!({ "properties": { "a": {} }, "additionalProperties": false })).unwrap();
    assert_eq!(closed[SETTINGS].get("json_allowed_escapes"), None);
}
