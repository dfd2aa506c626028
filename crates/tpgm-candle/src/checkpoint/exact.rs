//! Floating-point numbers in JSON, to the last bit.
//!
//! serde_json writes a number so that it can be read exactly, but its parser, unless built otherwise, is off by one unit
//! in the last place for a third of all numbers. A learning rate must not change when a run is resumed. So the bits of
//! such numbers are kept beside the JSON, under the path of each.

use std::collections::BTreeMap;

use serde_json::{Number, Value};

/// JSON pointers (RFC 6901) of numbers, and their bits in hexadecimal.
pub(super) type Bits = BTreeMap<String, String>;

/// The numbers that the parser would not read as they are.
pub(super) fn inexact(value: &Value) -> Bits {
    let mut found = Bits::new();
    visit(value, "", &mut found);
    found
}

fn visit(value: &Value, path: &str, found: &mut Bits) {
    match value {
        Value::Number(number) if number.is_f64() => {
            let bits = number.as_f64().unwrap_or_default().to_bits();
            let read = serde_json::from_str::<f64>(&number.to_string()).map(f64::to_bits);
            if read.ok() != Some(bits) {
                found.insert(path.to_owned(), format!("{bits:016x}"));
            }
        }
        Value::Array(values) => {
            for (i, value) in values.iter().enumerate() {
                visit(value, &format!("{path}/{i}"), found);
            }
        }
        Value::Object(values) => {
            for (key, value) in values {
                let key = key.replace('~', "~0").replace('/', "~1");
                visit(value, &format!("{path}/{key}"), found);
            }
        }
        _ => {}
    }
}

/// Puts the bits back. The error is the path that does not fit.
pub(super) fn restore(value: &mut Value, bits: &Bits) -> Result<(), String> {
    for (path, bits) in bits {
        let number =
            u64::from_str_radix(bits, 16).ok().and_then(|bits| Number::from_f64(f64::from_bits(bits)));
        match (value.pointer_mut(path), number) {
            (Some(Value::Number(old)), Some(number)) => *old = number,
            _ => return Err(path.clone()),
        }
    }
    Ok(())
}
