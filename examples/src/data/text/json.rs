//! Rows as JSON objects.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Fields;

/// Checks that a file may be one of an object per line.
///
/// # Errors
///
/// It is an array.
pub(super) fn check(bytes: &[u8]) -> Result<()> {
    ensure!(
        !bytes.trim_ascii_start().starts_with(b"["),
        "it is a JSON array, not an object per line: `jq -c '.[]'` makes one of the other"
    );
    Ok(())
}

/// The class and the text of a line.
///
/// # Errors
///
/// It is no object, or lacks one of them.
pub(super) fn row(line: &[u8], fields: &Fields) -> Result<(String, String)> {
    let row: BTreeMap<String, Value> = serde_json::from_slice(line).context("not a JSON object")?;
    let field = |name: &str| match row.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) => Ok(number.to_string()),
        Some(Value::Null) => bail!("`{name}` is null"),
        Some(Value::Bool(value)) => bail!("`{name}` is {value}, neither a text nor a number"),
        Some(Value::Array(_)) => bail!("`{name}` is an array, neither a text nor a number"),
        Some(Value::Object(_)) => bail!("`{name}` is an object, neither a text nor a number"),
        None => bail!("no `{name}`"),
    };
    Ok((field(&fields.label)?, field(&fields.text)?))
}
